"""CPU energy from RAPL, the processor's own counters, as Linux shows them under /sys/class/powercap.

Counted are the packages and, beside them, their DRAM. `core` and `uncore` are parts of a package and `psys`
contains it, so they are left out. AMD's counters appear under the same names as Intel's. They are not
cross-checked: nothing else on such a machine measures, and a model is no check of a measurement.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llmslim import units
from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.window import WindowMeter, update_periods

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SOURCE = "rapl"
ROOT = Path("/sys/class/powercap")
SPIN_S = 0.1
MAX_WATTS = 1000.0
"""No processor package draws more. A step beyond it is a counter that was reset, not one that wrapped."""
MIRROR_UJ = 1_000_000
"""Two views of one counter differ by what was used between the reads; 1 J is milliseconds at full load."""

_ZONE = re.compile(r"intel-rapl:\d+(:\d+)?")
_DIE = re.compile(r"(package-\d+)-die-\d+")


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter: its name, its file, and the microjoules at which it starts again from 0."""

    name: str
    path: Path
    range_uj: int

    def used(self, before_uj: int, after_uj: int, seconds: float) -> int:
        """Microjoules between two readings `seconds` apart, over a wrap if there was one.

        Raises:
            MeasurementError: the counter stood still or was reset, or the window may hold a whole turn of it.
        """
        if seconds * MAX_WATTS * 1e6 > self.range_uj:
            raise MeasurementError(
                f"A window of {units.seconds(seconds)} may be longer than one turn of the RAPL counter "
                f"{self.name}; keep windows under {units.seconds(self.range_uj / MAX_WATTS / 1e6)}."
            )
        used = after_uj - before_uj
        if used < 0:
            used += self.range_uj
        if used == 0:
            raise MeasurementError(
                f"The RAPL counter {self.name} stood still in a window of {units.seconds(seconds)}."
            )
        if used > seconds * MAX_WATTS * 1e6:
            raise MeasurementError(
                f"The RAPL counter {self.name} jumped from {before_uj} to {after_uj} uJ within "
                f"{units.seconds(seconds)}, so it was reset."
            )
        return used


class Rapl(WindowMeter):
    """Package and DRAM energy of all sockets, two reads of a few files a window.

    Args:
        zones: the counters that are summed.
        tick_s: seconds between their updates.
        read: gives the text of a file.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        zones: Sequence[Zone],
        tick_s: float,
        *,
        read: Callable[[Path], str] = Path.read_text,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        names = " + ".join(zone.name for zone in zones)
        super().__init__(
            source=SOURCE,
            method="measured",
            resolution=tick_s,
            description=f"RAPL counters {names}, updated every {units.seconds(tick_s)}; "
            "not cross-checked, since no other source here measures",
            clock=clock,
        )
        self._zones, self._read = zones, read
        self._before: list[int] = []

    def _begin(self) -> None:
        self._before = _energies(self._zones, self._read)

    def _end(self, seconds: float) -> float:
        after = _energies(self._zones, self._read)
        pairs = zip(self._zones, self._before, after, strict=True)
        return sum(zone.used(start, end, seconds) for zone, start, end in pairs) / 1e6


def open_rapl(
    device: str = "cpu",
    *,
    root: Path = ROOT,
    read: Callable[[Path], str] = Path.read_text,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Rapl:
    """The RAPL meter of this machine; watches the counters for up to 0.1 s.

    Raises:
        MeasurementError: there are no counters (a virtual machine, a container), they may not be read,
            or they stand still; the message tells which, and what to do.
    """
    zones = _zones(root, read)
    try:
        start = _energies(zones, read)
        periods = update_periods(lambda: _energies(zones, read), budget_s=SPIN_S, clock=clock)
        end = _energies(zones, read)
    except PermissionError as error:
        raise MeasurementError(_locked(root)) from error
    except (OSError, ValueError) as error:
        raise MeasurementError(f"RAPL at {root} cannot be read: {error}") from error
    mirrors = _mirrors(zones, start) & _mirrors(zones, end)
    kept = [(zone, period) for zone, period in zip(zones, periods, strict=True) if zone not in mirrors]
    return Rapl(*_moving(kept), read=read, clock=clock)


def _moving(zones: Sequence[tuple[Zone, float | None]]) -> tuple[list[Zone], float]:
    """The counters that count, and their period. Some machines show a DRAM counter that is always 0."""
    moving = {zone: period for zone, period in zones if period is not None}
    still = [zone.name for zone, period in zones if period is None and not zone.name.endswith("/dram")]
    if still or not moving:
        raise MeasurementError(
            f"The RAPL counters {', '.join(still) or 'found'} stood still for {units.seconds(SPIN_S)}; "
            "a virtual machine may show them without filling them."
        )
    return list(moving), max(moving.values())


def _zones(root: Path, read: Callable[[Path], str]) -> list[Zone]:
    zones = []
    try:
        paths = sorted(path for path in root.iterdir() if _ZONE.fullmatch(path.name))
        for path in paths:
            name = read(path / "name").strip()
            if name.startswith("package") or name == "dram":
                zones.append(_zone(path, name, read))
    except PermissionError as error:
        raise MeasurementError(_locked(root)) from error
    except OSError as error:
        raise MeasurementError(_masked(root) if _is_masked(root) else f"{_absent(root)} ({error})") from error
    except ValueError as error:
        raise MeasurementError(f"RAPL at {root} cannot be read: {error}") from error
    if not any(zone.name.startswith("package") for zone in zones):
        raise MeasurementError(_absent(root))
    return zones


def _is_masked(root: Path) -> bool:
    """Whether the names of counters are there, as links into a folder that is not."""
    return root.is_dir() and any(path.is_symlink() and not path.exists() for path in root.iterdir())


def _zone(path: Path, name: str, read: Callable[[Path], str]) -> Zone:
    owner = path.with_name(path.name.rpartition(":")[0])
    full = f"{read(owner / 'name').strip()}/{name}" if name == "dram" else name
    return Zone(full, path / "energy_uj", int(read(path / "max_energy_range_uj")))


def _energies(zones: Sequence[Zone], read: Callable[[Path], str]) -> list[int]:
    """Microjoules, one a zone."""
    return [int(read(zone.path)) for zone in zones]


def _mirrors(zones: Sequence[Zone], energies: Sequence[int]) -> set[Zone]:
    """Later dies of a package that show the counter of an earlier one (seen on EPYC and Threadripper)."""
    mirrors: set[Zone] = set()
    seen: list[tuple[str, int]] = []
    for zone, energy in zip(zones, energies, strict=True):
        die = _DIE.fullmatch(zone.name)
        if die is None:
            continue
        if any(package == die[1] and abs(energy - other) <= MIRROR_UJ for package, other in seen):
            mirrors.add(zone)
        else:
            seen.append((die[1], energy))
    return mirrors


def _absent(root: Path) -> str:
    return (
        f"There are no RAPL counters at {root}: virtual machines and most containers hide them, "
        "and some processors have none."
    )


def _masked(root: Path) -> str:
    return (
        f"The RAPL counters at {root} are hidden from this container (GHSA-jq35-85cj-fj4p: they can leak secrets "
        "to it); where that is no concern, start it with `--security-opt systempaths=unconfined` (Docker) or "
        "`--security-opt unmask=/sys/devices/virtual/powercap` (Podman)."
    )


def _locked(root: Path) -> str:
    return (
        f"The RAPL counters at {root} are readable by root only (CVE-2020-8694: they can leak secrets "
        "to other users of the machine); where that is no concern, run "
        "`sudo chmod -R a+r /sys/devices/virtual/powercap/intel-rapl` after each boot."
    )
