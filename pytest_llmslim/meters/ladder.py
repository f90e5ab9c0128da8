"""The best energy meter that this machine offers, and why the better ones were not to be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.carbon import open_codecarbon
from pytest_llmslim.meters.crosscheck import CrossCheck
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.meters.nvml import open_counter, open_power
from pytest_llmslim.meters.rapl import open_rapl
from pytest_llmslim.meters.window import words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmslim.meters import Meter

    Rung = Callable[[str], Meter]

CHECK_TICKS = 5
"""Updates of the power reading in a window that is only checked by it: a fifth is what sources may differ by."""


def open_checked_counter(device: str) -> CrossCheck:
    """The GPU's energy counter, cross-checked by its power; takes three seconds or so.

    Raises:
        MeasurementError: one of the two cannot be opened; the message tells which.
    """
    counter = open_counter(device)
    try:
        power = open_power(device, ticks=CHECK_TICKS)
    except Exception as error:  # as in climb()
        counter.close()
        raise MeasurementError(f"The energy counter cannot be cross-checked: {words(error)}") from error
    return CrossCheck(counter, power)


GPU_RUNGS: tuple[Rung, ...] = (open_checked_counter, open_counter, open_power)
CPU_RUNGS: tuple[Rung, ...] = (open_rapl, open_codecarbon)


def choose_energy_meter(device: str) -> Meter:
    """The first meter of the device's ladder that opens; never raises.

    On CUDA: NVML energy counter cross-checked by NVML power, the counter alone, power alone (sampled).
    Elsewhere: RAPL, which nothing can check, and codecarbon (estimated). After the last rung a null meter,
    whose readings carry the reasons.

    Args:
        device: a torch device, e.g. `cpu`, `cuda` (all visible GPUs), `cuda:1`.
    """
    return climb(GPU_RUNGS if device.startswith("cuda") else CPU_RUNGS, device)


def climb(rungs: Sequence[Rung], device: str) -> Meter:
    """Opens rungs in order until one holds; its `because` has the reasons of those that did not."""
    reasons: dict[str, None] = {}
    for rung in rungs:
        try:
            meter = rung(device)
        except Exception as error:  # whatever a machine lacks, the answer is the next rung
            reasons[words(error)] = None
        else:
            meter.because = tuple(reasons)
            return meter
    meter = NullMeter(f"No energy meter works on {device}: " + " ".join(reasons))
    meter.because = tuple(reasons)
    return meter
