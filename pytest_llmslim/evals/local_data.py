"""Tasks from a folder of local files (`--llm-data`), as rows with the columns and types that they have on the hub.

One small function a layout. What a file lacks and no prompt needs, such as the id of a question, is left out. The
layouts: LLM Foundry's JSON lines (ARC, WinoGrande, TriviaQA, LAMBADA), llama.cpp's HellaSwag, the CSV files of MMLU,
TruthfulQA's `mc_task.json`, the tab-separated development sets of GLUE, and WikiText-2's raw test text.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
import re
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_llmslim.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from datasets import Dataset

Row = dict[str, Any]
SAME_ROWS = "the same rows, never the one that is asked"
MMLU = "mmlu_"


class Layout(NamedTuple):
    """How one task lies in files.

    Args:
        files: below the folder; all of them are needed.
        split: of lm-eval's task, that is asked.
        rows: of the files' texts.
        examples: splits for few-shot examples, by the rows of a further file; empty: the asked rows themselves.
        note: what a reader has to know about these rows.
    """

    files: tuple[str, ...]
    split: str
    rows: Callable[[list[str]], list[Row]]
    examples: tuple[tuple[str, str], ...] = ()
    note: str = ""


class Local(NamedTuple):
    """A layout that was found in a folder."""

    folder: Path
    layout: Layout

    @property
    def paths(self) -> list[Path]:
        """All files, those with examples last."""
        return [self.folder / name for name in (*self.layout.files, *(n for _, n in self.layout.examples))]

    def source(self) -> str:
        """The files and the sha256 of their bytes, one after another."""
        together = hashlib.sha256(b"".join(path.read_bytes() for path in self.paths)).hexdigest()
        return f"{' '.join(str(path.relative_to(self.folder)) for path in self.paths)} sha256:{together}"


def layouts(task: str) -> tuple[Layout, ...]:
    """The layouts that are known for a task of lm-eval, the best first."""
    if task.startswith(MMLU) and task not in _LAYOUTS:
        subject = task.removeprefix(MMLU)
        test, dev = (f"mmlu/{split}/{subject}_{split}.csv" for split in ("test", "dev"))
        return (Layout((test,), "test", _mmlu, (("dev", dev),)),)
    return _LAYOUTS.get(task, ())


def find(task: str, folder: Path) -> Local | None:
    """The first layout of `task` that is in `folder`; `None` for a task without one.

    Raises:
        EvaluationError: the files of a task that has a layout are not there.
    """
    known = layouts(task)
    for layout in known:
        local = Local(folder, layout)
        if all(path.is_file() for path in local.paths):
            return local
    if not known:
        return None
    wanted = " or ".join(" and ".join(str(p) for p in Local(folder, layout).paths) for layout in known)
    raise EvaluationError(
        f"{task} needs {wanted}, which is not there; put it there, or leave --llm-data away to read it from the hub"
    )


def splits(*, task: str, folder: str, **_: object) -> dict[str, Dataset]:
    """What lm-eval takes for the task's data set; named in the configurations of `evals.lm_stock`.

    Raises:
        EvaluationError: a file is missing, or is not laid out as it should be.
    """
    from datasets import Dataset

    local = find(task, Path(folder))
    if local is None:
        raise EvaluationError(f"{task} has no layout for local files; leave --llm-data away")
    layout = local.layout
    asked = _read(local, layout.files)
    examples = {split: _read(local, (name,)) for split, name in layout.examples}
    return {split: Dataset.from_list(rows) for split, rows in ({layout.split: asked} | examples).items()}


def shared_words(texts: Sequence[str]) -> int:
    """Characters of the whole words, with the blank behind them, with which all texts begin."""
    same = takewhile(lambda characters: len(set(characters)) == 1, zip(*texts, strict=False))
    return "".join(characters[0] for characters in same).rfind(" ") + 1


def _read(local: Local, names: tuple[str, ...]) -> list[Row]:
    paths = [local.folder / name for name in names]
    try:
        rows = local.layout.rows([_text(path) for path in paths])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, csv.Error) as error:
        what = f"{type(error).__name__}: {error}"
        raise EvaluationError(
            f"{' and '.join(str(path) for path in paths)} cannot be read as {names[0]} ({what}); "
            "give the file as its publisher lays it out"
        ) from error
    if not rows:
        raise EvaluationError(f"{paths[0]} has no rows; give the whole file")
    return rows


def _text(path: Path) -> str:
    content = path.read_bytes()
    return (bz2.decompress(content) if path.suffix == ".bz2" else content).decode("utf-8-sig")


def _json_lines(texts: list[str]) -> Iterator[Row]:
    # Not splitlines: a row may hold U+2028.
    return (json.loads(line) for text in texts for line in text.split("\n") if line.strip())


def _tabs(text: str) -> list[list[str]]:
    """Cells are as they stand: a quotation mark is text."""
    return list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))


def _table(texts: list[str]) -> Iterator[dict[str, str]]:
    for text in texts:
        head, *rows = _tabs(text)
        yield from (dict(zip(head, row, strict=True)) for row in rows if row)


# LLM Foundry ------------------------------------------------------------------------------------------------


def _arc(texts: list[str]) -> list[Row]:
    rows = []
    for row in _json_lines(texts):
        labels = [chr(ord("A") + i) for i in range(len(row["choices"]))]
        rows.append(
            {
                "question": row["query"].removeprefix("Question: "),
                "choices": {"text": row["choices"], "label": labels},
                "answerKey": labels[row["gold"]],
            }
        )
    return rows


def _winogrande(texts: list[str]) -> list[Row]:
    """The options are what is left of the two beginnings behind the words that they share."""
    rows = []
    for row in _json_lines(texts):
        one, other = row["context_options"]
        shared = shared_words([one, other])
        rows.append(
            {
                "sentence": f"{one[:shared]}_ {row['continuation']}",
                "option1": one[shared:],
                "option2": other[shared:],
                "answer": str(row["gold"] + 1),
            }
        )
    return rows


def _triviaqa(texts: list[str]) -> list[Row]:
    return [
        {
            "question": row["context"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "answer": {"value": row["answer"], "aliases": row["aliases"]},
        }
        for row in _json_lines(texts)
    ]


def _lambada(texts: list[str]) -> list[Row]:
    return [
        {"text": f"{row['context'].rstrip(' ')} {row['continuation'].lstrip(' ')}"}
        for row in _json_lines(texts)
    ]


# Others' layouts --------------------------------------------------------------------------------------------


def _hellaswag(texts: list[str]) -> list[Row]:
    """Six lines a question.

    lm-eval writes the unfinished sentence, `ctx_b`, with a capital. It is what follows the last full sentence where it
    begins with a small letter; titles, which are whole sentences, have none.
    """
    lines = [line for text in texts for line in text.rstrip("\n").split("\n")]
    if len(lines) % 6:
        raise ValueError(f"{len(lines)} lines, which are not six a question")
    rows = []
    for i in range(0, len(lines), 6):
        activity, context = lines[i].split(": ", 1)
        begun = re.search(r"[.!?] ([a-z][^.!?]*)$", context)
        cut = begun.start(1) if begun else len(context)
        rows.append(
            {
                "activity_label": activity,
                "ctx_a": context[:cut].rstrip(" "),
                "ctx_b": context[cut:],
                "endings": lines[i + 2 : i + 6],
                "label": str(int(lines[i + 1])),
            }
        )
    return rows


def _mmlu(texts: list[str]) -> list[Row]:
    return [
        {"question": question, "choices": choices, "answer": "ABCD".index(answer)}
        for text in texts
        for question, *choices, answer in csv.reader(io.StringIO(text, newline=""))
    ]


def _truthfulqa(texts: list[str]) -> list[Row]:
    return [
        {
            "question": row["question"],
            **{
                name: {"choices": list(row[name]), "labels": list(row[name].values())}
                for name in ("mc1_targets", "mc2_targets")
            },
        }
        for text in texts
        for row in json.loads(text)
    ]


def _wikitext(texts: list[str]) -> list[Row]:
    """One page an article: it begins at a heading of the first level, ` = Title = `."""
    pages: list[list[str]] = [[]]
    for line in (line for text in texts for line in text.split("\n")):
        if re.fullmatch(r"= [^=].*[^=] =|= [^=] =", line.strip()):
            pages.append([])
        pages[-1].append(line)
    return [{"page": page} for page in map("\n".join, pages) if page.strip()]


# GLUE -------------------------------------------------------------------------------------------------------


def _cola(texts: list[str]) -> list[Row]:
    return [
        {"sentence": cells[3], "label": int(cells[1])} for text in texts for cells in _tabs(text) if cells
    ]


def _sst2(texts: list[str]) -> list[Row]:
    return [
        {"sentence": cells[0], "label": int(cells[1])}
        for text in texts
        for cells in _tabs(text)
        if cells and cells[1] != "label"
    ]


def _two(one: str, other: str, label: str, names: tuple[str, ...]) -> Callable[[list[str]], list[Row]]:
    """Rows of two sentences, in columns of these names there and of `names` here; labels as words or numbers."""

    def rows(texts: list[str]) -> list[Row]:
        return [
            {names[0]: row[one], names[1]: row[other], "label": _label(row[label])} for row in _table(texts)
        ]

    return rows


_LABELS = {"entailment": 0, "not_entailment": 1, "neutral": 1, "contradiction": 2}


def _label(cell: str) -> int:
    return _LABELS[cell] if cell in _LABELS else int(cell)


_PAIR = ("sentence1", "sentence2")
_ADVGLUE = (
    "the pairs were taken out of AdvGLUE, which chose them because an attack on them worked: no random sample, "
    "not the MNLI of the literature"
)


def _subset_of_mnli(genre: str) -> Callable[[list[str]], list[Row]]:
    def rows(texts: list[str]) -> list[Row]:
        return [
            {name: row[name] for name in ("premise", "hypothesis", "label")}
            for row in _json_lines(texts)
            if row["genre_split"] == genre
        ]

    return rows


def _mnli(genre: str) -> tuple[Layout, ...]:
    split = f"validation_{genre}"
    whole = _two("sentence1", "sentence2", "gold_label", ("premise", "hypothesis"))
    subset = ("glue/MNLI/mnli_dev_subset_from_advglue.jsonl",)
    return (
        Layout((f"glue/MNLI/dev_{genre}.tsv",), split, whole),
        Layout(subset, split, _subset_of_mnli(genre), note=_ADVGLUE),
    )


def _one(
    file: str | tuple[str, ...], rows: Callable[[list[str]], list[Row]], split: str = "validation"
) -> tuple[Layout, ...]:
    return (Layout((file,) if isinstance(file, str) else file, split, rows),)


_QQP = _two("question1", "question2", "is_duplicate", ("question1", "question2"))

_LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "arc_challenge": _one("llm-foundry/arc_challenge.jsonl", _arc, "test"),
    "arc_easy": _one("llm-foundry/arc_easy.jsonl", _arc, "test"),
    "winogrande": _one("llm-foundry/winogrande.jsonl", _winogrande),
    "triviaqa": _one("llm-foundry/triviaqa_sm_sub.jsonl", _triviaqa),
    "lambada_openai": _one("llm-foundry/lambada_openai.jsonl", _lambada, "test"),
    "hellaswag": _one("hellaswag/hellaswag_val_full.txt.bz2", _hellaswag),
    "truthfulqa_mc1": _one("truthfulqa/mc_task.json", _truthfulqa),
    "truthfulqa_mc2": _one("truthfulqa/mc_task.json", _truthfulqa),
    "wikitext": _one("wikitext-2-raw/wiki.test.raw", _wikitext, "test"),
    "cola": _one(("glue/CoLA/in_domain_dev.tsv", "glue/CoLA/out_of_domain_dev.tsv"), _cola),
    "sst2": _one("glue/SST-2/dev.tsv", _sst2),
    "mrpc": _one("glue/MRPC/dev.tsv", _two("#1 String", "#2 String", "Quality", _PAIR)),
    "rte": _one("glue/RTE/dev.tsv", _two("sentence1", "sentence2", "label", _PAIR)),
    "qnli": _one("glue/QNLI/dev.tsv", _two("question", "sentence", "label", ("question", "sentence"))),
    "qqp": _one("glue/QQP/dev.tsv", _QQP),
    "mnli": _mnli("matched"),
    "mnli_mismatch": _mnli("mismatched"),
}
