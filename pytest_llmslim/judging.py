"""What the gate makes of noise: exact one-sided bounds of a ratio, and the three-way decision on them.

A noisy axis is *failed* only when the lower bound is past the limit, *passed* only when the upper bound is
inside, and *inconclusive* otherwise, with what is excluded and how many blocks would settle it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.conditions import Explained, layout, sentence, wall_agrees
from pytest_llmslim.meters.crosscheck import agree
from pytest_llmslim.records import Against, Axis, Estimate, Outcome, Record, Verdict
from pytest_llmslim.score import opt_estimate
from pytest_llmslim.statistics import Interval, hodges_lehmann, minimum_blocks, needed_samples

if TYPE_CHECKING:
    from pytest_llmslim.gate import Limits, Thresholds

_SLACK: Final = 1e-9  # exp and log of a limit do not give the limit back


class Edges(NamedTuple):
    """A ratio surely above `fail_above` fails, one surely below `pass_below` passes.

    `load`: what other conditions alone can have added to the ratio, see `conditions.explained`.
    """

    fail_above: float
    pass_below: float
    load: Explained = Explained()


@dataclass(frozen=True, slots=True)
class Case:
    """A record with all that is needed to judge it; `alpha`: what each noisy gate may spend at this look."""

    record: Record
    thresholds: Thresholds
    baseline: Record | None
    anchor: Record | None
    gate_estimated: bool
    alpha: float
    limits: Limits

    def verdict(
        self,
        axis: Axis,
        outcome: Outcome,
        text: str,
        against: Against = "threshold",
        *,
        more: bool = False,
        evaluation: str = "",
    ) -> Verdict:
        """A verdict whose sentence starts with the candidate's name."""
        return Verdict(axis, outcome, f"{self.record.label}: {text}", against, more, evaluation)


def bounds(case: Case, axis: Axis) -> Interval:
    """The ratio with one-sided bounds: each misses the truth with at most `alpha` or `pass_alpha`.

    Raises:
        MeasurementError: no block, or one that is no number.
        ScoreError: parts of opt that are no ratios.
    """
    share = _share(case, axis)
    samples = case.record.samples

    def ratio(log_ratios: tuple[float, ...]) -> Interval:
        return hodges_lehmann(
            log_ratios, miss_low=case.alpha * share, miss_high=case.limits.pass_alpha * share
        )

    if axis in ("time", "wall", "energy"):
        return ratio(getattr(samples, axis))
    record, profile = case.record, case.record.profile
    exact = record.worsening.value
    quality = replace(record.worsening, low=exact, high=exact, n=max(len(samples.time), len(samples.energy)))
    time, energy = record.time, record.energy
    if profile.alpha > 0:
        time = Estimate(*ratio(samples.time), time.method, time.source)
    if profile.beta > 0:
        energy = Estimate(*ratio(samples.energy), energy.method, energy.source)
    return interval_of(opt_estimate(quality, time, energy, profile))


def _share(case: Case, axis: Axis) -> float:
    """Of alpha for each series; opt rests on two, either of which may miss."""
    profile = case.record.profile
    return 0.5 if axis == "opt" and profile.alpha > 0 and profile.beta > 0 else 1.0


def judge(case: Case, now: Interval, edges: Edges) -> Outcome:
    """The decision. What memory that could not be renewed, or more load, can explain does not fail."""
    return outcome(now, edges, _explained(case, edges))


def outcome(now: Interval, edges: Edges, explained: float) -> Outcome:
    """The three-way rule; `explained`: the ratio up to which nothing fails though it is past the limit."""
    if over(now.low, edges.fail_above):
        return "failed" if over(now.low, explained) else "inconclusive"
    return "inconclusive" if over(now.high, edges.pass_below) else "passed"


def undecided(case: Case, axis: Axis, now: Interval, edges: Edges) -> tuple[str, bool]:
    """What is excluded so far and what would settle it, as a sentence; and whether that is more blocks."""
    if over(now.low, edges.fail_above):
        largest = max(edges.load, layout(case.record))
        return sentence(largest), over(now.value, _explained(case, edges))
    share = _share(case, axis)
    least = [minimum_blocks(alpha * share) for alpha in (case.alpha, case.limits.pass_alpha)]
    if now.n < min(least):
        most = max(least)
        blocks = "1 block" if now.n == 1 else f"{now.n} blocks"
        return f"{blocks} can decide nothing; it takes at least {most} ({_option(case, most)}).", True
    needed = needed_samples(
        now,
        fail_above=edges.fail_above,
        pass_below=edges.pass_below,
        fail_minimum=least[0],
        pass_minimum=least[1],
    )
    remedy = (
        f"about {needed} blocks would settle it ({_option(case, needed)})"
        if needed
        else "more blocks would not help"
    )
    excluded = (
        f"Above {units.ratio(now.high)} is excluded" if math.isfinite(now.high) else "Nothing is excluded"
    )
    return f"{excluded}; {remedy}.", needed is not None


def _explained(case: Case, edges: Edges) -> float:
    """The ratio up to which something else than the candidate can have made it slower."""
    return edges.fail_above * (1 + edges.load.share) * (1 + layout(case.record).share)


def _option(case: Case, blocks: int) -> str:
    sampling = case.record.sampling
    name = "--llm-rounds" if sampling.planned == 1 else "--llm-max-rounds"
    return f"{name} {blocks * max(1, sampling.per_block)}"


def gated(case: Case, axis: Axis) -> bool:
    """Whether an axis is held against anything here.

    Wall time only where it agrees with the CPU time of the reference: else something beside us is timed.
    """
    if axis == "wall":
        return wall_agrees(case.record.sampling.wall_over_cpu)
    return axis != "energy" or case.gate_estimated or case.record.energy.method != "estimated"


def wall_says_nothing(axis: Axis, outcome: Outcome, now: Interval, edges: Edges) -> bool:
    """Wall time stands beside CPU time to catch waiting: undecided and within the limit, it has no verdict."""
    return axis == "wall" and outcome == "inconclusive" and not over(now.value, edges.fail_above)


def unreliable(case: Case, axis: Axis) -> str:
    """Why the energy under an axis cannot be trusted; empty when it can."""
    record, metering = case.record, case.record.metering
    if not (axis == "energy" or (axis == "opt" and record.profile.beta > 0)):
        return ""
    ratio = metering.second_ratio
    if ratio is None or agree(ratio):
        return ""
    return (
        f"{record.energy.source} and {metering.second_source} disagree by {units.percent(ratio - 1)} over the "
        "same windows"
    )


def interval_of(estimate: Estimate) -> Interval:
    """An estimate's numbers; unknown bounds are 0 and infinity."""
    value = math.nan if estimate.value is None else estimate.value
    high = math.inf if estimate.high is None else estimate.high
    return Interval(value, estimate.low or 0.0, high, estimate.n)


def mark(record: Record, axis: Axis) -> str:
    """How the energy was obtained, unless it was measured."""
    energy = record.energy
    if (
        axis in ("time", "wall")
        or (axis == "opt" and record.profile.beta == 0)
        or energy.method == "measured"
    ):
        return ""
    return f" ({energy.method} by {energy.source})" if axis == "energy" else f" (energy {energy.method})"


def over(value: float, limit: float) -> bool:
    """Whether a ratio is past a limit, and not only by rounding."""
    return value > limit * (1 + _SLACK)
