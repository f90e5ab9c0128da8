"""NVML meters against a library that behaves like a driver."""

from __future__ import annotations

import math
import random
import statistics
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from fake_nvml import CALL_S, Card, FakeNvml, VirtualClock, VirtualSampler

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters import nvml as nvml_meters
from pytest_llmslim.meters.crosscheck import CrossCheck
from pytest_llmslim.meters.gpus import visible_gpus
from pytest_llmslim.meters.nvml import THREAD, NvmlCounter, NvmlPower, integrate, open_counter, open_power
from pytest_llmslim.meters.window import TICKS

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def counter_on(*cards: Card) -> tuple[NvmlCounter, VirtualClock, FakeNvml]:
    clock = VirtualClock()
    nvml = FakeNvml(*cards, clock=clock)
    return NvmlCounter(nvml, visible_gpus(nvml, "cuda"), clock=clock), clock, nvml


def install(monkeypatch: pytest.MonkeyPatch, *cards: Card, driver: bool = True) -> FakeNvml:
    nvml = FakeNvml(*cards, driver=driver)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


@pytest.mark.parametrize("tick_s", [0.001, 0.02, 0.1])
def test_ten_thousand_windows_are_within_one_tick_of_the_truth(tick_s: float) -> None:
    """Whatever length, phase and load, joules are off by no more than one tick at each end can hold."""
    dice = random.Random(round(1 / tick_s))
    card = Card(tick_s=tick_s, phase_s=0.7 * tick_s)
    meter, clock, _ = counter_on(card)
    for _ in range(10_000):
        seconds = tick_s * dice.uniform(20.1, 200)
        clock.pass_s(dice.uniform(0, 2 * tick_s))
        begin_s = clock() / 1e9
        card.busy_w = dice.uniform(80.0, 700.0)
        card.busy_from_s, card.busy_to_s = begin_s, begin_s + dice.uniform(0.2, 1.2) * seconds
        card.tail_s, card.tail_w = dice.choice([(0.0, 0.0), (seconds, card.busy_w / 2)])
        meter.start()
        began_s = clock() / 1e9
        clock.pass_s(seconds)
        truth = card.joules(clock() / 1e9) - card.joules(began_s)
        reading = meter.stop()
        assert reading.value is not None, reading.reason
        assert abs(reading.value - truth) <= max(card.busy_w, 80.0) * (tick_s + 2 * CALL_S) + 0.003


@pytest.mark.parametrize(
    ("seconds", "sd", "worst"), [(2.0, 0.011, 0.037), (5.0, 0.0042, 0.015), (20.0, 0.0011, 0.0037)]
)
def test_the_error_of_a_window_is_the_one_of_arithmetic(seconds: float, sd: float, worst: float) -> None:
    """Whole ticks of 0.1 s at 300 W after 80 W miss (300 - 80) W times a phase, uniform on one tick."""
    dice = random.Random(3)
    card = Card(tick_s=0.1)
    meter, clock, _ = counter_on(card)
    errors = []
    for _ in range(1000):
        clock.pass_s(dice.uniform(0, 1))
        card.busy_from_s = clock() / 1e9 + CALL_S
        meter.start()
        clock.pass_s(seconds + CALL_S)
        reading = meter.stop()
        errors.append((reading.value or 0.0) / (300 * seconds) - 1)
    assert (300 - 80) * 0.1 / math.sqrt(12) / (300 * seconds) == pytest.approx(sd, rel=0.04)
    assert statistics.stdev(errors) == pytest.approx(sd, rel=0.1)
    assert max(map(abs, errors)) <= worst


def test_the_tick_is_measured_and_bounds_the_window() -> None:
    """At opening the update period is found, said, and sets the shortest window."""
    meter, clock, _ = counter_on(Card(tick_s=0.1))
    assert meter.resolution == pytest.approx(0.1, abs=2 * CALL_S)
    assert meter.min_window_s == pytest.approx(2.0, rel=0.01)
    assert meter.description == "total-energy counter of Fake H1, updated every 100 ms"
    meter.start()
    clock.pass_s(0.5)
    assert "(100 ms): it would have to last 2.00 s" in meter.stop().reason


def test_millijoules_become_joules_once() -> None:
    """A card at 100 W for 10 s used 1000 J."""
    meter, clock, _ = counter_on(Card(idle_w=100.0))
    meter.start()
    clock.pass_s(10.0)
    reading = meter.stop()
    assert reading.value == pytest.approx(1000.0, rel=0.003)
    assert (reading.unit, reading.source, reading.method) == ("J", "nvml-counter", "measured")


def test_all_visible_cards_are_summed() -> None:
    """Two cards with unlike ticks are read together, and the slower tick counts."""
    meter, clock, _ = counter_on(
        Card(uuid="GPU-a", idle_w=100.0, tick_s=0.02), Card(uuid="GPU-b", idle_w=50.0, tick_s=0.05)
    )
    meter.start()
    clock.pass_s(10.0)
    assert meter.stop().value == pytest.approx(1500.0, rel=0.01)
    assert meter.min_window_s == pytest.approx(1.0, rel=0.01)


def test_a_card_without_counter_is_refused() -> None:
    """A card that does not support the counter, or hides it, is named with the driver's words and their meaning."""
    with pytest.raises(
        MeasurementError,
        match=r"Fake H1 has no total-energy counter: Not Supported .so it is with cards before Volta, and with most",
    ):
        counter_on(Card(has_counter=False))
    nvml = FakeNvml(Card(), clock=VirtualClock())
    gpus = visible_gpus(nvml, "cuda")
    nvml.cards[0].permitted = False
    with pytest.raises(
        MeasurementError, match=r"counter: Insufficient Permissions .a container or the administrator"
    ):
        NvmlCounter(nvml, gpus, clock=nvml.clock)


def test_a_counter_that_stands_still_is_refused() -> None:
    """A counter that does not move in a second of watching is no counter."""
    with pytest.raises(MeasurementError, match=r"counter of Fake H1 stood still for 1\.00 s"):
        counter_on(Card(tick_s=float("inf")))


@pytest.mark.parametrize(
    ("happening", "said"),
    [
        (
            "reset",
            "The total-energy counter of Fake H1 went backwards, so it was reset, in a window of 5.00 s.",
        ),
        ("stuck", "The total-energy counter of Fake H1 stood still in a window of 5.00 s."),
        ("lost", "nvml-counter failed at the end of the window: GPU is lost"),
    ],
)
def test_what_goes_wrong_in_a_window_is_told(happening: str, said: str) -> None:
    """A reset, a stuck counter and a lost card each cost one reading, with their own sentence."""
    card = Card()
    meter, clock, nvml = counter_on(card)
    meter.start()
    before = card.counter_mj(clock() / 1e9)
    clock.pass_s(5.0)
    if happening == "reset":
        card.offset_mj = -5_000_000
    elif happening == "stuck":
        card.tick_s, card.offset_mj = float("inf"), before
    else:
        nvml.lost = True
    reading = meter.stop()
    assert (reading.value, reading.reason) == (None, said)


def test_a_reset_within_a_run_costs_one_window() -> None:
    """A counter that begins again at 0 is told once, and counts on from there."""
    card = Card(idle_w=100.0)
    meter, clock, _ = counter_on(card)
    card.reset_at_s = clock() / 1e9 + 7.0
    readings = []
    for _ in range(3):
        meter.start()
        clock.pass_s(5.0)
        readings.append(meter.stop())
    assert [reading.value for reading in readings] == [
        pytest.approx(500, rel=0.01),
        None,
        pytest.approx(500, rel=0.01),
    ]
    assert "went backwards, so it was reset" in readings[1].reason


@pytest.mark.parametrize("calls", range(40))
@pytest.mark.parametrize("kind", ["counter", "power", "both"])
def test_a_gpu_may_vanish_at_any_call(kind: str, calls: int) -> None:
    """After however many calls the GPU is lost, readings are right or unmeasured with the reason, and none raises."""
    card = Card(idle_w=100.0, tick_s=0.005)
    clock = VirtualClock()
    nvml = FakeNvml(card, clock=clock)
    gpus = visible_gpus(nvml, "cuda")
    counter = NvmlCounter(nvml, gpus, clock=clock)
    power = NvmlPower(nvml, gpus, clock=clock, sampler=VirtualSampler, period_s=0.1)
    meter = {"counter": counter, "power": power, "both": CrossCheck(counter, power, wait=clock.pass_s)}[kind]
    nvml.calls_left = calls
    for _ in range(3):
        meter.start()
        clock.pass_s(2.5)
        reading = meter.stop()
        if reading.value is None:
            assert reading.reason.endswith("of the window: GPU is lost")
            assert nvml.lost
        else:
            assert reading.value == pytest.approx(250, rel=0.05)
    assert nvml.lost == (calls < (6 if kind == "counter" else 60))
    meter.close()


@pytest.mark.parametrize("opener", [open_counter, open_power])
def test_opening_and_closing_are_paired(monkeypatch: pytest.MonkeyPatch, opener: object) -> None:
    """NVML is shut down by close(), and at once when the meter cannot be opened."""
    assert callable(opener)
    nvml = install(monkeypatch, Card(tick_s=0.001))
    meter = opener("cuda")
    assert nvml.opened == 1
    meter.close()
    assert nvml.opened == 0
    nvml.cards = (Card(has_counter=False, has_power=False),)
    with pytest.raises(MeasurementError):
        opener("cuda")
    assert nvml.opened == 0


@pytest.mark.parametrize(
    ("samples", "joules"),
    [
        ([], 0.0),
        ([(0, 100.0)], 0.0),
        ([(0, 100.0), (2_000_000_000, 100.0)], 200.0),
        ([(0, 0.0), (1_000_000_000, 100.0), (3_000_000_000, 0.0)], 150.0),
    ],
)
def test_power_is_integrated_by_trapezoids(samples: list[tuple[int, float]], joules: float) -> None:
    """The area under straight lines between samples is exact."""
    assert integrate(samples) == pytest.approx(joules)


def power_on(card: Card, **options: object) -> tuple[NvmlPower, VirtualClock, FakeNvml]:
    clock = VirtualClock()
    nvml = FakeNvml(card, clock=clock)
    meter = NvmlPower(nvml, visible_gpus(nvml, "cuda"), clock=clock, **{"sampler": VirtualSampler, **options})
    return meter, clock, nvml


@pytest.mark.parametrize(
    ("card", "resolution", "said"),
    [
        (Card(), 0.1, "instantaneous power of Fake H1, read every 20.0 ms"),
        (Card(has_instant=False), 1.0, "one-second average power of Fake H1, read every 20.0 ms"),
        (Card(module_w=40.0), 0.1, "instantaneous power of the whole module of Fake H1, read every 20.0 ms"),
    ],
)
def test_sampled_power_is_summed_and_labelled(card: Card, resolution: float, said: str) -> None:
    """Power is summed to the joules of its scope, labelled sampled, and tells which kind of power it was."""
    meter, clock, _ = power_on(card)
    clock.pass_s(1.0)
    card.busy_from_s, card.busy_to_s = clock() / 1e9 + 5.0, clock() / 1e9 + 11.0
    meter.start()
    begin_s = clock() / 1e9
    clock.pass_s(25.0)
    truth = card.joules(clock() / 1e9) - card.joules(begin_s)
    reading = meter.stop()
    assert reading.value == pytest.approx(truth, rel=0.005)
    assert (reading.source, reading.method, reading.resolution) == ("nvml-power", "sampled", resolution)
    assert meter.description == said


def test_two_cards_on_modules_are_read_at_their_own_scope() -> None:
    """With several cards the module is left out, since two cards may share it."""
    nvml = FakeNvml(
        Card(uuid="GPU-a", module_w=40.0), Card(uuid="GPU-b", module_w=40.0), clock=VirtualClock()
    )
    meter = NvmlPower(nvml, visible_gpus(nvml, "cuda"))
    assert meter.description == "instantaneous power of Fake H1, Fake H1, read every 20.0 ms"
    assert meter._watts() == 160.0


def test_a_sensor_that_looks_a_quarter_of_the_time_can_miss_a_load() -> None:
    """A load in step with the sensor, and between its looks, is not in sampled power; a random one is, on average."""
    card = Card(
        sensor_s=0.1, busy_w=400.0, idle_w=100.0, beat_s=0.1, duty=0.5, busy_from_s=0.0, busy_to_s=1e9
    )
    meter, clock, _ = power_on(card)
    meter.start()
    clock.pass_s(10.0)
    missed = meter.stop()
    assert missed.value == pytest.approx(1000.0, rel=0.01)
    assert (missed.method, card.joules(10.0)) == ("sampled", pytest.approx(2500.0))
    card.beat_s = 0.0737
    meter.start()
    clock.pass_s(100.0)
    assert meter.stop().value == pytest.approx(25000.0, rel=0.05)


def test_a_clock_that_is_set_back_costs_the_window() -> None:
    """Power readings that are out of order have no area, also when the window as a whole has a length."""
    meter, clock, _ = power_on(Card())
    meter.start()
    clock.pass_s(3.0)
    clock.now_ns -= 500_000_000
    clock.pass_s(0.2)
    assert meter.stop().reason == "The clock was set back between two power readings."


def test_too_few_readings_are_no_measurement() -> None:
    """A machine on which the sampling thread hardly ran gives no joules."""
    meter, clock, _ = power_on(Card(), period_s=0.5)
    meter.min_window_s = 0.0
    meter.start()
    clock.pass_s(3.0)
    assert meter.stop().reason == (
        "nvml-power came to 7 readings in a window of 3.00 s, and 20 are needed: "
        "the machine is too busy to sample on."
    )


def threaded(card: Card) -> tuple[NvmlPower, FakeNvml]:
    """On the real clock, with the real thread."""
    nvml = FakeNvml(card)
    meter = NvmlPower(nvml, visible_gpus(nvml, "cuda"), period_s=0.001)
    meter.min_window_s = 0.0  # the update period of real sensors would make this test last 2 s
    return meter, nvml


def readings_so_far(meter: NvmlPower) -> int:
    return len(meter._sampling._samples)


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if true():
            return
        time.sleep(0.001)
    pytest.fail("it did not come about within ten seconds")


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == THREAD]


def test_the_thread_samples_while_the_window_is_open() -> None:
    """Constant power gives power times a time between the inner and the outer one, and the thread ends."""
    meter, _ = threaded(Card(idle_w=100.0))
    outer_ns = time.perf_counter_ns()
    meter.start()
    inner_ns = time.perf_counter_ns()
    wait_until(lambda: readings_so_far(meter) >= TICKS)
    inner_s = (time.perf_counter_ns() - inner_ns) / 1e9
    reading = meter.stop()
    outer_s = (time.perf_counter_ns() - outer_ns) / 1e9
    assert reading.value is not None, reading.reason
    assert 100 * inner_s <= reading.value <= 100 * outer_s
    assert no_thread_is_left()


def test_a_card_lost_while_the_thread_samples_costs_the_window() -> None:
    """A fault in the sampling thread is the reason of the window, and the thread is gone."""
    meter, nvml = threaded(Card())
    meter.start()
    nvml.lost = True
    wait_until(no_thread_is_left)
    assert meter.stop().reason == "nvml-power failed at the end of the window: GPU is lost"
    meter.close()


def test_a_driver_that_hangs_costs_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power reading that does not come back is told, and what it says later is in no other window."""
    monkeypatch.setattr(nvml_meters, "STUCK_S", 0.01)
    meter, nvml = threaded(Card())
    asked, answered, answer = threading.Event(), threading.Event(), nvml.nvmlDeviceGetFieldValues

    def hang(*args: object) -> object:
        asked.set()
        answered.wait(10)
        return answer(*args)

    meter.start()
    monkeypatch.setattr(nvml, "nvmlDeviceGetFieldValues", hang)
    assert asked.wait(10)
    assert meter.stop().reason == "A power reading did not come back within 10.0 ms."
    answered.set()
    wait_until(no_thread_is_left)


def test_power_windows_hold_twenty_updates_of_the_sensor() -> None:
    """The sensor's period bounds the window, not how often we ask it."""
    nvml = FakeNvml(Card())
    meter = NvmlPower(nvml, visible_gpus(nvml, "cuda"))
    assert meter.min_window_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (
            Card(has_power=False),
            "Fake H1 tells no power: Not Supported .so it is with cards before Volta, and with",
        ),
        (Card(idle_w=0.0), "a power of 0 W"),
    ],
)
def test_a_card_without_power_is_refused(card: Card, said: str) -> None:
    """A card that tells no power, or none at all, is refused with its words."""
    with pytest.raises(MeasurementError, match=said):
        power_on(card)
