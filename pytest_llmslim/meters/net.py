"""Energy without idle power: what the work added to a machine that was on anyway.

Idle power is measured once, before the first window, with whatever is loaded by then and nothing of ours
running. A GPU that has just worked idles higher for a while, so a net figure depends on when its idle power was
measured; it is in the record for that reason. Net and gross energies are never compared.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from pytest_llmslim import units
from pytest_llmslim.meters.window import no_time
from pytest_llmslim.records import Metering, Reading, unmeasured

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmslim.meters import Meter

IDLE_S = 2.0
"""Idle power is measured over this many seconds, or over a window that the source can resolve."""
MARGIN = 1.1
"""Of a window over the shortest one, since it is timed by another clock than the meter's."""


class NetMeter:
    """Gives the readings of a meter less idle power times the window's seconds.

    Args:
        meter: any energy meter; its source and method are those of the net readings too.
        clock: monotonic nanoseconds.
        wait: sleeps for so many seconds.
    """

    def __init__(
        self,
        meter: Meter,
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self.source, self.method, self.min_window_s = meter.source, meter.method, meter.min_window_s
        self.because = meter.because
        self._meter, self._clock, self._wait = meter, clock, wait
        self._idle: Reading | None = None
        self._opened_ns = 0

    @property
    def description(self) -> str:
        """The source, and how much is subtracted."""
        if self._idle is None:
            idle = "idle power, which is measured before the first window"
        elif self._idle.value is None:
            idle = f"idle power, which could not be measured ({self._idle.reason})"
        else:
            idle = f"{units.significant(self._idle.value)} W of idle power"
        return f"{self._meter.description}; less {idle}"

    def start(self) -> None:
        """Begins a window; before the first one, watches the idle machine for two seconds or more."""
        if self._idle is None:
            self._idle = self._idle_power()
        self._meter.start()
        self._opened_ns = self._clock()

    def stop(self) -> Reading:
        """Ends the window and subtracts."""
        seconds = (self._clock() - self._opened_ns) / 1e9
        gross = self._meter.stop()
        if gross.value is None or self._idle is None:
            return gross
        if self._idle.value is None:
            return unmeasured("J", self.source, f"idle power is not known: {self._idle.reason}")
        return _net(gross, gross.value, self._idle.value, seconds)

    def metering(self) -> Metering:
        """The meter's own facts, under the policy net and with the idle power."""
        idle = self._idle or unmeasured("W", self.source, "idle power is measured before the first window")
        return dataclasses.replace(self._meter.metering(), policy="net", idle_w=idle)

    def close(self) -> None:
        """Closes the meter."""
        self._meter.close()

    def _idle_power(self) -> Reading:
        self._meter.start()
        began_ns = self._clock()
        self._wait(max(IDLE_S, MARGIN * self.min_window_s))
        seconds = (self._clock() - began_ns) / 1e9
        used = self._meter.stop()
        if used.value is None:
            return unmeasured("W", self.source, used.reason)
        if seconds <= 0:
            return unmeasured("W", self.source, no_time(self.source, seconds))
        return Reading(used.value / seconds, "W", self.source, used.method, used.resolution)


def subtract_idle(meter: Meter) -> Meter:
    """A net meter on top of `meter`; a null meter stays as it is, since there is nothing to subtract from."""
    return meter if meter.method == "unmeasured" else NetMeter(meter)


def _net(gross: Reading, joules: float, idle_w: float, seconds: float) -> Reading:
    """`joules` less idle power, if more is left than one update of the source can be wrong by."""
    if seconds <= 0:
        return unmeasured("J", gross.source, no_time(gross.source, seconds))
    net = joules - idle_w * seconds
    if net <= joules * (gross.resolution or 0.0) / seconds:
        return unmeasured(
            "J",
            gross.source,
            f"{gross.source} gave {units.joules(joules)} over {units.seconds(seconds)}, of which idle power "
            f"({units.significant(idle_w)} W) is {units.joules(idle_w * seconds)}: nothing is left that it can "
            "tell from zero; measure longer windows, or gross energy (--llm-energy gross)",
        )
    return dataclasses.replace(gross, value=net)
