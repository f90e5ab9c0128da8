"""What compressing cost, in tokens: after how many the saving has paid for it, and the CO2 of a token.

    tokens = build / (reference a token x (1 - ratio)),    ratio = candidate / reference

Example: building took 2 s, the reference needs 1 ms a token and the candidate 0.8 ms. Each token saves
0.2 ms, so 10,000 tokens pay for the 2 s. The bounds of the ratio give the bounds of the tokens.

Tokens are those of a forward pass as it was measured: read in windows, all at once. A token that is generated
costs more; where its ratio is the same, it pays sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pytest_llmslim.meters.intensity import grams

if TYPE_CHECKING:
    from pytest_llmslim.records import Carbon, Estimate, Method, Protocol, Reading, Record

THREADED: Final = 0.9
"""Wall / CPU time below which the models run on several threads, so that CPU time is not what a user waits."""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """After how many tokens a saving has paid for building the candidate.

    Args:
        outcome: `after` so many tokens; `never`, since no saving is within the interval; `not sure`, since the
            interval of the ratio holds 1; `unknown`, with the reason.
        tokens: infinite when `never`; `None` when `not sure` or `unknown`.
        low: from the lower bound of the ratio, `None` when `unknown`: before that many it cannot have paid.
        high: from the upper bound of the ratio, likewise; infinite unless `after`.
        method: how the ratio was obtained.
        source: what the ratio is of, e.g. `process cpu time`, `perf_counter`, `rapl`.
        reason: why it is `unknown`; empty otherwise.
    """

    outcome: Literal["after", "never", "not sure", "unknown"]
    tokens: float | None
    low: float | None
    high: float | None
    method: Method
    source: str
    reason: str = ""


def break_even(build: float, reference: float, ratio: Estimate) -> BreakEven:
    """The tokens that pay for `build`, with the bounds that the ratio's interval gives.

    Args:
        build: cost of building the candidate, in s or J, above 0.
        reference: cost of a token on the reference, in the same unit, above 0.
        ratio: cost of a token, candidate / reference; a bound of `None` says that there is none.
    """
    if ratio.value is None:
        return _unknown(ratio, ratio.reason)
    bounds = (ratio.low or 0.0, math.inf if ratio.high is None else ratio.high)
    low, high = (_tokens(build, reference, bound) for bound in bounds)
    if not math.isfinite(low):
        return BreakEven("never", math.inf, math.inf, math.inf, ratio.method, ratio.source)
    if not math.isfinite(high):
        return BreakEven("not sure", None, low, math.inf, ratio.method, ratio.source)
    tokens = _tokens(build, reference, ratio.value)
    return BreakEven("after", tokens, low, high, ratio.method, ratio.source)


def time_break_even(record: Record) -> BreakEven:
    """The tokens whose saved wall time pays for the wall time of building.

    The reference's wall time a token stands against the steadier ratio: that of process CPU time where the
    models keep one core busy (other load on the machine stretches wall time alone), that of wall time where
    they run on several threads or on a GPU. `source` says which.
    """
    ratio = _served_time(record)
    if not ratio.known:
        return _unknown(ratio, ratio.reason)
    return _of_readings(record.build.time_s, record.reference.wall_s, ratio, record.protocol)


def energy_break_even(record: Record) -> BreakEven:
    """The tokens whose saved energy pays for the energy of building.

    Joules are set off against each other only when one source gave all of them, in one way.
    """
    build, ratio = record.build.energy_j, record.energy
    if not ratio.known:
        return _unknown(ratio, ratio.reason)
    readings = (build, record.reference.energy_j, record.candidate.energy_j)
    known = all(reading.value is not None for reading in readings)
    if known and len({(reading.source, reading.method) for reading in readings}) > 1:
        ways = " and ".join(dict.fromkeys(f"{r.method} by {r.source}" for r in readings))
        return _unknown(ratio, f"its joules are {ways}, which are never set off against each other")
    return _of_readings(build, record.reference.energy_j, ratio, record.protocol)


def tokens_a_pass(protocol: Protocol) -> int:
    """Tokens of a timed forward pass, BOS included: a window, or the whole text where that is shorter."""
    return min(protocol.window, protocol.tokens + 1)


def grams_per_million_tokens(energy_j: Reading, protocol: Protocol, carbon: Carbon) -> float | None:
    """Grams of CO2 equivalent that a million tokens emit.

    Args:
        energy_j: of a forward pass; whatever its method, what comes out is an estimate.
        protocol: says how many tokens a pass has.
        carbon: grams a kWh.

    Returns:
        Grams; `None` without energy.
    """
    if energy_j.value is None:
        return None
    return grams(energy_j.value / tokens_a_pass(protocol) * 1e6, carbon)


def _served_time(record: Record) -> Estimate:
    """The ratio that tells how much sooner a user has the answer."""
    busy = record.sampling.wall_over_cpu
    one_core = record.time.source == "process cpu time" and (busy is None or busy >= THREADED)
    return record.time if one_core or not record.time.known else record.wall


def _of_readings(build: Reading, a_pass: Reading, ratio: Estimate, protocol: Protocol) -> BreakEven:
    """Break-even of two readings, or the reason of the one that is missing."""
    if build.value is None:
        return _unknown(ratio, f"the cost of building is unmeasured ({build.reason})")
    if a_pass.value is None:
        return _unknown(ratio, f"the cost of the reference is unmeasured ({a_pass.reason})")
    return break_even(build.value, a_pass.value / tokens_a_pass(protocol), ratio)


def _tokens(build: float, reference: float, ratio: float) -> float:
    saving = reference * (1 - ratio)
    return build / saving if saving > 0 else math.inf


def _unknown(ratio: Estimate, reason: str) -> BreakEven:
    method: Method = "simulated" if ratio.method == "simulated" else "unmeasured"
    return BreakEven("unknown", None, None, None, method, ratio.source, reason)
