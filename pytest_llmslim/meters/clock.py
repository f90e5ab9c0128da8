"""Wall time, process CPU time and CUDA time of one window, in nanoseconds."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from typing import Any

from pytest_llmslim.errors import MeasurementError


@dataclass(frozen=True, slots=True)
class Ticks:
    """Nanoseconds of one window, as the clocks say.

    Setting the time of day does not touch these clocks. A virtual machine that is moved to another host or set
    back to an earlier state may still show a window of 0 or less, which is passed on as it is: no ratio may be
    made of it, and `Watch` names it.

    Args:
        wall_ns: by a monotonic clock.
        cpu_ns: used by all threads of this process, helper threads of meters included.
        device_ns: between two CUDA events; `None` away from CUDA.
    """

    wall_ns: int
    cpu_ns: int
    device_ns: int | None = None


class Stopwatch:
    """Times one window after another. On CUDA the device is idle at both ends.

    Args:
        device: a torch device. torch is imported only for CUDA.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._cuda: Any = importlib.import_module("torch").cuda if device.startswith("cuda") else None
        self._device = device
        self._events: tuple[Any, Any] | None = None
        self._began: tuple[int, int] | None = None

    def start(self) -> None:
        """Begins a window, after all earlier work on the device is done."""
        if self._cuda is not None:
            self._cuda.synchronize(self._device)
            with self._cuda.device(self._device):
                self._events = (self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True))
                self._events[0].record()
        self._began = (time.process_time_ns(), time.perf_counter_ns())

    def stop(self) -> Ticks:
        """Ends the window, after all work of the window on the device is done.

        Raises:
            MeasurementError: there was no `start()`.
        """
        if self._cuda is not None and self._events is not None:
            with self._cuda.device(self._device):
                self._events[1].record()
            self._cuda.synchronize(self._device)
        wall_ns, cpu_ns = time.perf_counter_ns(), time.process_time_ns()
        began, self._began = self._began, None
        if began is None:
            raise MeasurementError("A stopwatch was stopped without being started; call start() first.")
        return Ticks(wall_ns - began[1], cpu_ns - began[0], self._device_ns())

    def _device_ns(self) -> int | None:
        events, self._events = self._events, None
        return None if events is None else round(events[0].elapsed_time(events[1]) * 1e6)  # from ms
