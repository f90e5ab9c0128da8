"""Paired estimators of log ratios: deterministic, exact, and the same verdict from a stored file.

Log ratios `log(candidate / reference)` go in, ratios come out. Time and energy use the Wilcoxon signed-rank
test and the Hodges-Lehmann estimate on the medians of blocks: exact for every noise whose sign is as likely
as its opposite, spikes included, and without a random number. Perplexity uses the paired difference of the
log loss over windows of text, whose error is far smaller than that of each perplexity.

Sources: Hollander, Wolfe, Chicken, Nonparametric Statistical Methods, 3.1 to 3.3 (signed rank,
Hodges-Lehmann, bounds from Walsh averages); Holm, A simple sequentially rejective multiple test procedure
(1979).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.records import Estimate, Method, no_estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIDENCE: Final = 0.95
"""Of the intervals that are shown."""

_MOST: Final = 1_000_000  # more samples than that are no advice


class Interval(NamedTuple):
    """A ratio with bounds; a bound of 0 or infinity says that the samples are too few for one."""

    value: float
    low: float
    high: float
    n: int


def block_medians(pairs: Sequence[float], per_block: int) -> tuple[float, ...]:
    """The median of every block of `per_block` log ratios in a row.

    Raises:
        ValueError: a last block that is not full.
    """
    if per_block < 1 or len(pairs) % per_block:
        raise ValueError(f"pairs come in full blocks of {per_block}, got {len(pairs)}")
    return tuple(_median(sorted(pairs[i : i + per_block])) for i in range(0, len(pairs), per_block))


def hodges_lehmann(
    values: Sequence[float],
    *,
    miss_low: float = (1 - CONFIDENCE) / 2,
    miss_high: float = (1 - CONFIDENCE) / 2,
) -> Interval:
    """The Hodges-Lehmann ratio of log ratios with exact bounds, by default a 95 % interval.

    Each bound inverts the one-sided signed-rank test, so that the low one lies above `exp(x)` exactly when
    `signed_rank_p_greater(values, x) <= miss_low`. Ties and zeros only make the bounds wider.

    Args:
        values: log ratios, one a block.
        miss_low: largest chance that the truth is below the low bound; needs `minimum_blocks(miss_low)`
            values, or the bound is 0.
        miss_high: the same for the high bound, which is then infinity.

    Raises:
        MeasurementError: no value, or one that is not finite.
    """
    walsh = _walsh_averages(values)
    low, high = _critical(len(values), miss_low), _critical(len(values), miss_high)
    return Interval(
        value=_exp(_median(walsh)),
        low=_exp(walsh[-low]) if low <= len(walsh) else 0.0,
        high=_exp(walsh[high - 1]) if high <= len(walsh) else math.inf,
        n=len(values),
    )


def signed_rank_p_greater(values: Sequence[float], shift: float = 0.0) -> float:
    """The exact one-sided p-value of "the log ratios are centred above `shift`" (Wilcoxon signed rank).

    Ties and zeros count against the claim, so that p is then too large rather than too small.

    Raises:
        MeasurementError: no value, or one that is not finite.
    """
    centred = [value - shift for value in _finite(values)]
    # The statistic is the number of positive Walsh averages; the sign of a float sum is exact.
    positive = sum(a + b > 0 for i, a in enumerate(centred) for b in centred[: i + 1])
    return _tail(len(centred))[positive]


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values in the order given: the smallest family-wise level at which each is rejected."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)


def split_alpha(alpha: float, *, gates: int, looks: int = 1) -> float:
    """What each decision may spend so that all gates and looks together err with at most `alpha`."""
    return alpha / (max(1, gates) * max(1, looks))


def minimum_blocks(alpha: float) -> int:
    """The fewest blocks that can decide anything at `alpha`: the smallest n with `2 ** -n <= alpha`."""
    blocks = 1
    while 2.0**-blocks > alpha:
        blocks += 1
    return blocks


def window_interval(
    nll_difference: Sequence[float], window_tokens: Sequence[int], confidence: float = CONFIDENCE
) -> Interval:
    """The perplexity ratio with its interval over windows of text.

    The log ratio is the mean of the windows' differences weighted by their tokens. Its standard error comes
    from the variance between windows (a ratio estimator, with the t quantile of n - 1).

    Args:
        nll_difference: candidate - reference in nats a token, one mean a window; infinity: a candidate that
            gave a token no probability at all.
        window_tokens: tokens scored in each window.
        confidence: of the two-sided interval.

    Raises:
        MeasurementError: no window, a window without tokens, NaN, or a reference of infinite loss.
    """
    n = len(nll_difference)
    if n != len(window_tokens) or any(tokens < 1 for tokens in window_tokens):
        raise MeasurementError(
            f"every window has tokens, got {n} windows and {list(window_tokens)[:4]} tokens"
        )
    if n and math.inf in nll_difference and not any(math.isnan(d) or d == -math.inf for d in nll_difference):
        return Interval(math.inf, math.inf, math.inf, n)
    total = sum(window_tokens)
    pairs = list(zip(_finite(nll_difference), window_tokens, strict=True))
    mean = math.fsum(d * tokens for d, tokens in pairs) / total
    if n == 1:
        return Interval(_exp(mean), 0.0, math.inf, n)
    spread = math.fsum((tokens * (d - mean)) ** 2 for d, tokens in pairs)
    half = _t_quantile(confidence, n - 1) * math.sqrt(spread * n / (n - 1)) / total
    return Interval(_exp(mean), _exp(mean - half), _exp(mean + half), n)


def needed_samples(
    now: Interval,
    *,
    fail_above: float,
    pass_below: float,
    fail_minimum: int = 2,
    pass_minimum: int = 2,
) -> int | None:
    """About how many blocks or windows would settle a decision, if the ratio stays what it is.

    The distance of a bound shrinks with the square root of the samples.

    Args:
        now: the ratio and the bounds that the decision rests on.
        fail_above: settled when the low bound passes this ratio.
        pass_below: settled when the high bound is inside this ratio.
        fail_minimum: the fewest samples that can have a low bound.
        pass_minimum: the fewest samples that can have a high bound.

    Returns:
        At least `now.n + 1`; `None` when no reasonable number would do.
    """
    if not 0 < now.value < math.inf:
        return None
    routes = [
        _needed(now.n, math.log(now.value / fail_above), _log_over(now.value, now.low), fail_minimum),
        _needed(now.n, math.log(pass_below / now.value), _log_over(now.high, now.value), pass_minimum),
    ]
    needed = [n for n in routes if n is not None]
    return max(now.n + 1, min(needed)) if needed else None


def block_estimate(log_ratios: Sequence[float], method: Method, source: str) -> Estimate:
    """A time or energy ratio from block log ratios, with its 95 % interval; `n` counts blocks."""
    if not log_ratios:
        return no_estimate("no block was measured", source=source)
    return Estimate(*hodges_lehmann(log_ratios), method, source)


def window_estimate(nll_difference: Sequence[float], window_tokens: Sequence[int]) -> Estimate:
    """A perplexity ratio from windows of text (see `window_interval`); `n` counts windows."""
    return Estimate(*window_interval(nll_difference, window_tokens), "measured", "windows of text")


def _finite(values: Sequence[float]) -> Sequence[float]:
    if not values:
        raise MeasurementError("an estimate rests on at least one log ratio, got none")
    bad = next((value for value in values if not math.isfinite(value)), None)
    if bad is not None:
        raise MeasurementError(f"a log ratio is finite, got {bad}; a reading was zero, infinite or no number")
    return values


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _walsh_averages(values: Sequence[float]) -> list[float]:
    """The means of all pairs, each value with itself included, in order; n (n + 1) / 2 of them."""
    finite = _finite(values)
    return sorted((a + b) / 2 for i, a in enumerate(finite) for b in finite[: i + 1])


@lru_cache(maxsize=64)
def _tail(n: int) -> tuple[float, ...]:
    """`P(T >= t)` of the signed-rank statistic for t = 0 .. n (n + 1) / 2, from exact counts."""
    counts = [1]
    for rank in range(1, n + 1):
        zeros = [0] * rank
        counts = [a + b for a, b in zip(counts + zeros, zeros + counts, strict=True)]
    tail, above = [0.0] * len(counts), 0
    for t in reversed(range(len(counts))):
        above += counts[t]
        tail[t] = above / 2**n
    return tuple(tail)


def _critical(n: int, alpha: float) -> int:
    """The smallest t with `P(T >= t) <= alpha`, or one more than the largest t where there is none."""
    return next((t for t, p in enumerate(_tail(n)) if t and p <= alpha), n * (n + 1) // 2 + 1)


def _t_quantile(confidence: float, degrees: int) -> float:
    from scipy.special import stdtrit  # slow to import, and needed for text only

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _needed(n: int, gap: float, distance: float, minimum: int) -> int | None:
    if gap <= 0:
        return None
    if not math.isfinite(distance):
        return minimum if n < minimum else None
    wanted = n * (distance / gap) ** 2
    return max(minimum, math.ceil(wanted)) if wanted <= _MOST else None


def _log_over(above: float, below: float) -> float:
    return math.log(above / below) if below > 0 else math.inf


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
