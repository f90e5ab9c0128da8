"""Local files of tasks, as rows with the hub's columns."""

from __future__ import annotations

import bz2
import json

import pytest
from lm_rows import cases, lines, mmlu_csv, tabs, write

from conftest import SHARED
from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import local_data
from pytest_llmslim.evals.local_data import find, layouts, shared_words, splits

CASES = cases()
UNREAD = {"id", "ind", "idx", "ctx", "source_id", "split", "split_type", "question_id", "subject"}
"""Columns of the hub that no prompt reads, so that files need not hold them."""


def read(task, folder):
    return {split: list(rows) for split, rows in splits(task=task, folder=str(folder)).items()}


def prompted(task, row):
    """A row of the hub without what no prompt shows: columns, how choices are called, the kind of an answer."""
    row = {column: value for column, value in row.items() if column not in UNREAD}
    if task == "arc_challenge":
        place = row["choices"]["label"].index(row["answerKey"])
        labels = list("ABCD")[: len(row["choices"]["label"])]
        row |= {"choices": {**row["choices"], "label": labels}, "answerKey": labels[place]}
    if task == "triviaqa":
        row["answer"] = {key: row["answer"][key] for key in ("value", "aliases")}
    return row


@pytest.mark.parametrize("task", CASES)
def test_rows_are_the_hubs(task, tmp_path):
    """Column by column, in value and type, wherever a prompt reads a column."""
    found = read(task, write(tmp_path, CASES[task].files))
    split, *others = found
    expected = [prompted(task, row) for row in CASES[task].hub[split]]
    assert found[split] == expected
    assert [[type(v) for v in row.values()] for row in found[split]] == [
        [type(row[column]) for column in ours] for ours, row in zip(found[split], expected, strict=True)
    ]
    assert others == (["dev"] if task == "mmlu_anatomy" else [])


@pytest.mark.parametrize(
    ("texts", "shared"),
    [
        (["The cup broke since the cup", "The cup broke since the box"], 24),
        (["Anna paid Bo", "Anna paid Bob"], 10),
        (["Anna", "Bob"], 0),
        (["a b c", "a b d", "a x"], 2),
    ],
)
def test_texts_share_whole_words(texts, shared):
    """A word that only begins alike is not shared."""
    assert shared_words(texts) == shared


@pytest.mark.parametrize(
    ("context", "begun"),
    [
        ("A man sits. he", ("A man sits.", "he")),
        ("A man sits. Then a dog, a cat and he", ("A man sits. Then a dog, a cat and he", "")),
        ("How to knit. Take wool. Then begin.", ("How to knit. Take wool. Then begin.", "")),
        ("Is it? what they", ("Is it?", "what they")),
        ("the boys", ("the boys", "")),
    ],
)
def test_hellaswags_unfinished_sentence(context, begun, tmp_path):
    """Behind the last whole one where it begins with a small letter; lm-eval writes it with a capital."""
    text = f"Knitting: {context}\n2\na\nb\nc\nd\n"
    import bz2

    write(tmp_path, {"hellaswag/hellaswag_val_full.txt.bz2": bz2.compress(text.encode())})
    (row,) = read("hellaswag", tmp_path)["validation"]
    assert (row["ctx_a"], row["ctx_b"]) == begun
    assert (row["activity_label"], row["label"], row["endings"]) == ("Knitting", "2", ["a", "b", "c", "d"])


def test_articles_begin_at_headings_of_the_first_level(tmp_path):
    """What is above the first is left out, headings below it are text, and blank lines stay."""
    text = " \n = A = \n \n x = y . \n = = B = = \n z \n = C = D = \n \n q \n"
    write(tmp_path, {"wikitext-2-raw/wiki.test.raw": text})
    pages = [row["page"] for row in read("wikitext", tmp_path)["test"]]
    assert pages == [" = A = \n \n x = y . \n = = B = = \n z ", " = C = D = \n \n q \n"]


def test_a_quotation_mark_in_a_table_is_text(tmp_path):
    """GLUE's files quote nothing."""
    rows = [
        ("sentence1", "sentence2", "label"),
        ('He said "go.', 'She said "stay" .', "not_entailment"),
        ("a", "b", 0),
    ]
    found = read("rte", write(tmp_path, {"glue/RTE/dev.tsv": tabs(*rows)}))["validation"]
    assert found[0] == {"sentence1": 'He said "go.', "sentence2": 'She said "stay" .', "label": 1}
    assert found[1]["label"] == 0


def test_a_head_line_of_sst2_is_no_row(tmp_path):
    """GLUE's own file has one, others have not."""
    write(tmp_path, {"glue/SST-2/dev.tsv": tabs(("sentence", "label"), ("so good", 1))})
    assert read("sst2", tmp_path)["validation"] == [{"sentence": "so good", "label": 1}]


def test_glues_own_mnli_is_preferred(tmp_path):
    """To the pairs out of AdvGLUE, which come with a remark."""
    write(tmp_path, CASES["mnli"].files)
    assert find("mnli", tmp_path).layout.note.startswith("the pairs were taken out of AdvGLUE")
    head = ("index", "sentence1", "sentence2", "gold_label")
    write(tmp_path, {"glue/MNLI/dev_matched.tsv": tabs(head, (0, "It rains.", "It is wet.", "entailment"))})
    assert find("mnli", tmp_path).layout.note == ""
    expected = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}
    assert read("mnli", tmp_path) == {"validation_matched": [expected]}


def test_the_source_is_the_files_and_their_hash(tmp_path):
    """Every byte of every file counts."""
    folder = write(tmp_path, CASES["cola"].files)
    first = find("cola", folder).source()
    assert first.startswith("glue/CoLA/in_domain_dev.tsv glue/CoLA/out_of_domain_dev.tsv sha256:")
    with (folder / "glue/CoLA/out_of_domain_dev.tsv").open("a") as file:
        file.write("\n")
    assert find("cola", folder).source() != first


def test_tasks_without_a_layout(tmp_path):
    """Are not looked for; asking for their rows all the same is refused."""
    assert layouts("boolq") == ()
    assert find("boolq", tmp_path) is None
    with pytest.raises(EvaluationError, match="boolq has no layout for local files; leave --llm-data away"):
        splits(task="boolq", folder=str(tmp_path))


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        (
            "winogrande",
            {},
            r"winogrande needs \S+winogrande.jsonl, which is not there; put it there, or leave",
        ),
        ("mnli", {}, r"mnli needs \S+dev_matched.tsv or \S+advglue.jsonl, which is not there"),
        (
            "mmlu_anatomy",
            {"mmlu/test/anatomy_test.csv": mmlu_csv([])},
            r"needs \S+_test.csv and \S+_dev.csv, which",
        ),
        (
            "arc_challenge",
            {"llm-foundry/arc_challenge.jsonl": lines([{"query": "Question: why?"}])},
            r"arc_challenge.jsonl cannot be read as llm-foundry/arc_challenge.jsonl \(KeyError: 'choices'\); give the",
        ),
        (
            "rte",
            {"glue/RTE/dev.tsv": b"\xff\xfe"},
            r"cannot be read as glue/RTE/dev.tsv \(UnicodeDecodeError: ",
        ),
        (
            "rte",
            {"glue/RTE/dev.tsv": tabs(("sentence1", "sentence2", "label"))},
            r"dev.tsv has no rows; give the",
        ),
        ("hellaswag", {"hellaswag/hellaswag_val_full.txt.bz2": b"none"}, r"\(OSError: Invalid data stream\)"),
        (
            "hellaswag",
            {"hellaswag/hellaswag_val_full.txt.bz2": bz2.compress(b"Act: ctx\n0\na\nb\nc\nd\nAct: ctx\n1\n")},
            r"\(ValueError: 8 lines, which are not six a question\); give the file",
        ),
        (
            "mmlu_anatomy",
            {"mmlu/test/anatomy_test.csv": '"' + "x" * 200_000, "mmlu/dev/anatomy_dev.csv": mmlu_csv([])},
            r"anatomy_test.csv \(Error: field larger than field limit",
        ),
        ("truthfulqa_mc2", {"truthfulqa/mc_task.json": json.dumps([1])}, r"\(TypeError: 'int' object"),
    ],
)
def test_files_that_cannot_be_used(task, files, message, tmp_path):
    """One sentence that names the file and what to do."""
    with pytest.raises(EvaluationError, match=message):
        splits(task=task, folder=str(write(tmp_path, files)))


COUNTS = {
    "arc_challenge": 1172, "winogrande": 1267, "triviaqa": 3000, "truthfulqa_mc2": 817, "wikitext": 62,
    "cola": 1043, "sst2": 872, "mrpc": 408, "rte": 277, "qnli": 5463, "mnli": 73, "mmlu_anatomy": 135,
    "hellaswag": 10042,
}  # fmt: skip


@pytest.mark.skipif(not (SHARED / "data/mmlu").exists(), reason="the shared data are not there")
@pytest.mark.parametrize("task", COUNTS)
def test_published_files_hold_as_many_rows_as_published(task):
    """WikiText-2's test articles are 62 in EleutherAI's document-level set; the others are the official counts."""
    local = find(task, SHARED / "data")
    assert len(local_data._read(local, local.layout.files)) == COUNTS[task]


@pytest.mark.skipif(not (SHARED / "data/mmlu").exists(), reason="the shared data are not there")
def test_hellaswags_two_sources_are_told_apart():
    """3,243 captions of videos have an unfinished sentence and 6,799 texts of WikiHow have none (Zellers et al. 2019).

    Seven captions go on without a letter or with a number in front; a capital would change nothing there.
    """
    local = find("hellaswag", SHARED / "data")
    rows = local_data._read(local, local.layout.files)
    assert sum(bool(row["ctx_b"]) for row in rows) == 3243 - 7
    assert sum(row["ctx_a"].endswith(".") and not row["ctx_b"] for row in rows) == 6799
