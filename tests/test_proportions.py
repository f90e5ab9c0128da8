"""The ratio of paired accuracies: against maximum likelihood by brute force, a published example and enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import gammaln
from scipy.stats import norm

from pytest_llmslim.proportions import accuracy_ratio, score_statistic

counts = st.integers(0, 60)


def statistic_by_search(ratio: float, both: int, lost: int, won: int, neither: int) -> float:
    """Definition of the statistic: the constrained likelihood is maximised over two free cells by search."""
    n = both + lost + won + neither

    def cells(v: float, q: float) -> tuple[float, ...]:
        return q - v, v, (ratio - 1) * q + v, 1 - ratio * q - v

    def loss(v: float, q: float) -> float:
        pairs = zip((both, lost, won, neither), cells(v, q), strict=True)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in pairs if k)

    def inner(q: float) -> tuple[float, float]:
        bounds = (max(0.0, (1 - ratio) * q), min(q, 1 - ratio * q))
        if bounds[1] <= bounds[0]:
            return math.inf, bounds[0]
        found = minimize_scalar(loss, bounds=bounds, args=(q,), method="bounded", options={"xatol": 1e-12})
        return found.fun, found.x

    edge = min(1.0, 1 / ratio)
    q = minimize_scalar(
        lambda q: inner(q)[0], bounds=(1e-9, edge - 1e-9), method="bounded", options={"xatol": 1e-11}
    ).x
    _, v, u, _ = cells(inner(q)[1], q)
    return (both + won - ratio * (both + lost)) / math.sqrt(n * ratio * (u + v))


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.97, 1.0, 1.05, 1.6])
@pytest.mark.parametrize("table", [(1, 1, 7, 12), (20, 3, 2, 15), (59, 6, 16, 80), (12, 4, 4, 20)])
def test_the_statistic_is_the_constrained_likelihoods(ratio: float, table: tuple[int, ...]) -> None:
    """The closed form equals the score statistic with cells found by numerical search."""
    expected = statistic_by_search(ratio, *table)
    assert score_statistic(ratio, *table[:3]) == pytest.approx(expected, abs=2e-4)


def test_a_published_interval() -> None:
    """Airway reactivity before and after transplantation (Fagerland et al. 2014, table II): 0.25 [0.065, 0.907]."""
    found = accuracy_ratio(1, 7, 1, 21)
    assert found.value == 0.25
    assert (round(found.low, 3), round(found.high, 3), found.n) == (0.065, 0.907, 21)


@pytest.mark.parametrize("both", [1, 5, 40, 1000])
def test_without_flips_there_is_an_interval(both: int) -> None:
    """With no flip z is sqrt(both (1 - t) / t), so the bounds are 1 / (1 + z^2 / both) and its inverse."""
    found = accuracy_ratio(both, 0, 0, 2 * both)
    low = 1 / (1 + norm.ppf(0.975) ** 2 / both)
    assert found == pytest.approx((1.0, low, 1 / low, 2 * both))


def test_a_candidate_without_a_right_answer() -> None:
    """The ratio is 0; its upper bound is z^2 / m, from z = -sqrt(t m)."""
    found = accuracy_ratio(0, 9, 0, 20)
    assert found == pytest.approx((0.0, 0.0, norm.ppf(0.975) ** 2 / 9, 20))


@settings(deadline=None, max_examples=60)
@given(counts, counts, counts, counts, st.sampled_from([0.001, 0.01, 0.025, 0.1]))
def test_bounds_are_where_the_statistic_is_the_quantile(
    both: int, lost: int, won: int, neither: int, miss: float
) -> None:
    """Each bound solves z(bound) = +-quantile, holds the ratio, and ignores questions that neither gets right."""
    assume(both + lost and both + won)
    found = accuracy_ratio(both, lost, won, both + lost + won + neither, miss_low=miss, miss_high=miss)
    assert found.low <= found.value <= found.high
    z = norm.ppf(1 - miss)
    assert score_statistic(found.low, both, lost, won) == pytest.approx(z, rel=1e-6)
    assert score_statistic(found.high, both, lost, won) == pytest.approx(-z, rel=1e-6)
    assert found[:3] == accuracy_ratio(both, lost, won, both + lost + won, miss_low=miss, miss_high=miss)[:3]


@settings(deadline=None, max_examples=60)
@given(counts, counts, counts)
def test_swapping_the_models_inverts_the_ratio(both: int, lost: int, won: int) -> None:
    """Which model is called the reference decides nothing."""
    assume(both + lost and both + won)
    one, other = accuracy_ratio(both, lost, won, 200), accuracy_ratio(both, won, lost, 200)
    assert one[:3] == pytest.approx((1 / other.value, 1 / other.high, 1 / other.low), rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(counts, counts, counts, st.floats(0.05, 5), st.floats(1.001, 3))
def test_the_statistic_falls_with_the_ratio(
    both: int, lost: int, won: int, ratio: float, factor: float
) -> None:
    """So that a bound is one number, and bisection finds it."""
    assume(both + lost and both + won)
    higher, lower = (score_statistic(at, both, lost, won) for at in (ratio, ratio * factor))
    assert lower < higher or higher == lower == 0


def chances(n: int, q: float, ratio: float, flipped: float) -> tuple[np.ndarray, np.ndarray]:
    """All tables of n questions [table, 3], and how likely each is, where `flipped` of q get lost."""
    tables = np.array(
        [(b, v, u) for b in range(n + 1) for v in range(n + 1 - b) for u in range(n + 1 - b - v)]
    )
    cells = np.array([q * (1 - flipped), q * flipped, (ratio - 1) * q + q * flipped, 0.0])
    cells[3] = 1 - cells.sum()
    assert cells.min() > 0
    whole = np.column_stack([tables, n - tables.sum(1)])
    return tables, np.exp(gammaln(n + 1) - gammaln(whole + 1).sum(1) + whole @ np.log(cells))


@pytest.mark.parametrize("n", [20, 36])
@pytest.mark.parametrize(
    ("q", "ratio", "flipped"),
    [(0.3, 0.97, 0.05), (0.3, 0.9, 0.35), (0.6, 0.97, 0.12), (0.6, 0.7, 0.35), (0.9, 0.97, 0.12)],
)
def test_coverage_by_enumeration(n: int, q: float, ratio: float, flipped: float) -> None:
    """Over every possible outcome: 95 % hold the truth in at least 94 %, and a bound of 1 % misses in at most 1.5 %."""
    tables, likely = chances(n, q, ratio, flipped)
    seen = tables[:, 0] + tables[:, 1] > 0
    z = np.array([score_statistic(ratio, *table) if any(table) else 0.0 for table in tables.tolist()])
    share = likely[seen] / likely[seen].sum()
    assert share[np.abs(z[seen]) <= norm.ppf(0.975)].sum() >= 0.94
    assert share[z[seen] < -norm.ppf(0.99)].sum() <= 0.015
    assert share[z[seen] > norm.ppf(0.99)].sum() <= 0.015


def test_what_is_no_table() -> None:
    """Counts are checked, a ratio to nothing is refused, and so is a ratio that is not above 0."""
    with pytest.raises(ValueError, match="counts of answers are 0 or more, got 3, -1, 0 of 4"):
        accuracy_ratio(3, -1, 0, 4)
    with pytest.raises(ValueError, match="got 3, 1, 1 of 4"):
        accuracy_ratio(3, 1, 1, 4)
    with pytest.raises(ValueError, match="needs a question that the reference gets right, got none"):
        accuracy_ratio(0, 0, 2, 4)
    with pytest.raises(ValueError, match="a ratio is above 0, got 0"):
        score_statistic(0.0, 1, 1, 1)
