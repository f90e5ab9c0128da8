"""What disturbs a pair of runs is named, alike for both models, and a machine that tells nothing is no fault."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.clock import Ticks
from pytest_llmslim.meters.disturbance import Watch

QUIET = Ticks(wall_ns=10_000_000, cpu_ns=9_900_000)
"""A run that had the CPU to itself."""
BOTH = ("clock went backwards", "other load")
"""What is seen in the times alone."""


def no_nvml() -> object:
    raise MeasurementError("NVML is not usable on this machine.")


def stat_text(steal: int, busy: int = 100) -> str:
    return f"cpu  {busy} 0 50 900 3 0 7 {steal} 0 0\ncpu0 1 0 0 0 0 0 0 {steal} 0 0\nintr 5 0\n"


@pytest.fixture
def stat(tmp_path: Path) -> Path:
    path = tmp_path / "stat"
    path.write_text(stat_text(1273))
    return path


def on_cpu(tmp_path: Path, *, threads: int = 1) -> Watch:
    """A watch over fake files that a test may have written below `tmp_path`."""
    return Watch("cpu", threads=threads, stat=tmp_path / "stat", cpus=tmp_path / "cpus", connect=no_nvml)


def pair(watch: Watch, first: Ticks = QUIET, second: Ticks = QUIET) -> tuple[str, ...]:
    watch.begin()
    watch.lap(first)
    watch.lap(second)
    return watch.end()


# Times ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ticks", "seen"),
    [
        (Ticks(15, 10), ()),
        (Ticks(16, 10), ("other load",)),
        (Ticks(0, 10), ("clock went backwards",)),
        (Ticks(-5, 10), ("clock went backwards",)),
        (Ticks(10, 0), ("clock went backwards",)),
        (Ticks(10, -1), ("clock went backwards",)),
        (Ticks(10, 10, 0), ("clock went backwards",)),
    ],
)
def test_times_name_what_they_show(tmp_path: Path, ticks: Ticks, seen: tuple[str, ...]) -> None:
    """More than 1.5 times as much wall as CPU time is other load; a time that is not above 0 is the clock."""
    assert pair(on_cpu(tmp_path), ticks) == seen
    assert pair(on_cpu(tmp_path), QUIET, ticks) == seen


def test_several_threads_say_nothing_about_waiting(tmp_path: Path) -> None:
    """Threads that wait for each other are off the CPU without any other load, so the rule needs one thread."""
    assert pair(on_cpu(tmp_path, threads=2), Ticks(30, 10)) == ()
    assert on_cpu(tmp_path, threads=2).watched == ("clock went backwards",)


def test_threads_are_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word on threads torch is asked."""
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(get_num_threads=lambda: 1))
    watch = Watch("cpu", stat=tmp_path / "stat", cpus=tmp_path)
    assert "other load" in watch.watched


@given(first=st.tuples(*[st.integers(-3, 40)] * 2), second=st.tuples(*[st.integers(-3, 40)] * 2))
def test_reference_and_candidate_are_treated_alike(first: tuple[int, int], second: tuple[int, int]) -> None:
    """Swapping the runs of a pair never changes the answer, so dropping pairs cannot favour a model."""
    watch = Watch("cpu", threads=1, stat=Path("/nowhere"))
    assert pair(watch, Ticks(*first), Ticks(*second)) == pair(watch, Ticks(*second), Ticks(*first))


def test_a_pair_forgets_the_one_before(tmp_path: Path, stat: Path) -> None:
    """What was seen in one pair, or in a pair that was never ended, is not told of the next."""
    watch = on_cpu(tmp_path)
    assert pair(watch, Ticks(30, 10)) == ("other load",)
    assert pair(watch) == ()
    watch.begin()
    watch.lap(Ticks(30, 10))
    stat.write_text(stat_text(1274))
    assert pair(watch) == ()
    watch.close()


# Counters of the kernel -------------------------------------------------------------------------------------


def test_steal_time_is_seen_when_its_column_grows(tmp_path: Path, stat: Path) -> None:
    """One hundredth of a second in the eighth column is enough, and growth of any other column is not."""
    watch = on_cpu(tmp_path)
    assert watch.watched == (*BOTH, "steal time")
    watch.begin()
    stat.write_text(stat_text(1273, busy=99_999))
    assert watch.end() == ()
    watch.begin()
    watch.lap(QUIET)
    stat.write_text(stat_text(1274))
    assert watch.end() == ("steal time",)
    assert pair(watch) == ()
    watch.close()


@pytest.mark.parametrize(
    ("steps", "seconds", "seen"),
    [(1, 0.01, True), (1, 0.4, True), (1, 0.6, False), (10, 5.1, False), (11, 5.1, True), (0, 0.01, False)],
)
def test_two_percent_stolen_from_long_runs_disturb_nothing(
    tmp_path: Path, stat: Path, steps: int, seconds: float, seen: bool
) -> None:
    """A step of a hundredth of a second is a lot for milliseconds and little for seconds."""
    watch = Watch("cpu", threads=1, stat=stat, cpus=tmp_path)
    stat.write_text(stat_text(5))
    watch.begin()
    for _ in range(2):
        watch.lap(Ticks(int(seconds / 2 * 1e9), int(seconds / 2 * 1e9)))
    stat.write_text(stat_text(5 + steps))
    found = watch.end()
    watch.close()
    assert found == (("steal time",) if seen else ())


def test_steal_time_between_pairs_is_no_disturbance(tmp_path: Path, stat: Path) -> None:
    """Only what grows between begin and end counts."""
    watch = on_cpu(tmp_path)
    assert pair(watch) == ()
    stat.write_text(stat_text(5000))
    assert pair(watch) == ()
    watch.close()


@pytest.mark.parametrize(
    "text", ["", "cpu 1 2 3 4\n", "cpu0 1 2 3 4 5 6 7 8 9 10\n", "cpu a b c d e f g h i j\n"]
)
def test_a_kernel_without_that_column_is_not_watched(tmp_path: Path, stat: Path, text: str) -> None:
    """An old kernel, or a file of another shape, is no fault."""
    stat.write_text(text)
    watch = on_cpu(tmp_path)
    assert watch.watched == BOTH
    assert pair(watch) == ()
    watch.close()


def test_a_counter_that_vanishes_is_no_longer_watched(tmp_path: Path, stat: Path) -> None:
    """In the middle of a run it costs neither the pair nor the other sources."""
    watch = on_cpu(tmp_path)
    watch.begin()
    stat.write_text("")
    watch.lap(Ticks(30, 10))
    assert watch.end() == ("other load",)
    assert watch.watched == BOTH
    stat.write_text(stat_text(1))
    watch.begin()
    stat.write_text(stat_text(2))
    assert watch.end() == ()
    watch.close()


def test_the_real_kernel_is_watched_where_there_is_one() -> None:
    """On Linux the steal column is found."""
    if not os.path.exists("/proc/stat"):
        pytest.skip("no /proc/stat")
    watch = Watch("cpu", threads=1)
    assert "steal time" in watch.watched
    pair(watch)
    assert "steal time" in watch.watched
    watch.close()


def throttle_files(root: Path, cores: int, *, packages: int = 1) -> None:
    for number in range(cores):
        folder = root / "cpus" / f"cpu{number}"
        (folder / "thermal_throttle").mkdir(parents=True)
        (folder / "topology").mkdir()
        (folder / "topology/physical_package_id").write_text(f"{number * packages // cores}\n")
        for name in ("core", "package"):
            (folder / f"thermal_throttle/{name}_throttle_count").write_text("7\n")


def grow(root: Path, core: int, name: str) -> None:
    (root / f"cpus/cpu{core}/thermal_throttle/{name}_throttle_count").write_text("8\n")


@pytest.mark.parametrize(("core", "name"), [(0, "core"), (3, "core"), (0, "package"), (2, "package")])
def test_throttling_of_a_core_or_package_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, core: int, name: str
) -> None:
    """The counters of every core that may be used, and of each package, once."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    throttle_files(tmp_path, 4, packages=2)
    watch = on_cpu(tmp_path)
    assert watch.watched == (*BOTH, "throttling")
    watch.begin()
    grow(tmp_path, core, name)
    assert watch.end() == ("throttling",)
    assert pair(watch) == ()
    watch.close()


def test_a_core_that_is_not_used_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is pinned hears nothing of other cores; with very many cores only packages are watched."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1}, raising=False)
    throttle_files(tmp_path, 20)
    pinned = on_cpu(tmp_path)
    pinned.begin()
    grow(tmp_path, 0, "core")
    assert pinned.end() == ()
    pinned.close()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(20)), raising=False)
    wide = on_cpu(tmp_path)
    wide.begin()
    grow(tmp_path, 5, "core")
    assert wide.end() == ()
    wide.begin()
    grow(tmp_path, 0, "package")
    assert wide.end() == ("throttling",)
    wide.close()


def test_no_files_of_the_kernel_are_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac has no /proc, no /sys and no affinity."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    watch = on_cpu(tmp_path)
    assert watch.watched == BOTH
    assert pair(watch) == ()


# GPU --------------------------------------------------------------------------------------------------------


class NVMLError(Exception):
    """As pynvml's."""


class FakeGpu:
    """A card whose state a test sets before each lap."""

    def __init__(self, name: str = "Fake H1", *, mig: bool = False) -> None:
        self.name, self.mig = name, mig
        self.reasons, self.mhz = 0, 1980
        self.tells_reasons = self.tells_clock = True


class FakeNvml:
    """The few calls that a watch makes, on cards that a test changes."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1

    def __init__(self, *cards: FakeGpu, old_driver: bool = False) -> None:
        self.cards, self.old_driver = cards, old_driver
        self.lost, self.shut = False, 0

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.cards[index]

    def nvmlDeviceGetName(self, card: FakeGpu) -> str:
        return card.name

    def nvmlDeviceGetUUID(self, card: FakeGpu) -> str:
        return f"GPU-{self.cards.index(card)}"

    def nvmlDeviceGetMigMode(self, card: FakeGpu) -> list[int]:
        return [int(card.mig)] * 2

    def nvmlDeviceGetCurrentClocksEventReasons(self, card: FakeGpu) -> int:
        if self.old_driver:
            raise NVMLError("Function Not Found")
        return self.nvmlDeviceGetCurrentClocksThrottleReasons(card)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: FakeGpu) -> int:
        if self.lost or not card.tells_reasons:
            raise NVMLError("GPU is lost")
        return card.reasons

    def nvmlDeviceGetClockInfo(self, card: FakeGpu, kind: int) -> int:
        if self.lost or not card.tells_clock or kind != self.NVML_CLOCK_SM:
            raise NVMLError("Not Supported")
        return card.mhz

    def nvmlShutdown(self) -> None:
        self.shut += 1
        if self.lost:
            raise NVMLError("GPU is lost")


@pytest.fixture(autouse=True)
def _no_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def on_gpu(tmp_path: Path, nvml: FakeNvml, device: str = "cuda:0") -> Watch:
    return Watch(device, stat=tmp_path / "stat", cpus=tmp_path / "cpus", connect=lambda: nvml)


def states(watch: Watch, card: FakeGpu, *laps: tuple[int, int]) -> tuple[str, ...]:
    """A pair with reasons and clock as told after each run. Waiting for a GPU is no other load."""
    watch.begin()
    for card.reasons, card.mhz in laps:
        watch.lap(Ticks(30, 10, 25))
    return watch.end()


@pytest.mark.parametrize("bit", [0x04, 0x08, 0x20, 0x40, 0x80])
@pytest.mark.parametrize("old_driver", [False, True])
def test_a_gpu_that_throttles_in_one_run_is_seen(tmp_path: Path, bit: int, old_driver: bool) -> None:
    """Present after one run and not after the other, whichever came first; in both runs it is how the card runs."""
    card = FakeGpu()
    watch = on_gpu(tmp_path, FakeNvml(card, old_driver=old_driver))
    assert watch.watched == ("clock went backwards", "throttling", "clock change")
    assert states(watch, card, (bit, 1980), (0, 1980)) == ("throttling",)
    assert states(watch, card, (0, 1980), (bit, 1980)) == ("throttling",)
    assert states(watch, card, (bit, 1980), (bit, 1980)) == ()


@pytest.mark.parametrize("bit", [0x01, 0x02, 0x10, 0x100])
def test_idleness_and_chosen_clocks_are_no_throttling(tmp_path: Path, bit: int) -> None:
    """Clocks that someone set, and a card that is idle when it is asked, disturb nothing."""
    card = FakeGpu()
    assert states(on_gpu(tmp_path, FakeNvml(card)), card, (bit, 1980), (0, 1980)) == ()


@pytest.mark.parametrize(("first", "second", "seen"), [(2000, 1906, ()), (2000, 1900, ("clock change",))])
def test_a_change_of_clock_is_seen(tmp_path: Path, first: int, second: int, seen: tuple[str, ...]) -> None:
    """More than 5 % between the runs, in either direction."""
    card = FakeGpu()
    watch = on_gpu(tmp_path, FakeNvml(card))
    assert states(watch, card, (0, first), (0, second)) == seen
    assert states(watch, card, (0, second), (0, first)) == seen


def test_the_gpu_of_the_runs_is_watched_and_no_other(tmp_path: Path) -> None:
    """Another card may change as it likes."""
    first, second = FakeGpu(), FakeGpu()
    watch = on_gpu(tmp_path, FakeNvml(first, second), "cuda:1")
    assert states(watch, first, (0, 1980), (4, 300)) == ()
    assert states(watch, second, (0, 1980), (4, 300)) == ("throttling", "clock change")


def test_cuda_without_a_number_is_torchs_current_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the stopwatch, which waits for that one."""
    torch = types.SimpleNamespace(cuda=types.SimpleNamespace(current_device=lambda: 1))
    monkeypatch.setitem(sys.modules, "torch", torch)
    first, second = FakeGpu(), FakeGpu()
    watch = on_gpu(tmp_path, FakeNvml(first, second), "cuda")
    assert states(watch, second, (0, 1980), (0, 300)) == ("clock change",)


def test_a_card_that_tells_one_thing_is_watched_for_it(tmp_path: Path) -> None:
    """A card without reasons still tells its clock, and the other way round."""
    card = FakeGpu()
    card.tells_reasons = False
    assert on_gpu(tmp_path, FakeNvml(card)).watched == ("clock went backwards", "clock change")
    card.tells_reasons, card.tells_clock = True, False
    assert on_gpu(tmp_path, FakeNvml(card)).watched == ("clock went backwards", "throttling")


def test_no_nvml_and_mig_are_not_watched(tmp_path: Path) -> None:
    """Without the library, or on a slice of a card, a pair is watched by its times."""
    assert Watch("cuda:0", stat=tmp_path / "stat", connect=no_nvml).watched == ("clock went backwards",)
    nvml = FakeNvml(FakeGpu(mig=True))
    watch = on_gpu(tmp_path, nvml)
    assert watch.watched == ("clock went backwards",)
    watch.close()
    assert nvml.shut == 1


def test_a_gpu_that_is_lost_ends_neither_pair_nor_run(tmp_path: Path) -> None:
    """From then on it is not watched, and closing a dead driver is quiet."""
    card = FakeGpu()
    nvml = FakeNvml(card)
    watch = on_gpu(tmp_path, nvml)
    watch.begin()
    watch.lap(Ticks(30, 10, 25))
    nvml.lost = True
    watch.lap(Ticks(30, 10, -25))
    assert watch.end() == ("clock went backwards",)
    assert watch.watched == ("clock went backwards",)
    watch.close()
    watch.close()
    assert nvml.shut == 1


def test_a_closed_watch_notices_nothing(tmp_path: Path, stat: Path) -> None:
    """After close there is nothing to read, and nothing to fail."""
    watch = on_cpu(tmp_path)
    watch.close()
    assert pair(watch, Ticks(-1, -1)) == ()
    assert watch.watched == ()
