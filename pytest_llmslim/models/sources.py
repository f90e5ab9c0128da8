"""What a model name means: embedded, a folder, a GGUF file, or an id on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models import embedded, hub

Kind = Literal["embedded", "folder", "gguf", "hub"]

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})

_LOOKS_LIKE_PATH = re.compile(
    r"^[./~\\]|\\|/.*/|/$|\.(gguf|safetensors|bin|pt|pth|ckpt|pkl|json)$", re.IGNORECASE
)


class Source(NamedTuple):
    """Where a model lies: a folder, or a file if `kind` is `gguf`."""

    kind: Kind
    path: Path


def resolve(name: str, *, trust_remote_code: bool = False) -> Source:
    """Find what `name` stands for; what exists here wins over the hub, which alone needs the network.

    Raises:
        ModelError: nothing there, or a file of another kind.
    """
    if name.startswith(embedded.PREFIX):
        return Source("embedded", embedded.folder(name.removeprefix(embedded.PREFIX)))
    path = Path(name).expanduser()
    if not name.strip():
        raise ModelError(f"a model is named by a Hugging Face id, a folder or a .gguf file, got {name!r}")
    if path.is_dir():
        return _folder(path, name)
    if path.is_file():
        return _file(path, name)
    if _LOOKS_LIKE_PATH.search(name):
        raise ModelError(
            f"the model {name} is a folder or a .gguf file, got a path where nothing is; check the spelling "
            f"(looked at {path.absolute()})"
        )
    return Source("hub", hub.download(name, trust_remote_code=trust_remote_code))


def _folder(path: Path, name: str) -> Source:
    files = sorted(path.glob("*.gguf"))
    if not files or (path / "config.json").exists():
        return Source("folder", path)
    if len(files) > 1:
        listing = ", ".join(file.name for file in files)
        raise ModelError(
            f"{name} is a model folder or one .gguf file, got several ({listing}); pass one of them"
        )
    return Source("gguf", files[0])


def _file(path: Path, name: str) -> Source:
    if path.suffix.lower() == ".gguf":
        return Source("gguf", path)
    if path.suffix.lower() in PICKLES:
        raise ModelError(pickled(name, path.name))
    raise ModelError(
        f"a model file ends in .gguf, got {name}; pass the folder that holds config.json, weights "
        "and tokenizer"
    )


def pickled(name: str, file: str) -> str:
    """The sentence that refuses pickled weights."""
    return (
        f"the weights of {name} are safetensors, got the pickle {file}, which can run any code when "
        "it is read; convert it where you trust it: load it there and call save_pretrained(folder)"
    )
