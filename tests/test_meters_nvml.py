"""NVML meters against a library that behaves like a driver."""

from __future__ import annotations

import sys
import time

import pytest
from fake_nvml import CALL_S, Card, FakeNvml, VirtualClock
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.gpus import open_nvml, visible_gpus
from pytest_llmslim.meters.nvml import NvmlCounter, NvmlPower, integrate, open_counter, open_power


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


@settings(deadline=None)
@given(
    seconds=st.floats(0.4, 30.0),
    lead=st.floats(0.0, 0.5),
    phase=st.floats(0.0, 0.02),
    tick=st.sampled_from([0.001, 0.02, 0.1]),
    busy=st.floats(80.0, 700.0),
)
def test_a_reading_is_within_one_tick_of_the_truth(
    seconds: float, lead: float, phase: float, tick: float, busy: float
) -> None:
    """Whatever the phase, window and power, the error is at most the energy of one update."""
    seconds = max(seconds, 21 * tick)
    card = Card(tick_s=tick, phase_s=phase, busy_w=busy)
    meter, clock, _ = counter_on(card)
    clock.pass_s(lead)
    card.busy_from_s = clock() / 1e9
    card.busy_to_s = card.busy_from_s + seconds
    meter.start()
    began_s = clock() / 1e9
    clock.pass_s(seconds)
    ended_s = clock() / 1e9
    reading = meter.stop()
    assert reading.value is not None, reading.reason
    truth = card.joules(ended_s) - card.joules(began_s)
    assert abs(reading.value - truth) <= busy * (tick + 2 * CALL_S) + 0.002


def test_the_tick_is_measured_and_bounds_the_window() -> None:
    """At opening the update period is found, said, and sets the shortest window."""
    meter, _, _ = counter_on(Card(tick_s=0.1))
    assert meter.resolution == pytest.approx(0.1, abs=2 * CALL_S)
    assert meter.min_window_s == pytest.approx(2.0, rel=0.01)
    assert meter.description == "total-energy counter of Fake H1, updated every 100 ms"
    meter.start()
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
    """A card that does not support the counter is named with the driver's words."""
    with pytest.raises(MeasurementError, match="Fake H1 has no total-energy counter: Not Supported"):
        counter_on(Card(has_counter=False))


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


def test_a_card_lost_between_windows_costs_the_window() -> None:
    """A card that is gone at start() is told by stop(), and closing it does not raise."""
    meter, _, nvml = counter_on(Card())
    nvml.lost = True
    meter.start()
    assert meter.stop().reason == "nvml-counter failed at the start of the window: GPU is lost"
    meter.close()


@pytest.mark.parametrize(
    ("selection", "device", "expected"),
    [
        (None, "cuda", ["GPU-a1", "GPU-a2", "GPU-b"]),
        ("0,2", "cuda", ["GPU-a1", "GPU-b"]),
        ("2,0", "cuda:0", ["GPU-b"]),
        ("GPU-b", "cuda", ["GPU-b"]),
        (" GPU-a2 , 0", "cuda", ["GPU-a2", "GPU-a1"]),
        ("1,-1,0", "cuda", ["GPU-a2"]),
        ("0,7,1", "cuda", ["GPU-a1"]),
        ("0,GPU-a,1", "cuda", ["GPU-a1"]),
        (None, "cuda:1", ["GPU-a2"]),
    ],
)
def test_gpus_are_chosen_as_cuda_does(
    monkeypatch: pytest.MonkeyPatch, selection: str | None, device: str, expected: list[str]
) -> None:
    """Numbers, UUIDs and their prefixes name GPUs; the list ends at the first entry that names none."""
    if selection is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selection)
    nvml = FakeNvml(*(Card(uuid=uuid) for uuid in ("GPU-a1", "GPU-a2", "GPU-b")))
    assert [gpu.uuid for gpu in visible_gpus(nvml, device)] == expected


@pytest.mark.parametrize(("selection", "device"), [("", "cuda"), ("-1", "cuda"), ("0", "cuda:1")])
def test_no_visible_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch, selection: str, device: str) -> None:
    """When nothing is left, the message names the device and where to look."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", selection)
    with pytest.raises(
        MeasurementError, match=f"NVML sees no GPU for {device}; look at CUDA_VISIBLE_DEVICES"
    ):
        visible_gpus(FakeNvml(Card()), device)


def test_unlike_gpus_need_a_known_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers on a machine with unlike GPUs count only under PCI order; UUIDs and the sum always do."""
    nvml = FakeNvml(Card(name="A", uuid="GPU-a"), Card(name="B", uuid="GPU-b"))
    assert len(visible_gpus(nvml, "cuda")) == 2
    with pytest.raises(MeasurementError, match="set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID"):
        visible_gpus(nvml, "cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(MeasurementError, match="unlike GPUs, which CUDA and NVML count in different orders"):
        visible_gpus(nvml, "cuda")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert [gpu.uuid for gpu in visible_gpus(nvml, "cuda")] == ["GPU-b"]


def test_mig_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A split card has no energy of its own, whether seen in its mode or in the selection."""
    with pytest.raises(MeasurementError, match="Fake H1 is split by MIG, and its energy is known only for"):
        visible_gpus(FakeNvml(Card(mig=True)), "cuda")
    assert visible_gpus(FakeNvml(Card(mig=False)), "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(MeasurementError, match="CUDA_VISIBLE_DEVICES names a MIG slice"):
        visible_gpus(FakeNvml(Card()), "cuda")


def test_no_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver the library's own words are passed on."""
    install(monkeypatch, driver=False)
    with pytest.raises(MeasurementError, match="NVML is not usable on this machine: NVML Shared Library"):
        open_nvml()


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


def power_on(card: Card) -> tuple[NvmlPower, FakeNvml]:
    nvml = FakeNvml(card)
    meter = NvmlPower(nvml, visible_gpus(nvml, "cuda"), period_s=0.002)
    meter.min_window_s = 0.0  # the update period of real sensors would make this test last 2 s
    return meter, nvml


@pytest.mark.parametrize(
    ("instant", "resolution", "said"),
    [(True, 0.1, "instantaneous power of Fake H1"), (False, 1.0, "one-second average power of Fake H1")],
)
def test_sampled_power_is_labelled_and_lies_between_the_windows(
    instant: bool, resolution: float, said: str
) -> None:
    """Constant power gives power times time, is labelled sampled, and tells which kind of power it was."""
    meter, _ = power_on(Card(idle_w=100.0, has_instant=instant))
    outer_ns = time.perf_counter_ns()
    meter.start()
    inner_ns = time.perf_counter_ns()
    time.sleep(0.03)
    inner_s = (time.perf_counter_ns() - inner_ns) / 1e9
    reading = meter.stop()
    outer_s = (time.perf_counter_ns() - outer_ns) / 1e9
    assert reading.value is not None, reading.reason
    assert 100 * inner_s <= reading.value <= 100 * outer_s
    assert (reading.source, reading.method, reading.resolution) == ("nvml-power", "sampled", resolution)
    assert meter.description.startswith(said)


def test_power_windows_hold_twenty_updates_of_the_sensor() -> None:
    """The sensor's period bounds the window, not how often we ask it."""
    nvml = FakeNvml(Card())
    meter = NvmlPower(nvml, visible_gpus(nvml, "cuda"))
    assert meter.min_window_s == pytest.approx(2.0)


def test_a_card_lost_while_sampling_costs_the_window() -> None:
    """A fault in the sampling thread is the reason of the window, and the thread is gone."""
    meter, nvml = power_on(Card())
    meter.start()
    nvml.lost = True
    time.sleep(0.01)
    assert meter.stop().reason == "nvml-power failed at the end of the window: GPU is lost"
    assert meter._thread is None
    meter.close()


@pytest.mark.parametrize(
    ("card", "said"),
    [(Card(has_power=False), "Fake H1 tells no power: Not Supported"), (Card(idle_w=0.0), "a power of 0 W")],
)
def test_a_card_without_power_is_refused(card: Card, said: str) -> None:
    """A card that tells no power, or none at all, is refused with its words."""
    with pytest.raises(MeasurementError, match=said):
        power_on(card)
