"""What the metrics of lm-eval's tasks mean here: a score for each question, whose total is lm-eval's own number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PREFERRED: Final = {"arc_challenge": "acc_norm", "hellaswag": "acc_norm", "lambada_openai": "acc"}
"""Where the literature reports another metric than the one that the task lists first."""

GUESSED: Final = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics that are 1 where the right choice was taken, else 0."""


class Asked(NamedTuple):
    """One question of a task, with its requests in order; lm-eval puts the responses into them.

    Args:
        task: lm-eval's object.
        id: of the question.
        doc: its row.
        requests: lm-eval's instances.
    """

    task: Any
    id: str
    doc: Any
    requests: tuple[Any, ...]


class Way(NamedTuple):
    """How a metric that lm-eval aggregates so is split into questions.

    Args:
        total: the name in `evals.totals` that puts the scores together again.
        scores: of the values that lm-eval's tasks give for single questions.
    """

    total: str
    scores: Callable[[Sequence[Any]], list[float]]


def _plain(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def _negated(values: Sequence[Any]) -> list[float]:
    """Log likelihoods as nats of loss."""
    return [-float(value) for value in values]


def _weighted(values: Sequence[Any], unit: float = 1.0) -> list[float]:
    """(log likelihood, words) as loss a word, by the mean number of words.

    Then the mean of the scores is the sum of all losses over the sum of all words, which is what lm-eval takes, and
    a long document still weighs as much more as it is longer.
    """
    mean = math.fsum(weight for _, weight in values) / len(values)
    return [-float(log) / mean / unit for log, _ in values]


def _bits(values: Sequence[Any]) -> list[float]:
    return _weighted(values, math.log(2))


def _same(values: Sequence[Any]) -> list[float]:
    """(expected, said) as right or wrong."""
    return [float(gold == said) for gold, said in values]


_WAYS: Final = {
    "mean": Way("mean", _plain),
    "perplexity": Way("perplexity", _negated),
    "weighted_perplexity": Way("perplexity", _weighted),
    "bits_per_byte": Way("mean", _bits),
    "matthews_corrcoef": Way("matthews", _same),
}


class Rule(NamedTuple):
    """The metric of a task and how it is put together."""

    name: str
    higher_is_better: bool
    way: Way


def rule(name: str, task: Any) -> Rule:  # noqa: ANN401  # of lm-eval
    """The metric by which a task is judged: the literature's, or the one that it lists first.

    Raises:
        EvaluationError: it is no mean over questions, so that answers cannot be paired.
    """
    aggregations = task.aggregation()
    metric = PREFERRED.get(name, next(iter(aggregations), ""))
    aggregation = getattr(aggregations.get(metric), "__name__", "nothing")
    if aggregation not in _WAYS:
        raise EvaluationError(
            f"{name} is judged by {metric or 'nothing'}, which lm-eval puts together by {aggregation}; only "
            f"{', '.join(_WAYS)} can be paired by question, so take another task"
        )
    return Rule(metric, bool(task.higher_is_better()[metric]), _WAYS[aggregation])


def metric(rule: Rule, asked: Sequence[Asked]) -> Metric:
    """With what guessing reaches on these very questions."""
    return Metric(rule.name, rule.higher_is_better, _chance(rule, asked), rule.way.total)


def _chance(rule: Rule, asked: Sequence[Asked]) -> float | None:
    if rule.way.total == "matthews":
        return 0.0
    if rule.name not in GUESSED:
        return None
    shares = [_share(each.task, each.doc) for each in asked]
    known = [share for share in shares if share is not None]
    return math.fsum(known) / len(known) if len(known) == len(shares) else None


def _share(task: Any, doc: Any) -> float | None:  # noqa: ANN401  # of lm-eval
    """How often a guess is right: true choices over choices; a text is not guessed."""
    if task.OUTPUT_TYPE in ("generate_until", "loglikelihood"):
        return 0.0
    if task.OUTPUT_TYPE != "multiple_choice" or not hasattr(task, "doc_to_choice"):
        return None
    return len(gold(task, doc)) / len(task.doc_to_choice(doc))


def gold(task: Any, doc: Any) -> list[int]:  # noqa: ANN401  # of lm-eval
    """The places of the right choices."""
    if (
        "mc2" in task.config.task and "mc2_targets" in doc
    ):  # its own target is only the first of the true answers
        return [i for i, label in enumerate(doc["mc2_targets"]["labels"]) if label == 1]
    target = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    places = target if isinstance(target, list) else [target]
    return [choices.index(place) if isinstance(place, str) else place for place in places if place != -100]


def chosen(metric: str, responses: Sequence[tuple[float, bool]], choices: Sequence[str]) -> int:
    """The place of the choice that a model takes: the likeliest one, by characters or bytes where the metric says so.

    Args:
        metric: as lm-eval calls it.
        responses: log likelihoods of the choices; behind them, for `acc_mutual_info`, those without the question.
        choices: their texts.
    """
    logs = [log for log, _ in responses]
    logs, alone = logs[: len(choices)], logs[len(choices) :]
    if metric == "acc_norm":
        logs = [_each(log, len(choice)) for log, choice in zip(logs, choices, strict=True)]
    elif metric == "acc_bytes":
        logs = [_each(log, len(choice.encode())) for log, choice in zip(logs, choices, strict=True)]
    elif metric == "acc_mutual_info":
        logs = [log - other for log, other in zip(logs, alone, strict=True)]
    return max(range(len(choices)), key=logs.__getitem__)


def _each(log: float, length: int) -> float:
    return log / length if length else -math.inf
