"""Loading without progress bars and reports: what matters in them is raised as an error."""

from __future__ import annotations

import contextlib
import logging as standard
import warnings
from typing import TYPE_CHECKING

import huggingface_hub.utils as hub
from transformers.utils import logging

if TYPE_CHECKING:
    from collections.abc import Iterator


# torchao tells at its import which of its CUDA kernels it cannot load, and torch what it thinks of torchao's enums.
# transformers imports torchao with the first model, wherever it is installed.
_IMPORTS = ("torchao", "torch.utils._pytree")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, huggingface_hub and torchao below errors; everything is as before afterwards."""
    with _raised(_IMPORTS), _hub_and_transformers():
        yield


@contextlib.contextmanager
def _raised(names: tuple[str, ...]) -> Iterator[None]:
    """Let these loggers tell errors only."""
    loggers = [standard.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(standard.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _hub_and_transformers() -> Iterator[None]:
    level, hub_level = logging.get_verbosity(), hub.logging.get_verbosity()
    bars, hub_bars = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()  # type: ignore[attr-defined]
    logging.set_verbosity_error()
    hub.logging.set_verbosity(standard.ERROR)
    _show_bars(False, False)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub.logging.set_verbosity(hub_level)
        _show_bars(bars, hub_bars)


def _show_bars(bars: bool, hub_bars: bool) -> None:
    with warnings.catch_warnings():
        # Said when HF_HUB_DISABLE_PROGRESS_BARS is set; the variable then wins, which is what its user wants.
        warnings.filterwarnings("ignore", message="Cannot (en|dis)able progress bars")
        # transformers sets the hub's bars too, so the hub comes second.
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        (hub.enable_progress_bars if hub_bars else hub.disable_progress_bars)()  # type: ignore[attr-defined]
