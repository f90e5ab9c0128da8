"""What makes the timings of two machines comparable, as plain words."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmslim.meters.gpus import open_nvml, visible_gpus

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmslim.meters.gpus import Gpu

UNKNOWN = "unknown"
PACKAGES = ("torch", "transformers", "bitsandbytes")
CPUINFO = Path("/proc/cpuinfo")
NOTABLE_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Instruction sets that decide which kernels a library picks."""


def machine_fingerprint(*, device: str, threads: int, dtype: str, energy_source: str) -> dict[str, str]:
    """Everything that timings and joules depend on besides the models; equal dicts are comparable.

    Nothing is run and nothing is raised: what cannot be found out is `unknown`, and what does not apply
    `none`.

    Args:
        device: torch device the models ran on.
        threads: torch threads.
        dtype: of the reference.
        energy_source: `Meter.source`.
    """
    flags = _flags()
    return {
        "cpu": _known(_cpu),
        "cores": _known(_cores),
        "isa": " ".join(flag for flag in NOTABLE_FLAGS if flag in flags) or UNKNOWN,
        "isa_hash": hashlib.sha256(" ".join(sorted(flags)).encode()).hexdigest()[:12] if flags else UNKNOWN,
        "ram_gb": _known(_ram_gb),
        **_gpu_fields(device),
        **library_versions(),
        "device": device,
        "threads": str(threads),
        "dtype": dtype,
        "energy_source": _known(lambda: _energy_source(energy_source)),
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    found = {package: _known(functools.partial(importlib.metadata.version, package)) for package in PACKAGES}
    return {**found, "python": _known(platform.python_version)}


def _known(probe: Callable[[], str]) -> str:
    """What the probe found, or `unknown`; a fingerprint never costs a run."""
    try:
        return probe() or UNKNOWN
    except Exception:  # a probe reads what any system or driver offers
        return UNKNOWN


def _cpuinfo(*names: str) -> str:
    """The first value under one of these names in /proc/cpuinfo."""
    for line in CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""


def _cpu() -> str:
    return _cpuinfo("model name", "Processor", "CPU part") or platform.machine()


def _flags() -> frozenset[str]:
    try:
        return frozenset(_cpuinfo("flags", "Features").split())
    except OSError:
        return frozenset()


def _cores() -> str:
    """Cores this process may use, of all there are."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} of {os.cpu_count()}"


def _ram_gb() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f}"


def _energy_source(source: str) -> str:
    """A model's joules change with its release, a counter's do not."""
    return f"{source} {importlib.metadata.version(source)}" if source == "codecarbon" else source


def _gpu_fields(device: str) -> dict[str, str]:
    names = ("gpu", "gpu_driver", "gpu_power_limit_w")
    if not device.startswith("cuda"):
        return dict.fromkeys(names, "none")
    try:
        nvml = open_nvml()
    except Exception:  # as in _known
        return dict.fromkeys(names, UNKNOWN)
    try:
        return dict(zip(names, _gpu_values(nvml, device), strict=True))
    finally:
        _known(nvml.nvmlShutdown)


def _gpu_values(nvml: Any, device: str) -> tuple[str, str, str]:  # noqa: ANN401  # pynvml has no types
    try:
        gpus = visible_gpus(nvml, device)
    except Exception:  # as in _known
        gpus = []
    return (
        ", ".join(gpu.name for gpu in gpus) or UNKNOWN,
        _known(lambda: str(nvml.nvmlSystemGetDriverVersion())),
        _known(lambda: ", ".join(_power_limit(nvml, gpu) for gpu in gpus)),
    )


def _power_limit(nvml: Any, gpu: Gpu) -> str:  # noqa: ANN401  # pynvml has no types
    return f"{nvml.nvmlDeviceGetEnforcedPowerLimit(gpu.handle) / 1000:.0f}"
