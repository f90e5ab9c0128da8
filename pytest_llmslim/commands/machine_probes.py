"""What `llmslim doctor` asks of the machine: devices, energy meters, clocks, and other work on it."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim import units
from pytest_llmslim.commands.findings import Finding, Probe, told
from pytest_llmslim.conditions import WALL_AGREES
from pytest_llmslim.fingerprint import machine_fingerprint
from pytest_llmslim.meters.carbon import SOURCE as CODECARBON
from pytest_llmslim.meters.clock import Stopwatch
from pytest_llmslim.meters.disturbance import STEAL, THROTTLING, Watch
from pytest_llmslim.meters.gpus import open_nvml, visible_gpus
from pytest_llmslim.meters.ladder import CPU_RUNGS, GPU_RUNGS
from pytest_llmslim.meters.nvml import COUNTER, POWER
from pytest_llmslim.meters.rapl import SOURCE as RAPL
from pytest_llmslim.meters.window import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.meters import Meter
    from pytest_llmslim.meters.ladder import Rung

RUNG_NAMES: Final = {
    "open_checked_counter": f"{COUNTER}, checked by {POWER}",
    "open_counter": COUNTER,
    "open_power": POWER,
    "open_rapl": RAPL,
    "open_codecarbon": CODECARBON,
}
CGROUP: Final = Path("/sys/fs/cgroup")
CONTAINERS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
CPUINFO: Final = Path("/proc/cpuinfo")
SPIN_S: Final = 0.5
LITTLE_MEMORY: Final = 2e9
"""Bytes below which a model of some hundred million parameters does not fit twice."""
BUSY_CORES: Final = 0.3
"""Cores that others use on a quiet machine at most."""
LEFT_OUT: Final = ("isa_hash", "device", "threads", "dtype", "energy_source")


def probes(device: str) -> dict[str, tuple[Probe, ...]]:
    """Groups of probes by title.

    Args:
        device: a torch device, of which the energy meters are looked at.
    """
    return {
        "devices": (
            Probe("cpu", cpu),
            Probe("memory", memory),
            Probe("cuda", cuda),
        ),
        f"energy meters of {device}, best first": (Probe("energy", lambda: energy(device)),),
        "clocks and other work": (
            Probe("clocks", lambda: clocks(device)),
            Probe("surroundings", surroundings),
            Probe("other work", other_work),
        ),
    }


# Devices ----------------------------------------------------------------------------------------------------


def cpu(cgroup: Path = CGROUP) -> list[Finding]:
    """Cores that may be used, and what they can do."""
    about = machine_fingerprint(device="cpu", threads=1, dtype="float32", energy_source="none")
    text = f"{about['cpu']}, {about['cores']} cores, {about['isa']}"
    quota = _quota(cgroup)
    if quota is not None and quota < (os.cpu_count() or 1):
        step = "give the container more CPU time, or keep llm_threads below it"
        return [Finding("cpu", "limited", f"{text}; this container gets the time of {quota:.3g} cores", step)]
    return [Finding("cpu", "ok", text)]


def memory(cgroup: Path = CGROUP) -> list[Finding]:
    """Bytes that are free, of those that may be used."""
    psutil: Any = importlib.import_module("psutil")
    now = psutil.virtual_memory()
    free, total = now.available, now.total
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and limit < total:
        free, total = min(free, limit - (used or 0)), limit
    text = f"{units.size(free)} of {units.size(total)} are free"
    if free >= LITTLE_MEMORY:
        return [Finding("memory", "ok", text)]
    step = "a model takes 4 bytes a parameter in float32, the reference and the candidate each: stop other programs"
    return [Finding("memory", "limited", text, step)]


def cuda() -> list[Finding]:
    """GPUs that torch can use, or why there are none."""
    torch: Any = importlib.import_module("torch")
    if torch.cuda.is_available():
        return [_gpu(torch, number) for number in range(torch.cuda.device_count())]
    try:
        nvml = open_nvml()
    except Exception as error:  # a foreign library says in its own classes that there is no GPU
        return [told("cuda", "missing", f"no GPU: {words(error)}", "none is needed: models run on the CPU")]
    try:
        names = ", ".join(gpu.name for gpu in visible_gpus(nvml, "cuda"))
    except Exception as error:  # likewise
        return [told("cuda", "missing", words(error))]
    finally:
        nvml.nvmlShutdown()
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a build without CUDA"
    step = "install the build of torch that fits the driver (https://pytorch.org/get-started/locally)"
    return [
        Finding("cuda", "limited", f"{names} is there, and torch {torch.__version__}, which {built}, "
                "cannot use it", step)
    ]  # fmt: skip


def _gpu(torch: Any, number: int) -> Finding:  # noqa: ANN401  # torch is read as Any
    free, total = torch.cuda.mem_get_info(number)
    text = f"{torch.cuda.get_device_name(number)}, {units.size(free)} of {units.size(total)} are free"
    if free >= LITTLE_MEMORY:
        return Finding(f"cuda:{number}", "ok", text)
    return Finding(f"cuda:{number}", "limited", text, "see in nvidia-smi who uses it")


def _number(path: Path) -> int | None:
    """The number in a file; `None` for `max`, or where there is no such file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _quota(cgroup: Path) -> float | None:
    """CPU seconds a second that this container may use; `None`: no limit is known."""
    try:
        share, period = (cgroup / "cpu.max").read_text().split()
        return int(share) / int(period)
    except (OSError, ValueError):
        return None


# Energy -----------------------------------------------------------------------------------------------------


def energy(device: str, rungs: Sequence[Rung] | None = None) -> list[Finding]:
    """The meters that do not work, then the one that a run would take."""
    found = []
    for rung in rungs or (GPU_RUNGS if device.startswith("cuda") else CPU_RUNGS):
        name = RUNG_NAMES.get(rung.__name__, rung.__name__)
        try:
            meter = rung(device)
        except Exception as error:  # as in the ladder: the answer is the next rung
            step = "measure on the machine itself, or go on with the next one"
            found.append(told(name, "missing", words(error), step))
            continue
        try:
            return [*found, _meter(meter, name)]
        finally:
            meter.close()
    step = (
        "quality, time, memory and bytes are measured all the same; leave out max_energy_increase and max_opt"
    )
    return [*found, Finding("energy", "missing", f"no meter works on {device}", step)]


def _meter(meter: Meter, name: str) -> Finding:
    """What is chosen; windows that are too short for it are made longer or are `unmeasured`."""
    windows = f"; windows from {units.seconds(meter.min_window_s)} on" if meter.min_window_s else ""
    text = f"{meter.method}: {meter.description}{windows}"
    if meter.method != "estimated":
        return Finding(name, "ok", text)
    step = "estimated energy is shown with ~ and gated only with --llm-gate-estimated"
    return Finding(name, "limited", text, step)


# Clocks and other work --------------------------------------------------------------------------------------


def clocks(device: str) -> list[Finding]:
    """Steps of the clocks, and which disturbances of a pair would be noticed."""
    steps = (
        ("process CPU time", time.get_clock_info("process_time").resolution),
        ("thread CPU time", time.get_clock_info("thread_time").resolution),
        ("wall time", time.get_clock_info("perf_counter").resolution),
    )
    text = ", ".join(f"{name} in steps of {_step(seconds)}" for name, seconds in steps)
    watch = Watch(device, threads=1)
    watched = watch.watched
    watch.close()
    text += f"; noticed in a pair: {', '.join(watched)}"
    unseen = [name for name in (STEAL, THROTTLING) if name not in watched]
    if not unseen:
        return [Finding("clocks", "ok", text)]
    step = "a virtual machine hides it; calibrate with pytest --llm-calibrate"
    return [Finding("clocks", "limited", f"{text}, not {' and '.join(unseen)}", step)]


def _step(seconds: float) -> str:
    return f"{seconds * 1e9:.0f} ns" if seconds < 1e-6 else units.seconds(seconds)


def surroundings(
    containers: Sequence[Path] = CONTAINERS, cpuinfo: Path = CPUINFO, root: Path = Path("/proc/1/cgroup")
) -> list[Finding]:
    """Whether this is a container or a virtual machine, which hide counters and share cores."""
    kinds = []
    if any(path.exists() for path in containers) or _holds(root, ("docker", "kubepods", "containerd", "lxc")):
        kinds.append("a container")
    if _holds(cpuinfo, (" hypervisor",)):
        kinds.append("a virtual machine")
    if not kinds:
        return [Finding("surroundings", "ok", "neither a container nor a virtual machine is seen")]
    step = "others may use the same cores: calibrate with pytest --llm-calibrate before time is gated tightly"
    return [Finding("surroundings", "limited", f"this is {' in '.join(kinds)}", step)]


def _holds(path: Path, wanted: Sequence[str]) -> bool:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(word in text for word in wanted)


def other_work() -> list[Finding]:
    """What others use of the machine during half a second in which one thread of this process spins."""
    psutil: Any = importlib.import_module("psutil")
    watch, stopwatch = Watch("cpu", threads=1), Stopwatch()
    watch.begin()
    psutil.cpu_percent(None)
    stopwatch.start()
    until = time.monotonic() + SPIN_S
    while time.monotonic() < until:
        pass
    ticks = stopwatch.stop()
    cores = os.cpu_count() or 1
    busy = psutil.cpu_percent(None) / 100 * cores - ticks.cpu_ns / ticks.wall_ns
    watch.lap(ticks)
    noticed = watch.end()
    watch.close()
    waited = ticks.wall_ns / ticks.cpu_ns
    text = f"others use {max(0.0, busy):.1f} of {cores} cores, wall / CPU time is {waited:.2f}"
    if busy <= BUSY_CORES and waited <= WALL_AGREES and not noticed:
        return [Finding("other work", "ok", text)]
    text += f" ({', '.join(noticed)})" if noticed else ""
    step = "wait until the machine is quiet, or expect more pairs and inconclusive gates of time"
    return [Finding("other work", "limited", text, step)]
