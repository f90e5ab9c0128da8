"""Net energy: what is subtracted, and when nothing is left."""

from __future__ import annotations

import pytest
from fake_nvml import VirtualClock
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.meters.net import NetMeter, subtract_idle
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.meters.replay import ReplayMeter
from pytest_llmslim.meters.window import WindowMeter
from pytest_llmslim.records import Metering, Method, Reading


class Machine(WindowMeter):
    """A source of constant power that can be changed, and can fail."""

    def __init__(self, watts: float, *, tick: float | None = 0.1, method: Method = "measured") -> None:
        self.time, self.watts, self.fault = VirtualClock(), watts, ""
        super().__init__(source="toy", method=method, resolution=tick, description="a toy", clock=self.time)

    def _begin(self) -> None:
        if self.fault:
            raise OSError(self.fault)

    def _end(self, seconds: float) -> float:
        return self.watts * seconds


def net_of(machine: Machine) -> NetMeter:
    return NetMeter(machine, clock=machine.time, wait=machine.time.pass_s)


def window(meter: NetMeter, machine: Machine, seconds: float, watts: float) -> Reading:
    meter.start()
    machine.watts = watts
    machine.time.pass_s(seconds)
    reading = meter.stop()
    return reading


def test_idle_power_is_subtracted_and_kept() -> None:
    """Idle power is measured once, before the first window; readings are what is over it, under the same label."""
    machine = Machine(80.0)
    meter = net_of(machine)
    assert meter.description == "a toy; less idle power, which is measured before the first window"
    assert meter.metering().idle_w.reason == "idle power is measured before the first window"
    assert window(meter, machine, 5.0, 300.0) == Reading(1100.0, "J", "toy", "measured", 0.1)
    assert window(meter, machine, 10.0, 180.0).value == pytest.approx(1000.0)
    assert meter.metering() == Metering("net", Reading(80.0, "W", "toy", "measured", 0.1))
    assert meter.description == "a toy; less 80.0 W of idle power"
    assert (meter.source, meter.method, meter.min_window_s) == ("toy", "measured", 2.0)
    assert machine.time() == pytest.approx((2.2 + 5 + 10) * 1e9)


@pytest.mark.parametrize(("tick", "seconds"), [(0.001, 2.0), (None, 2.0), (0.5, 11.0)])
def test_the_idle_window_is_one_that_the_source_can_resolve(tick: float | None, seconds: float) -> None:
    """Two seconds, or twenty ticks and a tenth."""
    machine = Machine(80.0, tick=tick)
    net_of(machine).start()
    assert machine.time() == pytest.approx(seconds * 1e9)


@settings(deadline=None)
@given(
    idle=st.floats(1.0, 200.0),
    load=st.floats(0.0, 500.0),
    seconds=st.floats(2.0, 60.0),
    method=st.sampled_from(["measured", "sampled", "estimated"]),
)
def test_net_joules_are_exact_and_keep_their_method(
    idle: float, load: float, seconds: float, method: Method
) -> None:
    """Over any idle power and load, a net reading is load times time with the source's method, or unmeasured."""
    machine = Machine(idle, method=method)
    reading = window(net_of(machine), machine, seconds, idle + load)
    if reading.value is None:
        assert load * seconds <= (idle + load) * 0.1 * (1 + 1e-6)
    else:
        assert reading.value == pytest.approx(load * seconds, rel=1e-6)
        assert reading.method == method


@pytest.mark.parametrize("watts", [60.0, 80.0, 81.0])
def test_nothing_left_is_unmeasured(watts: float) -> None:
    """Less than idle, just idle, and no more over it than one tick holds: each is told, and is not 0 J."""
    machine = Machine(80.0)
    reading = window(net_of(machine), machine, 5.0, watts)
    assert reading.value is None
    assert reading.reason == (
        f"toy gave {watts * 5:.0f} J over 5.00 s, of which idle power (80.0 W) is 400 J: nothing is left that it can "
        "tell from zero; measure longer windows, or gross energy (--llm-energy gross)"
    )


def test_without_idle_power_every_reading_is_unmeasured() -> None:
    """A failed idle reading is not tried again, and not taken for 0 W."""
    machine = Machine(80.0)
    machine.fault = "it was busy"
    meter = net_of(machine)
    meter.start()
    assert meter.stop().reason == "toy failed at the start of the window: it was busy"
    machine.fault = ""
    reading = window(meter, machine, 5.0, 300.0)
    assert reading.reason == "idle power is not known: toy failed at the start of the window: it was busy"
    assert meter.metering().idle_w.method == "unmeasured"
    assert meter.description == (
        "a toy; less idle power, which could not be measured (toy failed at the start of the window: it was busy)"
    )


def test_a_fault_of_the_source_keeps_its_reason() -> None:
    """What the source could not read is unmeasured in its own words, and the next window works."""
    machine = Machine(80.0)
    meter = net_of(machine)
    assert "shorter than 20 ticks" in window(meter, machine, 1.0, 300.0).reason
    assert window(meter, machine, 5.0, 300.0).value == pytest.approx(1100.0)
    assert meter.stop().reason == "toy was stopped without being started"
    meter.close()
    assert window(meter, machine, 5.0, 300.0).reason == "toy was closed"


@pytest.mark.parametrize("setback", [0, 5_000_000_000])
def test_a_clock_that_does_not_go_forward_is_no_window(setback: int) -> None:
    """Both in the idle window and in a later one, no time means no power and no energy."""
    clock = VirtualClock()

    def wait(seconds: float) -> None:
        clock.now_ns -= setback

    meter = NetMeter(ReplayMeter([10.0, 10.0], source="toy"), clock=clock, wait=wait)
    meter.start()
    assert "idle power is not known: the window of toy lasted" in meter.stop().reason
    meter = NetMeter(ReplayMeter([10.0, 10.0], source="toy"), clock=clock, wait=clock.pass_s)
    meter.start()
    clock.now_ns -= setback
    assert "by the clock, which stood still or was set back: energy needs time" in meter.stop().reason


def test_a_null_meter_stays_as_it_is() -> None:
    """There is nothing to subtract from nothing; any other meter becomes a net one with its reasons."""
    null = NullMeter("no counter here")
    assert subtract_idle(null) is null
    assert null.metering() == Metering("gross")
    meter = ReplayMeter([])
    meter.because = ("no GPU.",)
    net = subtract_idle(meter)
    assert isinstance(net, NetMeter)
    assert net.because == ("no GPU.",)


def test_a_second_source_stays_in_the_record() -> None:
    """Policy and idle power are added to what the meter tells of itself."""

    class Checked(ReplayMeter):
        def metering(self) -> Metering:
            return Metering(second_source="power", second_ratio=1.02)

    metering = NetMeter(Checked([])).metering()
    assert (metering.policy, metering.second_source, metering.second_ratio) == ("net", "power", 1.02)
