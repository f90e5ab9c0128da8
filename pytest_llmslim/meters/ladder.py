"""The best energy meter that this machine offers, and why the better ones were not to be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim.meters.carbon import open_codecarbon
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.meters.nvml import open_counter, open_power
from pytest_llmslim.meters.rapl import open_rapl
from pytest_llmslim.meters.window import words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llmslim.meters import Meter

    Rung = Callable[[str], Meter]

GPU_RUNGS: tuple[Rung, ...] = (open_counter, open_power)
CPU_RUNGS: tuple[Rung, ...] = (open_rapl, open_codecarbon)


def choose_energy_meter(device: str) -> Meter:
    """The first meter of the device's ladder that opens; never raises.

    On CUDA: NVML energy counter, NVML power (sampled). Elsewhere: RAPL, codecarbon (estimated). After the
    last rung a null meter, whose readings carry the reasons.

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
