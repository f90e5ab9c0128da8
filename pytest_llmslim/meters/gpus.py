"""Which NVIDIA GPUs this process may use, as NVML sees them."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.window import words


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; `handle` belongs to the NVML library that gave it."""

    handle: Any
    name: str
    uuid: str


def open_nvml() -> Any:  # noqa: ANN401  # pynvml has no types
    """The NVML library, initialised; the caller calls its `nvmlShutdown`.

    Raises:
        MeasurementError: nvidia-ml-py or the driver's library is missing, or there is no driver.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # a foreign library says in its own classes that there is no GPU
        raise MeasurementError(f"NVML is not usable on this machine: {words(error)}") from error
    return nvml


def visible_gpus(nvml: Any, device: str) -> list[Gpu]:  # noqa: ANN401  # pynvml has no types
    """The GPUs behind a torch device, chosen as CUDA chooses them.

    Args:
        nvml: from `open_nvml`.
        device: `cuda` for all that CUDA_VISIBLE_DEVICES leaves, `cuda:N` for one of them.

    Raises:
        MeasurementError: no GPU is left, CUDA's numbering cannot be told, or a MIG slice is used (NVML
            knows only the energy of the whole card).
    """
    every = [_describe(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
    selection = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _selected(every, selection)
    number = device.partition(":")[2]
    if number:
        if selection is None:
            _need_known_order(every)
        gpus = gpus[int(number) : int(number) + 1]
    if not gpus:
        raise MeasurementError(f"NVML sees no GPU for {device}; look at CUDA_VISIBLE_DEVICES and nvidia-smi.")
    for gpu in gpus:
        if _is_split(nvml, gpu):
            raise MeasurementError(
                f"{gpu.name} is split by MIG, and its energy is known only for the whole card; "
                "energy is measured on a card without MIG."
            )
    return gpus


def _describe(nvml: Any, handle: Any) -> Gpu:  # noqa: ANN401  # pynvml has no types
    return Gpu(handle, str(nvml.nvmlDeviceGetName(handle)), str(nvml.nvmlDeviceGetUUID(handle)))


def _selected(every: list[Gpu], selection: str | None) -> list[Gpu]:
    """CUDA's own rule: entries in order, and nothing after the first one that names no GPU."""
    if selection is None:
        return every
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in selection.split(",")):
        if entry.startswith("MIG"):
            raise MeasurementError(
                "CUDA_VISIBLE_DEVICES names a MIG slice, and energy is known only for the whole card; "
                "energy is measured on a card without MIG."
            )
        gpu = _named(every, entry)
        if gpu is None:
            break
        chosen.append(gpu)
    return chosen


def _named(every: list[Gpu], entry: str) -> Gpu | None:
    if entry.isdigit():
        _need_known_order(every)
        return every[int(entry)] if int(entry) < len(every) else None
    matches = [gpu for gpu in every if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _need_known_order(every: list[Gpu]) -> None:
    """NVML counts along the PCI bus, CUDA from the fastest GPU on; equal GPUs are counted alike."""
    unlike = len({gpu.name for gpu in every}) > 1
    if unlike and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise MeasurementError(
            "This machine has unlike GPUs, which CUDA and NVML count in different orders; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID in CUDA_VISIBLE_DEVICES."
        )


def _is_split(nvml: Any, gpu: Gpu) -> bool:  # noqa: ANN401  # pynvml has no types
    try:
        return bool(nvml.nvmlDeviceGetMigMode(gpu.handle)[0])
    except nvml.NVMLError:  # cards that cannot be split do not know the question
        return False
