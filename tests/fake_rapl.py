"""A powercap tree whose counters count in virtual time, wrap, and can be locked, masked or taken away."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from fake_nvml import VirtualClock

TICK_S = 0.001
READ_S = 5e-6

Access = Literal["readable", "root only", "masked", "absent"]


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
    """Files on disk for all but the counters, which `read` computes.

    As in sysfs, `root` has links into a folder of devices. A container engine that masks it leaves the links.
    """

    def __init__(self, root: Path, *zones: FakeZone, clock: VirtualClock) -> None:
        self.root, self.clock = root, clock
        self.zones = {zone.folder: zone for zone in zones}
        self.locked = False
        root.mkdir(exist_ok=True)
        self.devices = root.with_name(root.name + "-devices")
        for zone in zones:
            folder = self.devices / zone.folder
            folder.mkdir(parents=True)
            (folder / "name").write_text(zone.name + "\n")
            (folder / "max_energy_range_uj").write_text(f"{zone.range_uj}\n")
            (folder / "energy_uj").write_text("0\n")
            (root / zone.folder).symlink_to(folder)

    def become(self, access: Access) -> None:
        """Change what this process may see."""
        self.locked = access == "root only"
        if access in ("masked", "absent"):
            shutil.rmtree(self.devices)
        if access == "absent":
            shutil.rmtree(self.root)

    def read(self, path: Path) -> str:
        self.clock.pass_s(READ_S)
        if path.name != "energy_uj":
            return path.read_text()
        if self.locked:
            raise PermissionError(13, "Permission denied", str(path))
        path.read_text()  # is it still there?
        return f"{self.zones[path.parent.name].energy_uj(self.clock() / 1e9)}\n"
