"""An NVML library that behaves: counters tick, power varies, cards are split, reset or lost."""

from __future__ import annotations

import math
import time
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CALL_S = 20e-6


class VirtualClock:
    """Nanoseconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


@dataclass
class Card:
    """One GPU. Its counter shows the energy used up to its latest tick, in whole millijoules."""

    name: str = "Fake H1"
    uuid: str = "GPU-aaaa"
    tick_s: float = 0.02
    phase_s: float = 0.0
    idle_w: float = 80.0
    busy_w: float = 300.0
    busy_from_s: float = math.inf
    busy_to_s: float = math.inf
    has_counter: bool = True
    has_instant: bool = True
    has_power: bool = True
    mig: bool | None = None
    offset_mj: int = 10_000_000

    def watts(self, at_s: float) -> float:
        return self.busy_w if self.busy_from_s <= at_s < self.busy_to_s else self.idle_w

    def joules(self, at_s: float) -> float:
        """The truth: energy used from 0 to a time."""
        busy_s = max(0.0, min(at_s, self.busy_to_s) - min(at_s, self.busy_from_s))
        return self.idle_w * at_s + (self.busy_w - self.idle_w) * busy_s

    def counter_mj(self, at_s: float) -> int:
        if math.isinf(self.tick_s):
            return self.offset_mj
        latest_s = math.floor((at_s - self.phase_s) / self.tick_s) * self.tick_s + self.phase_s
        return self.offset_mj + int(1000 * self.joules(max(latest_s, 0.0)))


class NVMLError(Exception):
    """As pynvml's: one class for all faults."""


class FakeNvml(types.ModuleType):
    """Stands in for `pynvml`. A call takes 20 us of virtual time; a real clock passes by itself."""

    NVML_SUCCESS = 0
    NVML_FI_DEV_POWER_INSTANT = 186
    NVMLError = NVMLError

    def __init__(self, *cards: Card, clock: Callable[[], int] | None = None, driver: bool = True) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.clock = clock or time.perf_counter_ns
        self.driver = driver
        self.lost = False
        self.opened = 0

    def _at_s(self) -> float:
        if isinstance(self.clock, VirtualClock):
            self.clock.pass_s(CALL_S)
        if self.lost:
            raise NVMLError("GPU is lost")
        return self.clock() / 1e9

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("NVML Shared Library Not Found")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        if card.mig is None:
            raise NVMLError("Not Supported")
        return [int(card.mig), int(card.mig)]

    def nvmlDeviceGetTotalEnergyConsumption(self, card: Card) -> int:
        at_s = self._at_s()
        if not card.has_counter:
            raise NVMLError("Not Supported")
        return card.counter_mj(at_s)

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        at_s = self._at_s()
        if not card.has_power:
            raise NVMLError("Not Supported")
        return int(1000 * card.watts(at_s))

    def nvmlDeviceGetFieldValues(self, card: Card, fields: list[int]) -> list[types.SimpleNamespace]:
        assert fields == [self.NVML_FI_DEV_POWER_INSTANT]
        at_s = self._at_s()
        known = card.has_instant and card.has_power
        value = types.SimpleNamespace(uiVal=int(1000 * card.watts(at_s)) if known else 0)
        return [types.SimpleNamespace(nvmlReturn=0 if known else 3, value=value)]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"

    def nvmlDeviceGetEnforcedPowerLimit(self, card: Card) -> int:
        return 700_000
