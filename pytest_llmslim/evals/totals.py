"""How the scores of single answers become one number, and what that number's ratio is worth.

Each total comes with the interval of candidate / reference from the pairs of answers, so that what makes a question
hard for both models cancels.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.proportions import accuracy_ratio
from pytest_llmslim.statistics import CONFIDENCE, Interval, mean_interval, t_quantile, window_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmslim.evals import Answer

GROUPS: Final = 50
"""Of answers that the jackknife leaves out in turn."""


class Total(NamedTuple):
    """The number over all answers, and the ratio of the candidate's to the reference's (the second, the first)."""

    value: Callable[[Sequence[Answer]], float]
    ratio: Callable[[Sequence[Answer], Sequence[Answer]], Interval]


def named(name: str) -> Total:
    """The total that a metric names.

    Raises:
        EvaluationError: there is none of that name.
    """
    if name not in _TOTALS:
        raise EvaluationError(f"a metric's total is one of {', '.join(_TOTALS)}, got {name!r}")
    return _TOTALS[name]


def all_or_nothing(*sides: Sequence[Answer]) -> bool:
    """Whether every score is 0 or 1."""
    return all(answer.score in (0, 1) for answers in sides for answer in answers)


# Means ------------------------------------------------------------------------------------------------------


def _mean(answers: Sequence[Answer]) -> float:
    return math.fsum(answer.score for answer in answers) / len(answers)


def _ratio_of_means(before: Sequence[Answer], after: Sequence[Answer]) -> Interval:
    if all_or_nothing(before, after):
        pairs = Counter((old.score, new.score) for old, new in zip(before, after, strict=True))
        return accuracy_ratio(pairs[1, 1], pairs[1, 0], pairs[0, 1], len(before))
    return ratio_of_means([answer.score for answer in before], [answer.score for answer in after])


def ratio_of_means(before: Sequence[float], after: Sequence[float]) -> Interval:
    """The mean of `after` over that of `before`, by the delta method on the logarithm.

    `log(a / b)` varies as the mean of `after_i / a - before_i / b` does, whose interval is `mean_interval`'s. A mean of
    `after` that is not above 0 has no logarithm; the ratio itself then varies as `(after_i - ratio before_i) / b`.

    Args:
        before: scores of the reference, with a mean above 0.
        after: scores of the candidate on the same questions.
    """
    n = len(before)
    a, b = math.fsum(after) / n, math.fsum(before) / n
    ratio = a / b
    pairs = list(zip(before, after, strict=True))
    if a > 0:
        _, low, high, _ = mean_interval([new / a - old / b for old, new in pairs], [1] * n)
        return Interval(ratio, ratio * _exp(low), ratio * _exp(high), n)
    _, low, high, _ = mean_interval([(new - ratio * old) / b for old, new in pairs], [1] * n)
    return Interval(ratio, ratio + low, ratio + high, n)


# Perplexity -------------------------------------------------------------------------------------------------


def _perplexity(answers: Sequence[Answer]) -> float:
    """The exponential of the mean of scores in nats."""
    return _exp(_mean(answers))


def _ratio_of_perplexities(before: Sequence[Answer], after: Sequence[Answer]) -> Interval:
    differences = [new.score - old.score for old, new in zip(before, after, strict=True)]
    return window_interval(differences, [1] * len(differences))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


# Labels -----------------------------------------------------------------------------------------------------


def matthews(labels: Counter[tuple[str, str]]) -> float:
    """Matthews' correlation of `(said, expected)` counts, for two classes or more (Gorodkin, 2004).

    0 where one of the two is always the same.
    """
    n = labels.total()
    said, expected = _sums(labels, 0), _sums(labels, 1)
    right = sum(count for (one, other), count in labels.items() if one == other)
    covariance = right * n - sum(said[label] * expected[label] for label in said)
    squares = [n * n - sum(count * count for count in side.values()) for side in (said, expected)]
    return covariance / math.sqrt(squares[0] * squares[1]) if min(squares) else 0.0


def weighted_f1(labels: Counter[tuple[str, str]]) -> float:
    """F1 of each label that is expected, weighted by how often it is; 0 for a label that is never said."""
    said, expected = _sums(labels, 0), _sums(labels, 1)
    parts = [
        count * 2 * labels[label, label] / (said[label] + count) for label, count in expected.items() if count
    ]
    return math.fsum(parts) / labels.total()


def _sums(labels: Counter[tuple[str, str]], place: int) -> Counter[str]:
    sums: Counter[str] = Counter()
    for pair, count in labels.items():
        sums[pair[place]] += count
    return sums


def _counted(answers: Sequence[Answer]) -> Counter[tuple[str, str]]:
    return Counter((answer.said, answer.expected) for answer in answers)


def _of_labels(measure: Callable[[Counter[tuple[str, str]]], float]) -> Total:
    def ratio(before: Sequence[Answer], after: Sequence[Answer]) -> Interval:
        return _not_narrower(_jackknife(measure, before, after), before, after)

    return Total(lambda answers: measure(_counted(answers)), ratio)


def _jackknife(
    measure: Callable[[Counter[tuple[str, str]]], float], before: Sequence[Answer], after: Sequence[Answer]
) -> Interval:
    """The ratio of two measures of labels, with Student's interval from leaving out every k-th answer in turn.

    The k-th answers, not neighbours: sorted questions would otherwise leave out a label at once. Nothing is drawn.
    Too few answers, or a reference that is not above 0 without some of them, give no bounds.
    """
    sides = [_counted(before), _counted(after)]
    value = measure(sides[1]) / measure(sides[0])
    groups = min(GROUPS, len(before))
    without = [
        [
            measure(whole - _counted(part[i::groups]))
            for whole, part in zip(sides, (before, after), strict=True)
        ]
        for i in range(groups)
        if groups > 1
    ]
    if not without or min(old for old, _ in without) <= 0:
        return Interval(value, 0.0, math.inf, len(before))
    ratios = [new / old for old, new in without]
    mean = math.fsum(ratios) / groups
    error = math.sqrt((groups - 1) / groups * math.fsum((ratio - mean) ** 2 for ratio in ratios))
    half = t_quantile(CONFIDENCE, groups - 1) * error
    return Interval(value, value - half, value + half, len(before))


def _not_narrower(found: Interval, before: Sequence[Answer], after: Sequence[Answer]) -> Interval:
    """At least as wide as the ratio of accuracies: without a flip the jackknife sees nothing vary."""
    if not (all_or_nothing(before, after) and found.value > 0 and any(answer.score for answer in before)):
        return found
    value, low, high, _ = _ratio_of_means(before, after)
    if not value:
        return found
    scale = found.value / value
    return found._replace(low=min(found.low, scale * low), high=max(found.high, scale * high))


_TOTALS: Final[dict[str, Total]] = {
    "mean": Total(_mean, _ratio_of_means),
    "perplexity": Total(_perplexity, _ratio_of_perplexities),
    "matthews": _of_labels(matthews),
    "weighted_f1": _of_labels(weighted_f1),
}
