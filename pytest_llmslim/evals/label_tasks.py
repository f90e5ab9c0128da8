"""Tasks whose answer is one of a few labels: their rows, from local files or the hub, and how a model is asked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_llmslim.errors import EvaluationError, MissingPackageError
from pytest_llmslim.evals import local_data
from pytest_llmslim.evals.lm_stock import silence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

PROMPTS: Final = "1"
"""Version of the prompts below; numbers under different ones are not compared."""
SMS: Final = "sms_spam/SMSSpamCollection"
"""The SMS Spam Collection v.1, below `--llm-data`."""


class Row(NamedTuple):
    """One text, or two that belong together, with the index of its label."""

    id: str
    texts: tuple[str, ...]
    label: int


class Rows(NamedTuple):
    """Rows in the order of their source, the source in words, and what a reader has to know."""

    rows: list[Row]
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelTask:
    """A task.

    Args:
        labels: as the data set and classifiers name them, in their order.
        words: what a causal model says for each of them, behind a space.
        prompt: of a causal model; `{0}` and `{1}` are the texts.
        columns: of the texts, as the hub's data set names them; the label's is `label`.
        hub: path, configuration and split there.
    """

    labels: tuple[str, ...]
    words: tuple[str, ...]
    prompt: str
    columns: tuple[str, ...]
    hub: tuple[str, str, str]


def _glue(name: str, split: str = "validation") -> tuple[str, str, str]:
    return "nyu-mll/glue", name, split


TASKS: Final[Mapping[str, LabelTask]] = {
    "sms_spam": LabelTask(
        ("ham", "spam"),
        ("ham", "spam"),
        "Message: {0}\nIs this message spam or ham? Answer:",
        ("sms",),
        ("ucirvine/sms_spam", "plain_text", "train"),
    ),
    "sst2": LabelTask(
        ("negative", "positive"),
        ("negative", "positive"),
        "Review: {0}\nIs this review negative or positive? Answer:",
        ("sentence",),
        _glue("sst2"),
    ),
    "cola": LabelTask(
        ("unacceptable", "acceptable"),
        ("no", "yes"),
        "Sentence: {0}\nIs this sentence grammatical, yes or no? Answer:",
        ("sentence",),
        _glue("cola"),
    ),
    "mrpc": LabelTask(
        ("not_equivalent", "equivalent"),
        ("no", "yes"),
        "Sentence 1: {0}\nSentence 2: {1}\nDo both sentences mean the same, yes or no? Answer:",
        ("sentence1", "sentence2"),
        _glue("mrpc"),
    ),
    "qqp": LabelTask(
        ("not_duplicate", "duplicate"),
        ("no", "yes"),
        "Question 1: {0}\nQuestion 2: {1}\nDo both questions ask the same, yes or no? Answer:",
        ("question1", "question2"),
        _glue("qqp"),
    ),
    "rte": LabelTask(
        ("entailment", "not_entailment"),
        ("yes", "no"),
        "Text: {0}\nStatement: {1}\nDoes the statement follow from the text, yes or no? Answer:",
        ("sentence1", "sentence2"),
        _glue("rte"),
    ),
    "qnli": LabelTask(
        ("entailment", "not_entailment"),
        ("yes", "no"),
        "Question: {0}\nSentence: {1}\nDoes the sentence answer the question, yes or no? Answer:",
        ("question", "sentence"),
        _glue("qnli"),
    ),
    "mnli": LabelTask(
        ("entailment", "neutral", "contradiction"),
        ("yes", "maybe", "no"),
        "Text: {0}\nStatement: {1}\nIs the statement true, yes, maybe or no? Answer:",
        ("premise", "hypothesis"),
        _glue("mnli", split="validation_matched"),
    ),
}


def rows_of(name: str, data: Path | None) -> Rows:
    """All rows of a task.

    Args:
        name: one of `TASKS`.
        data: folder of local files, in the layouts of `evals.local_data` and of the SMS collection; `None`: the hub.

    Raises:
        EvaluationError: a file is missing or damaged, or the hub cannot be reached.
        MissingPackageError: the package `datasets` is not installed.
    """
    task = TASKS[name]
    notes: tuple[str, ...] = ()
    if data is None:
        found, source = _from_hub(name, task), " ".join(task.hub)
    elif name == "sms_spam":
        found, source = _sms(data / SMS), SMS
    else:
        local = local_data.find(name, data)
        if local is None:
            raise EvaluationError(f"{name} has no layout for local files; leave --llm-data away")
        found, source = _of_layout(name, data, local.layout.split), " + ".join(local.layout.files)
        notes = (local.layout.note,) if local.layout.note else ()
    rows = [
        Row(f"{name} {i}", tuple(str(row[column]).strip() for column in task.columns), int(row["label"]))
        for i, row in enumerate(found)
    ]
    wrong = next((row for row in rows if not 0 <= row.label < len(task.labels)), None)
    if wrong is not None:
        raise EvaluationError(
            f"the labels of {name} are 0 to {len(task.labels) - 1}, got {wrong.label} in row {wrong.id}; "
            "fetch the data again"
        )
    return Rows(rows, source, notes)


def sample(rows: Sequence[Row], limit: int | None, seed: int) -> list[Row]:
    """At most `limit` rows in their order, each label as often as among all (its share, rounded), at least once.

    Which rows are taken hangs on `seed` and their ids alone, and a larger limit keeps those of a smaller one but for
    the rounding.
    """
    if limit is None or limit >= len(rows):
        return list(rows)
    quotas = _quotas(Counter(row.label for row in rows), limit)
    kept: set[str] = set()
    for label, count in quotas.items():
        ranked = sorted((row.id for row in rows if row.label == label), key=lambda each: _rank(each, seed))
        kept.update(ranked[:count])
    return [row for row in rows if row.id in kept]


def fingerprint(rows: Sequence[Row]) -> str:
    """sha256 of the rows: ids, texts and labels."""
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def _rank(row: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {row}".encode()).digest()


def _quotas(counts: Counter[int], limit: int) -> dict[int, int]:
    """Shares of `limit` by the largest remainder; a label without any takes one of the most frequent."""
    total = counts.total()
    quotas = {label: limit * counts[label] // total for label in sorted(counts)}
    by_remainder = sorted(quotas, key=lambda label: (-(limit * counts[label] % total), label))
    for label in by_remainder[: limit - sum(quotas.values())]:
        quotas[label] += 1
    for label in quotas if limit >= len(quotas) else ():
        if not quotas[label]:
            quotas[max(quotas, key=lambda each: quotas[each])] -= 1
            quotas[label] = 1
    return quotas


# Sources ----------------------------------------------------------------------------------------------------


def _sms(file: Path) -> list[dict[str, Any]]:
    """Lines of a label, a tab and a message, which may hold any other character, even one that ends lines for some."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"sms_spam needs {file}, got {type(error).__name__}; put it there, or leave --llm-data away to read it "
            "from the hub"
        ) from None
    rows = []
    for number, line in enumerate(lines, 1):
        label, tab, text = line.partition("\t")
        if tab and label in TASKS["sms_spam"].labels:
            rows.append({"sms": text, "label": TASKS["sms_spam"].labels.index(label)})
        elif line.strip():
            raise EvaluationError(
                f"line {number} of {file} is ham or spam, a tab and a message, got {line[:40]!r}; fetch the file again"
            )
    if not rows:
        raise EvaluationError(f"{file} has no rows; give the whole file")
    return rows


def _of_layout(name: str, data: Path, split: str) -> Any:  # noqa: ANN401  # rows by column
    try:
        return local_data.splits(task=name, folder=str(data))[split]
    except ImportError:
        raise MissingPackageError(_NO_DATASETS.format(name)) from None


def _from_hub(name: str, task: LabelTask) -> Any:  # noqa: ANN401  # rows by column
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingPackageError(_NO_DATASETS.format(name)) from None
    path, configuration, split = task.hub
    try:
        with silence():
            return load_dataset(path, configuration, split=split)
    except Exception as error:  # of many kinds: network, cache, format
        raise EvaluationError(
            f"{name} comes from {path} on the hub, got {type(error).__name__}; go online, or give --llm-data DIR with "
            f"{_files(name)}"
        ) from error


_NO_DATASETS: Final = (
    "rows of {} are read by the package datasets, which is not installed; run: pip install datasets"
)


def _files(name: str) -> str:
    return SMS if name == "sms_spam" else " and ".join(local_data.layouts(name)[0].files)
