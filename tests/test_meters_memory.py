"""Peak memory: what a window adds, by each way to see it."""

from __future__ import annotations

import mmap
import sys
import threading
import types
from typing import TYPE_CHECKING

import pytest

from pytest_llmslim.meters.memory import (
    CudaAllocator,
    HighWaterMark,
    PeakMemory,
    ResidentSamples,
    choose_probe,
)

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20


def high_water_mark_works() -> bool:
    return isinstance(choose_probe("cpu"), HighWaterMark)


needs_mark = pytest.mark.skipif(not high_water_mark_works(), reason="the kernel's mark cannot be reset here")


def fresh(size: int) -> mmap.mmap:
    """Touched memory straight from the kernel; a bytearray may be made of what was freed before."""
    buffer = mmap.mmap(-1, size)
    buffer[::4096] = b"x" * (size // 4096)  # one byte a page
    return buffer


@needs_mark
def test_a_short_peak_is_seen_and_forgotten() -> None:
    """A buffer that is gone before the end counts in its window and not in the next."""
    meter = PeakMemory("cpu")
    meter.start()
    fresh(80 * MIB)
    reading = meter.stop()
    assert reading.value is not None, reading.reason
    assert 79 * MIB <= reading.value <= 90 * MIB
    assert (reading.unit, reading.source, reading.method) == ("B", "rss-peak", "measured")
    meter.start()
    small = meter.stop()
    assert small.value is None or small.value < 8 * MIB


@needs_mark
def test_a_peak_is_independent_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel keeps the peak, so a clock that is set back in the window takes nothing from it."""
    times = iter(range(1000, 0, -1))
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(times))
    meter = PeakMemory("cpu")
    meter.start()
    fresh(80 * MIB)
    assert meter.stop().value is not None


@needs_mark
def test_what_was_held_before_does_not_count() -> None:
    """Only the rise over the start is the window's."""
    held = fresh(80 * MIB)
    meter = PeakMemory("cpu")
    meter.start()
    fresh(20 * MIB)
    reading = meter.stop()
    assert reading.value is not None
    assert 19 * MIB <= reading.value <= 30 * MIB
    del held


def status(folder: Path, *, held_kb: int, peak_kb: int) -> None:
    folder.joinpath("status").write_text(f"Name:\tx\nVmHWM:\t {peak_kb} kB\nVmRSS:\t {held_kb} kB\n")


def test_the_kernels_file_is_read_in_bytes(tmp_path: Path) -> None:
    """The kernel's kB are 1024 bytes, and writing 5 is what resets the mark."""
    status(tmp_path, held_kb=1000, peak_kb=1000)
    meter = PeakMemory("cpu", probe=HighWaterMark(tmp_path))
    meter.start()
    status(tmp_path, held_kb=900, peak_kb=1500)
    assert meter.stop().value == 500 * 1024
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_no_rise_is_unmeasured(tmp_path: Path) -> None:
    """A window that used only memory freed before says so, and is not 0 bytes."""
    status(tmp_path, held_kb=1000, peak_kb=1000)
    meter = PeakMemory("cpu", probe=HighWaterMark(tmp_path))
    meter.start()
    reading = meter.stop()
    assert reading.value is None
    assert "did not rise above its value at the start of the window" in reading.reason


@pytest.mark.parametrize("content", [None, "Name:\tx\n"])
def test_without_the_kernels_mark_memory_is_sampled(tmp_path: Path, content: str | None) -> None:
    """Where the mark cannot be reset or read, a thread takes samples."""
    if content is not None:
        (tmp_path / "status").write_text(content)
    assert isinstance(choose_probe("cpu", process=tmp_path / ("." if content else "absent")), ResidentSamples)


def test_samples_find_the_largest_and_are_labelled() -> None:
    """The peak of what the thread saw counts, marked as sampled."""
    values, seen_all = iter([100, 300, 250]), threading.Event()

    def resident() -> int:
        value = next(values, None)
        if value is None:
            seen_all.set()
        return value or 150

    meter = PeakMemory("cpu", probe=ResidentSamples(0.001, resident=resident))
    meter.min_window_s = 0.0
    meter.start()
    assert seen_all.wait(timeout=10)
    reading = meter.stop()
    assert (reading.value, reading.method, reading.source) == (200.0, "sampled", "rss-samples")
    assert meter.description == "rise of the resident memory, read every 1 ms"


def test_samples_of_this_process_work() -> None:
    """The default sampler reads this process and leaves no thread."""
    probe = ResidentSamples(0.001)
    probe.begin()
    buffer = fresh(30 * MIB)
    assert probe.end() >= 25 * MIB
    assert probe._thread is None
    del buffer


def test_cuda_gives_the_allocators_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the allocator's peak is reset at the start and read at the end, for the device asked for."""
    calls: list[str] = []
    cuda = types.SimpleNamespace(
        reset_peak_memory_stats=lambda device: calls.append(f"reset {device}"),
        max_memory_allocated=lambda device: calls.append(f"read {device}") or 123,
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert isinstance(choose_probe("cuda:1"), CudaAllocator)
    meter = PeakMemory("cuda:1")
    meter.start()
    reading = meter.stop()
    assert (reading.value, reading.source) == (123.0, "cuda-allocator")
    assert calls == ["reset cuda:1", "read cuda:1"]
