"""Meters: one file per source of energy or memory readings, and the ladder that picks one.

A meter is opened once a session and read in many windows. Between `start()` and `stop()` nothing of ours
runs, except where power is sampled: for want of a counter, or as the second source beside one. A fault of a
meter in the middle of a run costs one reading (`unmeasured`, with the reason), never the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pytest_llmslim.records import Metering, Method, Reading

__all__ = ["Meter"]


class Meter(Protocol):
    """Reads one quantity over windows of time.

    Attributes:
        source: what the readings come from, e.g. `nvml-counter`; equal to `Reading.source`.
        method: the method of a reading that succeeds; readings of unlike methods never meet.
        min_window_s: windows of this many seconds get a reading, shorter ones may be answered with `unmeasured`.
        description: one sentence for people: devices, update period, assumptions, what a check found.
        because: why each better source was not used, one sentence each; empty for the best one.
    """

    source: str
    method: Method
    min_window_s: float
    because: tuple[str, ...]

    @property
    def description(self) -> str:
        """See above; it may change from window to window."""

    def start(self) -> None:
        """Begins a window. A window that is already open is dropped."""

    def stop(self) -> Reading:
        """Ends the window and gives what was used in it; never raises for a fault of the meter."""

    def metering(self) -> Metering:
        """What else belongs to the readings so far: policy, idle power, a second source and its ratio."""

    def close(self) -> None:
        """Gives back threads, handles and files. A closed meter answers `unmeasured`."""
