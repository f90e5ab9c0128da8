"""The ratio of two models' accuracies on the same questions, with bounds that hold with few or no flips.

Four kinds of questions: both right (`both`), only the reference (`lost`), only the candidate (`won`), neither. With
accuracies p (candidate) and q (reference) the score statistic of a ratio `t = p / q` is

    z(t) = (both + won - t (both + lost)) / sqrt(n t (u + v))

where `u` and `v` are the probabilities of `won` and `lost` under the constraint `p = t q`, by maximum likelihood. That
likelihood leaves the share of `neither` as it was seen, so that with `m = both + lost + won`, `q = y m / n` solves

    t (1 + t) m y^2 - (both (1 + t)^2 + won (1 + 2 t) + lost t (2 + t)) y + both (1 + t) + won + lost t = 0

(the smaller root), `u + v = (m / n) (2 - (1 + t) y)`, and questions that neither gets right say nothing. A bound is
where z reaches the normal quantile. Wald's interval would be empty without a flip; this one is [0.91, 1.10] for 40
questions that both get right.

Sources: Nam, Blackwelder, Analysis of the ratio of marginal probabilities in a matched-pair setting (2002); Tang, Tang,
Chan, On tests of equivalence via non-unity relative risk for matched-pair design (2003). That both coverage and errors
far in the tails hold is shown by enumeration in `tests/test_proportions.py`.
"""

from __future__ import annotations

import math
from operator import index
from statistics import NormalDist
from typing import Final

from pytest_llmslim.statistics import CONFIDENCE, Interval

_MISS: Final = (1 - CONFIDENCE) / 2
_STEPS: Final = 60  # halvings; the bracket then is narrower than a float can tell
_FAR: Final = 60.0  # e ** 60 is as good as any bound


def changes(before: str, after: str) -> tuple[int, int]:
    """How many answers went from right to wrong, and back; one character a question, `1` or `0`."""
    pairs = list(zip(before, after, strict=True))
    return pairs.count(("1", "0")), pairs.count(("0", "1"))


def accuracy_ratio(
    both: int, lost: int, won: int, questions: int, *, miss_low: float = _MISS, miss_high: float = _MISS
) -> Interval:
    """Accuracy of the candidate over that of the reference, with score bounds.

    Args:
        both: questions that both get right.
        lost: those that only the reference gets right.
        won: those that only the candidate gets right.
        questions: all of them; `n` of the result.
        miss_low: chance that the truth is below the low bound.
        miss_high: the same for the high bound.

    Raises:
        ValueError: a negative count, more answers than questions, or a reference without a right answer: there is no
            ratio then.
    """
    if min(index(count) for count in (both, lost, won, questions - both - lost - won)) < 0:
        raise ValueError(f"counts of answers are 0 or more, got {both}, {lost}, {won} of {questions}")
    if not both + lost:
        raise ValueError("a ratio of accuracies needs a question that the reference gets right, got none")
    value = (both + won) / (both + lost)
    low = _where(both, lost, won, _quantile(miss_low), below=value) if value else 0.0
    return Interval(value, low, _where(both, lost, won, -_quantile(miss_high), above=value), questions)


def score_statistic(ratio: float, both: int, lost: int, won: int) -> float:
    """`z` of a ratio of accuracies (see above): above 0 where the candidate did better than it says.

    Raises:
        ValueError: a ratio that is not above 0.
    """
    if not ratio > 0:
        raise ValueError(f"a ratio is above 0, got {ratio}")
    seen = both + lost + won
    a = ratio * (1 + ratio) * seen
    b = both * (1 + ratio) ** 2 + won * (1 + 2 * ratio) + lost * ratio * (2 + ratio)
    c = both * (1 + ratio) + won + lost * ratio
    y = 2 * c / (b + math.sqrt(max(0.0, b * b - 4 * a * c)))
    variance = seen * ratio * max(0.0, 2 - (1 + ratio) * y)
    difference = both + won - ratio * (both + lost)
    if math.isclose(both + won, ratio * (both + lost), rel_tol=1e-12):
        return 0.0
    return difference / math.sqrt(variance) if variance else math.copysign(math.inf, difference)


def _quantile(miss: float) -> float:
    return NormalDist().inv_cdf(1 - miss)


def _where(
    both: int, lost: int, won: int, z: float, *, below: float | None = None, above: float | None = None
) -> float:
    """The ratio at which the statistic is `z`; it falls as the ratio grows."""
    near = math.log(below or above or math.exp(-_FAR))
    far = -_FAR if below else _FAR
    for _ in range(_STEPS):
        middle = (near + far) / 2
        past = score_statistic(math.exp(middle), both, lost, won)
        if (past > z) if below else (past < z):
            far = middle
        else:
            near = middle
    return math.exp((near + far) / 2)
