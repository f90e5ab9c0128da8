"""codecarbon's figure for processors without a readable counter: a model, and labelled as one.

On a virtual machine it is watts from a table times time, with a constant for RAM. It shows no change that
the clock does not show. One offline tracker serves the whole session; its energy is taken a window.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import tempfile
from typing import TYPE_CHECKING, Any

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters.window import WindowMeter, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llmslim.records import Method

SOURCE = "codecarbon"
UPDATE_S = 0.01
"""codecarbon asks the kernel for the CPU load, which is counted in hundredths of a second."""
JOULES_PER_KWH = 3.6e6
COUNTERS = ("intel_rapl", "windows_emi")
"""CPU modes in which codecarbon reads a counter; all others are models."""


class CodeCarbon(WindowMeter):
    """Energy of CPU and RAM by codecarbon, machine-wide.

    Where codecarbon has a real CPU counter, the reading is the CPU alone: its RAM figure is always a
    model, and modelled joules are not added to measured ones.

    Raises:
        MeasurementError: codecarbon is missing or does not start.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="llmslim-codecarbon-")
        self._quiet = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:  # for Ctrl-C, too
            undo.callback(self._release)
            try:
                method, description = self._open()
            except Exception as error:  # codecarbon hides its own faults, so they surface as any class
                raise MeasurementError(f"codecarbon does not start: {words(error)}") from error
            undo.pop_all()
        super().__init__(source=SOURCE, resolution=UPDATE_S, method=method, description=description)

    def _open(self) -> tuple[Method, str]:
        self._quiet.enter_context(silence())
        self._tracker = _tracker(self._folder.name)
        self._tracker.start_task()  # looks for hardware, which takes a second
        self._tracker.stop_task()
        _steady(self._tracker)
        return _label(self._tracker)

    def _begin(self) -> None:
        self._tracker.start_task()

    def _end(self, seconds: float) -> float:
        try:
            used = self._tracker.stop_task()
        finally:
            _forget(self._tracker)
        if used is None:
            raise MeasurementError("codecarbon lost the window; it gives no energy for it.")
        ram = 0.0 if self.method == "measured" else float(used.ram_energy)
        return (float(used.cpu_energy) + ram) * JOULES_PER_KWH

    def _release(self) -> None:
        with self._quiet:
            if hasattr(self, "_tracker"):
                self._tracker.stop()
        self._folder.cleanup()


def open_codecarbon(device: str = "cpu") -> CodeCarbon:
    """The codecarbon meter; takes about 1.5 s, in which codecarbon runs lscpu, nvidia-smi and the like.

    Raises:
        MeasurementError: codecarbon is missing or does not start.
    """
    return CodeCarbon()


def _tracker(folder: str) -> Any:  # noqa: ANN401  # codecarbon is not imported for its types
    """An offline tracker with codecarbon's defaults, whatever configuration lies around.

    The country only turns energy into emissions, which are not used. `output_dir` is where some of
    codecarbon's readers keep a log.
    """
    module = importlib.import_module("codecarbon")
    with _emptied_surroundings(folder):
        return module.OfflineEmissionsTracker(
            country_iso_code="USA",
            output_methods=[],
            output_dir=folder,
            log_level="critical",
            tracking_mode="machine",
            gpu_ids=[],
            allow_multiple_runs=True,
        )


@contextlib.contextmanager
def _emptied_surroundings(folder: str) -> Iterator[None]:
    """No CODECARBON_* variables, and no .codecarbon.config in the working directory or at home."""
    kept = dict(os.environ)
    hidden = {name for name in kept if name.lower().startswith("codecarbon_")}
    with contextlib.chdir(folder):
        try:
            for name in hidden:
                del os.environ[name]
            os.environ.update(HOME=folder, USERPROFILE=folder)
            yield
        finally:
            for name in hidden | {"HOME", "USERPROFILE"}:
                os.environ.pop(name, None)
                if name in kept:
                    os.environ[name] = kept[name]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Disables the logger of codecarbon, which prints at every level, and gives it back as it was."""
    logger = logging.getLogger("codecarbon")
    disabled, level = logger.disabled, logger.level
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = disabled
        logger.setLevel(level)


def _steady(tracker: Any) -> None:  # noqa: ANN401  # as in _tracker
    """Leaves out what would cost time in each window: GPUs, and asking Slurm again how much RAM there is."""
    tracker._hardware = [part for part in tracker._hardware if type(part).__name__ != "GPU"]
    for part in tracker._hardware:
        if type(part).__name__ == "RAM":
            part._force_ram_power = part.total_power().W


def _forget(tracker: Any) -> None:  # noqa: ANN401  # as in _tracker
    """Ends the task for good: one that failed to stop would go on over the next window, and all are kept for ever."""
    tracker._active_task = None
    tracker._tasks.clear()


def _label(tracker: Any) -> tuple[Method, str]:  # noqa: ANN401  # as in _tracker
    """How the CPU's energy comes about, which codecarbon's results do not say, and a sentence on it."""
    parts = {type(part).__name__: part for part in tracker._hardware}
    cpu, ram = parts.get("CPU"), parts.get("RAM")
    mode = getattr(cpu, "_mode", "unknown")
    if mode in COUNTERS:
        return "measured", f"codecarbon's CPU counter ({mode}), without RAM"
    watts = f"{getattr(cpu, '_tdp', 0) or 0:g} W CPU at full load ({mode})"
    memory = f" + {ram.total_power().W:g} W RAM" if ram is not None else ""
    return "estimated", f"codecarbon model: {watts}{memory}; watts from a table times time, not a measurement"
