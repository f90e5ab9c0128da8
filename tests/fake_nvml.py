"""An NVML library that behaves: counters tick, sensors look a quarter of the time, cards are split, reset or lost."""

from __future__ import annotations

import ctypes
import functools
import math
import time
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

CALL_S = 20e-6


class VirtualClock:
    """Nanoseconds that pass only when told to. What is due in between happens on the way."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.alarms: dict[object, tuple[int, Callable[[], None]]] = {}
        self._ringing = False

    def __call__(self) -> int:
        return self.now_ns

    def pass_s(self, seconds: float) -> None:
        until_ns = self.now_ns + round(seconds * 1e9)
        while not self._ringing and self.alarms:
            who, (due_ns, ring) = min(self.alarms.items(), key=lambda alarm: alarm[1][0])
            if due_ns > until_ns:
                break
            self.now_ns = max(self.now_ns, due_ns)
            del self.alarms[who]
            self._ringing = True
            ring()
            self._ringing = False
        self.now_ns = max(self.now_ns, until_ns)


class VirtualSampler:
    """Takes power readings as virtual time passes, where the real one has a thread."""

    def __init__(self, watts: Callable[[], float], clock: VirtualClock, period_s: float) -> None:
        self.watts, self.clock, self.period_ns = watts, clock, round(period_s * 1e9)
        self.samples: list[tuple[int, float]] = []
        self.error: Exception | None = None
        self.sample()

    def sample(self) -> None:
        watts = self.watts()
        self.samples.append((self.clock(), watts))
        self.clock.alarms[self] = (self.clock() + self.period_ns, self.try_to_sample)

    def try_to_sample(self) -> None:
        try:
            self.sample()
        except Exception as error:
            self.error = error

    def finish(self) -> list[tuple[int, float]]:
        self.clock.alarms.pop(self, None)
        if self.error is not None:
            raise self.error
        self.sample()
        del self.clock.alarms[self]
        return self.samples


@dataclass
class Card:
    """One GPU. Its counter shows the energy used up to its latest tick, in whole millijoules.

    It is busy from `busy_from_s` to `busy_to_s`: all the time, or with a beat for the first `duty` of each
    `beat_s`; then it stays at `tail_w` for `tail_s` before it is idle again. With `sensor_s` the power reading is
    the mean over the last quarter (`sensor_share`) of the sensor's period, and new once a period. With `module_w`
    it sits on a module with a CPU, whose energy the counter counts too. At `reset_at_s` the counter begins at 0.
    """

    name: str = "Fake H1"
    uuid: str = "GPU-aaaa"
    tick_s: float = 0.02
    phase_s: float = 0.0
    idle_w: float = 80.0
    busy_w: float = 300.0
    busy_from_s: float = math.inf
    busy_to_s: float = math.inf
    beat_s: float = 0.0
    duty: float = 1.0
    tail_s: float = 0.0
    tail_w: float = 0.0
    sensor_s: float = 0.0
    sensor_share: float = 0.25
    module_w: float | None = None
    reset_at_s: float = math.inf
    has_counter: bool = True
    has_instant: bool = True
    has_power: bool = True
    permitted: bool = True
    mig: bool | None = None
    offset_mj: int = 10_000_000

    def watts(self, at_s: float) -> float:
        """The truth at a time."""
        if self.busy_from_s <= at_s < self.busy_to_s:
            in_beat = (
                (at_s - self.busy_from_s) % self.beat_s < self.duty * self.beat_s if self.beat_s else True
            )
            return self.busy_w if in_beat else self.idle_w
        in_tail = self.busy_to_s <= at_s < self.busy_to_s + self.tail_s
        return self.tail_w if in_tail else self.idle_w

    def joules(self, at_s: float) -> float:
        """The truth: energy used from 0 to a time."""
        busy_s = max(0.0, min(at_s, self.busy_to_s) - self.busy_from_s) if at_s > self.busy_from_s else 0.0
        if self.beat_s:
            beats, rest_s = divmod(busy_s, self.beat_s)
            busy_s = beats * self.duty * self.beat_s + min(rest_s, self.duty * self.beat_s)
        tail_s = min(max(0.0, at_s - self.busy_to_s), self.tail_s)
        over_idle = (self.busy_w - self.idle_w) * busy_s + (self.tail_w - self.idle_w) * tail_s
        return (self.idle_w + (self.module_w or 0.0)) * at_s + over_idle

    def counter_mj(self, at_s: float) -> int:
        if math.isinf(self.tick_s):
            return self.offset_mj
        latest_s = math.floor((at_s - self.phase_s) / self.tick_s) * self.tick_s + self.phase_s
        if latest_s >= self.reset_at_s:
            return int(1000 * (self.joules(latest_s) - self.joules(self.reset_at_s)))
        return self.offset_mj + int(1000 * self.joules(max(latest_s, 0.0)))

    def sensed_mw(self, at_s: float, *, module: bool = False) -> int:
        beside = (self.module_w or 0.0) * (1 if module else 0)
        if not self.sensor_s:
            return int(1000 * (self.watts(at_s) + beside))
        end_s = math.floor(at_s / self.sensor_s) * self.sensor_s
        begin_s = end_s - self.sensor_share * self.sensor_s
        mean_w = (self.joules(end_s) - self.joules(begin_s)) / (end_s - begin_s)
        return int(1000 * (mean_w - (self.module_w or 0.0) + beside))


class NVMLError(Exception):
    """As pynvml's: one class for all faults, made from a code, and not hashable."""

    WORDS: ClassVar = {
        2: "Invalid Argument",
        3: "Not Supported",
        4: "Insufficient Permissions",
        12: "NVML Shared Library Not Found",
        15: "GPU is lost",
    }

    def __init__(self, value: int) -> None:
        self.value = value

    def __str__(self) -> str:
        return self.WORDS[self.value]

    def __eq__(self, other: object) -> bool:
        return self.value == getattr(other, "value", None)

    __hash__ = None


class FakeNvml(types.ModuleType):
    """Stands in for `pynvml`. A call takes 20 us of virtual time; a real clock passes by itself.

    After `calls_left` calls, or once `lost` is set, the GPUs are lost.
    """

    NVML_SUCCESS = 0
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_FI_DEV_POWER_INSTANT = 186
    NVML_POWER_SCOPE_GPU = 0
    NVML_POWER_SCOPE_MODULE = 1
    NVMLError = NVMLError

    def __init__(
        self,
        *cards: Card,
        clock: Callable[[], int] | None = None,
        driver: bool = True,
        calls_left: float = math.inf,
    ) -> None:
        super().__init__("pynvml")
        self.cards = cards
        self.clock = clock or time.perf_counter_ns
        self.driver = driver
        self.calls_left = calls_left
        self.lost = False
        self.opened = 0

    def _at_s(self, card: Card) -> float:
        if isinstance(self.clock, VirtualClock):
            self.clock.pass_s(CALL_S)
        self._answer()
        if not card.permitted:
            raise NVMLError(self.NVML_ERROR_NO_PERMISSION)
        return self.clock() / 1e9

    def _answer(self) -> None:
        self.calls_left -= 1
        if self.lost or self.calls_left < 0:
            self.lost = True
            raise NVMLError(self.NVML_ERROR_GPU_IS_LOST)

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError(self.NVML_ERROR_LIBRARY_NOT_FOUND)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        self._answer()
        if not self.cards[index].permitted:
            raise NVMLError(self.NVML_ERROR_NO_PERMISSION)
        return self.cards[index]

    def nvmlDeviceGetName(self, card: Card) -> str:
        self._answer()
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        self._answer()
        return card.uuid

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        self._answer()
        if card.mig is None:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return [int(card.mig), int(card.mig)]

    def nvmlDeviceGetTotalEnergyConsumption(self, card: Card) -> int:
        at_s = self._at_s(card)
        if not card.has_counter:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return card.counter_mj(at_s)

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        at_s = self._at_s(card)
        if not card.has_power:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return card.sensed_mw(at_s)

    def nvmlDeviceGetFieldValues(
        self, card: Card, fields: list[int | tuple[int, int]]
    ) -> list[types.SimpleNamespace]:
        ((field, scope),) = [field if isinstance(field, tuple) else (field, 0) for field in fields]
        at_s = self._at_s(card)
        known = field == self.NVML_FI_DEV_POWER_INSTANT and card.has_instant and card.has_power
        if scope == self.NVML_POWER_SCOPE_MODULE and card.module_w is None:
            known = False
        milliwatts = card.sensed_mw(at_s, module=scope == self.NVML_POWER_SCOPE_MODULE) if known else 0
        return [
            types.SimpleNamespace(
                nvmlReturn=0 if known else self.NVML_ERROR_NOT_SUPPORTED,
                value=types.SimpleNamespace(uiVal=milliwatts),
            )
        ]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.65"

    def nvmlDeviceGetEnforcedPowerLimit(self, card: Card) -> int:
        return 700_000


def _coded(ask: Callable[..., None]) -> Callable[..., int]:
    """A C function returns a code, and gives its answer by reference."""

    @functools.wraps(ask)
    def call(*args: object) -> int:
        try:
            ask(*args)
        except NVMLError as error:
            return error.value
        return 0

    return call


class FakeLibrary:
    """What the real pynvml calls, libnvidia-ml.so, with a `FakeNvml` behind it."""

    def __init__(self, nvml: FakeNvml) -> None:
        self.nvml = nvml

    def _card(self, handle: object) -> Card:
        return self.nvml.cards[ctypes.cast(handle, ctypes.c_void_p).value - 1]

    @_coded
    def nvmlInitWithFlags(self, flags: int) -> None:
        self.nvml.nvmlInit()

    @_coded
    def nvmlShutdown(self) -> None:
        self.nvml.nvmlShutdown()

    @_coded
    def nvmlDeviceGetCount_v2(self, count: object) -> None:
        count._obj.value = self.nvml.nvmlDeviceGetCount()

    @_coded
    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: object) -> None:
        self.nvml.nvmlDeviceGetHandleByIndex(index.value)
        ctypes.c_void_p.from_buffer(handle._obj).value = index.value + 1

    @_coded
    def nvmlDeviceGetName(self, handle: object, text: ctypes.Array, size: object) -> None:
        text.value = self.nvml.nvmlDeviceGetName(self._card(handle)).encode()

    @_coded
    def nvmlDeviceGetUUID(self, handle: object, text: ctypes.Array, size: object) -> None:
        text.value = self.nvml.nvmlDeviceGetUUID(self._card(handle)).encode()

    @_coded
    def nvmlDeviceGetMigMode(self, handle: object, now: object, pending: object) -> None:
        now._obj.value, pending._obj.value = self.nvml.nvmlDeviceGetMigMode(self._card(handle))

    @_coded
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, millijoules: object) -> None:
        millijoules._obj.value = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self._card(handle))

    @_coded
    def nvmlDeviceGetPowerUsage(self, handle: object, milliwatts: object) -> None:
        milliwatts._obj.value = self.nvml.nvmlDeviceGetPowerUsage(self._card(handle))

    @_coded
    def nvmlDeviceGetFieldValues(self, handle: object, count: object, values: object) -> None:
        (asked,) = values._obj
        (answer,) = self.nvml.nvmlDeviceGetFieldValues(self._card(handle), [(asked.fieldId, asked.scopeId)])
        asked.nvmlReturn, asked.value.uiVal = answer.nvmlReturn, answer.value.uiVal
