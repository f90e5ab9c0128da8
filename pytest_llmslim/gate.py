"""The gate: pure decisions over one record, its thresholds and its baseline.

Order: integrity, quality, cost, opt. Quality is the same number again on one machine, so point estimates
are compared. Time, energy and opt are noisy: a verdict is *failed* only when the lower bound is past the
limit, *passed* only when the upper bound is inside, and *inconclusive* otherwise; the bracket in a sentence
is the one that the decision rests on. Nothing here is random: a stored record gives the same verdict again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final

from pytest_llmslim import units
from pytest_llmslim.comparability import difference, no_number, other_perplexity_of_same_weights
from pytest_llmslim.errors import MeasurementError, ScoreError, SettingError
from pytest_llmslim.records import Against, Axis, Estimate, Outcome, Record, Verdict, worst
from pytest_llmslim.score import opt_estimate
from pytest_llmslim.statistics import Interval, hodges_lehmann, minimum_blocks, needed_samples

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Limits", "Thresholds", "decide", "failure", "worst"]

_AXES: Final[tuple[Axis, ...]] = ("perplexity", "time", "energy", "opt")
_SLACK: Final = 1e-9  # exp and log of a limit do not give the limit back
_ACCEPT: Final = "Accept with --llm-update, or find what made it worse."
_STORED_TOO_SHORT: Final = "The stored run has too few blocks; write it anew with --llm-update."
_BETTER: Final = "That is better than the baseline; keep it with --llm-update."


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a test will not ship; `None`: no limit.

    Increases are fractions over the reference (0.03: three percent), `max_opt` is a score.

    Raises:
        SettingError: a limit that is not finite, an increase of -1 or below, or a score of 0 or below.
    """

    max_perplexity_increase: float | None = None
    max_time_increase: float | None = None
    max_energy_increase: float | None = None
    max_opt: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "max_opt" else -1
            if value is not None and not least < value < math.inf:
                raise SettingError(f"{field.name} is a finite number above {least}, got {value}")

    def of(self, axis: Axis) -> tuple[str, float | None]:
        """Name and value of the limit on an axis."""
        name = "max_opt" if axis == "opt" else f"max_{axis}_increase"
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


@dataclass(frozen=True, slots=True)
class _Case:
    record: Record
    thresholds: Thresholds
    baseline: Record | None
    gate_estimated: bool
    alpha: float
    limits: Limits

    def verdict(
        self,
        axis: Axis,
        outcome: Outcome,
        text: str,
        against: Against = "threshold",
    ) -> Verdict:
        return Verdict(axis, outcome, f"{self.record.label}: {text}", against)


def decide(
    record: Record,
    thresholds: Thresholds,
    baseline: Record | None = None,
    *,
    require_baseline: bool = False,
    gate_estimated: bool = False,
    alpha: float = 0.01,
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
        require_baseline: a missing baseline is failed instead of new.
        gate_estimated: hold estimated energy against limits and baselines too.
        alpha: chance of a false failed verdict that this decision may spend; split by the caller over the
            gates and looks of a run (`statistics.split_alpha`).
        limits: rules of comparing with a baseline.

    Raises:
        ValueError: the baseline has another key.
    """
    if baseline is not None and baseline.key != record.key:
        raise ValueError(f"a baseline has the record's key {record.key}, got {baseline.key}")
    case = _Case(record, thresholds, baseline, gate_estimated, alpha, limits)
    if record.integrity.status == "nothing":
        text = f"nothing was compressed. {record.integrity.sentence}"
        return (case.verdict("integrity", "failed", text, "integrity"),)
    found = [case.verdict("integrity", "passed", record.integrity.sentence, "integrity")]
    if baseline is None:
        found.append(_no_baseline(case, require_baseline))
    for axis in _AXES:
        found += [verdict for verdict in (_threshold(case, axis), _regression(case, axis)) if verdict]
    return tuple(found)


def failure(verdicts: Iterable[Verdict], *, strict: bool = False) -> str:
    """The sentences that fail a test, one a line; empty when nothing does.

    Args:
        verdicts: of one or more records.
        strict: what could not be decided or compared fails too.
    """
    failing = {"failed", "inconclusive", "not comparable"} if strict else {"failed"}
    return "\n".join(verdict.sentence for verdict in verdicts if verdict.outcome in failing)


def _no_baseline(case: _Case, require_baseline: bool) -> Verdict:
    key = case.record.key
    text = f"{key.test} in {key.suite} has no baseline; write one with --llm-update"
    if require_baseline:
        return case.verdict("perplexity", "failed", f"{text} and commit it.", "baseline")
    return case.verdict("perplexity", "new", f"{text}.", "baseline")


# Thresholds -------------------------------------------------------------------------------------------------


def _threshold(case: _Case, axis: Axis) -> Verdict | None:
    name, limit = case.thresholds.of(axis)
    now: Estimate = getattr(case.record, axis)
    reason = no_number(now)
    if axis == "perplexity" and now.known and reason:
        return case.verdict(
            axis, "failed", f"perplexity cannot be judged: {reason}; the candidate is broken."
        )
    if limit is None:
        return None
    if axis == "energy" and now.method == "estimated" and not case.gate_estimated:
        reason = f"{now.source} only estimates energy; pass --llm-gate-estimated to use it all the same"
    if reason:
        text = f"{name} {_limit_text(axis, limit)} cannot be checked: {reason}."
        return case.verdict(axis, "inconclusive", text)
    return (
        _quality_threshold(case, name, limit) if axis == "perplexity" else _cost_threshold(case, axis, limit)
    )


def _quality_threshold(case: _Case, name: str, limit: float) -> Verdict:
    now = _interval_of(case.record.perplexity)
    failed = _over(now.value, 1 + limit)
    change = units.change(now.value, now.low, now.high, limit=limit)
    perplexity = units.perplexity(case.record.candidate.perplexity)
    text = f"perplexity {perplexity} is {change} the reference, limit {units.percent_limit(limit)}."
    text += f" Take a milder recipe, or raise {name}." if failed else ""
    return case.verdict("perplexity", "failed" if failed else "passed", text + _short_text(now, 1 + limit))


def _short_text(now: Interval, bound: float) -> str:
    """What to add when the windows of text leave open on which side of the limit the perplexity is."""
    if _over(now.low, bound) or not _over(now.high, bound):
        return ""
    needed = needed_samples(now, fail_above=bound, pass_below=bound)
    remedy = f"about {needed} would do (--llm-tokens)" if needed else "no reasonable length would do"
    return f" {now.n} windows of text are too few to be sure; {remedy}."


def _cost_threshold(case: _Case, axis: Axis, limit: float) -> Verdict:
    name, _ = case.thresholds.of(axis)
    bound = limit if axis == "opt" else 1 + limit
    try:
        now = _bounds(case, axis)
    except (MeasurementError, ScoreError) as error:
        return case.verdict(axis, "inconclusive", f"{name} cannot be checked: {error}.")
    outcome = _judge(now, bound, bound)
    text = f"{axis} is {_against_reference(axis, now, limit)}{_mark(case.record, axis)}"
    text += f", limit {_limit_text(axis, limit)}"
    if outcome == "inconclusive":
        text += f": undecided. {_more_blocks(case, axis, now, (bound, bound))}"
    else:
        text += f". Take a cheaper recipe, or raise {name}." if outcome == "failed" else "."
    return case.verdict(axis, outcome, text)


def _against_reference(axis: Axis, now: Interval, limit: float) -> str:
    if axis == "opt":
        return units.ratio(now.value, now.low, now.high)
    return f"{units.change(now.value, now.low, now.high, limit=limit)} the reference"


def _limit_text(axis: Axis, limit: float) -> str:
    return f"{limit:.6g}" if axis == "opt" else units.percent_limit(limit)


# Baseline ---------------------------------------------------------------------------------------------------


def _regression(case: _Case, axis: Axis) -> Verdict | None:
    if case.baseline is None:
        return None
    now, then = getattr(case.record, axis), getattr(case.baseline, axis)
    known = [estimate for estimate in (now, then) if estimate.known]
    if not known or (not case.gate_estimated and all(e.method == "estimated" for e in known)):
        return None
    reason = difference(case.record, case.baseline, axis)
    if reason:
        text = f"{axis} is not comparable with the baseline: {reason}; measure alike, or use --llm-update."
        return case.verdict(axis, "not comparable", text, "baseline")
    if axis == "perplexity":
        return _quality_regression(case, case.baseline)
    return _cost_regression(case, axis, _interval_of(then))


def _quality_regression(case: _Case, baseline: Record) -> Verdict:
    now, then = _interval_of(case.record.perplexity), _interval_of(baseline.perplexity)
    ratio = _relative(now, then)
    limit = case.limits.baseline_perplexity
    failed = _over(ratio, 1 + limit)
    text = (
        f"perplexity ratio {units.ratio(*now[:3])} was {units.ratio(then.value)} in the baseline: "
        f"{units.change(ratio, limit=limit)}, limit {units.percent_limit(limit)}."
    )
    if failed:
        text += f" {_ACCEPT}"
    elif ratio < 1 - limit:
        text += f" {_BETTER}"
    text = f"{text} {other_perplexity_of_same_weights(case.record, baseline)}".rstrip()
    return case.verdict("perplexity", "failed" if failed else "passed", text, "baseline")


def _cost_regression(case: _Case, axis: Axis, then: Interval) -> Verdict:
    name = axis if axis == "opt" else f"{axis} ratio"
    try:
        now = _bounds(case, axis)
    except (MeasurementError, ScoreError) as error:
        return case.verdict(axis, "inconclusive", f"{name} cannot be judged: {error}.", "baseline")
    limits = case.limits
    # The stored ratio is not exact either: its interval widens the tolerance on both sides.
    edges = (then.high * (1 + limits.limit), then.low * (1 + limits.resolve))
    outcome = _judge(now, *edges)
    change = units.change(_relative(now, then), limit=limits.limit)
    text = f"{name} {units.ratio(*now[:3])}{_mark(case.record, axis)} was {units.ratio(*then[:3])} "
    text += f"in the baseline: {change}, limit {units.percent_limit(limits.limit)}"
    if outcome == "failed":
        text += f". {_ACCEPT}"
    elif outcome == "inconclusive":
        known = then.low and math.isfinite(then.high)
        text += f", undecided. {_more_blocks(case, axis, now, edges) if known else _STORED_TOO_SHORT}"
    elif _over(then.low, now.high):
        text += f". {_BETTER}"
    else:
        text += f"; more than {units.percent_limit(limits.resolve)} is excluded."
    return case.verdict(axis, outcome, text, "baseline")


def _relative(now: Interval, then: Interval) -> float:
    return 1.0 if now.value == then.value else now.value / then.value


# Noise ------------------------------------------------------------------------------------------------------


def _bounds(case: _Case, axis: Axis) -> Interval:
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

    if axis != "opt":
        return ratio(samples.time if axis == "time" else samples.energy)
    record, profile = case.record, case.record.profile
    exact = record.perplexity.value
    quality = replace(record.perplexity, low=exact, high=exact, n=max(len(samples.time), len(samples.energy)))
    time, energy = record.time, record.energy
    if profile.alpha > 0:
        time = Estimate(*ratio(samples.time), time.method, time.source)
    if profile.beta > 0:
        energy = Estimate(*ratio(samples.energy), energy.method, energy.source)
    return _interval_of(opt_estimate(quality, time, energy, profile))


def _share(case: _Case, axis: Axis) -> float:
    """Of alpha for each series; opt rests on two, either of which may miss."""
    profile = case.record.profile
    return 0.5 if axis == "opt" and profile.alpha > 0 and profile.beta > 0 else 1.0


def _judge(now: Interval, fail_above: float, pass_below: float) -> Outcome:
    if _over(now.low, fail_above):
        return "failed"
    return "inconclusive" if _over(now.high, pass_below) else "passed"


def _more_blocks(case: _Case, axis: Axis, now: Interval, edges: tuple[float, float]) -> str:
    """What is excluded so far, and how many blocks would settle it; `edges`: fail above, pass below."""
    share = _share(case, axis)
    least = [minimum_blocks(alpha * share) for alpha in (case.alpha, case.limits.pass_alpha)]
    if now.n < min(least):
        return f"{now.n} blocks can decide nothing; it takes at least {max(least)} (--llm-rounds)."
    needed = needed_samples(
        now, fail_above=edges[0], pass_below=edges[1], fail_minimum=least[0], pass_minimum=least[1]
    )
    remedy = (
        f"about {needed} blocks would settle it (--llm-rounds)" if needed else "more blocks would not help"
    )
    excluded = (
        f"Above {units.ratio(now.high)} is excluded" if math.isfinite(now.high) else "Nothing is excluded"
    )
    return f"{excluded}; {remedy}."


def _interval_of(estimate: Estimate) -> Interval:
    value = math.nan if estimate.value is None else estimate.value
    high = math.inf if estimate.high is None else estimate.high
    return Interval(value, estimate.low or 0.0, high, estimate.n)


def _mark(record: Record, axis: Axis) -> str:
    """How the energy was obtained, unless it was measured."""
    energy = record.energy
    if axis == "time" or (axis == "opt" and record.profile.beta == 0) or energy.method == "measured":
        return ""
    return f" ({energy.method} by {energy.source})" if axis == "energy" else f" (energy {energy.method})"


def _over(value: float, limit: float) -> bool:
    return value > limit * (1 + _SLACK)
