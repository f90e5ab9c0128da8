"""What all meters share: a window of time, and the rules for when its value may be called a reading."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pytest_llmslim import units
from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.records import Metering, Reading, unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmslim.records import Method

TICKS = 20
"""A window holds this many updates of its counter, which bounds the quantisation error by 1/20."""

INTERVALS = 10
"""Intervals between updates that are enough to know a counter's period."""


class WindowMeter(ABC):
    """A meter whose source is read at the two ends of a window.

    A subclass raises whatever its library raises, here it becomes an `unmeasured` reading. The clock is
    read inside the two readings of the source, so that a slow source never makes a window look longer.

    Args:
        source: see `Meter.source`.
        method: see `Meter.method`.
        resolution: seconds between updates of the source; `None` when that is no matter of time.
        description: see `Meter.description`.
        unit: `J` or `B`.
        ticks: updates of the source that a window holds.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        *,
        source: str,
        method: Method,
        resolution: float | None,
        description: str,
        unit: str = "J",
        ticks: int = TICKS,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.source = source
        self.method = method
        self.resolution = resolution
        self.min_window_s = ticks * (resolution or 0.0)
        self.description = description
        self.because: tuple[str, ...] = ()
        self._unit, self._ticks = unit, ticks
        self._clock = clock
        self._opened_ns: int | None = None
        self._closed = False
        self._fault = f"{source} was stopped without being started"

    @abstractmethod
    def _begin(self) -> None:
        """Reads the source at the start of a window."""

    @abstractmethod
    def _end(self, seconds: float) -> float:
        """Reads the source at the end of a window of `seconds`; gives what was used, in the unit."""

    def _release(self) -> None:  # noqa: B027  # most meters hold nothing
        """Gives back what was opened."""

    def start(self) -> None:
        """Begins a window."""
        self._abandon()
        if self._closed:
            return
        try:
            self._begin()
        except Exception as error:  # any fault of a foreign library costs one reading, not the run
            self._fault = _say(error, f"{self.source} failed at the start of the window")
        else:
            self._opened_ns = self._clock()

    def stop(self) -> Reading:
        """Ends the window and judges its value."""
        closed_ns = self._clock()
        opened_ns, self._opened_ns = self._opened_ns, None
        if opened_ns is None:
            return unmeasured(self._unit, self.source, self._fault)
        seconds = (closed_ns - opened_ns) / 1e9
        try:
            value, fault = self._end(seconds), ""
        except Exception as error:  # as in start()
            value, fault = math.nan, _say(error, f"{self.source} failed at the end of the window")
        return self._judge(value, seconds, fault)

    def metering(self) -> Metering:
        """One source, and all of its energy."""
        return Metering()

    def close(self) -> None:
        """Drops an open window and gives back what was opened; a second call does nothing."""
        self._abandon()
        if self._closed:
            return
        self._closed = True
        self._fault = f"{self.source} was closed"
        try:
            self._release()
        except Exception as error:  # as in start(): closing a vanished device must not end the run
            self._fault = _say(error, f"{self.source} failed while it was closed")

    def _abandon(self) -> None:
        if self._opened_ns is not None:
            self.stop()

    def _judge(self, value: float, seconds: float, fault: str) -> Reading:
        if self._unit == "J" and seconds <= 0:
            return unmeasured(self._unit, self.source, no_time(self.source, seconds))
        if seconds < self.min_window_s:
            return unmeasured(self._unit, self.source, self._too_short(seconds))
        if not fault and not (math.isfinite(value) and value > 0):
            fault = (
                f"{self.source} gave {value:g} {self._unit} over {units.seconds(seconds)}, "
                "and a reading is above 0: the source is stuck or broken"
            )
        if fault:
            return unmeasured(self._unit, self.source, fault)
        return Reading(value, self._unit, self.source, self.method, self.resolution)

    def _too_short(self, seconds: float) -> str:
        return (
            f"the window of {units.seconds(seconds)} is shorter than {self._ticks} ticks of {self.source} "
            f"({units.seconds(self.resolution)}): it would have to last {units.seconds(self.min_window_s)}"
        )


def update_periods(
    read: Callable[[], Sequence[int]], *, budget_s: float, clock: Callable[[], int] = time.perf_counter_ns
) -> list[float | None]:
    """Measures how often counters are updated, by reading them without pause.

    Args:
        read: gives the value of every counter.
        budget_s: seconds after which it stops; sooner when each counter was seen to move often enough.
        clock: monotonic nanoseconds.

    Returns:
        For each counter the median seconds between updates, the whole budget where it moved only once
        (its period is somewhere below), and `None` where it did not move.
    """
    began_ns = clock()
    last = tuple(read())
    moves: list[list[int]] = [[] for _ in last]
    now_ns = began_ns
    while now_ns - began_ns < budget_s * 1e9 and any(len(times) <= INTERVALS for times in moves):
        values = tuple(read())
        now_ns = clock()
        for times, before, after in zip(moves, last, values, strict=True):
            if after != before:
                times.append(now_ns)
        last = values
    return [_period(times, budget_s) for times in moves]


def _period(moves_ns: list[int], budget_s: float) -> float | None:
    if not moves_ns:
        return None
    if len(moves_ns) == 1:
        return budget_s
    intervals = [after - before for before, after in itertools.pairwise(moves_ns)]
    return statistics.median(intervals) / 1e9


def no_time(source: str, seconds: float) -> str:
    """Why a window in which no time passed has no energy."""
    return (
        f"the window of {source} lasted {units.seconds(seconds)} by the clock, "
        "which stood still or was set back: energy needs time"
    )


def _say(error: Exception, context: str) -> str:
    """One of our own errors is a whole sentence already; a foreign one needs its context."""
    if isinstance(error, MeasurementError):
        return str(error)
    return f"{context}: {words(error)}"


def words(error: Exception) -> str:
    """What an error says, or its class where it says nothing."""
    return str(error) or type(error).__name__
