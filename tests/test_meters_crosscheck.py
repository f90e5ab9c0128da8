"""Two meters over the same windows: whose joules are given, and what their disagreement is worth."""

from __future__ import annotations

import pytest
from fake_nvml import Card, FakeNvml, VirtualClock, VirtualSampler
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmslim.meters.crosscheck import AGREE, CrossCheck, agree
from pytest_llmslim.meters.gpus import visible_gpus
from pytest_llmslim.meters.ladder import CHECK_TICKS
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.meters.nvml import NvmlCounter, NvmlPower
from pytest_llmslim.meters.replay import ReplayMeter
from pytest_llmslim.records import Metering, Reading, unmeasured


class Unkind(ReplayMeter):
    """Raises at every call, which a meter promises not to."""

    def start(self) -> None:
        raise RuntimeError("start")

    def stop(self) -> Reading:
        raise RuntimeError("stop")

    def close(self) -> None:
        raise RuntimeError("close")


def replayed(first: list, second: list) -> CrossCheck:
    """The first values are those of the self test."""
    return CrossCheck(
        ReplayMeter(first, source="counter"),
        ReplayMeter(second, source="power", method="sampled"),
        wait=lambda seconds: None,
    )


def windows(meter: CrossCheck, count: int) -> list[Reading]:
    readings = []
    for _ in range(count):
        meter.start()
        readings.append(meter.stop())
    return readings


def gpu(**card: float) -> tuple[CrossCheck, VirtualClock, Card]:
    clock, made = VirtualClock(), Card(**card)
    nvml = FakeNvml(made, clock=clock)
    gpus = visible_gpus(nvml, "cuda")
    counter = NvmlCounter(nvml, gpus, clock=clock)
    power = NvmlPower(nvml, gpus, clock=clock, ticks=CHECK_TICKS, sampler=VirtualSampler)
    return CrossCheck(counter, power, wait=clock.pass_s), clock, made


def test_the_first_gives_the_readings_and_the_second_the_ratio() -> None:
    """Readings are the first one's own, and the median of second / first is beside them."""
    meter = replayed([1.0, 10.0, 20.0, 30.0], [1.0, 11.0, 20.0, 27.0])
    readings = windows(meter, 3)
    assert readings == [Reading(value, "J", "counter", "measured") for value in (10.0, 20.0, 30.0)]
    assert meter.metering() == Metering("gross", second_source="power", second_ratio=1.0)
    assert meter.description == (
        "prepared readings; checked: power gives 1.00 times its energy over 3 windows"
    )


def test_the_self_test_counts_until_there_are_windows() -> None:
    """Before the first window the ratio is that of the idle window at opening, and then it is no longer used."""
    meter = replayed([100.0, 10.0], [175.0, 9.0])
    assert meter.metering().second_ratio == 1.75
    assert meter.description == (
        "prepared readings; unreliable: power gives 1.75 times its energy over an idle window at opening, "
        "and sources that agree are within 20% of each other"
    )
    windows(meter, 1)
    assert meter.metering().second_ratio == 0.9
    assert "checked: power gives 0.900 times its energy over 1 window" in meter.description


@pytest.mark.parametrize(
    ("ratio", "same"), [(0.79, False), (0.81, True), (1.0, True), (1.19, True), (1.21, False)]
)
def test_sources_agree_within_a_fifth(ratio: float, same: bool) -> None:
    """Further from 1 than AGREE, two sources do not tell the same."""
    assert agree(ratio) is same
    assert AGREE == 0.2


def test_no_window_in_common_is_said() -> None:
    """Where the two never had a value for one window there is no ratio, and the sentence says why."""
    meter = replayed([1.0, 2.0], [])
    assert windows(meter, 1)[0].value == 2.0
    assert meter.metering() == Metering(second_source="power", second_ratio=None)
    assert meter.description == "prepared readings; not checked by power so far: power has no reading left"
    assert "so far: its own reading is missing" in replayed([0.0], [1.0]).description
    slow = ReplayMeter([], source="average")
    slow.min_window_s = 20.0
    assert (
        "not checked by average so far: its windows last 20.0 s or more"
        in CrossCheck(ReplayMeter([]), slow).description
    )


def test_a_fault_of_the_second_costs_its_ratio_only() -> None:
    """Whatever the second does, the first one's readings stay as they are, and closing works."""
    first = ReplayMeter([5.0, 6.0], source="counter")
    meter = CrossCheck(first, Unkind([], source="power"), wait=lambda seconds: None)
    assert [reading.value for reading in windows(meter, 1)] == [6.0]
    assert meter.metering().second_ratio is None
    meter.close()
    assert windows(meter, 1)[0].reason == "counter was closed"


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (ReplayMeter([]), ReplayMeter([], source="model", method="estimated"), r"got model \(estimated\)"),
        (NullMeter("nothing here"), ReplayMeter([]), r"a cross-check is of meters that measure, got none"),
        (ReplayMeter([]), ReplayMeter([]), "a cross-check needs two sources, got replay twice"),
    ],
)
def test_a_model_is_no_check(first: ReplayMeter, second: ReplayMeter, said: str) -> None:
    """Only two sources that measure, and not one of them twice, can check each other."""
    with pytest.raises(ValueError, match=said):
        CrossCheck(first, second)


ANY_VALUE = st.one_of(
    st.floats(-10, 100),
    st.sampled_from([0.0, float("nan"), float("inf")]),
    st.just(unmeasured("J", "counter", "it was gone")),
)


@given(first=st.lists(ANY_VALUE, max_size=8), second=st.lists(ANY_VALUE, max_size=8))
def test_no_joule_of_the_second_leaves_the_check(first: list, second: list) -> None:
    """Whatever either source does, each answer is what the first alone would have answered."""
    alone = ReplayMeter(first, source="counter")
    windows(alone, 1)
    assert windows(replayed(first, second), 8) == windows(alone, 8)


def test_a_good_gpu_agrees_with_itself() -> None:
    """Counter and power of one card agree at opening and under a load with an idle tail."""
    meter, clock, card = gpu(tick_s=0.02, sensor_s=0.1)
    assert meter.metering().second_ratio == pytest.approx(1.0, abs=0.02)
    card.busy_from_s = clock() / 1e9
    card.busy_to_s = card.busy_from_s + 3.0
    card.tail_s, card.tail_w = 2.0, 150.0
    meter.start()
    began_s = clock() / 1e9
    clock.pass_s(8.0)
    truth = card.joules(clock() / 1e9) - card.joules(began_s)
    reading = meter.stop()
    assert (reading.source, reading.method) == ("nvml-counter", "measured")
    assert reading.value == pytest.approx(truth, rel=0.01)
    assert meter.metering().second_ratio == pytest.approx(1.0, abs=0.03)


def test_a_counter_of_the_whole_module_is_checked_by_the_modules_power() -> None:
    """On a module with a CPU both sources are of the module, so they agree."""
    meter, _, _ = gpu(module_w=120.0)
    assert meter.metering().second_ratio == pytest.approx(1.0, abs=0.02)


def test_a_load_in_step_with_the_sensor_is_unreliable() -> None:
    """Where the power sensor misses the load, the two sources part, in words and as a ratio."""
    meter, clock, card = gpu(sensor_s=0.1, idle_w=100.0, busy_w=400.0, beat_s=0.1, duty=0.5)
    card.busy_from_s, card.busy_to_s = round(clock() / 1e9 + 0.1, 1), 1e9
    clock.pass_s(0.2)
    meter.start()
    clock.pass_s(5.0)
    assert meter.stop().value == pytest.approx(1250, rel=0.02)
    assert meter.metering().second_ratio == pytest.approx(0.4, rel=0.05)
    assert "unreliable: nvml-power gives 0.4" in meter.description


@pytest.mark.parametrize(
    ("first_s", "second_s", "least_s", "waits"),
    [
        (0.0, 0.0, 0.0, [1.0]),
        (0.4, 0.5, 0.5, [1.0]),
        (2.0, 0.5, 2.0, [2.2]),
        (0.4, 5.0, 0.4, [5.5]),
        (0.4, 20.0, 0.4, []),
    ],
)
def test_windows_are_lengthened_within_reason(
    first_s: float, second_s: float, least_s: float, waits: list[float]
) -> None:
    """A second source lengthens windows by little and the self test by more; a very slow one lengthens neither."""
    first, second = ReplayMeter([1.0]), ReplayMeter([1.0], source="power")
    first.min_window_s, second.min_window_s = first_s, second_s
    waited: list[float] = []
    assert CrossCheck(first, second, wait=waited.append).min_window_s == least_s
    assert waited == pytest.approx(waits)


def test_a_gpu_is_checked_in_the_shortest_windows_that_are_measured() -> None:
    """With a quick counter a window is as long as its check needs, half a second, and has a ratio."""
    meter, clock, card = gpu(tick_s=0.02, sensor_s=0.1)
    assert meter.min_window_s == 0.5
    card.busy_from_s, card.busy_to_s = clock() / 1e9, 1e9
    for _ in range(8):
        clock.pass_s(0.2)
        meter.start()
        clock.pass_s(0.55)
        assert meter.stop().value == pytest.approx(165, rel=0.05)
    assert meter.metering().second_ratio == pytest.approx(1.0, abs=0.05)
    assert "checked: nvml-power" in meter.description
    assert "over 8 windows" in meter.description
