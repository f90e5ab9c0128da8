"""The rules every meter shares: what counts as a reading, and what a fault costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from fake_nvml import VirtualClock

from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.meters.replay import ReplayMeter
from pytest_llmslim.meters.window import WindowMeter, update_periods
from pytest_llmslim.records import Metering, Reading, unmeasured

if TYPE_CHECKING:
    from collections.abc import Iterator


class Toy(WindowMeter):
    """Gives what it is told, or raises it."""

    def __init__(
        self, *, begin: Exception | None = None, end: float | Exception = 1.0, tick: float = 0.1
    ) -> None:
        self.time = VirtualClock()
        self.begin, self.end, self.released = begin, end, 0
        super().__init__(
            source="toy", method="measured", resolution=tick, description="a toy", clock=self.time
        )

    def _begin(self) -> None:
        if self.begin is not None:
            raise self.begin

    def _end(self, seconds: float) -> float:
        if isinstance(self.end, Exception):
            raise self.end
        return self.end

    def _release(self) -> None:
        self.released += 1

    def window(self, seconds: float) -> Reading:
        self.start()
        self.time.pass_s(seconds)
        return self.stop()


def test_a_good_window_carries_its_provenance() -> None:
    """A reading has value, unit, source, method and resolution of its meter."""
    assert Toy(end=5.0).window(2.0) == Reading(5.0, "J", "toy", "measured", 0.1)


@pytest.mark.parametrize(("seconds", "known"), [(1.999, False), (2.0, True), (2.001, True), (0.0, False)])
def test_a_window_holds_twenty_ticks(seconds: float, known: bool) -> None:
    """A window of 20 ticks is a reading and anything shorter is not."""
    assert (Toy().window(seconds).value is not None) is known


def test_too_short_says_how_long_it_must_be() -> None:
    """The reason names the window, the tick and the needed length."""
    reason = Toy().window(0.04).reason
    assert reason == (
        "the window of 40.0 ms is shorter than 20 ticks of toy (100 ms): it would have to last 2.00 s"
    )


@pytest.mark.parametrize(("seconds", "said"), [(0.0, "0 s"), (-1.5, "-1.50 s")])
def test_a_clock_that_does_not_go_forward_is_told(seconds: float, said: str) -> None:
    """A window in which the clock stood still or went back has no energy, whatever the source counted."""
    meter = Toy(end=5.0, tick=0.0)
    meter.start()
    meter.time.now_ns += round(seconds * 1e9)
    assert meter.stop().reason == (
        f"the window of toy lasted {said} by the clock, which stood still or was set back: energy needs time"
    )
    assert meter.window(1.0).value == 5.0


def test_bytes_need_no_time() -> None:
    """A peak of memory is one in however short a window."""
    meter = Toy(end=5.0, tick=0.0)
    meter._unit = "B"
    assert meter.window(0.0).value == 5.0


@pytest.mark.parametrize("joules", [0.0, -0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_energy_is_unmeasured(joules: float) -> None:
    """Zero, negative, NaN and infinite joules never leave a meter as a number."""
    reading = Toy(end=joules).window(3.0)
    assert (reading.value, reading.method) == (None, "unmeasured")
    assert f"toy gave {joules:g} J over 3.00 s" in reading.reason


def test_a_fault_at_the_start_costs_one_reading() -> None:
    """An exception in start() is told by stop(), and the next window works again."""
    meter = Toy(begin=OSError("no such file"))
    assert meter.window(3.0).reason == "toy failed at the start of the window: no such file"
    meter.begin = None
    assert meter.window(3.0).value == 1.0


@pytest.mark.parametrize(("error", "said"), [(OSError("gone"), "gone"), (KeyError(), "KeyError")])
def test_a_fault_at_the_end_costs_one_reading(error: Exception, said: str) -> None:
    """An exception in stop() becomes the reason, with its class where it says nothing."""
    assert Toy(end=error).window(3.0).reason == f"toy failed at the end of the window: {said}"


def test_a_short_window_is_told_before_its_fault() -> None:
    """A counter that did not tick in a short window is too short a window, not a broken counter."""
    assert "shorter than 20 ticks" in Toy(end=OSError("stood still")).window(0.01).reason


def test_stop_without_start_is_unmeasured() -> None:
    """A stop() without start() gives a reason, not an exception."""
    meter = Toy()
    assert meter.stop().reason == "toy was stopped without being started"


def test_start_twice_begins_again() -> None:
    """The second start() drops the window that was open."""
    meter = Toy()
    meter.start()
    meter.time.pass_s(10.0)
    assert "shorter than 20 ticks" in meter.window(0.1).reason


def test_a_closed_meter_says_so() -> None:
    """close() releases once, drops an open window, and later windows are unmeasured."""
    meter = Toy()
    meter.start()
    meter.close()
    meter.close()
    assert meter.released == 1
    assert meter.stop().reason == "toy was closed"
    assert meter.window(3.0).reason == "toy was closed"


def test_closing_what_is_gone_does_not_raise() -> None:
    """A device that cannot even be given back is told by later windows."""
    meter = Toy()
    meter._release = lambda: 1 / 0
    meter.close()
    assert meter.window(3.0).reason == "toy failed while it was closed: division by zero"


def counter(clock: VirtualClock, *ticks: float) -> Iterator[tuple[int, ...]]:
    while True:
        clock.pass_s(0.0001)
        yield tuple(int(clock() / 1e9 / tick) for tick in ticks)


@pytest.mark.parametrize("tick", [0.001, 0.01, 0.02, 0.1])
def test_the_period_of_a_counter_is_found(tick: float) -> None:
    """Watching a counter gives its update period to within the time of two reads."""
    clock = VirtualClock()
    values = counter(clock, tick)
    (period,) = update_periods(lambda: next(values), budget_s=1.0, clock=clock)
    assert period == pytest.approx(tick, abs=0.0002)


def test_a_fast_counter_is_not_watched_for_long() -> None:
    """Eleven updates are enough, so a counter of 1 ms is known after 12 ms."""
    clock = VirtualClock()
    values = counter(clock, 0.001)
    update_periods(lambda: next(values), budget_s=1.0, clock=clock)
    assert clock() / 1e9 < 0.015


def test_slow_and_still_counters_are_told_apart() -> None:
    """One update in the budget means the budget as period, none means there is no period."""
    clock = VirtualClock()
    values = counter(clock, 0.7, 50.0)
    assert update_periods(lambda: next(values), budget_s=1.0, clock=clock) == [1.0, None]


def test_one_source_has_nothing_beside_it() -> None:
    """A meter by itself counts gross energy and is not checked by another."""
    for meter in (Toy(), NullMeter("no counter here")):
        assert meter.metering() == Metering("gross", second_source="", second_ratio=None)
        assert meter.metering().idle_w.reason == "idle power is not subtracted"


def test_null_meter_gives_its_reason() -> None:
    """The null meter answers each window with the reason it was made with."""
    meter = NullMeter("no counter here", unit="B")
    meter.start()
    assert meter.stop() == unmeasured("B", "none", "no counter here")
    meter.close()


def test_null_meter_needs_a_reason() -> None:
    """A null meter without a reason is refused."""
    with pytest.raises(ValueError, match="a null meter needs a reason, got an empty one"):
        NullMeter("")


def test_replay_gives_readings_in_order_and_judges_numbers() -> None:
    """Numbers are judged as in all meters, readings pass as they are, and then there is none left."""
    prepared = unmeasured("J", "other", "prepared")
    meter = ReplayMeter([2.0, 0.0, prepared])
    readings = []
    for _ in range(4):
        meter.start()
        readings.append(meter.stop())
    assert readings[0] == Reading(2.0, "J", "replay", "measured")
    assert readings[1].method == "unmeasured"
    assert readings[2] is prepared
    assert readings[3].reason == "replay has no reading left"


def test_replay_keeps_the_order_of_windows() -> None:
    """A dropped window uses up nothing, and stop() without start() gives no reading."""
    meter = ReplayMeter([1.0, 2.0], method="estimated")
    meter.start()
    meter.start()
    assert meter.stop().value == 1.0
    assert meter.stop().method == "unmeasured"
