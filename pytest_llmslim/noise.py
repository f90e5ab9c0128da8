"""How noisy a machine is, from equal models measured against each other, and which limits hold on it.

Measurements are replayed: blocks are drawn from the recorded ones, with replacement and a fixed seed, and judged
by the bounds and the rule of the gate. So the noise keeps its own shape, and what is random is random once. Blocks
are drawn as if each were independent of its neighbours; drift from block to block is in their spread alone.

Sources: Efron, Bootstrap Methods: Another Look at the Jackknife (1979); Rousseeuw, Croux, Alternatives to the
Median Absolute Deviation (1993), on scale from pairwise differences.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pytest_llmslim.gate import Limits
from pytest_llmslim.judging import Edges, outcome, over
from pytest_llmslim.sequential import LOOKS, Family, looks_up_to
from pytest_llmslim.statistics import block_estimate, block_medians, hodges_lehmann

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pytest_llmslim.records import Axis, Estimate, Method, Outcome, Sampling
    from pytest_llmslim.statistics import Interval

GATES: Final = (1, 20)
"""Sizes of the families for which figures are given."""
REPLAYS: Final = 1000
FOUND: Final = 0.8
"""Of the replays of an increase, the share that has to fail for it to count as found."""
PASSED: Final = 0.99
"""Of the replays of equal models, the share that has to pass under a proposed limit."""
DEFAULTS: Final = Limits()
"""No smaller limit is proposed."""
LEAST_BLOCKS: Final = LOOKS[2]
"""Fewer recorded blocks say too little, and a family of 20 gates could not fail with them."""

_LARGEST = 100  # percent; a limit beyond that says nothing
_SCALE = 1 / (math.sqrt(2) * statistics.NormalDist().inv_cdf(0.75))  # of a median absolute difference
_MEDIAN_VARIANCE = {2: 0.5, 3: 0.4487, 4: 0.2982}  # of the median of so many standard normal values


@dataclass(frozen=True, slots=True)
class Series:
    """One clock or meter over equal models: log(copy / reference) of pairs, and block by block.

    Args:
        axis: of the gate.
        source: clock or meter.
        method: how the values were had.
        pairs: in the order of time.
        per_block: pairs in a block; 1 where each value is a block.
        blocks: what the gate judges.
        excluded: why no limit is proposed from it; empty where it is gated.
    """

    axis: Axis
    source: str
    method: Method
    pairs: tuple[float, ...]
    per_block: int
    blocks: tuple[float, ...]
    excluded: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """Robust standard deviations of log ratios.

    Args:
        pair: of a pair within its block.
        between: of a block beyond what its pairs explain, from layout and drift; `None` where a block is a pair.
    """

    pair: float
    between: float | None


@dataclass(frozen=True, slots=True)
class Shares:
    """Of all replays, how many ended how, as fractions."""

    failed: float
    inconclusive: float
    passed: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What a series says.

    Args:
        spread: see `Spread`.
        ratio: copy / reference with its 95 % interval, which should hold 1.
        found: for each of `blocks`, the smallest increase found, one for each of `GATES`; infinity for none.
        blocks: numbers of blocks, in order.
        equal: what the gate makes of equal models, one for each of `GATES`.
    """

    spread: Spread
    ratio: Estimate
    found: tuple[tuple[float, ...], ...] = ()
    blocks: tuple[int, ...] = ()
    equal: tuple[Shares, ...] = ()


@dataclass(frozen=True, slots=True)
class Calibration:
    """One model measured against a copy of itself.

    Args:
        model: its label.
        sampling: looks and disturbed pairs.
        seconds: from the start to each look.
        series: what was recorded.
        figures: one for each series.
        unmeasured: why there is no energy; empty where there is.
        notes: of the measurement.
    """

    model: str
    sampling: Sampling
    seconds: tuple[float, ...]
    series: tuple[Series, ...]
    figures: tuple[Figures, ...]
    unmeasured: str = ""
    notes: tuple[str, ...] = ()


def spread(pairs: Sequence[float], per_block: int) -> Spread:
    """Standard deviations within and between blocks, from medians of absolute pairwise differences.

    A median of `k` pairs has `_MEDIAN_VARIANCE[k]` times the variance of a pair; what block medians vary beyond
    that is between blocks. A spike moves either by its rank and not by its size.

    Raises:
        ValueError: fewer than two pairs, or blocks that are not full or of more than four pairs.
    """
    if len(pairs) < 2 or per_block not in (1, *_MEDIAN_VARIANCE):
        raise ValueError(
            f"a spread takes two pairs or more in blocks of 1 to 4, got {len(pairs)}, {per_block}"
        )
    if per_block == 1:
        return Spread(_scale(itertools.combinations(pairs, 2)), None)
    blocks = [pairs[i : i + per_block] for i in range(0, len(pairs), per_block)]
    within = _scale(itertools.chain.from_iterable(itertools.combinations(block, 2) for block in blocks))
    whole = _scale(itertools.combinations(block_medians(pairs, per_block), 2))
    return Spread(within, math.sqrt(max(0.0, whole**2 - _MEDIAN_VARIANCE[per_block] * within**2)))


def _scale(couples: Iterable[tuple[float, float]]) -> float:
    return _SCALE * statistics.median(abs(a - b) for a, b in couples)


# Replays ----------------------------------------------------------------------------------------------------


class Replays:
    """Measurements drawn from recorded blocks, with the gate's bounds at each look.

    Args:
        blocks: recorded log ratios of equal models.
        looks: numbers of blocks at which a decision is tried.
        gates: how many share the error of the run; each replay is the first of them to be decided.
        count: how many measurements are drawn.
        pass_alpha: of `Limits`.
    """

    def __init__(
        self,
        blocks: Sequence[float],
        looks: Sequence[int],
        gates: int,
        count: int = REPLAYS,
        pass_alpha: float = DEFAULTS.pass_alpha,
    ) -> None:
        draw = random.Random(0)
        alpha = Family(gates).level() / len(looks)

        def bounds(drawn: list[float]) -> tuple[Interval, ...]:
            return tuple(hodges_lehmann(drawn[:look], miss_low=alpha, miss_high=pass_alpha) for look in looks)

        self._bounds = [bounds(draw.choices(blocks, k=looks[-1])) for _ in range(count)]
        # The best low bound of each replay, had it taken all looks; the largest first.
        self._lows = sorted((max(now.low for now in replay) for replay in self._bounds), reverse=True)

    def shares(self, edges: Edges, increase: float = 0.0) -> Shares:
        """How the gate ends measurements of something that takes `increase` more, by its first decision."""
        # What takes more is judged by limits that are lower by as much.
        lower = Edges(edges.fail_above / (1 + increase), edges.pass_below / (1 + increase))
        outcomes = Counter(_ended(replay, lower) for replay in self._bounds)
        failed, open_, passed = (
            outcomes[word] / len(self._bounds) for word in ("failed", "inconclusive", "passed")
        )
        return Shares(failed, open_, passed)

    def stands_out(self, fail_above: float) -> bool:
        """Whether any replay of equal models is surely above a ratio at any look, had all looks been taken."""
        return over(self._lows[0], fail_above)

    def smallest_found(self, fail_above: float) -> float:
        """The smallest increase that stands out in `FOUND` of the replays, as a fraction; infinity for none."""
        low = self._lows[math.ceil(FOUND * len(self._lows)) - 1]
        return fail_above / low - 1 if low > 0 else math.inf


@lru_cache(maxsize=64)
def replays(blocks: tuple[float, ...], looks: tuple[int, ...], gates: int, count: int = REPLAYS) -> Replays:
    """As `Replays`, drawn once for figures and limits."""
    return Replays(blocks, looks, gates, count)


def _ended(replay: Iterable[Interval], edges: Edges) -> Outcome:
    """The gate's rule, look by look."""
    outcomes = (outcome(now, edges, edges.fail_above) for now in replay)
    return next((found for found in outcomes if found != "inconclusive"), "inconclusive")


def figures(series: Series, limits: Limits) -> Figures:
    """All figures of a series; those of decisions only where it is gated.

    What is found with `n` blocks is what one look at `n` finds (`--llm-rounds`). How equal models end is judged
    with all looks, against a stored ratio of 1 exactly.
    """
    ratio = block_estimate(series.blocks, series.method, series.source)
    within = spread(series.pairs, series.per_block)
    if series.excluded:
        return Figures(within, ratio)
    edges = Edges(1 + limits.limit, 1 + limits.resolve)
    sizes = looks_up_to(len(series.blocks))
    found = tuple(
        tuple(replays(series.blocks, (n,), gates).smallest_found(edges.fail_above) for gates in GATES)
        for n in sizes
    )
    equal = tuple(replays(series.blocks, sizes, gates).shares(edges) for gates in GATES)
    return Figures(within, ratio, found, sizes, equal)


# Limits -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proposal:
    """Limits in whole percents, as fractions, and why.

    Args:
        regression: smallest under which no replay of equal models failed.
        resolve: smallest under which equal models pass in `PASSED` of the replays, and that is found.
        passed: share of replays of equal models that pass.
        found: share of replays in which an increase of `resolve` fails, in the largest of `GATES`.
        max_rounds: pairs that this takes at most.
    """

    regression: float
    resolve: float
    passed: float
    found: float
    max_rounds: int


def propose(
    recorded: Sequence[Series], max_rounds: int, least: Limits = DEFAULTS, count: int = REPLAYS
) -> Proposal | None:
    """The limits that hold for all series that are gated, never below `least`.

    Equal models must not fail against a stored ratio of 1 exactly. What passes and what is found is held against a
    stored run of as many blocks as were recorded: of ratio 1, with the interval that these have. What wall time
    leaves undecided has no verdict, so it has no say in `resolve` beside another series.

    A larger `regression` would find less without passing more: noise is the business of `resolve`.

    Args:
        recorded: series of all models.
        max_rounds: pairs that were measured at most.
        least: limits below which nothing is proposed.
        count: replays of each series.

    Returns:
        `None` where no series is gated, or no limit up to 100 % holds.
    """
    noises = [_Noise(series, count) for series in recorded if not series.excluded]
    judged = [noise for noise in noises if noise.axis != "wall"] or noises
    regression = _first(_percents(least.limit), lambda limit: all(noise.quiet(limit) for noise in noises))
    if not noises or regression is None:
        return None
    larger = [resolve for resolve in _percents(least.resolve) if resolve > regression]
    resolve = _first(larger, lambda resolve: all(noise.holds(regression, resolve) for noise in judged))
    if resolve is None:
        return None
    passed, found = zip(*(noise.decided(regression, resolve) for noise in judged), strict=True)
    return Proposal(regression, resolve, min(passed), min(found), max_rounds)


def _percents(least: float) -> list[float]:
    return [percent / 100 for percent in range(math.ceil(100 * least - 1e-9), _LARGEST + 1)]


def _first(candidates: Iterable[float], holds: Callable[[float], bool]) -> float | None:
    return next((candidate for candidate in candidates if holds(candidate)), None)


class _Noise:
    """A gated series, replayed as a gate alone and as the first of many, and the width of a stored run."""

    def __init__(self, series: Series, count: int) -> None:
        self.axis = series.axis
        looks = looks_up_to(len(series.blocks))
        self._alone, self._first_of_many = (
            replays(series.blocks, looks, gates, count) for gates in (GATES[0], GATES[-1])
        )
        swapped = tuple(-value for value in series.blocks)
        self._swapped = replays(swapped, looks, GATES[0], count)
        stored = hodges_lehmann(series.blocks)
        self._stored = math.sqrt(stored.high / stored.low)

    def quiet(self, limit: float) -> bool:
        """Whether no replay fails, even with all looks taken, whichever of two equal models is called the copy."""
        return not any(one.stands_out(1 + limit) for one in (self._alone, self._swapped))

    def decided(self, limit: float, resolve: float) -> tuple[float, float]:
        """Shares of equal models that pass, and of an increase of `resolve` that is found."""
        edges = Edges((1 + limit) * self._stored, (1 + resolve) / self._stored)
        found = self._first_of_many.shares(edges, resolve).failed
        return self._alone.shares(edges).passed, found

    def holds(self, limit: float, resolve: float) -> bool:
        """Whether both are enough."""
        passed, found = self.decided(limit, resolve)
        return passed >= PASSED and found >= FOUND
