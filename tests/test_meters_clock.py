"""The stopwatch: what each of its clocks sees, and that a GPU is idle at both ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.clock import Stopwatch, Ticks
from pytest_llmslim.meters.disturbance import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_work_is_seen_by_both_clocks() -> None:
    """Computing takes CPU time, at most wall time on one thread, and nanoseconds are whole numbers."""
    watch = Stopwatch("cpu")
    watch.start()
    sum(range(200_000))
    ticks = watch.stop()
    assert isinstance(ticks.wall_ns, int)
    assert isinstance(ticks.cpu_ns, int)
    assert ticks.cpu_ns > 0
    assert ticks.wall_ns > 0
    assert ticks.device_ns is None


def test_waiting_takes_no_cpu_time() -> None:
    """A sleep is wall time and hardly CPU time."""
    watch = Stopwatch()
    watch.start()
    time.sleep(0.05)
    ticks = watch.stop()
    assert ticks.wall_ns >= 50_000_000
    assert ticks.cpu_ns < ticks.wall_ns / 2


def test_stop_without_start_is_an_error() -> None:
    """A stopwatch that was not started cannot be stopped, not even a second time."""
    watch = Stopwatch()
    watch.start()
    watch.stop()
    with pytest.raises(MeasurementError, match=r"stopped without being started; call start\(\) first"):
        watch.stop()


@pytest.mark.parametrize("clock", ["perf_counter_ns", "process_time_ns"])
def test_a_clock_that_goes_backwards_is_passed_on(monkeypatch: pytest.MonkeyPatch, clock: str) -> None:
    """A stopwatch mends nothing: what the clocks say is what a watch can name, and the next window is sound."""
    watch = Stopwatch()
    with monkeypatch.context() as patched:
        times = iter([7_000, 2_000])
        patched.setattr(f"pytest_llmslim.meters.clock.time.{clock}", lambda: next(times))
        watch.start()
        ticks = watch.stop()
    assert (ticks.wall_ns if clock == "perf_counter_ns" else ticks.cpu_ns) == -5_000
    pairs = Watch("cpu", threads=1, stat=Path("/nowhere"))
    pairs.begin()
    pairs.lap(ticks)
    assert pairs.end() == ("clock went backwards",)
    watch.start()
    sum(range(10_000))
    assert min(watch.stop().wall_ns, 1) == 1


class FakeCuda:
    """Writes down what is asked of it; events lie 2.5 ms apart."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def synchronize(self, device: str) -> None:
        self.log.append(f"synchronize {device}")

    @contextlib.contextmanager
    def device(self, device: str) -> Iterator[None]:
        self.log.append(f"on {device}")
        yield

    def Event(self, *, enable_timing: bool) -> types.SimpleNamespace:
        assert enable_timing
        return types.SimpleNamespace(record=lambda: self.log.append("record"), elapsed_time=lambda other: 2.5)


def test_cuda_is_idle_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is waited for before the first event and after the second, and ms become ns."""
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    watch = Stopwatch("cuda:1")
    watch.start()
    cuda.log.append("work")
    ticks = watch.stop()
    assert ticks.device_ns == 2_500_000
    before, after = cuda.log[: cuda.log.index("work")], cuda.log[cuda.log.index("work") + 1 :]
    assert before == ["synchronize cuda:1", "on cuda:1", "record"]
    assert after == ["on cuda:1", "record", "synchronize cuda:1"]


def test_ticks_are_frozen() -> None:
    """A time that was read cannot be changed."""
    with pytest.raises(AttributeError):
        Ticks(1, 2).wall_ns = 3  # type: ignore[misc]


def test_meters_import_no_library() -> None:
    """Importing every meter imports neither torch nor codecarbon nor pynvml."""
    code = (
        "import sys, pytest_llmslim.fingerprint\n"
        "from pytest_llmslim.meters import clock, disturbance, intensity, ladder, memory, replay\n"
        "assert not {'torch', 'codecarbon', 'pynvml', 'psutil', 'pytest'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
