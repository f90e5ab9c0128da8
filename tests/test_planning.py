"""The planner against simulated tests: what it calls detectable is detected in four of five runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmslim.planning import (
    blocks_to_detect,
    detectable_by_blocks,
    detectable_by_windows,
    windows_to_detect,
)
from pytest_llmslim.statistics import Interval, hodges_lehmann, mean_interval, minimum_blocks, window_interval

INF = math.inf
WINDOWS = Interval(1.01, 1.004, 1.016, 16)
BLOCKS = hodges_lehmann(np.random.default_rng(1).normal(0, 0.05, 40).tolist())


def known_blocks(deviation: float, n: int) -> Interval:
    """The interval of `n` blocks from which exactly that standard deviation is to be read."""
    ways = np.ones(1)
    for rank in range(1, n + 1):
        ways = np.convolve(ways, [1] + [0] * (rank - 1) + [1])
    p = np.cumsum(ways[::-1])[::-1] / 2.0**n
    half = deviation * scipy.stats.norm.isf(p[p <= 0.0125].max()) / math.sqrt(n)
    return Interval(1.0, math.exp(-half), math.exp(half), n)


def detected(shift: float, n: int, alpha: float, runs: int = 6000) -> float:
    """The share of simulated runs in which the exact signed-rank test finds a shift of normal blocks."""
    values = np.random.default_rng(n).normal(shift, 1, (runs, n))
    ranks = np.abs(values).argsort(1).argsort(1) + 1
    sums, inverse = np.unique(np.where(values > 0, ranks, 0).sum(1), return_inverse=True)
    p = []  # scipy's, of any pattern with that rank sum
    for total in sums.tolist():
        signs, left = np.full(n, -1.0), total
        for rank in range(n, 0, -1):
            if rank <= left:
                signs[rank - 1], left = 1.0, left - rank
        p.append(
            scipy.stats.wilcoxon(signs * np.arange(1, n + 1), alternative="greater", method="exact").pvalue
        )
    return float(np.mean(np.array(p)[inverse] <= alpha))


# Blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, 0.002, 9e-5])
def test_the_increase_that_blocks_detect_is_detected(alpha: float) -> None:
    """With the deviation known, power is 80 % within 3 points, and from 80 to 93 % near the fewest blocks."""
    least = minimum_blocks(alpha)
    for n in (least, least + 1, least + 4, 27, 40):
        increase = detectable_by_blocks(known_blocks(0.01, 12), alpha, n)
        assert increase is not None
        power = detected(math.log1p(increase) / 0.01, n, alpha)
        low, high = (0.77, 0.93) if n < least + 4 else (0.77, 0.84)
        assert low <= power <= high, n


@pytest.mark.parametrize(("n", "bias"), [(12, 1.17), (18, 1.09), (40, 1.04)])
def test_the_deviation_is_read_off_the_interval(n: int, bias: float) -> None:
    """Planned from simulated blocks, the increase is on average what was documented over that planned exactly."""
    exact = detectable_by_blocks(known_blocks(0.05, n), 0.002, 40)
    assert exact is not None
    runs = np.random.default_rng(n).normal(0, 0.05, (200, n)).tolist()
    planned = [math.log1p(detectable_by_blocks(hodges_lehmann(run), 0.002, 40) or INF) for run in runs]
    assert np.median(planned) / math.log1p(exact) == pytest.approx(bias, abs=0.06)


def test_too_few_blocks_detect_nothing() -> None:
    """Below the fewest blocks that decide anything at a level, no increase is large enough."""
    assert minimum_blocks(9e-5) == 14
    assert detectable_by_blocks(BLOCKS, 9e-5, 13) == INF
    assert 0 < (detectable_by_blocks(BLOCKS, 9e-5, 14) or 0) < 0.2
    assert blocks_to_detect(10.0, BLOCKS, 9e-5) == 14


def test_as_many_blocks_as_there_are() -> None:
    """Without a number the samples at hand are asked."""
    assert detectable_by_blocks(BLOCKS, 0.01) == detectable_by_blocks(BLOCKS, 0.01, 40)
    assert detectable_by_windows(WINDOWS) == detectable_by_windows(WINDOWS, 16)


def test_counted_and_normal_rank_sums_meet() -> None:
    """Where the critical value stops being counted, the increase goes on as the square root of the blocks."""
    before, after = (detectable_by_blocks(BLOCKS, 9e-5, n) or 0 for n in (100, 101))
    assert after / before == pytest.approx(math.sqrt(100 / 101), abs=0.002)


# Windows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seen", "n"), [(16, 16), (16, 64), (8, 32), (64, 16)])
def test_the_increase_that_windows_detect_is_detected(seen: int, n: int) -> None:
    """Planned from intervals of texts with independent windows, the power over another text is about 80 %."""
    generator = np.random.default_rng(seen + n)
    halves = [mean_interval(generator.normal(0, 0.01, seen).tolist(), [255] * seen).high for _ in range(1000)]
    half = float(np.median(halves))
    increase = detectable_by_windows(Interval(1.0, math.exp(-half), math.exp(half), seen), n)
    assert increase is not None
    texts = generator.normal(math.log1p(increase), 0.01, (500, n)).tolist()
    found = np.mean([window_interval(text, [255] * n).low > 1 for text in texts])
    assert 0.7 <= found <= 0.9


def test_a_sentence_of_the_gate() -> None:
    """Sixteen windows with 0.6 % of half width tell 0.8 %; 0.3 % takes about a hundred."""
    assert detectable_by_windows(WINDOWS) == pytest.approx(0.0083, abs=0.0002)
    assert windows_to_detect(0.003, WINDOWS) == pytest.approx(108, abs=10)


# Both ----------------------------------------------------------------------------------------------------


@given(st.floats(0.002, 0.5))
def test_the_number_of_samples_inverts_the_increase(increase: float) -> None:
    """The number detects the increase, and one sample fewer does not."""
    windows, blocks = windows_to_detect(increase, WINDOWS), blocks_to_detect(increase, BLOCKS, 0.002)
    assert windows is not None
    assert blocks is not None
    assert (detectable_by_windows(WINDOWS, windows) or INF) <= increase
    assert windows == 2 or (detectable_by_windows(WINDOWS, windows - 1) or 0) > increase
    assert (detectable_by_blocks(BLOCKS, 0.002, blocks) or INF) <= increase
    assert (
        blocks == minimum_blocks(0.002) or (detectable_by_blocks(BLOCKS, 0.002, blocks - 1) or 0) > increase
    )


@pytest.mark.parametrize(
    "now",
    [
        Interval(1.0, 0.0, INF, 1),
        Interval(1.0, 0.0, INF, 5),
        Interval(INF, INF, INF, 16),
        Interval(0.0, 0.0, 0.0, 16),
    ],
)
def test_without_a_variance_there_is_no_plan(now: Interval) -> None:
    """One window, too few blocks for bounds, or infinite loss."""
    assert detectable_by_windows(now) is None
    assert detectable_by_blocks(now, 0.01, 20) is None
    assert windows_to_detect(0.01, now) is None
    assert blocks_to_detect(0.01, now, 0.01) is None


def test_no_reasonable_number() -> None:
    """A millionth of the noise is not to be had, and one window has no variance of its own."""
    assert windows_to_detect(1e-9, WINDOWS) is None
    assert blocks_to_detect(1e-9, BLOCKS, 0.01) is None
    assert detectable_by_windows(WINDOWS, 1) is None


def test_equal_models_detect_anything() -> None:
    """Samples without any spread need no more than the test itself does."""
    assert detectable_by_windows(Interval(1.0, 1.0, 1.0, 16)) == 0
    assert windows_to_detect(1e-6, Interval(1.0, 1.0, 1.0, 16)) == 2
    assert blocks_to_detect(1e-6, Interval(1.0, 1.0, 1.0, 16), 0.01) == 7


def test_a_spread_beyond_numbers() -> None:
    """Noise of many orders of magnitude gives infinity instead of an overflow."""
    assert detectable_by_windows(Interval(1.0, 1e-300, 1e300, 4)) == INF


@pytest.mark.parametrize("increase", [0.0, -0.01])
def test_what_is_no_increase(increase: float) -> None:
    """Only an increase can be planned for."""
    with pytest.raises(ValueError, match=f"an increase to detect is above 0, got {increase}"):
        windows_to_detect(increase, WINDOWS)
    with pytest.raises(ValueError, match="an increase to detect is above 0"):
        blocks_to_detect(increase, BLOCKS, 0.01)
