"""Peak memory of a window: what CUDA's allocator held at most, or how far a CPU's resident memory rose."""

from __future__ import annotations

import importlib
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.window import WindowMeter

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmslim.records import Method

PROCESS = Path("/proc/self")
SAMPLE_S = 0.001


class Probe(Protocol):
    """One way to see a peak. Attributes as in `Meter`."""

    source: str
    method: Method
    resolution: float | None
    description: str

    def begin(self) -> None:
        """Forgets earlier peaks."""

    def end(self) -> int:
        """The peak since `begin`, in bytes."""


class PeakMemory(WindowMeter):
    """Peak memory between `start()` and `stop()`, in bytes.

    On CUDA it is what torch's allocator held at most, models included. On a CPU it is the rise of the
    resident memory over its value at the start, so that what was loaded before does not count; memory that
    was freed before and is used again is no rise.

    Args:
        device: a torch device.
        probe: how to look; by default the best way on this machine.
    """

    def __init__(self, device: str, *, probe: Probe | None = None) -> None:
        self._probe = probe if probe is not None else choose_probe(device)
        super().__init__(
            source=self._probe.source,
            method=self._probe.method,
            resolution=self._probe.resolution,
            description=self._probe.description,
            unit="B",
            clock=time.perf_counter_ns if self._probe.resolution else _no_clock,
        )

    def _begin(self) -> None:
        self._probe.begin()

    def _end(self, seconds: float) -> float:
        return self._probe.end()


def _no_clock() -> int:
    """For a source that keeps its own peak: how long the window was does not matter, nor what the clock did."""
    return 0


def choose_probe(device: str, *, process: Path = PROCESS) -> Probe:
    """CUDA's allocator; on a CPU the kernel's high-water mark, or samples where it cannot be reset."""
    if device.startswith("cuda"):
        return CudaAllocator(device)
    mark = HighWaterMark(process)
    try:
        mark.begin()
    except (OSError, MeasurementError):
        return ResidentSamples()
    return mark


class CudaAllocator:
    """Peak bytes of torch's CUDA allocator; the driver's and other programs' memory is not in it."""

    source = "cuda-allocator"
    method: Method = "measured"
    resolution: float | None = None
    description = "most bytes allocated by torch on the GPU"

    def __init__(self, device: str) -> None:
        self._cuda: Any = importlib.import_module("torch").cuda
        self._device = device

    def begin(self) -> None:
        """Resets the allocator's peak."""
        self._cuda.reset_peak_memory_stats(self._device)

    def end(self) -> int:
        """The allocator's peak."""
        return int(self._cuda.max_memory_allocated(self._device))


class HighWaterMark:
    """The kernel's peak of resident memory (VmHWM), which Linux resets when 5 is written to clear_refs.

    The reset is for the whole process: `ru_maxrss` starts again as well.
    """

    source = "rss-peak"
    method: Method = "measured"
    resolution: float | None = None
    description = "rise of the resident memory's high-water mark, reset by the kernel for each window"

    def __init__(self, process: Path = PROCESS) -> None:
        self._process = process
        self._held = 0

    def begin(self) -> None:
        """Resets the mark and notes what is held."""
        (self._process / "clear_refs").write_text("5")
        self._held = self._bytes("VmRSS")

    def end(self) -> int:
        """How far the mark rose."""
        return _rise(self._bytes("VmHWM") - self._held)

    def _bytes(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB", (self._process / "status").read_text(), re.MULTILINE)
        if found is None:
            raise MeasurementError(f"{self._process / 'status'} has no line {name}.")
        return int(found[1]) * 1024


class ResidentSamples:
    """The largest of many readings of the resident memory, taken by a thread; shorter peaks are missed.

    Args:
        period_s: seconds between readings.
        resident: gives the resident bytes; by default of this process.
    """

    source = "rss-samples"
    method: Method = "sampled"

    def __init__(self, period_s: float = SAMPLE_S, *, resident: Callable[[], int] | None = None) -> None:
        self.resolution: float | None = period_s
        self.description = f"rise of the resident memory, read every {period_s * 1000:g} ms"
        self._resident = resident or _resident_bytes()
        self._enough = threading.Event()
        self._thread: threading.Thread | None = None
        self._held = self._peak = 0

    def begin(self) -> None:
        """Notes what is held and starts the thread."""
        self._held = self._peak = self._resident()
        self._enough.clear()
        self._thread = threading.Thread(target=self._keep_sampling, name="llmslim-rss", daemon=True)
        self._thread.start()

    def _keep_sampling(self) -> None:
        while not self._enough.wait(self.resolution):
            self._peak = max(self._peak, self._resident())

    def end(self) -> int:
        """How far the largest reading lies above the first."""
        self._enough.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return _rise(max(self._peak, self._resident()) - self._held)


def _resident_bytes() -> Callable[[], int]:
    process = importlib.import_module("psutil").Process()
    return lambda: int(process.memory_info().rss)


def _rise(risen: int) -> int:
    if risen <= 0:
        raise MeasurementError(
            "The resident memory did not rise above its value at the start of the window: "
            "memory that was freed before was used again."
        )
    return risen
