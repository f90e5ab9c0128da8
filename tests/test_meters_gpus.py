"""Which GPUs a run uses, as CUDA would choose them, and the real pynvml over a library of our own."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pynvml
import pytest
from fake_nvml import Card, FakeLibrary, FakeNvml, VirtualClock, VirtualSampler
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters import nvml as nvml_meters
from pytest_llmslim.meters.gpus import open_nvml, visible_gpus
from pytest_llmslim.meters.nvml import NvmlCounter, NvmlPower


@pytest.fixture(autouse=True)
def _no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("selection", "device", "expected"),
    [
        (None, "cuda", ["GPU-a1", "GPU-a2", "GPU-b"]),
        ("0,2", "cuda", ["GPU-a1", "GPU-b"]),
        ("2,0", "cuda:0", ["GPU-b"]),
        ("GPU-b", "cuda", ["GPU-b"]),
        ("GPU-b,GPU-a1", "cuda", ["GPU-b", "GPU-a1"]),
        ("GPU-b,GPU-a,GPU-a1", "cuda", ["GPU-b"]),
        ("GPU-b,0", "cuda", ["GPU-b"]),
        ("1,-1,0", "cuda", ["GPU-a2"]),
        (" 2 , 0", "cuda", ["GPU-b", "GPU-a1"]),
        ("0,7,1", "cuda", ["GPU-a1"]),
        ("0,GPU-a2,1", "cuda", ["GPU-a1"]),
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


@pytest.mark.parametrize(
    ("selection", "device"),
    [("", "cuda"), ("-1", "cuda"), ("0", "cuda:1"), ("0,0", "cuda"), ("GPU-aaaa,GPU-aa", "cuda")],
)
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


@settings(deadline=None)
@given(
    entries=st.lists(
        st.sampled_from(
            ["0", "1", "2", "3", "-1", "+1", "01", "1x", " 2", "", "GPU-a1", "GPU-a2", "GPU-a", "GPU-b"]
        ),
        max_size=4,
    )
)
def test_the_choice_is_that_of_torch(entries: list[str]) -> None:
    """Over any list of numbers and UUIDs, the GPUs are those that torch.cuda finds in the same list."""
    cuda = pytest.importorskip("torch").cuda
    uuids = ["GPU-a1", "GPU-a2", "GPU-b"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(entries))
        found = cuda._parse_visible_devices()
        if found and isinstance(found[0], str):
            found = cuda._transform_uuid_to_ordinals(found, uuids)
        expected = []
        for number in found:  # a number beyond the last GPU ends the list
            if number >= len(uuids):
                break
            expected.append(uuids[number])
        try:
            ours = [gpu.uuid for gpu in visible_gpus(FakeNvml(*(Card(uuid=uuid) for uuid in uuids)), "cuda")]
        except MeasurementError:
            ours = []
    assert ours == expected


@pytest.mark.parametrize(
    ("card", "calls", "said"),
    [(Card(permitted=False), 99, "Insufficient Permissions"), (Card(), 1, "GPU is lost")],
)
def test_gpus_that_cannot_be_listed_are_told(card: Card, calls: int, said: str) -> None:
    """A GPU that this user may not look at, or that is gone, is told with where to look."""
    with pytest.raises(MeasurementError, match=f"cannot list the GPUs of this machine .{said}.; see whether"):
        visible_gpus(FakeNvml(card, calls_left=calls), "cuda")


def test_no_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver the library's own words are passed on, with what a container would need."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))
    with pytest.raises(
        MeasurementError,
        match=r"NVML is not usable on this machine: NVML Shared Library Not Found "
        r".a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ):
        open_nvml()


@pytest.fixture
def real_pynvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """The real pynvml, over a C library that answers as the fake does."""
    fake = FakeNvml(Card(name="Real H1", idle_w=100.0, module_w=50.0, mig=False), clock=VirtualClock())
    monkeypatch.setattr(pynvml, "nvmlLib", FakeLibrary(fake))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    return fake


def test_the_real_pynvml_is_called_as_it_wants_to_be(real_pynvml: FakeNvml) -> None:
    """Through the real pynvml, counter and power of a module are read in the right units, scope and fields."""
    nvml, clock = open_nvml(), real_pynvml.clock
    assert nvml is pynvml
    gpus = visible_gpus(nvml, "cuda")
    assert [gpu.name for gpu in gpus] == ["Real H1"]
    meters = (
        NvmlCounter(nvml, gpus, clock=clock),
        NvmlPower(nvml, gpus, clock=clock, period_s=0.05, sampler=VirtualSampler),
    )
    for meter in meters:
        meter.start()
        clock.pass_s(4.0)
        assert meter.stop().value == pytest.approx(600.0, rel=0.01)
    real_pynvml.cards[0].module_w = None
    assert "module" not in NvmlPower(nvml, gpus, clock=clock).description
    real_pynvml.lost = True
    meters[0].start()
    assert meters[0].stop().reason == "nvml-counter failed at the start of the window: GPU is lost"
    meters[0].close()
    assert real_pynvml.opened == 0


def test_every_name_we_use_is_pynvmls() -> None:
    """What our sources take from the library exists in it, and the fake's constants and words are its own."""
    used = {
        name
        for module in (nvml_meters, sys.modules[visible_gpus.__module__])
        for name in re.findall(r"nvml\.(nvml\w+|NVML\w+)", Path(module.__file__).read_text())
    }
    assert {"nvmlDeviceGetTotalEnergyConsumption", "NVML_ERROR_NO_PERMISSION", "NVMLError"} <= used
    assert not [name for name in used if not hasattr(pynvml, name)]
    for name in (name for name in vars(FakeNvml) if name.startswith("NVML_")):
        assert getattr(FakeNvml, name) == getattr(pynvml, name)
    for code, words in FakeNvml.NVMLError.WORDS.items():
        assert str(pynvml.NVMLError(code)) == words
