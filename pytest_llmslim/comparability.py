"""Whether two records can be compared on an axis, and why not.

Two quality numbers under different protocols, two costs on different machines and two energies from different
sources are never compared. The reason is a clause that names the first difference with both values.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from pytest_llmslim import units

if TYPE_CHECKING:
    from pytest_llmslim.records import Axis, Estimate, Evaluation, Record

STORED_TOLERANCE: Final = 1e-5
"""Baselines keep six significant digits."""

_OTHER_HARDWARE: Final = {"float32": 1e-4, "bfloat16": 1e-3, "float16": 1e-3}


def no_number(estimate: Estimate) -> str:
    """Why an estimate has no usable ratio; empty when it has one."""
    if estimate.value is None:
        how = "simulated" if estimate.method == "simulated" else "unmeasured"
        return f"{how} ({estimate.reason.rstrip('.')})"
    return "" if estimate.value > 0 else f"its ratio is {estimate.value:g}"


def difference(record: Record, baseline: Record, axis: Axis) -> str:
    """Why a record cannot be compared with a baseline on an axis; empty when it can."""
    for when, estimate in (("now", getattr(record, axis)), ("there", getattr(baseline, axis))):
        if reason := no_number(estimate):
            return f"{when}, {reason}"
    for field in fields(record.protocol):
        now, then = getattr(record.protocol, field.name), getattr(baseline.protocol, field.name)
        if now != then:
            return _differs(f"protocol {field.name}", now, then)
    if reason := _reference(record, baseline) or (_measures(record, baseline) if axis == "opt" else ""):
        return reason
    return "" if axis == "perplexity" else _machine(record, baseline) or _cost(record, baseline, axis)


def evaluation_difference(record: Record, baseline: Record, now: Evaluation, then: Evaluation) -> str:
    """Why an evaluation cannot be compared with that of a baseline; empty when it can."""
    if now.metric != then.metric:
        return _differs("the metric", now.metric, then.metric or "absent")
    if reason := _protocols(now, then) or _reference(record, baseline):
        return reason
    # A third party's protocol need not hold it.
    return _differs("the number of questions", now.n, then.n) if now.n != then.n else ""


def other_perplexity_of_same_weights(record: Record, baseline: Record) -> str:
    """A sentence where equal weights gave another perplexity than rounding and hardware explain."""
    now, then = record.candidate, baseline.candidate
    if now.weights_hash != then.weights_hash or now.perplexity == then.perplexity:
        return ""
    if now.perplexity is None or then.perplexity is None:
        return ""
    same_machine = record.fingerprint == baseline.fingerprint
    tolerance = STORED_TOLERANCE if same_machine else _OTHER_HARDWARE.get(record.protocol.dtype, 1e-3)
    if math.isclose(now.perplexity, then.perplexity, rel_tol=tolerance):
        return ""
    values = [units.significant(side.perplexity, 6) for side in (now, then)]
    return f"The same weights gave perplexity {values[1]} there and {values[0]} now: the evaluation changed."


def _protocols(now: Evaluation, then: Evaluation) -> str:
    for name in sorted(now.protocol.keys() | then.protocol.keys()):
        values = [side.protocol.get(name, "absent") for side in (now, then)]
        if values[0] != values[1]:
            return _differs(f"protocol {name}", *values)
    return ""


def _reference(record: Record, baseline: Record) -> str:
    hashes = [side.weights_hash for side in (record.reference, baseline.reference)]
    if hashes[0] == hashes[1]:
        return ""
    return _differs("sha256 of the reference's weights", *(digest[:12] for digest in hashes))


def _measures(record: Record, baseline: Record) -> str:
    """Whether opt rests on the same measures of quality, each under the same protocol."""
    sources = ["perplexity" if each.quality is None else each.quality.source for each in (record, baseline)]
    if sources[0] != sources[1]:
        return _differs("the quality in opt", *sources)
    then = {each.name: each for each in baseline.evaluations}
    for each in record.evaluations:
        if each.scored and each.name in then and (reason := _protocols(each, then[each.name])):
            return f"{each.name}: {reason}"
    return ""


def _machine(record: Record, baseline: Record) -> str:
    now, then = record.fingerprint, baseline.fingerprint
    for name in sorted(now.keys() | then.keys()):
        if now.get(name) != then.get(name):
            return _differs(f"fingerprint {name}", now.get(name, "absent"), then.get(name, "absent"))
    return ""


def _cost(record: Record, baseline: Record, axis: Axis) -> str:
    """Profiles and energy sources, where the axis rests on them."""
    now, then = record.profile, baseline.profile
    if axis == "opt" and not math.isclose(now.alpha, then.alpha, rel_tol=0, abs_tol=STORED_TOLERANCE):
        return _differs("profile", now.name, then.name)
    if axis == "energy" or (axis == "opt" and now.beta > 0):
        for name in ("method", "source"):
            values = [getattr(energy, name) for energy in (record.energy, baseline.energy)]
            if values[0] != values[1]:
                return _differs(f"energy {name}", *values)
        policies = [each.metering.policy for each in (record, baseline)]
        if policies[0] != policies[1]:
            return _differs("energy policy", *policies)
    return ""


def _differs(name: str, now: object, then: object) -> str:
    return f"{name} is {now} now and {then} there"
