"""One axis of a record against its stored baseline, or against the anchor: the first baseline accepted.

Each accepted update may be worse than the one before by what the limits let pass. The anchor stays where it
is, so that many small losses are seen in sum; its limits are three times as wide.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pytest_llmslim import judging, units
from pytest_llmslim.comparability import difference, other_perplexity_of_same_weights
from pytest_llmslim.conditions import explained, hidden
from pytest_llmslim.errors import MeasurementError, ScoreError
from pytest_llmslim.score import opt_estimate

if TYPE_CHECKING:
    from pytest_llmslim.gate import Limits
    from pytest_llmslim.judging import Case
    from pytest_llmslim.records import Against, Axis, Record, Verdict
    from pytest_llmslim.statistics import Interval

ACCEPT: Final = {
    "baseline": "Accept with --llm-update, or find what made it worse.",
    "anchor": "Small losses were accepted one by one; accept their sum with --llm-update --llm-anchor, or find them.",
}
ANEW: Final = {"baseline": "--llm-update", "anchor": "--llm-update --llm-anchor"}
BETTER: Final = "That is better than the baseline; keep it with --llm-update."


def regression(case: Case, axis: Axis, stored: Record, against: Against) -> Verdict | None:
    """The verdict on one axis; `None` where nothing is held against a baseline."""
    now, then = getattr(case.record, axis), getattr(stored, axis)
    known = [estimate for estimate in (now, then) if estimate.known]
    if not known or (not case.gate_estimated and all(e.method == "estimated" for e in known)):
        return None
    if not judging.gated(case, axis):
        return None
    reason = difference(case.record, stored, axis)
    if reason:
        if axis == "wall":  # said of time already
            return None
        text = (
            f"{axis} is not comparable with the {against}: {reason}; measure alike, or use {ANEW[against]}."
        )
        return case.verdict(axis, "not comparable", text, against)
    if axis == "perplexity":
        return _quality(case, stored, against)
    return _cost(case, axis, stored, against)


def limits_of(case: Case, against: Against) -> Limits:
    """Those against the anchor: three losses as large as one update may hide."""
    limits = case.limits
    if against == "baseline":
        return limits
    return replace(
        limits,
        baseline_perplexity=3 * limits.baseline_perplexity,
        limit=3 * limits.limit,
        resolve=limits.resolve + 2 * limits.limit,
    )


def _quality(case: Case, stored: Record, against: Against) -> Verdict:
    now, then = judging.interval_of(case.record.perplexity), judging.interval_of(stored.perplexity)
    ratio = _relative(now, then)
    limit = limits_of(case, against).baseline_perplexity
    failed = judging.over(ratio, 1 + limit)
    text = (
        f"perplexity ratio {units.ratio(*now[:3])} was {units.ratio(then.value)} in the {against}: "
        f"{units.change(ratio, limit=limit)}, limit {units.percent_limit(limit)}."
    )
    if failed:
        text += f" {ACCEPT[against]}"
    elif ratio < 1 - limit and against == "baseline":
        text += f" {BETTER}"
    if against == "baseline":
        text = f"{text} {other_perplexity_of_same_weights(case.record, stored)}".rstrip()
    return case.verdict("perplexity", "failed" if failed else "passed", text, against)


def _cost(case: Case, axis: Axis, stored: Record, against: Against) -> Verdict | None:
    then = judging.interval_of(getattr(stored, axis))
    name = axis if axis == "opt" else f"{axis} ratio"
    try:
        if axis == "opt" and stored.quality is not None:
            then = then._replace(low=_exact(stored).low)
        now = judging.bounds(case, axis)
        reason = judging.unreliable(case, axis)
    except (MeasurementError, ScoreError) as error:
        reason = str(error)
    if reason:
        return case.verdict(axis, "inconclusive", f"{name} cannot be judged: {reason}.", against)
    limits = limits_of(case, against)
    spared = hidden(stored, case.record)
    # The stored ratio is not exact either: its interval widens the tolerance on both sides.
    edges = judging.Edges(
        then.high * (1 + limits.limit),
        then.low * (1 + limits.resolve) / (1 + spared),
        explained(case.record, stored),
    )
    outcome = judging.judge(case, now, edges)
    if judging.wall_says_nothing(axis, outcome, now, edges):
        return None
    change = units.change(_relative(now, then), limit=limits.limit)
    text = f"{name} {units.ratio(*now[:3])}{judging.mark(case.record, axis)} was {units.ratio(*then[:3])} "
    text += f"in the {against}: {change}, limit {units.percent_limit(limits.limit)}"
    more = False
    if outcome == "failed":
        text += f". {ACCEPT[against]}"
    elif outcome == "inconclusive":
        few = "questions (--llm-limit)" if axis == "opt" and _open(stored) else "blocks"
        advice = f"The stored run has too few {few}; write it anew with {ANEW[against]}."
        if spared:
            advice = (
                f"The stored run was made on a busier or slower machine; write it anew with {ANEW[against]}."
            )
        elif then.low and math.isfinite(then.high):
            advice, more = judging.undecided(case, axis, now, edges)
        text += f", undecided. {advice}"
    elif judging.over(then.low, now.high) and against == "baseline":
        text += f". {BETTER}"
    else:
        text += f"; more than {units.percent_limit(limits.resolve)} is excluded."
    return case.verdict(axis, outcome, text, against, more=more)


def _exact(stored: Record) -> Interval:
    """The stored opt with its quality as it was: the same questions, asked again, need not be few to pass.

    To fail they are: the high bound that is stored allows for all that the questions leave open.
    """
    value = stored.worsening.value
    quality = replace(stored.worsening, low=value, high=value)
    return judging.interval_of(opt_estimate(quality, stored.time, stored.energy, stored.profile))


def _open(stored: Record) -> bool:
    """Whether the questions leave open that the stored candidate is worthless."""
    high = stored.worsening.high
    return high is None or not math.isfinite(high)


def _relative(now: Interval, then: Interval) -> float:
    return 1.0 if now.value == then.value else now.value / then.value
