"""Which model stands for which of the paper's names: on the hub, embedded, or as a file says.

A file is TOML or JSON, one line a name:

    gpt2 = "/models/gpt2"
    "opt-6.7b-kd" = "-"                  # left out
    "sheared-llama-2.7b" = "recipe:sheared(inner=192)"
    "*" = "hub"                          # all others: hub, embedded, or - to leave them out
"""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Final

from pytest_llmslim.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LEFT_OUT: Final = "-"
REST: Final = "*"
RECIPE: Final = "recipe:"
"""A candidate that is made by a recipe from its reference."""

# As the authors list them in github.com/OptimizationStrategies/Optimization-Strategies; Llama 2 in the layout of
# transformers. The OPT models and those of MiniLLM and Sheared LLaMA are mostly pickles there.
HUB: Final[Mapping[str, str]] = {
    "gpt2": "openai-community/gpt2",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "opt-125m": "facebook/opt-125m",
    "opt-1.3b": "facebook/opt-1.3b",
    "opt-13b": "facebook/opt-13b",
    "opt-6.7b-minillm": "MiniLLM/MiniLLM-OPT-6.7B",
    "opt-6.7b": "facebook/opt-6.7b",
    "opt-6.7b-kd": "MiniLLM/KD-OPT-6.7B",
    "opt-6.7b-seqkd": "MiniLLM/SeqKD-OPT-6.7B",
    "llama-13b": "huggyllama/llama-13b",
    "llama-6.7b-minillm": "MiniLLM/MiniLLM-Llama-7B",
    "llama-6.7b": "huggyllama/llama-7b",
    "llama-6.7b-kd": "MiniLLM/KD-Llama-7B",
    "llama-6.7b-seqkd": "MiniLLM/SeqKD-Llama-7B",
    "llama2-6.7b": "meta-llama/Llama-2-7b-hf",
    "sheared-llama-2.7b": "princeton-nlp/Sheared-LLaMA-2.7B",
    "sheared-llama-1.3b": "princeton-nlp/Sheared-LLaMA-1.3B",
    "mistral-nemo-12b": "mistralai/Mistral-Nemo-Base-2407",
    "mn-minitron-8b": "nvidia/Mistral-NeMo-Minitron-8B-Base",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.1-minitron-4b-width": "nvidia/Llama-3.1-Minitron-4B-Width-Base",
}

_LLAMA: Final = "embedded:llama"

# Models of the same architectures, and courses of a few steps: the way is the same, the figures are not.
EMBEDDED: Final[Mapping[str, str]] = {
    "gpt2": "embedded:gpt2",
    "gpt2-large": "embedded:gpt2",
    "gpt2-xl": "embedded:gpt2",
    "opt-125m": _LLAMA,
    "opt-1.3b": _LLAMA,
    "opt-13b": _LLAMA,
    "opt-6.7b-minillm": "recipe:minillm(steps=10)",
    "opt-6.7b": "recipe:depth(layers=1)",
    "opt-6.7b-kd": "recipe:kd(steps=40)",
    "opt-6.7b-seqkd": "recipe:seqkd(steps=20)",
    "llama-13b": _LLAMA,
    "llama-6.7b-minillm": "recipe:minillm(steps=10)",
    "llama-6.7b": "recipe:depth(layers=1)",
    "llama-6.7b-kd": "recipe:kd(steps=40)",
    "llama-6.7b-seqkd": "recipe:seqkd(steps=20)",
    "llama2-6.7b": _LLAMA,
    "sheared-llama-2.7b": "recipe:sheared(inner=192,steps=10)",
    "sheared-llama-1.3b": "recipe:sheared(inner=96,steps=10)",
    "mistral-nemo-12b": _LLAMA,
    "mn-minitron-8b": "recipe:minitron(ratio=0.25,steps=20)",
    "llama-3.1-8b": _LLAMA,
    "llama-3.1-minitron-4b-width": "recipe:minitron(ratio=0.5,steps=20)",
}

NAMED: Final[Mapping[str, Mapping[str, str]]] = {"hub": HUB, "embedded": EMBEDDED}


def models_of(chosen: str | Path) -> Mapping[str, str]:
    """A model for every name of the paper, `-` for one that is left out.

    Args:
        chosen: `hub`, `embedded`, or the path of a file.

    Raises:
        SettingError: the file cannot be read, lacks a name, or holds what is no model.
    """
    if isinstance(chosen, str):
        return NAMED[chosen]
    given = _read(chosen)
    _check(given, chosen)
    rest = given.pop(REST, None)
    base = dict.fromkeys(HUB, LEFT_OUT) if rest == LEFT_OUT else NAMED[rest] if rest else {}
    return {name: _near(given[name], chosen.parent) if name in given else base[name] for name in HUB}


def _read(path: Path) -> dict[str, str]:
    try:
        text = path.read_text("utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise SettingError(
            f"--llm-models-map is hub, embedded or a TOML or JSON file, got {path}, which cannot be read "
            f"({error.strerror})"
        ) from None
    except ValueError as error:
        raise SettingError(
            f"--llm-models-map {path.name} is TOML, or JSON where its name ends so, and does not parse: {error}"
        ) from None
    wrong = (
        found
        if not isinstance(found, dict)
        else next((k for k, v in found.items() if not isinstance(v, str)), None)
    )
    if wrong is not None:
        raise SettingError(
            f"--llm-models-map {path.name} gives each name one text, got something else at {wrong!r}; in TOML a name "
            "with a dot stands in quotes"
        )
    return {str(name): model for name, model in found.items()}


def _check(given: Mapping[str, str], path: Path) -> None:
    unknown = [name for name in given if name not in HUB and name != REST]
    if unknown:
        raise SettingError(
            f"--llm-models-map {path.name} names models of the paper, one of {', '.join(HUB)}, got {unknown[0]!r}"
        )
    if given.get(REST, LEFT_OUT) not in (LEFT_OUT, *NAMED):
        raise SettingError(
            f"--llm-models-map {path.name}: {REST!r} is hub, embedded or {LEFT_OUT}, got {given[REST]!r}"
        )
    missing = [name for name in HUB if name not in given]
    if missing and REST not in given:
        raise SettingError(
            f"--llm-models-map {path.name} has a model for every name of the paper, and none for "
            f"{', '.join(missing)}; add them, or '{REST}' = '{LEFT_OUT}' to leave out the rest"
        )


def _near(model: str, folder: Path) -> str:
    """A model beside the file is meant from there."""
    near = folder / model
    return str(near) if model != LEFT_OUT and near.exists() else model
