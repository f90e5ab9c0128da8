"""What so many windows or blocks can tell, and how many it takes, given the variance seen.

An increase is told when the lower bound of the ratio passes the limit; it is detectable when that happens in
`POWER` of all runs. Increases are fractions over the limit (0.003: the limit times 1.003) and rest on a variance
that is itself only estimated: simulated, four of five increases planned from 16 windows are between 0.7 and 1.6
times the true one, from 18 blocks between 0.85 and 1.4. Numbers of samples go with the square: say "about".

Sources: Lehmann, Nonparametrics: Statistical Methods Based on Ranks, chapter 4 (power of the signed-rank test,
a standard error from the interval); Owen, Tables for computing bivariate normal probabilities (1956); Cornish,
Fisher, Moments and cumulants in the specification of distributions (1938).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

from pytest_llmslim.statistics import (
    BLOCK_MISS,
    CONFIDENCE,
    MOST_SAMPLES,
    critical_rank_sum,
    minimum_blocks,
    rank_sum_tail,
    t_quantile,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmslim.statistics import Interval

POWER: Final = 0.8
"""Of all runs with a detectable increase, the share that tells it."""

_COUNTED: Final = 100
"""Up to so many blocks the critical rank sum is exact, above it is that of a nearly normal distribution."""
_NORMAL: Final = NormalDist()


def detectable_by_windows(now: Interval, windows: int | None = None) -> float | None:
    """The smallest increase of perplexity that so many windows of text detect, as a fraction.

    Half of the interval is `t se`; an increase of `(t + t_80) se` puts the low bound past the limit in 80 % of
    all runs. `se` shrinks with the square root of the windows, and Student's `t` with their degrees of freedom.

    Args:
        now: a 95 % interval over windows (`statistics.window_interval`).
        windows: at least 2; `None`: as many as `now` has.

    Returns:
        `None` when `now` says nothing of the variance: one window, or infinite loss.
    """
    half, n = _half(now), now.n if windows is None else windows
    if half is None or n < 2:
        return None
    error = half / t_quantile(CONFIDENCE, now.n - 1) * math.sqrt(now.n / n)
    return _increase(error * (t_quantile(CONFIDENCE, n - 1) + t_quantile(2 * POWER - 1, n - 1)))


def windows_to_detect(increase: float, now: Interval) -> int | None:
    """The fewest windows of text that detect an increase of perplexity; see `detectable_by_windows`.

    Returns:
        `None` when nothing is known of the variance, or no reasonable number would do.

    Raises:
        ValueError: an increase of 0 or below.
    """
    return _fewest(increase, lambda windows: detectable_by_windows(now, windows), 2)


def detectable_by_blocks(now: Interval, alpha: float, blocks: int | None = None) -> float | None:
    """The smallest increase of time or energy that so many blocks detect at a level, as a fraction.

    The signed-rank test at `alpha` rejects when the number T of positive Walsh averages reaches its critical
    value. For a normal block log ratio with standard deviation s, shifted by d, `p1 = P(X1 > 0)`,
    `p2 = P(X1 + X2 > 0)` and `p3 = P(X1 + X2 > 0, X1 + X3 > 0)` are known, and T is nearly normal with

        mean       n p1 + n (n - 1) / 2 p2
        variance   n p1 (1 - p1) + n (n - 1) / 2 (2 (p1 - p2)^2 + 3 p2 (1 - p2)) + n (n - 1) (n - 2) (p3 - p2^2)

    Where only blocks that are all positive reject, the power is `p1^n`. s comes from the interval, which is
    `2 z s / sqrt(n)` wide, z at the level that it attains exactly. Against simulation with s known, the increase
    is right to 2 % from four blocks above the fewest that can decide, and at most 12 % too large below; s from
    the interval is on average 3 % (40 blocks) to 17 % (12 blocks) too large. Spikes that reach whole blocks make
    it too small near the fewest blocks.

    Args:
        now: an interval over blocks by the bounds that are shown (`statistics.hodges_lehmann`).
        alpha: what the decision may spend.
        blocks: `None`: as many as `now` has.

    Returns:
        `None` when `now` has no bounds, and infinity when so few blocks cannot decide anything at `alpha`.
    """
    half, n = _half(now), now.n if blocks is None else blocks
    if half is None:
        return None
    if n < minimum_blocks(alpha):
        return math.inf
    attained = rank_sum_tail(now.n)[critical_rank_sum(now.n, BLOCK_MISS)]
    deviation = half * math.sqrt(now.n) / -_NORMAL.inv_cdf(attained)
    return _increase(deviation * _detectable_shift(n, alpha))


def blocks_to_detect(increase: float, now: Interval, alpha: float) -> int | None:
    """The fewest blocks that detect an increase of time or energy; see `detectable_by_blocks`.

    Returns:
        `None` when `now` has no bounds, or no reasonable number would do.

    Raises:
        ValueError: an increase of 0 or below.
    """
    return _fewest(increase, lambda blocks: detectable_by_blocks(now, alpha, blocks), minimum_blocks(alpha))


def _half(now: Interval) -> float | None:
    """Half of the interval's width as a log ratio."""
    if now.n < 2 or not 0 < now.low <= now.high < math.inf:
        return None
    return math.log(now.high / now.low) / 2


def _increase(log_ratio: float) -> float:
    return math.expm1(log_ratio) if log_ratio < 700 else math.inf


def _fewest(increase: float, detectable: Callable[[int], float | None], least: int) -> int | None:
    """The smallest number of samples that detect an increase, by bisection: more samples detect less."""
    if increase <= 0:
        raise ValueError(f"an increase to detect is above 0, got {increase}")

    def enough(samples: int) -> bool:
        found = detectable(samples)
        return found is not None and found <= increase

    few, many = least - 1, MOST_SAMPLES
    if not enough(many):
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def _detectable_shift(blocks: int, alpha: float) -> float:
    """The shift, in standard deviations of a block, that the signed-rank test detects."""
    critical = _critical(blocks, alpha)
    small, large = 0.0, 10.0
    for _ in range(40):
        middle = (small + large) / 2
        small, large = (small, middle) if _power(middle, blocks, critical) >= POWER else (middle, large)
    return large


def _critical(blocks: int, alpha: float) -> float:
    if blocks <= _COUNTED:
        return critical_rank_sum(blocks, alpha)
    deviation = math.sqrt(blocks * (blocks + 1) * (2 * blocks + 1) / 24)
    z = -_NORMAL.inv_cdf(alpha)
    # Cornish-Fisher: the excess kurtosis of -3.6 / n makes the tail lighter than a normal one.
    z -= (z**3 - 3 * z) * 3.6 / (24 * blocks)
    return blocks * (blocks + 1) / 4 + deviation * z + 0.5


def _power(shift: float, n: int, critical: float) -> float:
    """The chance that the rank sum of `n` normal values, shifted by so many deviations, is critical."""
    from scipy.special import owens_t  # slow to import, and needed for advice only

    p1, p2 = _NORMAL.cdf(shift), _NORMAL.cdf(math.sqrt(2) * shift)
    if critical >= n * (n + 1) // 2:
        return p1**n
    p3 = p2 - 2 * float(owens_t(math.sqrt(2) * shift, 1 / math.sqrt(3)))  # a correlation of 1/2
    mean = n * p1 + n * (n - 1) / 2 * p2
    pairs = n * (n - 1) / 2 * (2 * (p1 - p2) ** 2 + 3 * p2 * (1 - p2))
    variance = n * p1 * (1 - p1) + pairs + n * (n - 1) * (n - 2) * (p3 - p2**2)
    return _NORMAL.cdf((mean - critical + 0.5) / math.sqrt(max(variance, 1e-12)))
