"""Which NVIDIA GPUs this process may use, as NVML sees them."""

from __future__ import annotations

import importlib
import itertools
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.window import words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_Name = TypeVar("_Name", int, str)
_NUMBER = re.compile(r"\s*\+?(\d+)", re.ASCII)
"""What C's strtoul takes for a number; the rest of an entry does not count."""


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
        raise MeasurementError(f"NVML is not usable on this machine: {words(error)}{_hint(error)}") from error
    return nvml


def _hint(error: Exception) -> str:
    """A container may have the GPU for computing and yet not the library that watches it."""
    if "Library Not Found" not in str(error):
        return ""
    return " (a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility to have it)"


def visible_gpus(nvml: Any, device: str) -> list[Gpu]:  # noqa: ANN401  # pynvml has no types
    """The GPUs behind a torch device, chosen as CUDA chooses them.

    Args:
        nvml: from `open_nvml`.
        device: `cuda` for all that CUDA_VISIBLE_DEVICES leaves, `cuda:N` for one of them.

    Raises:
        MeasurementError: no GPU is left, CUDA's numbering cannot be told, a GPU may not be looked at, or a
            MIG slice is used (NVML knows only the energy of the whole card).
    """
    every = _every(nvml)
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


def _every(nvml: Any) -> list[Gpu]:  # noqa: ANN401  # pynvml has no types
    try:
        return [_describe(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        raise MeasurementError(
            f"NVML cannot list the GPUs of this machine ({error}); see whether nvidia-smi can, as this user "
            "and in this container."
        ) from error


def _describe(nvml: Any, handle: Any) -> Gpu:  # noqa: ANN401  # pynvml has no types
    return Gpu(handle, str(nvml.nvmlDeviceGetName(handle)), str(nvml.nvmlDeviceGetUUID(handle)))


def _selected(every: list[Gpu], selection: str | None) -> list[Gpu]:
    """CUDA's own rule: entries in order, none after the first that names no GPU, and none at all if one is twice.

    The first entry says whether all are UUIDs or all are numbers (as in torch.cuda, which had to find out too).
    """
    if selection is None:
        return every
    entries = selection.split(",")
    if any(entry.strip().startswith("MIG") for entry in entries):
        raise MeasurementError(
            "CUDA_VISIBLE_DEVICES names a MIG slice, and energy is known only for the whole card; "
            "energy is measured on a card without MIG."
        )
    if selection.startswith("GPU-"):
        uuids = list(itertools.takewhile(lambda entry: entry.startswith("GPU-"), entries))
        return _distinct(uuids, lambda uuid: _with_uuid(every, uuid))
    numbers = [int(number[1]) for number in itertools.takewhile(bool, map(_NUMBER.match, entries)) if number]
    if numbers:
        _need_known_order(every)
    return _distinct(numbers, lambda number: every[number] if number < len(every) else None)


def _distinct(names: Sequence[_Name], find: Callable[[_Name], Gpu | None]) -> list[Gpu]:
    """The GPUs of these names up to the first that names none; none when a name or a GPU comes twice."""
    gpus = [gpu for gpu in itertools.takewhile(bool, map(find, names)) if gpu]
    once = len(set(names)) == len(names) and len({gpu.uuid for gpu in gpus}) == len(gpus)
    return gpus if once else []


def _with_uuid(every: list[Gpu], start: str) -> Gpu | None:
    matches = [gpu for gpu in every if gpu.uuid.startswith(start)]
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
