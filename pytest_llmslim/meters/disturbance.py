"""Notices that a pair of timed runs was disturbed from outside, so that the pair can be measured again.

Dropping pairs must not favour a model, so every rule treats the two runs of a pair alike: counters are read
over the whole pair, each run by itself is held against the same bound, and what is compared between the runs
is compared without order. Swapping reference and candidate never changes the answer; between equal models the
log ratios that are kept lie around 0 as symmetrically as before, which is all that a signed-rank test asks for.

Between unlike models a rule can hit one of them more often: a candidate that really sleeps is off the CPU in
every run, and one that reaches the power cap throttles every time. Measuring again then gives the same answer,
so the caller replaces only a limited number of pairs, keeps the others, and records what was seen.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pytest_llmslim.meters.clock import Ticks
from pytest_llmslim.meters.gpus import open_nvml, visible_gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import BinaryIO

_Answer = TypeVar("_Answer")

BACKWARDS = "clock went backwards"
LOAD = "other load"
STEAL = "steal time"
STOLEN_A_SECOND = 2.0
"""Steps of /proc/stat, hundredths of a second: 2 % stolen from runs of seconds is within their noise, and one step in
runs of milliseconds is most of them."""
THROTTLING = "throttling"
CLOCKS = "clock change"

OFF_CPU = 1.5
"""Wall / process CPU time of a run on one thread; above it the process waited for the CPU."""
CLOCK_CHANGE = 1.05
"""Higher / lower SM clock of the two runs of a pair."""
MOST_CORES = 16
"""Where more cores may be used, only whole packages are watched, to keep the cost of a pair small."""
THROTTLE_REASONS = 0x04 | 0x08 | 0x20 | 0x40 | 0x80
"""Bits of nvml.h: power cap, hardware slowdown, thermal by software and by hardware, power brake. Left out are
idleness and clocks that someone has set."""

STAT = Path("/proc/stat")
CPUS = Path("/sys/devices/system/cpu")


class Watch:
    """Watches pairs of timed runs. What a machine does not offer, or stops offering, is not watched.

    Args:
        device: torch device of the runs.
        threads: of torch; with several, process CPU time says nothing about waiting. `None` asks torch.
        stat: the kernel's /proc/stat.
        cpus: the kernel's folder with one folder a CPU.
        connect: opens NVML.
    """

    def __init__(
        self,
        device: str,
        *,
        threads: int | None = None,
        stat: Path = STAT,
        cpus: Path = CPUS,
        connect: Callable[[], Any] = open_nvml,
    ) -> None:
        self._held = contextlib.ExitStack()
        self._sources: list[_Source] = [_Runs(BACKWARDS, _is_backwards)]
        if device.startswith("cpu") and (_torch_threads() if threads is None else threads) == 1:
            self._sources.append(_Runs(LOAD, _is_off_cpu))
        self._add(lambda: [_Counters(STEAL, [self._open(stat)], _steal, STOLEN_A_SECOND)])
        if device.startswith("cuda"):
            self._add(lambda: self._gpu(device, connect()))
        else:
            self._add(lambda: [_Counters(THROTTLING, [self._open(path) for path in _throttles(cpus)], int)])

    @property
    def watched(self) -> tuple[str, ...]:
        """Names of what would be noticed now."""
        return tuple(source.name for source in self._sources)

    def begin(self) -> None:
        """Begins a pair; an unfinished one is forgotten."""
        self._ask(lambda source: source.begin())

    def lap(self, ticks: Ticks) -> None:
        """Takes note of one run of the pair, right after it."""
        self._ask(lambda source: source.lap(ticks))

    def end(self) -> tuple[str, ...]:
        """Names of what disturbed the pair, each once; empty for nothing."""
        return tuple(name for name, seen in self._ask(lambda source: (source.name, source.seen())) if seen)

    def close(self) -> None:
        """Closes files and NVML; a closed watch notices nothing. A second call does nothing."""
        self._sources.clear()
        with contextlib.suppress(Exception):  # a driver that is gone cannot be closed
            self._held.close()

    def _add(self, make: Callable[[], Iterable[_Source]]) -> None:
        """Those sources that answer on this machine."""
        with contextlib.suppress(Exception):
            for source in make():
                with contextlib.suppress(Exception):
                    source.begin()
                    source.lap(Ticks(1, 1))
                    source.seen()
                    self._sources.append(source)

    def _ask(self, question: Callable[[_Source], _Answer]) -> list[_Answer]:
        """The answers of all sources; one that fails is not asked again."""
        answers = []
        for source in tuple(self._sources):
            try:
                answers.append(question(source))
            except Exception:  # whatever a system or driver does in the middle of a run, the run goes on
                self._sources.remove(source)
        return answers

    def _open(self, path: Path) -> BinaryIO:
        return self._held.enter_context(path.open("rb", buffering=0))

    def _gpu(self, device: str, nvml: Any) -> Iterator[_Source]:  # noqa: ANN401  # pynvml has no types
        """What the GPU under the runs tells. Without a number it is torch's current one, as for the stopwatch."""
        self._held.callback(nvml.nvmlShutdown)
        number = device.partition(":")[2] or importlib.import_module("torch").cuda.current_device()
        (gpu,) = visible_gpus(nvml, f"cuda:{number}")
        yield _Readings(THROTTLING, lambda: _reasons(nvml, gpu.handle), lambda low, high: low != high)
        yield _Readings(
            CLOCKS,
            lambda: int(nvml.nvmlDeviceGetClockInfo(gpu.handle, nvml.NVML_CLOCK_SM)),
            lambda low, high: high > CLOCK_CHANGE * low,
        )


class _Source(Protocol):
    """One thing that can disturb a pair. May raise whatever the machine raises."""

    name: str

    def begin(self) -> None:
        """Begins a pair."""

    def lap(self, ticks: Ticks) -> None:
        """Takes note of a run."""

    def seen(self) -> bool:
        """Whether the pair was disturbed."""


class _Runs:
    """Each run judged by itself, from its times."""

    def __init__(self, name: str, disturbed: Callable[[Ticks], bool]) -> None:
        self.name, self._disturbed, self._seen = name, disturbed, False

    def begin(self) -> None:
        self._seen = False

    def lap(self, ticks: Ticks) -> None:
        self._seen = self._seen or self._disturbed(ticks)

    def seen(self) -> bool:
        return self._seen


class _Counters:
    """Counters that stand still over an undisturbed pair. Their files stay open, which saves most of a read.

    Args:
        name: of the disturbance.
        files: where the counters stand.
        parse: gives the counter in a file.
        free: steps a second of timed runs that are no disturbance yet.
    """

    def __init__(
        self, name: str, files: Sequence[BinaryIO], parse: Callable[[bytes], int], free: float = 0.0
    ) -> None:
        if not files:
            raise FileNotFoundError(name)
        self.name, self._files, self._parse, self._free = name, files, parse, free
        self._before: list[int] = []
        self._wall_ns = 0

    def begin(self) -> None:
        self._before, self._wall_ns = self._read(), 0

    def lap(self, ticks: Ticks) -> None:
        """Counters are read at the ends of a pair only."""
        self._wall_ns += ticks.wall_ns

    def seen(self) -> bool:
        free = self._free * self._wall_ns / 1e9
        return any(after - before > free for before, after in zip(self._before, self._read(), strict=True))

    def _read(self) -> list[int]:
        return [self._parse(os.pread(file.fileno(), 256, 0)) for file in self._files]


class _Readings:
    """A state that is read after each run, and is alike after all runs of an undisturbed pair."""

    def __init__(self, name: str, read: Callable[[], int], unlike: Callable[[int, int], bool]) -> None:
        self.name, self._read, self._unlike = name, read, unlike
        self._values: list[int] = []

    def begin(self) -> None:
        self._values = []

    def lap(self, ticks: Ticks) -> None:
        self._values.append(self._read())

    def seen(self) -> bool:
        return bool(self._values) and self._unlike(min(self._values), max(self._values))


def _is_backwards(ticks: Ticks) -> bool:
    """A time that no run can take: the machine moved to another host, or was set back to an earlier state."""
    return ticks.wall_ns <= 0 or ticks.cpu_ns <= 0 or (ticks.device_ns is not None and ticks.device_ns <= 0)


def _is_off_cpu(ticks: Ticks) -> bool:
    return not _is_backwards(ticks) and ticks.wall_ns > OFF_CPU * ticks.cpu_ns


def _steal(text: bytes) -> int:
    """Hundredths of a second that the hypervisor gave to others, all CPUs together: the eighth number."""
    name, *numbers = text.split(None, 9)
    if name != b"cpu":
        raise ValueError(f"the first line of /proc/stat begins with {name!r}")
    return int(numbers[7])


def _throttles(cpus: Path) -> list[Path]:
    """Counters of throttling: of the packages, and of the cores, that this process may run on."""
    folders = [cpus / f"cpu{number}" for number in sorted(os.sched_getaffinity(0))]
    packages = {(folder / "topology/physical_package_id").read_text(): folder for folder in reversed(folders)}
    paths = [folder / "thermal_throttle/package_throttle_count" for folder in packages.values()]
    if len(folders) <= MOST_CORES:
        paths += [folder / "thermal_throttle/core_throttle_count" for folder in folders]
    return [path for path in paths if path.exists()]


def _reasons(nvml: Any, handle: Any) -> int:  # noqa: ANN401  # pynvml has no types
    """Why the GPU runs below its clock, as bits; drivers before 535 know the older name only."""
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except (nvml.NVMLError, AttributeError):
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return int(bits) & THROTTLE_REASONS


def _torch_threads() -> int:
    return int(importlib.import_module("torch").get_num_threads())
