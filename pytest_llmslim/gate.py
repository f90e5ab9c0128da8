"""The gate: pure decisions over one record, its thresholds, its baseline and its anchor.

Order: integrity, quality, cost, opt. Perplexity is the same number again on one machine, so point estimates
are compared; evaluations rest on few questions (see `evaluation_gate.py`). Time, energy and opt are noisy (see
`judging.py`); the bracket in a sentence is the one that the decision rests on. Nothing here is random: a stored record
gives the same verdict again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

from pytest_llmslim import judging, units
from pytest_llmslim.comparability import no_number
from pytest_llmslim.conditions import explained
from pytest_llmslim.errors import MeasurementError, ScoreError, SettingError
from pytest_llmslim.evaluation_gate import regressions, thresholds_on_evaluations
from pytest_llmslim.judging import Case, Edges
from pytest_llmslim.planning import detectable_by_windows, windows_to_detect
from pytest_llmslim.records import Axis, Estimate, Record, Verdict, worst
from pytest_llmslim.regression import regression
from pytest_llmslim.sequential import ALPHA
from pytest_llmslim.statistics import Interval, needed_samples

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NOISY", "Limits", "Thresholds", "decide", "failure", "noisy_gates", "undecided_axes", "worst"]

_AXES: Final[tuple[Axis, ...]] = ("perplexity", "time", "wall", "energy", "opt")
NOISY: Final[tuple[Axis, ...]] = ("time", "wall", "energy", "opt")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a test will not ship; `None`: no limit.

    Increases are fractions over the reference (0.03: three percent), `max_opt` is a score. `max_accuracy_drop`
    holds for every evaluation that has a metric: the share by which it may get worse.

    Raises:
        SettingError: a limit that is not finite, an increase of -1 or below, or a score of 0 or below.
    """

    max_perplexity_increase: float | None = None
    max_accuracy_drop: float | None = None
    max_time_increase: float | None = None
    max_energy_increase: float | None = None
    max_opt: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_opt" else -1
            if value is not None and not least < value < math.inf:
                raise SettingError(f"{field.name} is a finite number above {least}, got {value}")

    def of(self, axis: Axis) -> tuple[str, float | None]:
        """Name and value of the limit on an axis; that on time holds for both clocks."""
        name = "max_opt" if axis == "opt" else f"max_{'time' if axis == 'wall' else axis}_increase"
        return name, getattr(self, name)


@dataclass(frozen=True, slots=True)
class Limits:
    """The rules of comparing with a baseline, as fractions, and of noise.

    Args:
        baseline_perplexity: a larger increase of the perplexity ratio is a regression.
        limit: a larger increase of time, energy or opt is a regression.
        resolve: the largest increase of those that a passed verdict may have missed.
        pass_alpha: chance of a passed verdict on what is at `resolve`, or at a threshold, at each look.

    Raises:
        SettingError: a negative limit, or a `resolve` that is not above `limit`.
    """

    baseline_perplexity: float = 0.01
    limit: float = 0.02
    resolve: float = 0.10
    pass_alpha: float = 0.01

    def __post_init__(self) -> None:
        if min(self.baseline_perplexity, self.limit) < 0:
            raise SettingError(
                "--llm-regression and --llm-quality-regression are 0 % or more; give the size of a loss"
            )
        if self.resolve <= self.limit:
            raise SettingError(
                f"--llm-resolve is above --llm-regression, got {units.percent_limit(self.resolve)} and "
                f"{units.percent_limit(self.limit)}; a loss between the two may pass"
            )


_DEFAULT_LIMITS: Final = Limits()


def decide(
    record: Record,
    thresholds: Thresholds,
    baseline: Record | None = None,
    *,
    anchor: Record | None = None,
    require_baseline: bool = False,
    gate_estimated: bool = False,
    alpha: float = ALPHA,
    limits: Limits = _DEFAULT_LIMITS,
) -> tuple[Verdict, ...]:
    """All verdicts on a record: one an axis and kind of limit, each with its sentence.

    A threshold that cannot be checked is inconclusive, never passed. A baseline of another protocol,
    reference or, for cost, machine is not comparable. Estimated energy is compared only where
    `gate_estimated` says so; an opt that rests on it is held against `max_opt` all the same, and its
    sentence says "estimated".

    Args:
        record: what was measured.
        thresholds: limits against the reference.
        baseline: the stored record of the same key.
        anchor: the first accepted record of the same key, where it is another than the baseline.
        require_baseline: a missing baseline is failed instead of new.
        gate_estimated: hold estimated energy against limits and baselines too.
        alpha: chance of a false failed verdict that each noisy gate may spend in this decision; split by the
            caller over the gates and looks of a run (`sequential.Family`).
        limits: rules of comparing with a baseline.

    Raises:
        ValueError: the baseline or the anchor has another key.
    """
    for stored in (baseline, anchor):
        if stored is not None and stored.key != record.key:
            raise ValueError(f"a baseline has the record's key {record.key}, got {stored.key}")
    case = Case(record, thresholds, baseline, anchor, gate_estimated, alpha, limits)
    if record.integrity.status == "nothing":
        text = f"nothing was compressed. {record.integrity.sentence}"
        return (case.verdict("integrity", "failed", text, "integrity"),)
    found = [case.verdict("integrity", "passed", record.integrity.sentence, "integrity")]
    if baseline is None:
        found.append(_no_baseline(case, require_baseline))
    for axis in _AXES:
        verdicts = [_threshold(case, axis)]
        if baseline is not None:
            verdicts.append(regression(case, axis, baseline, "baseline"))
        if anchor is not None:
            verdicts.append(regression(case, axis, anchor, "anchor"))
        found += [verdict for verdict in verdicts if verdict]
        if axis == "perplexity":
            found += _evaluations(case, require_baseline)
    return tuple(verdict for verdict in found if not _said_by_time(verdict, found))


def _evaluations(case: Case, require_baseline: bool) -> list[Verdict]:
    """Verdicts on all evaluations, each against its limit, the baseline and the anchor."""
    found = thresholds_on_evaluations(case)
    if case.baseline is not None:
        found += regressions(case, case.baseline, "baseline", required=require_baseline)
    if case.anchor is not None:
        found += regressions(case, case.anchor, "anchor")
    return found


def _said_by_time(verdict: Verdict, found: Iterable[Verdict]) -> bool:
    """Undecided wall time is no news where CPU time has failed against the same."""
    return (
        verdict.axis == "wall"
        and verdict.outcome == "inconclusive"
        and any((v.axis, v.outcome, v.against) == ("time", "failed", verdict.against) for v in found)
    )


def undecided_axes(verdicts: Iterable[Verdict]) -> frozenset[str]:
    """The noisy axes on which more blocks may bring a decision."""
    return frozenset(verdict.axis for verdict in verdicts if verdict.more)


def noisy_gates(thresholds: Thresholds, stored: int, *, energy: bool, opt: bool) -> int:
    """How many noisy gates a test has, for the error that they share.

    Args:
        thresholds: of the test.
        stored: how many stored records it is compared with: none, a baseline, or that and an anchor.
        energy: whether energy is compared with stored records and limits here.
        opt: whether opt is compared with stored records.
    """
    gates = 2 * (thresholds.max_time_increase is not None) + (thresholds.max_opt is not None)
    gates += energy and thresholds.max_energy_increase is not None
    return gates + stored * (2 + energy + opt)


def failure(verdicts: Iterable[Verdict], *, strict: bool = False) -> str:
    """The sentences that fail a test, one a line; empty when nothing does.

    Args:
        verdicts: of one or more records.
        strict: what could not be decided or compared fails too.
    """
    failing = {"failed", "inconclusive", "not comparable"} if strict else {"failed"}
    return "\n".join(verdict.sentence for verdict in verdicts if verdict.outcome in failing)


def _no_baseline(case: Case, require_baseline: bool) -> Verdict:
    key = case.record.key
    text = f"{key.test} in {key.suite} has no baseline; write one with --llm-update"
    if require_baseline:
        return case.verdict("perplexity", "failed", f"{text} and commit it.", "baseline")
    return case.verdict("perplexity", "new", f"{text}.", "baseline")


# Thresholds -------------------------------------------------------------------------------------------------


def _threshold(case: Case, axis: Axis) -> Verdict | None:
    name, limit = case.thresholds.of(axis)
    now: Estimate = getattr(case.record, axis)
    reason = no_number(now)
    if axis == "perplexity" and now.known and reason:
        return case.verdict(
            axis, "failed", f"perplexity cannot be judged: {reason}; the candidate is broken."
        )
    if limit is None or (axis == "wall" and (reason or not judging.gated(case, axis))):
        return None
    if not judging.gated(case, axis):
        reason = f"{now.source} only estimates energy; pass --llm-gate-estimated to use it all the same"
    reason = reason or judging.unreliable(case, axis)
    if reason:
        text = f"{name} {_limit_text(axis, limit)} cannot be checked: {reason}."
        return case.verdict(axis, "inconclusive", text)
    return (
        _quality_threshold(case, name, limit) if axis == "perplexity" else _cost_threshold(case, axis, limit)
    )


def _quality_threshold(case: Case, name: str, limit: float) -> Verdict:
    now = judging.interval_of(case.record.perplexity)
    failed = judging.over(now.value, 1 + limit)
    change = units.change(now.value, now.low, now.high, limit=limit)
    perplexity = units.perplexity(case.record.candidate.perplexity)
    text = f"perplexity {perplexity} is {change} the reference, limit {units.percent_limit(limit)}."
    text += f" Take a milder recipe, or raise {name}." if failed else ""
    return case.verdict("perplexity", "failed" if failed else "passed", text + _short_text(now, 1 + limit))


def _short_text(now: Interval, bound: float) -> str:
    """What to add when the text is too short: to know the side of the limit, or for a limit as tight as this."""
    if not judging.over(now.low, bound) and judging.over(now.high, bound):
        needed = needed_samples(now, fail_above=bound, pass_below=bound)
        remedy = f"about {needed} would do (--llm-tokens)" if needed else "no reasonable length would do"
        return f" {now.n} windows of text are too few to be sure; {remedy}."
    told = detectable_by_windows(now)
    if told is None or not 0 < bound - 1 < told:
        return ""
    needed = windows_to_detect(bound - 1, now)
    remedy = f"about {needed} would tell {units.percent_limit(bound - 1)} (--llm-tokens)"
    return f" {now.n} windows of text tell {units.percent(told, signed=False)} at best; {remedy}."


def _cost_threshold(case: Case, axis: Axis, limit: float) -> Verdict | None:
    name, _ = case.thresholds.of(axis)
    bound = limit if axis == "opt" else 1 + limit
    edges = Edges(bound, bound, explained(case.record, None))
    try:
        now = judging.bounds(case, axis)
    except (MeasurementError, ScoreError) as error:
        return case.verdict(axis, "inconclusive", f"{name} cannot be checked: {error}.")
    outcome = judging.judge(case, now, edges)
    if judging.wall_says_nothing(axis, outcome, now, edges):
        return None
    text = f"{axis} is {_against_reference(axis, now, limit)}{judging.mark(case.record, axis)}"
    text += f", limit {_limit_text(axis, limit)}"
    more = False
    if outcome == "inconclusive":
        advice, more = judging.undecided(case, axis, now, edges)
        text += f": undecided. {advice}"
    else:
        text += f". Take a cheaper recipe, or raise {name}." if outcome == "failed" else "."
    return case.verdict(axis, outcome, text, more=more)


def _against_reference(axis: Axis, now: Interval, limit: float) -> str:
    if axis == "opt":
        return units.ratio(now.value, now.low, now.high)
    return f"{units.change(now.value, now.low, now.high, limit=limit)} the reference"


def _limit_text(axis: Axis, limit: float) -> str:
    return f"{limit:.6g}" if axis == "opt" else units.percent_limit(limit)
