"""GPU energy from NVML: the driver's total-energy counter, or its power readings summed over time.

Both are of the whole card (on Grace Hopper possibly of the whole module). "Part-time power measurements"
(arXiv:2312.02741) found that the power sensor of A100 and H100 looks at a quarter of the run time: good for
ratios on one card, not for claims in absolute joules.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llmslim import units
from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.gpus import Gpu, open_nvml, visible_gpus
from pytest_llmslim.meters.window import WindowMeter, update_periods

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Meter = TypeVar("_Meter", bound=WindowMeter)

COUNTER, POWER = "nvml-counter", "nvml-power"
SPIN_S = 1.0
"""How long the counter is watched at opening. The slowest known one is updated every 0.1 s."""
SAMPLE_S = 0.02
INSTANT_UPDATE_S, AVERAGE_UPDATE_S = 0.1, 1.0
"""How often a power reading is new: the sensor's period, and the second over which the other is averaged."""


class NvmlCounter(WindowMeter):
    """The total-energy counter of one or more GPUs (Volta and newer), two reads a window.

    Args:
        nvml: an initialised NVML library; shut down by `close()`.
        gpus: whose energy is summed.
        clock: monotonic nanoseconds.

    Raises:
        MeasurementError: a card has no such counter, or it stands still.
    """

    def __init__(
        self,
        nvml: Any,  # noqa: ANN401  # pynvml has no types
        gpus: Sequence[Gpu],
        *,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._nvml, self._gpus = nvml, gpus
        self._before: list[int] = []
        tick = self._tick(clock)
        super().__init__(
            source=COUNTER,
            method="measured",
            resolution=tick,
            description=f"total-energy counter of {_names(gpus)}, updated every {units.seconds(tick)}",
            clock=clock,
        )

    def _tick(self, clock: Callable[[], int]) -> float:
        try:
            periods = update_periods(self._read, budget_s=SPIN_S, clock=clock)
        except self._nvml.NVMLError as error:
            raise MeasurementError(f"{_names(self._gpus)} has no total-energy counter: {error}") from error
        known = [period for period in periods if period is not None]
        if len(known) < len(periods):
            raise MeasurementError(
                f"The total-energy counter of {_names(self._gpus)} stood still for {units.seconds(SPIN_S)}."
            )
        return max(known)

    def _read(self) -> list[int]:
        """Millijoules since the driver was loaded, one a GPU."""
        return [int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)) for gpu in self._gpus]

    def _begin(self) -> None:
        self._before = self._read()

    def _end(self, seconds: float) -> float:
        used = [after - before for before, after in zip(self._before, self._read(), strict=True)]
        for gpu, millijoules in zip(self._gpus, used, strict=True):
            if millijoules <= 0:
                how = "stood still" if millijoules == 0 else "went backwards, so it was reset,"
                raise MeasurementError(
                    f"The total-energy counter of {gpu.name} {how} in a window of {units.seconds(seconds)}."
                )
        return sum(used) / 1000

    def _release(self) -> None:
        self._nvml.nvmlShutdown()


class NvmlPower(WindowMeter):
    """Power readings of one or more GPUs, taken by a thread and summed over time by trapezoids.

    Args:
        nvml: an initialised NVML library; shut down by `close()`.
        gpus: whose power is summed.
        period_s: seconds between readings.
        clock: monotonic nanoseconds.

    Raises:
        MeasurementError: a card tells no power.
    """

    def __init__(
        self,
        nvml: Any,  # noqa: ANN401  # pynvml has no types
        gpus: Sequence[Gpu],
        *,
        period_s: float = SAMPLE_S,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._nvml, self._gpus, self._period_s = nvml, gpus, period_s
        self._instant = True
        self._instant = self._has_instant_power()
        self._first_power()
        self._samples: list[tuple[int, float]] = []
        self._error: Exception | None = None
        self._enough = threading.Event()
        self._thread: threading.Thread | None = None
        update_s = INSTANT_UPDATE_S if self._instant else AVERAGE_UPDATE_S
        kind = "instantaneous" if self._instant else "one-second average"
        super().__init__(
            source=POWER,
            method="sampled",
            resolution=max(update_s, period_s),
            description=f"{kind} power of {_names(gpus)}, read every {units.seconds(period_s)}",
            clock=clock,
        )

    def _has_instant_power(self) -> bool:
        try:
            return all(self._power(gpu) > 0 for gpu in self._gpus)
        except Exception:  # an old driver or library does not know the field
            return False

    def _first_power(self) -> None:
        try:
            watts = self._watts()
        except self._nvml.NVMLError as error:
            raise MeasurementError(f"{_names(self._gpus)} tells no power: {error}") from error
        if watts <= 0:
            raise MeasurementError(f"{_names(self._gpus)} tells a power of {watts:g} W.")

    def _power(self, gpu: Gpu) -> int:
        """Milliwatts."""
        if not self._instant:
            return int(self._nvml.nvmlDeviceGetPowerUsage(gpu.handle))
        (field,) = self._nvml.nvmlDeviceGetFieldValues(gpu.handle, [self._nvml.NVML_FI_DEV_POWER_INSTANT])
        if field.nvmlReturn != self._nvml.NVML_SUCCESS:
            raise self._nvml.NVMLError(field.nvmlReturn)
        return int(field.value.uiVal)

    def _watts(self) -> float:
        return sum(self._power(gpu) for gpu in self._gpus) / 1000

    def _sample(self) -> None:
        watts = self._watts()
        self._samples.append((self._clock(), watts))

    def _begin(self) -> None:
        self._samples, self._error = [], None
        self._enough.clear()
        self._sample()
        self._thread = threading.Thread(target=self._keep_sampling, name="llmslim-nvml-power", daemon=True)
        self._thread.start()

    def _keep_sampling(self) -> None:
        try:
            while not self._enough.wait(self._period_s):
                self._sample()
        except Exception as error:  # raised again at the end of the window, where it is answered
            self._error = error

    def _end(self, seconds: float) -> float:
        self._enough.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        self._sample()
        return integrate(self._samples)

    def _release(self) -> None:
        self._nvml.nvmlShutdown()


def integrate(samples: Sequence[tuple[int, float]]) -> float:
    """Joules under power samples (nanoseconds, watts), by the trapezoidal rule."""
    return sum(
        (later_ns - earlier_ns) / 1e9 * (earlier + later) / 2
        for (earlier_ns, earlier), (later_ns, later) in itertools.pairwise(samples)
    )


def open_counter(device: str = "cuda") -> NvmlCounter:
    """The counter meter of a torch device; watches the counter for up to one second.

    Raises:
        MeasurementError: there is no such GPU or no such counter; the message tells which.
    """
    return _open(NvmlCounter, device)


def open_power(device: str = "cuda") -> NvmlPower:
    """The power meter of a torch device.

    Raises:
        MeasurementError: there is no such GPU, or it tells no power; the message tells which.
    """
    return _open(NvmlPower, device)


def _open(meter: Callable[[Any, list[Gpu]], _Meter], device: str) -> _Meter:
    """A meter of the device's GPUs; the library is shut down again where there is none."""
    nvml = open_nvml()
    try:
        return meter(nvml, visible_gpus(nvml, device))
    except Exception:
        nvml.nvmlShutdown()
        raise


def _names(gpus: Sequence[Gpu]) -> str:
    return ", ".join(gpu.name for gpu in gpus)
