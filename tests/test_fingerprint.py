"""The machine in words: complete, stable, and never a reason to fail."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fake_nvml import Card, FakeNvml

from pytest_llmslim import fingerprint
from pytest_llmslim.fingerprint import machine_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

KEYS = {
    *("cpu", "cores", "isa", "isa_hash", "ram_gb", "gpu", "gpu_driver", "gpu_power_limit_w"),
    *("torch", "transformers", "bitsandbytes", "python", "device", "threads", "dtype", "energy_source"),
}
INTEL = "processor\t: 0\nmodel name\t: Fake Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16\n\n"


def of(device: str = "cpu", energy_source: str = "rapl") -> dict[str, str]:
    return machine_fingerprint(device=device, threads=2, dtype="float32", energy_source=energy_source)


@pytest.fixture(autouse=True)
def _no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def cpuinfo(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    path = folder / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(fingerprint, "CPUINFO", path)


def test_every_key_is_a_word_and_the_same_twice() -> None:
    """All keys are there with text in them, and a second look sees the same machine."""
    first = of()
    assert set(first) == KEYS
    assert all(isinstance(value, str) and value for value in first.values())
    assert of() == first


def test_the_setup_is_part_of_it() -> None:
    """Device, threads, dtype and energy source are told as given."""
    seen = of()
    assert (seen["device"], seen["threads"], seen["dtype"], seen["energy_source"]) == (
        "cpu",
        "2",
        "float32",
        "rapl",
    )
    assert seen["gpu"] == "none"


def test_instruction_sets_are_shown_and_hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What picks kernels is readable, and any other flag changes the hash; their order does not."""
    cpuinfo(monkeypatch, tmp_path, INTEL)
    first = of()
    assert first["cpu"] == "Fake Xeon"
    assert first["isa"] == "avx2 avx512f avx512_vnni avx512_bf16"
    cpuinfo(monkeypatch, tmp_path, INTEL.replace("fpu avx2", "avx2 fpu"))
    assert of() == first
    cpuinfo(monkeypatch, tmp_path, INTEL.replace("fpu", "fpu newer"))
    assert of()["isa_hash"] != first["isa_hash"]


def test_arm_tells_features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On Arm the flags are called Features, and the core has a part number instead of a name."""
    cpuinfo(monkeypatch, tmp_path, "Features\t: fp asimd asimddp i8mm bf16\nCPU part\t: 0xd4f\n")
    assert (of()["cpu"], of()["isa"]) == ("0xd4f", "asimd asimddp i8mm bf16")


def test_what_cannot_be_known_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without /proc, NVML and installed packages there are words and no exception."""
    monkeypatch.setattr(fingerprint, "CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(fingerprint, "PACKAGES", ("torch-that-is-not-there",))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    seen = of("cuda")
    assert (seen["cpu"], seen["isa"], seen["isa_hash"]) == ("unknown", "unknown", "unknown")
    assert (seen["gpu"], seen["torch-that-is-not-there"]) == ("unknown", "unknown")


def test_gpus_are_named_with_driver_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the cards, the driver and the power limit decide what is comparable; NVML is given back."""
    nvml = FakeNvml(Card(name="H1", uuid="GPU-a"), Card(name="H1", uuid="GPU-b"))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    seen = of("cuda")
    assert (seen["gpu"], seen["gpu_driver"], seen["gpu_power_limit_w"]) == ("H1, H1", "580.65", "700, 700")
    assert of("cuda:1")["gpu"] == "H1"
    assert nvml.opened == 0


def test_a_split_gpu_costs_only_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that cannot be metered still has a driver."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(Card(mig=True)))
    assert (of("cuda")["gpu"], of("cuda")["gpu_driver"]) == ("unknown", "580.65")


def test_a_models_release_is_part_of_its_joules() -> None:
    """A model's figure is told with its version, a counter's without."""
    assert of(energy_source="codecarbon")["energy_source"].split()[0] == "codecarbon"
    assert len(of(energy_source="codecarbon")["energy_source"].split()) == 2


def test_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started to find out."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    assert set(of()) == KEYS
