"""The small models that come with the package, so that everything runs without a download."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from pytest_llmslim.errors import ModelError

PREFIX = "embedded:"

EMBEDDED = ("gpt2", "llama")
"""Names, to be used behind `PREFIX`."""


def folder(name: str) -> Path:
    """The model folder of the embedded model `name`, e.g. `gpt2`.

    Raises:
        ModelError: no such model, or an installation without its files.
    """
    known = ", ".join(f"{PREFIX}{each}" for each in EMBEDDED)
    if name not in EMBEDDED:
        raise ModelError(f"embedded models are {known}, got {PREFIX}{name}; use one of them")
    path = Path(str(files("pytest_llmslim"))) / "embedded" / name
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{PREFIX}{name} comes with the package in {path}, got no model there; "
            "install pytest-llmslim again"
        )
    return path
