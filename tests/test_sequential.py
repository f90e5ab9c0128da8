"""The looks, and the error that all noisy gates of a run share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.signal
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmslim.sequential import ALPHA, LOOKS, RESERVE, Family, looks_up_to
from pytest_llmslim.statistics import (
    block_medians,
    holm,
    minimum_blocks,
    rank_sum_tail,
    signed_rank_p_greater,
)

SHARED = 1 - RESERVE
# What a gate is in a simulation: whether it is truly worse, and its p-value.
gates = st.tuples(st.booleans(), st.floats(0, 1) | st.floats(0, 0.02))


def decide_in_order(family: Family, p_values: list[float], together: int = 1) -> list[bool]:
    """Which gates fail when they come in order, so many at a time."""
    failed: list[bool] = []
    for start in range(0, len(p_values), together):
        batch = p_values[start : start + together]
        level = family.level(len(batch))
        failed += [p <= level for p in batch]
        family.close(decided=len(batch), failed=sum(failed[start:]))
    return failed


# Looks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "looks"),
    [
        (1, (1,)),
        (7, (7,)),
        (8, (8,)),
        (9, (8, 9)),
        (12, (8, 12)),
        (20, (8, 12, 18, 20)),
        (39, (8, 12, 18, 27, 39)),
        (40, LOOKS),
        (41, (*LOOKS, 41)),
        (400, (*LOOKS, 400)),
    ],
)
def test_looks(blocks: int, looks: tuple[int, ...]) -> None:
    """All looks below the most blocks, and one at the most."""
    assert looks_up_to(blocks) == looks


def test_no_block_has_no_look() -> None:
    """A measurement of nothing is refused."""
    with pytest.raises(ValueError, match="a measurement has at least one block, got 0"):
        looks_up_to(0)


def test_the_last_look_can_decide() -> None:
    """With 20 gates and five looks it takes 14 blocks to fail a gate, so three of the looks can."""
    needed = minimum_blocks(Family(20).level() / len(LOOKS))
    assert needed == 14
    assert sum(look >= needed for look in LOOKS) == 3


# Family --------------------------------------------------------------------------------------------------


def test_levels_by_hand() -> None:
    """Three planned gates, the first of which fails, then two that nobody foresaw."""
    family = Family(3)
    assert family.level() == pytest.approx(ALPHA * SHARED / 3)
    family.close(decided=1, failed=1)
    assert family.level() == pytest.approx(ALPHA * SHARED / 2)
    family.close(decided=2, failed=0)
    assert family.level() == pytest.approx(ALPHA * RESERVE / 2)
    family.close(decided=1, failed=1)
    assert family.level() == pytest.approx(ALPHA * RESERVE / 4)
    assert family.level(2) == pytest.approx(ALPHA * RESERVE * (1 / 4 + 1 / 8) / 2)


def test_nothing_planned() -> None:
    """Where collection foresaw no gate, nothing is set aside for planned ones."""
    family = Family(0)
    assert family.level() == ALPHA / 2
    family.close(decided=1, failed=1)
    assert family.level() == ALPHA / 4


def test_gates_that_fail_together() -> None:
    """Each of several failed gates of one measurement hands its share on."""
    family = Family(5)
    family.close(decided=3, failed=2)
    assert family.level() == pytest.approx(ALPHA * SHARED / 3)


def test_all_planned_fail() -> None:
    """Each failure hands its share on; the last planned gate may spend what all planned gates may."""
    family = Family(4)
    for left in (4, 3, 2, 1):
        assert family.level() == pytest.approx(ALPHA * SHARED / left)
        family.close(decided=1, failed=1)
    assert family.level() == pytest.approx(ALPHA * RESERVE / 2)


def test_gates_at_the_end_of_the_plan() -> None:
    """Of three gates in one measurement where one was planned, none gets more than both parts allow."""
    family = Family(1)
    assert family.level(3) == pytest.approx(ALPHA * RESERVE * (1 / 2 + 1 / 4) / 2)
    family.close(decided=3, failed=0)
    assert family.level() == pytest.approx(ALPHA * RESERVE / 8)


def test_closing_without_gates() -> None:
    """A measurement without a noisy gate takes nothing."""
    family = Family(2)
    before = family.level(0)
    family.close(decided=0, failed=0)
    assert family.level() == before


@pytest.mark.parametrize(("decided", "failed"), [(1, 2), (1, -1), (-1, -1)])
def test_impossible_counts(decided: int, failed: int) -> None:
    """More failed gates than gates are an error in the caller."""
    with pytest.raises(ValueError, match=f"none to all failed, got {failed} of {decided}"):
        Family(3).close(decided=decided, failed=failed)


@pytest.mark.parametrize(("planned", "alpha"), [(-1, 0.01), (2, 0.0), (2, 1.0)])
def test_impossible_families(planned: int, alpha: float) -> None:
    """A family has a number of gates and a chance to err."""
    with pytest.raises(ValueError, match=f"a family has 0 or more gates .*, got {planned}, {alpha}"):
        Family(planned, alpha)


@given(st.integers(0, 8), st.lists(st.lists(gates, max_size=4), max_size=8), st.data())
def test_what_is_spent_on_gates_that_are_not_worse(
    planned: int, measurements: list[list[tuple[bool, float]]], data: st.DataObject
) -> None:
    """Until the first false alarm it is at most alpha, whatever fails, comes together or goes beyond the plan."""
    family = Family(planned)
    spent = 0.0
    for foreseen in measurements:
        level = family.level(len(foreseen))
        # Some may turn out not to be comparable, and are then not decided.
        decided = foreseen[: data.draw(st.integers(0, len(foreseen)))]
        spent += level * sum(not worse for worse, _ in decided)
        if any(p <= level and not worse for worse, p in decided):
            break
        family.close(decided=len(decided), failed=sum(p <= level for _, p in decided))
    assert spent <= ALPHA * (1 + 1e-12)


@given(st.lists(st.floats(0, 1) | st.floats(0, 0.02), min_size=1, max_size=15))
def test_between_bonferroni_and_holm(p_values: list[float]) -> None:
    """In any order, what fails is at least what Bonferroni's rule fails and at most what Holm's does."""
    shared = ALPHA * SHARED
    failed = decide_in_order(Family(len(p_values)), p_values)
    for p, adjusted, fails in zip(p_values, holm(p_values), failed, strict=True):
        assert not fails or adjusted <= shared * (1 + 1e-12)
        assert fails or p > shared / len(p_values) * (1 - 1e-12)


@given(st.lists(st.floats(0, 0.02), min_size=1, max_size=10).map(sorted))
def test_in_the_order_of_p_it_is_holm(p_values: list[float]) -> None:
    """When the smallest p comes first, exactly that fails which fails by Holm's procedure."""
    failed = decide_in_order(Family(len(p_values)), p_values)
    adjusted = np.array(holm(p_values))
    close = np.isclose(adjusted, ALPHA * SHARED, rtol=1e-9)
    assert np.all((np.array(failed) == (adjusted <= ALPHA * SHARED)) | close)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("worse", [0, 3, 7])
def test_false_alarms_of_a_whole_run(worse: int, together: int) -> None:
    """Eight planned gates and two more, some truly worse and found, in any order: runs err as often as allowed.

    3000 runs at a level of 20 %, which they may pass by four standard errors.
    """
    generator = np.random.default_rng(100 * worse + together)
    alpha, runs, alarms = 0.2, 3000, 0
    for _ in range(runs):
        p_values = generator.uniform(size=10)
        found = generator.permutation(8)[:worse]
        p_values[found] *= 1e-9
        failed = np.array(decide_in_order(Family(8, alpha), p_values.tolist(), together))
        assert failed[found].all()
        failed[found] = False
        alarms += failed.any()
    assert alarms / runs <= alpha + 4 * (alpha * (1 - alpha) / runs) ** 0.5


def test_the_error_is_not_left_unused() -> None:
    """A gate that is not worse, after seven that failed, errs with all that is planned, not an eighth of it."""
    generator = np.random.default_rng(2)
    p_values = [[1e-9] * 7 + [p] for p in generator.uniform(size=3000)]
    alarms = np.mean([decide_in_order(Family(8, 0.2), run)[-1] for run in p_values])
    assert alarms == pytest.approx(0.2 * SHARED, abs=0.03)


def test_alarms_of_gates_that_depend_on_each_other() -> None:
    """The bound needs no independence: with one p-value for all gates, runs err less often, never more."""
    generator = np.random.default_rng(6)
    alarms = sum(any(decide_in_order(Family(8, 0.2), [p] * 8)) for p in generator.uniform(size=3000).tolist())
    assert 0 < alarms <= 0.2 * 3000 / 8 * 1.4


# Simulated noise -----------------------------------------------------------------------------------------

GATES, BLOCKS, PAIRS, RUNS = 20, LOOKS[-1], 4, 600


def drift(generator: np.random.Generator, sides: tuple[int, ...]) -> np.ndarray:
    """AR(1) noise of 10 % in the order of time, which is random within a pair, and 3 % of its own."""
    steps = int(np.prod(sides[2:]))
    shocks = generator.normal(0, 0.1 * (1 - 0.9**2) ** 0.5, (sides[0] * sides[1], steps))
    shocks[:, 0] = generator.normal(0, 0.1, len(shocks))
    slow = scipy.signal.lfilter([1], [1, -0.9], shocks).reshape(sides)
    swapped = generator.random(sides[:-1]) < 0.5
    return np.where(swapped[..., None], slow[..., ::-1], slow) + generator.normal(0, 0.03, sides)


def spikes(generator: np.random.Generator, sides: tuple[int, ...]) -> np.ndarray:
    """Noise of 3 %, and one window of time in twelve takes 1.3 to 3 times as long."""
    spike = np.log(generator.uniform(1.3, 3, sides))
    return generator.normal(0, 0.03, sides) + np.where(generator.random(sides) < 0.08, spike, 0)


NOISES = {
    "log-normal 5 %": lambda generator, sides: generator.normal(0, 0.05, sides),
    "log-normal 10 %": lambda generator, sides: generator.normal(0, 0.10, sides),
    "log-normal 15 %": lambda generator, sides: generator.normal(0, 0.15, sides),
    "spikes 8 %": spikes,
    "AR(1) drift 10 %": drift,
}


def smallest_p(medians: np.ndarray, shift: float) -> np.ndarray:
    """The smallest signed-rank p-value of all looks at block medians of shape (..., blocks)."""
    found = []
    for look in LOOKS:
        values = medians[..., :look] - shift
        ranks = np.abs(values).argsort(-1).argsort(-1) + 1
        found.append(np.array(rank_sum_tail(look))[np.where(values > 0, ranks, 0).sum(-1)])
    return np.min(found, axis=0)


def upper_bound(alarms: int, runs: int) -> float:
    """The one-sided 95 % Clopper-Pearson bound of a rate."""
    return float(scipy.stats.beta.ppf(0.95, alarms + 1, runs - alarms))


def test_false_alarms_of_twenty_gates_on_simulated_noise() -> None:
    """Equal models, five noises, twenty gates, all looks: at most 1 % of runs are red, surely.

    Against a limit of 2 %, for each noise apart (600 runs); and without a limit, where only the level of the test
    keeps it from failing, over all noises (3000 runs).
    """
    generator = np.random.default_rng(20260801)
    without_limit = 0
    for name, noise in NOISES.items():
        sides = noise(generator, (RUNS, GATES, BLOCKS, PAIRS, 2))
        medians = np.median(sides[..., 1] - sides[..., 0], axis=-1)
        runs = {limit: smallest_p(medians, math.log1p(limit)) * len(LOOKS) for limit in (0.0, 0.02)}
        red = {
            limit: sum(any(decide_in_order(Family(GATES), run.tolist())) for run in p_values)
            for limit, p_values in runs.items()
        }
        assert upper_bound(red[0.02], RUNS) <= ALPHA, name
        without_limit += red[0.0]
    assert upper_bound(without_limit, RUNS * len(NOISES)) <= ALPHA


def test_the_simulation_computes_what_the_package_does() -> None:
    """Its p-values and medians are those of `signed_rank_p_greater` and `block_medians`."""
    pairs = np.random.default_rng(4).normal(0.02, 0.05, (5, BLOCKS, PAIRS))
    medians = [block_medians(run.ravel().tolist(), PAIRS) for run in pairs]
    assert np.median(pairs, axis=-1) == pytest.approx(np.array(medians))
    expected = [min(signed_rank_p_greater(run[:look], 0.01) for look in LOOKS) for run in medians]
    assert smallest_p(np.array(medians), 0.01) == pytest.approx(expected, rel=1e-12)
