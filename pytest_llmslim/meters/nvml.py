"""GPU energy from NVML: the driver's total-energy counter, or its power readings summed over time.

Both are of the whole card (on Grace Hopper possibly of the whole module). "Part-time power measurements"
(arXiv:2312.02741) found that the power sensor of A100 and H100 looks at a quarter of the run time: good for
ratios on one card, not for claims in absolute joules.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pytest_llmslim import units
from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.gpus import Gpu, open_nvml, visible_gpus
from pytest_llmslim.meters.window import TICKS, WindowMeter, update_periods

if TYPE_CHECKING:
    from collections.abc import Sequence

Watts = Callable[[], float]
_Meter = TypeVar("_Meter", bound=WindowMeter)

COUNTER, POWER = "nvml-counter", "nvml-power"
SPIN_S = 1.0
"""How long the counter is watched at opening. The slowest known one is updated every 0.1 s."""
SAMPLE_S = 0.02
STUCK_S = 5.0
"""A power reading takes milliseconds. One that takes this long does not come back."""
THREAD = "llmslim-nvml-power"
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
            raise MeasurementError(
                f"{_names(self._gpus)} has no total-energy counter: {error}{_hint(self._nvml, error)}"
            ) from error
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
        gpus: whose power is summed. Of a single one on a module with a CPU (Grace Hopper) it is the whole
            module's power, since that is what its energy counter counts.
        period_s: seconds between readings.
        ticks: updates of the power reading that a window holds.
        clock: monotonic nanoseconds.
        sampler: takes the readings of one window.

    Raises:
        MeasurementError: a card tells no power.
    """

    def __init__(
        self,
        nvml: Any,  # noqa: ANN401  # pynvml has no types
        gpus: Sequence[Gpu],
        *,
        period_s: float = SAMPLE_S,
        ticks: int = TICKS,
        clock: Callable[[], int] = time.perf_counter_ns,
        sampler: Callable[[Watts, Callable[[], int], float], Sampler] | None = None,
    ) -> None:
        self._nvml, self._gpus, self._period_s = nvml, gpus, period_s
        self._sampler = sampler or ThreadSampler
        self._sampling: Sampler | None = None
        self._field, whole, update_s = self._best_field()
        kind = "instantaneous" if self._field is not None else "one-second average"
        self._first_power()
        super().__init__(
            source=POWER,
            method="sampled",
            resolution=max(update_s, period_s),
            description=f"{kind} power of {whole}{_names(gpus)}, read every {units.seconds(period_s)}",
            ticks=ticks,
            clock=clock,
        )

    def _best_field(self) -> tuple[Any, str, float]:
        """Field with the instantaneous power, words for its scope, seconds between its updates."""
        instant = getattr(self._nvml, "NVML_FI_DEV_POWER_INSTANT", None)
        module = getattr(self._nvml, "NVML_POWER_SCOPE_MODULE", None)
        if len(self._gpus) == 1 and self._tells((instant, module)):
            return (instant, module), "the whole module of ", INSTANT_UPDATE_S
        if instant is not None and self._tells(instant):
            return instant, "", INSTANT_UPDATE_S
        return None, "", AVERAGE_UPDATE_S

    def _tells(self, field: Any) -> bool:  # noqa: ANN401  # as in __init__
        try:
            return all(self._power(gpu, field) > 0 for gpu in self._gpus)
        except Exception:  # an old driver or library does not know the field or the scope
            return False

    def _first_power(self) -> None:
        try:
            watts = self._watts()
        except self._nvml.NVMLError as error:
            raise MeasurementError(
                f"{_names(self._gpus)} tells no power: {error}{_hint(self._nvml, error)}"
            ) from error
        if watts <= 0:
            raise MeasurementError(f"{_names(self._gpus)} tells a power of {watts:g} W.")

    def _power(self, gpu: Gpu, field: Any) -> int:  # noqa: ANN401  # as in __init__
        """Milliwatts."""
        if field is None:
            return int(self._nvml.nvmlDeviceGetPowerUsage(gpu.handle))
        (answer,) = self._nvml.nvmlDeviceGetFieldValues(gpu.handle, [field])
        if answer.nvmlReturn != self._nvml.NVML_SUCCESS:
            raise self._nvml.NVMLError(answer.nvmlReturn)
        return int(answer.value.uiVal)

    def _watts(self) -> float:
        return sum(self._power(gpu, self._field) for gpu in self._gpus) / 1000

    def _begin(self) -> None:
        self._sampling = self._sampler(self._watts, self._clock, self._period_s)

    def _end(self, seconds: float) -> float:
        sampling, self._sampling = self._sampling, None
        samples = sampling.finish() if sampling is not None else []
        if len(samples) < TICKS:
            raise MeasurementError(
                f"{POWER} came to {len(samples)} readings in a window of {units.seconds(seconds)}, "
                f"and {TICKS} are needed: the machine is too busy to sample on."
            )
        return integrate(samples)

    def _release(self) -> None:
        self._nvml.nvmlShutdown()


class Sampler(Protocol):
    """Takes power readings of one window, from when it is made."""

    def finish(self) -> list[tuple[int, float]]:
        """All readings (nanoseconds, watts), one at each end; raises the fault of any."""


class ThreadSampler:
    """Takes power readings in a thread of its own; a thread that is stuck in the driver is left behind."""

    def __init__(self, watts: Watts, clock: Callable[[], int], period_s: float) -> None:
        self._watts, self._clock, self._period_s = watts, clock, period_s
        self._samples: list[tuple[int, float]] = []
        self._error: Exception | None = None
        self._enough = threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._keep_sampling, name=THREAD, daemon=True)
        self._thread.start()

    def finish(self) -> list[tuple[int, float]]:
        """Ends the thread, and takes the last reading."""
        self._enough.set()
        self._thread.join(STUCK_S)
        if self._thread.is_alive():
            raise MeasurementError(f"A power reading did not come back within {units.seconds(STUCK_S)}.")
        if self._error is not None:
            raise self._error
        self._sample()
        return self._samples

    def _sample(self) -> None:
        watts = self._watts()
        self._samples.append((self._clock(), watts))

    def _keep_sampling(self) -> None:
        try:
            while not self._enough.wait(self._period_s):
                self._sample()
        except Exception as error:  # raised again at the end of the window, where it is answered
            self._error = error


def integrate(samples: Sequence[tuple[int, float]]) -> float:
    """Joules under power samples (nanoseconds, watts), by the trapezoidal rule.

    Raises:
        MeasurementError: the clock was set back between two samples.
    """
    if any(later_ns < earlier_ns for (earlier_ns, _), (later_ns, _) in itertools.pairwise(samples)):
        raise MeasurementError("The clock was set back between two power readings.")
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


def open_power(device: str = "cuda", *, ticks: int = TICKS) -> NvmlPower:
    """The power meter of a torch device, whose windows hold `ticks` updates of the power reading.

    Raises:
        MeasurementError: there is no such GPU, or it tells no power; the message tells which.
    """
    return _open(functools.partial(NvmlPower, ticks=ticks), device)


def _open(meter: Callable[[Any, list[Gpu]], _Meter], device: str) -> _Meter:
    """A meter of the device's GPUs; the library is shut down again where there is none."""
    nvml = open_nvml()
    try:
        return meter(nvml, visible_gpus(nvml, device))
    except Exception:
        nvml.nvmlShutdown()
        raise


def _hint(nvml: Any, error: Exception) -> str:  # noqa: ANN401  # pynvml has no types
    """What a driver that refuses usually means."""
    hints = {
        nvml.NVML_ERROR_NOT_SUPPORTED: " (so it is with cards before Volta, and with most virtual GPUs)",
        nvml.NVML_ERROR_NO_PERMISSION: " (a container or the administrator keeps it from this user)",
    }
    return hints.get(getattr(error, "value", None), "")


def _names(gpus: Sequence[Gpu]) -> str:
    return ", ".join(gpu.name for gpu in gpus)
