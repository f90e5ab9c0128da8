"""Rows of label tasks: local files, the hub, and a fixed part of them."""

from __future__ import annotations

import sys
from collections import Counter

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import SHARED
from pytest_llmslim.errors import EvaluationError, MissingPackageError
from pytest_llmslim.evals.label_tasks import TASKS, Row, fingerprint, rows_of, sample

DATA = SHARED / "data"


def sms(tmp_path, content):
    (tmp_path / "sms_spam").mkdir(exist_ok=True)
    (tmp_path / "sms_spam" / "SMSSpamCollection").write_bytes(content)
    return rows_of("sms_spam", tmp_path)


def test_the_sms_collection_is_read_line_by_line(tmp_path):
    """Tabs, quotation marks and other ends of lines are part of a message; blank lines are none."""
    found = sms(tmp_path, 'ham\tGo "now\tand\u2028then\nspam\tFREE\x85 £5\n\n'.encode())
    assert found.rows == [
        Row("sms_spam 0", ('Go "now\tand\u2028then',), 0),
        Row("sms_spam 1", ("FREE\x85 £5",), 1),
    ]
    assert (found.source, found.notes) == ("sms_spam/SMSSpamCollection", ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"ham\tyes\neggs\tno\n",
            r"line 2 of .* is ham or spam, a tab and a message, got 'eggs\\tno'; fetch",
        ),
        (b"ham yes\n", "line 1 of .* got 'ham yes'"),
        (b"\n", "has no rows; give the whole file"),
        (b"ham\t\xff", "got UnicodeDecodeError; put it there, or leave --llm-data away"),
    ],
)
def test_a_damaged_sms_collection(content, message, tmp_path):
    """Named by file and line."""
    with pytest.raises(EvaluationError, match=message):
        sms(tmp_path, content)


@pytest.mark.parametrize("name", TASKS)
def test_missing_files(name, tmp_path):
    """One sentence with the file and both ways out."""
    with pytest.raises(EvaluationError, match=rf"{name} needs .*; put it there, or leave --llm-data away"):
        rows_of(name, tmp_path)


COUNTS = {
    "sms_spam": {"ham": 4827, "spam": 747},
    "sst2": {"negative": 428, "positive": 444},
    "cola": {"unacceptable": 322, "acceptable": 721},
    "mrpc": {"not_equivalent": 129, "equivalent": 279},
    "rte": {"entailment": 146, "not_entailment": 131},
    "qnli": {"entailment": 2702, "not_entailment": 2761},
}
"""As published."""


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_data_has_the_published_labels(name):
    """Each label as often as its publisher says, and as many texts as the prompt has places."""
    if not DATA.is_dir():
        pytest.skip("the shared data is not there")
    found = rows_of(name, DATA).rows
    assert Counter(TASKS[name].labels[row.label] for row in found) == COUNTS[name]
    assert {len(row.texts) for row in found} == {TASKS[name].prompt.count("{")}
    assert all(text for row in found for text in row.texts)


def test_mnli_says_that_it_is_a_part():
    """The pairs that can be had are no random sample."""
    if not DATA.is_dir():
        pytest.skip("the shared data is not there")
    found = rows_of("mnli", DATA)
    assert Counter(row.label for row in found.rows).total() == 73
    assert "no random sample" in found.notes[0]


def test_labels_beyond_the_task_are_refused(monkeypatch):
    """GLUE's test rows have -1."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: [{"sentence": "a", "label": -1}])
    with pytest.raises(EvaluationError, match=r"the labels of sst2 are 0 to 1, got -1 in row sst2 0"):
        rows_of("sst2", None)


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_the_hub(name, monkeypatch):
    """Asked for by path, configuration and split; the columns of the texts in the prompt's order."""
    asked = []

    def load_dataset(path, configuration, split):
        asked.append((path, configuration, split))
        return [{**{column: f" {column} \n" for column in TASKS[name].columns}, "label": 1, "idx": 7}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert rows_of(name, None).rows == [Row(f"{name} 0", TASKS[name].columns, 1)]
    assert asked == [TASKS[name].hub]
    assert rows_of(name, None).source == " ".join(TASKS[name].hub)


def test_without_the_hub(monkeypatch, capsys):
    """One sentence says which data set is missing, and what to give instead; nothing of what was tried is shown."""

    def load_dataset(*_args, **_options):
        sys.stderr.write("Retrying in 8s")
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        EvaluationError,
        match=r"cola comes from nyu-mll/glue on the hub, got ConnectionError; go online, or give --llm-data DIR with "
        r"glue/CoLA/in_domain_dev.tsv and glue/CoLA/out_of_domain_dev.tsv",
    ):
        rows_of("cola", None)
    assert capsys.readouterr().err == ""


def test_without_the_package(monkeypatch):
    """The line for pip."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MissingPackageError, match=r"rows of sms_spam .* not installed; run: pip install datasets"
    ):
        rows_of("sms_spam", None)
    if DATA.is_dir():
        with pytest.raises(MissingPackageError, match=r"rows of sst2 .* not installed"):
            rows_of("sst2", DATA)


@pytest.mark.parametrize("name", TASKS)
def test_prompts(name):
    """They name every word that can be answered, end where it follows, and have one word a label."""
    task = TASKS[name]
    assert task.prompt.endswith(" Answer:")
    assert len(task.words) == len(task.labels)
    assert all(word in task.prompt.rsplit("\n", 1)[1] for word in task.words)
    assert "{here}" in task.prompt.format(*["{here}"] * len(task.columns))


# A part of the rows -----------------------------------------------------------------------------------------


def rows(labels):
    return [Row(f"t {i}", (f"text {i}",), label) for i, label in enumerate(labels)]


LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=60)


@given(LABELS, st.integers(1, 70), st.integers(0, 5))
def test_a_part_has_the_shares_of_the_whole(labels, limit, seed):
    """So many rows in their order; each label within one of its share, and there where there is room."""
    whole = rows(labels)
    part = sample(whole, limit, seed)
    counts, kept = Counter(labels), Counter(row.label for row in part)

    assert len(part) == min(limit, len(whole))
    assert part == [row for row in whole if row in part]
    assert part == sample(whole, limit, seed)
    for label, count in counts.items():
        least = 1 if limit >= len(counts) else 0
        assert kept[label] >= least
        assert abs(kept[label] - min(limit, len(whole)) * count / len(whole)) < 1 + len(counts)


@given(LABELS, st.integers(1, 20), st.integers(0, 5))
def test_the_rows_of_one_label_grow_with_the_limit(labels, limit, seed):
    """Rows of a label that a larger part keeps as many of are the same."""
    whole = rows(labels)
    small, large = sample(whole, limit, seed), sample(whole, 2 * limit, seed)
    for label in set(labels):
        few, many = ({row for row in part if row.label == label} for part in (small, large))
        assert few <= many or many <= few


def test_a_part_of_the_sms_collection():
    """86.6 % ham in 200 of them; another seed takes others; no limit takes all."""
    whole = rows([0] * 4827 + [1] * 747)
    part = sample(whole, 200, 0)
    assert Counter(row.label for row in part) == {0: 173, 1: 27}
    assert part != sample(whole, 200, 1)
    assert sample(whole, None, 0) == sample(whole, 9999, 0) == whole
    assert Counter(row.label for row in sample(rows([0] * 99 + [1]), 3, 0)) == {0: 2, 1: 1}


def test_the_fingerprint_is_of_ids_texts_and_labels():
    """Any other row is other data."""
    one = rows([0, 1])
    others = [rows([0, 0]), rows([0]), [one[1], one[0]], [one[0], one[1]._replace(texts=("text", "1"))]]
    assert len({fingerprint(each) for each in [one, *others]}) == 5
    assert fingerprint(one) == fingerprint(list(one))
