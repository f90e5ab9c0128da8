"""Which meter a machine gets, and why not a better one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from fake_nvml import Card, FakeNvml

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters import crosscheck, nvml
from pytest_llmslim.meters.ladder import CPU_RUNGS, GPU_RUNGS, choose_energy_meter, climb
from pytest_llmslim.meters.replay import ReplayMeter

if TYPE_CHECKING:
    from pytest_llmslim.meters import Meter


@pytest.fixture(autouse=True)
def _no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def broken(reason: str) -> object:
    def rung(device: str) -> Meter:
        raise MeasurementError(reason)

    return rung


def works(device: str) -> Meter:
    return ReplayMeter([1.0])


def test_the_first_rung_that_holds_is_taken_with_reasons() -> None:
    """The meter keeps the reasons of the rungs above it, each once."""
    meter = climb([broken("no A."), broken("no A."), broken("no B."), works], "cpu")
    assert meter.source == "replay"
    assert meter.because == ("no A.", "no B.")


def test_the_best_rung_needs_no_reason() -> None:
    """The first rung has nothing to explain."""
    assert climb([works, broken("never asked")], "cpu").because == ()


def test_no_rung_is_a_null_meter_with_all_reasons() -> None:
    """When nothing works the reading itself says why."""
    meter = climb([broken("no A."), broken("no B.")], "mps")
    meter.start()
    assert meter.stop().reason == "No energy meter works on mps: no A. no B."


def test_any_exception_of_a_rung_leads_to_the_next() -> None:
    """The ladder never raises, whatever a library throws."""

    def bursts(device: str) -> Meter:
        raise ZeroDivisionError

    assert climb([bursts, works], "cpu").because == ("ZeroDivisionError",)


def test_the_order_of_the_rungs() -> None:
    """Checked counters come before counters, these before sampled power, and measurements before estimates."""
    assert [rung.__name__ for rung in GPU_RUNGS] == ["open_checked_counter", "open_counter", "open_power"]
    assert [rung.__name__ for rung in CPU_RUNGS] == ["open_rapl", "open_codecarbon"]


UNSUPPORTED = "Not Supported (so it is with cards before Volta, and with most virtual GPUs)"
UNCHECKED = "The energy counter cannot be cross-checked: Fake H1 tells no power: "


@pytest.mark.parametrize(
    ("card", "source", "second", "because"),
    [
        (Card(), "nvml-counter", "nvml-power", ()),
        (Card(has_power=False), "nvml-counter", "", (UNCHECKED + UNSUPPORTED,)),
        (Card(has_counter=False), "nvml-power", "", ("Fake H1 has no total-energy counter: " + UNSUPPORTED,)),
    ],
)
def test_cuda_gets_the_best_of_nvml(
    monkeypatch: pytest.MonkeyPatch, card: Card, source: str, second: str, because: tuple[str, ...]
) -> None:
    """A counter is checked by power, stands alone without it, and power stands in for it; the reasons are kept."""
    monkeypatch.setattr(nvml, "INSTANT_UPDATE_S", 0.001)
    monkeypatch.setattr(crosscheck, "SELF_TEST_S", 0.001)
    card.tick_s = 0.001
    fake = FakeNvml(card)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    meter = choose_energy_meter("cuda")
    assert (meter.source, meter.because) == (source, because)
    assert meter.metering().second_source == second
    assert meter.min_window_s == pytest.approx(0.1 if second else meter.min_window_s)  # five looks at 20 ms
    meter.close()
    assert fake.opened == 0


def test_cuda_without_gpu_is_null_and_never_a_cpu_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver means no energy on CUDA; the CPU's joules are not offered in its place."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))
    meter = choose_energy_meter("cuda:0")
    assert (meter.source, meter.method) == ("none", "unmeasured")
    assert meter.description == (
        "No energy meter works on cuda:0: NVML is not usable on this machine: NVML Shared Library Not Found "
        "(a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility to have it)"
    )
