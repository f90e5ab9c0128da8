"""Numbers that know how they came to be: readings of a meter, and estimates of a ratio with their interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

Method = Literal["measured", "sampled", "estimated", "simulated", "unmeasured"]
"""How a number was obtained. `sampled`: power readings integrated over time. `simulated`: it belongs to
weights that were only rounded or masked, so no cost may be read off it."""

MARK: Final = {"estimated": "~", "sampled": "^", "measured": ""}
"""Stands before a number that was not simply measured."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a meter: a value with unit, source, method and resolution.

    Args:
        value: in `unit`; `None` exactly when `method` is `unmeasured`.
        unit: `J`, `s`, `B` or `W`.
        source: which counter or model gave it, e.g. `nvml-counter`, `rapl`, `codecarbon`, `perf_counter`.
        method: see `Method`.
        resolution: smallest step of the source, in seconds between updates; `None` when unknown.
        reason: why there is no value, as a sentence; empty when there is one.

    Raises:
        ValueError: a value that is not finite and positive, a value on an unmeasured reading, or an
            unmeasured reading without a reason. A meter that returns 0 J has failed.
    """

    value: float | None
    unit: str
    source: str
    method: Method
    resolution: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.method == "unmeasured":
            if self.value is not None or not self.reason:
                raise ValueError(f"an unmeasured reading has a reason and no value, got {self!r}")
        elif self.value is None or not math.isfinite(self.value) or self.value <= 0:
            raise ValueError(f"a {self.method} reading is finite and above 0, got {self.value!r} {self.unit}")


def unmeasured(unit: str, source: str, reason: str) -> Reading:
    """A reading that could not be had, and why."""
    return Reading(None, unit, source, "unmeasured", None, reason)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio candidate / reference (or a score) with its confidence interval.

    `value`, `low` and `high` are all `None` when `method` is `unmeasured` or `simulated`; `reason` then says
    why. `n` counts what the interval rests on: blocks for time and energy, windows of text for quality. With
    too few of them there is a value without bounds: `low` is 0 and `high` infinite.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: Method
    source: str
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return self.value is not None


def no_estimate(reason: str, *, method: Method = "unmeasured", source: str = "none") -> Estimate:
    """An estimate that could not be had, and why."""
    return Estimate(None, None, None, 0, method, source, reason)
