"""A powercap tree whose counters count in virtual time, wrap, and can be locked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from fake_nvml import VirtualClock

TICK_S = 0.001
READ_S = 5e-6


@dataclass
class FakeZone:
    """One zone. `folder` is its name in sysfs, `name` what it says of itself."""

    folder: str
    name: str
    watts: float = 50.0
    offset_uj: int = 0
    range_uj: int = 262_143_328_850
    tick_s: float = TICK_S

    def energy_uj(self, at_s: float) -> int:
        latest_s = int(at_s / self.tick_s) * self.tick_s
        return (self.offset_uj + round(self.watts * latest_s * 1e6)) % self.range_uj


class FakeRapl:
    """Files on disk for all but the counters, which `read` computes."""

    def __init__(self, root: Path, *zones: FakeZone, clock: VirtualClock) -> None:
        self.root, self.clock = root, clock
        self.zones = {zone.folder: zone for zone in zones}
        self.locked = False
        for zone in zones:
            folder = root / zone.folder
            folder.mkdir(parents=True)
            (folder / "name").write_text(zone.name + "\n")
            (folder / "max_energy_range_uj").write_text(f"{zone.range_uj}\n")
            (folder / "energy_uj").write_text("0\n")

    def read(self, path: Path) -> str:
        self.clock.pass_s(READ_S)
        if path.name != "energy_uj":
            return path.read_text()
        if self.locked:
            raise PermissionError(13, "Permission denied", str(path))
        return f"{self.zones[path.parent.name].energy_uj(self.clock() / 1e9)}\n"
