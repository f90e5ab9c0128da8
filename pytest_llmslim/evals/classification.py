"""Classification, as in the articles on compressing GPT-2: which label has a text.

A causal language model is asked with a prompt and answers with the label whose words it holds most likely; a
classifier answers with the label of its largest logit. Averages are weighted by how often a label is right, as in
`sklearn.metrics` with `average="weighted"` and `zero_division=0`; the weighted recall is the accuracy, then.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import Answer, Answers, Metric
from pytest_llmslim.evals.label_scores import by_likelihood, by_logits
from pytest_llmslim.evals.label_tasks import PROMPTS, TASKS, fingerprint, rows_of, sample
from pytest_llmslim.evals.totals import weighted_f1
from pytest_llmslim.models.classifiers import is_classifier, label_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from pytest_llmslim.evals import EvalContext
    from pytest_llmslim.evals.label_scores import Asked
    from pytest_llmslim.evals.label_tasks import Row

METRICS: Final = ("weighted_f1", "accuracy")
QUESTION: Final = 300
"""Characters of a text that are kept, from its end."""


@dataclass(frozen=True)
class Classification:
    """Labels of a task.

    Args:
        task: one of `label_tasks.TASKS`, e.g. `sms_spam`.
        metric: `weighted_f1` or `accuracy`; the other one is a figure beside it.

    Raises:
        EvaluationError: an unknown task or metric.
    """

    classifiers: ClassVar = True
    task: str = ""
    metric: str = "weighted_f1"

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise EvaluationError(f"task is one of {', '.join(TASKS)}, got {self.task!r}")
        if self.metric not in METRICS:
            raise EvaluationError(f"metric is one of {', '.join(METRICS)}, got {self.metric!r}")

    def answers(self, model: nn.Module, context: EvalContext) -> Answers:
        """Let a causal language model or a classifier label the rows of the task.

        Raises:
            EvaluationError: no data, a classifier with other labels, or logits that are no numbers.
        """
        task = TASKS[self.task]
        data = rows_of(self.task, context.data)
        rows = sample(data.rows, context.limit, context.seed)
        form, asked = _ask(model, context, self.task, rows)
        said = [task.labels[index] for index in asked.shares.argmax(dim=-1).tolist()]
        answers = tuple(
            _answer(row, each, task.labels[row.label]) for row, each in zip(rows, said, strict=True)
        )
        protocol = {
            "task": self.task,
            "asked": form,
            "rows": _count(len(rows), len(data.rows), context.seed),
            "data": data.source,
            "sha256": fingerprint(rows),
        }
        figures = {name: value for name, value in figures_of(answers).items() if name != self.metric}
        figures["loss (nats)"] = _loss(asked.shares, rows)
        notes = (*data.notes, *asked.notes)
        metric = _metric(self.metric, answers)
        return Answers(metric, answers, protocol, figures, asked.tokens, asked.seconds, notes)


def figures_of(answers: Sequence[Answer]) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 as means over the labels weighted by how often they are right.

    A label that is never said has the precision 0.
    """
    pairs = Counter((each.said, each.expected) for each in answers)
    said, right = Counter(each.said for each in answers), Counter(each.expected for each in answers)
    n = len(answers)
    return {
        "accuracy": sum(pairs[label, label] for label in right) / n,
        "precision": sum(right[label] * pairs[label, label] / said[label] for label in right if said[label])
        / n,
        "recall": sum(pairs[label, label] for label in right) / n,
        "weighted_f1": weighted_f1(pairs),
    }


def majority(answers: Sequence[Answer]) -> float:
    """The share of the most frequent label: the accuracy of always giving it."""
    return max(Counter(each.expected for each in answers).values()) / len(answers)


def _metric(name: str, answers: Sequence[Answer]) -> Metric:
    """The level of guessing is that of always giving the most frequent label of these rows.

    With its share p its precision is p and its recall 1, the other labels' F1 is 0: weighted, p * 2p / (1 + p).
    """
    share = majority(answers)
    if name == "accuracy":
        return Metric(name, chance=share)
    return Metric(name, chance=2 * share * share / (1 + share), total="weighted_f1")


def _answer(row: Row, said: str, expected: str) -> Answer:
    return Answer(row.id, float(said == expected), said, expected, " / ".join(row.texts)[-QUESTION:])


def _count(asked: int, of: int, seed: int) -> str:
    return f"{asked} of {of}, by label, seed {seed}" if asked < of else f"all {of}"


def _ask(model: nn.Module, context: EvalContext, name: str, rows: Sequence[Row]) -> tuple[str, Asked]:
    """How the model was asked, and its shares in the order of the task's labels."""
    task = TASKS[name]
    if not is_classifier(model):
        prompts = [task.prompt.format(*row.texts) for row in rows]
        return f"prompt {PROMPTS}", by_likelihood(model, context, prompts, task.words)
    order, note = _order(label_names(model), task.labels, name, context.label)
    asked = by_logits(model, context, [row.texts for row in rows])
    asked.shares = asked.shares[:, order]
    asked.notes += note
    return "classifier", asked


def _order(own: Sequence[str], labels: Sequence[str], task: str, model: str) -> tuple[list[int], list[str]]:
    """Where a classifier has the labels of the task, by name; without names, in their order."""
    plain = [name.strip().lower() for name in own]
    if sorted(plain) == sorted(labels):
        return [plain.index(label) for label in labels], []
    unnamed = [[f"label_{i}" for i in range(len(labels))], [str(i) for i in range(len(labels))]]
    if plain in unnamed:
        return list(range(len(labels))), [
            f"the classifier does not name its labels; they are taken for {', '.join(labels)}"
        ]
    raise EvaluationError(
        f"{model} tells the labels of {task} apart ({', '.join(labels)}), got a classifier of {', '.join(own)}; "
        "name another task, or set id2label in its config.json"
    )


def _loss(shares: torch.Tensor, rows: Sequence[Row]) -> float:
    """Cross entropy in nats: mean of -log of the share of the right label."""
    right = [shares[i, row.label] for i, row in enumerate(rows)]
    return -float(sum(right)) / len(rows)
