"""What models answered, kept in a folder: the reference is asked once, and an interrupted run goes on.

One JSON line a request, appended as soon as it is answered, in a file per model and protocol:
`FOLDER/<first 16 digits of the weights' hash>/<digest of the protocol>.jsonl`. A line is a sha256 of the request and
the answer: about 100 bytes for a log probability, 75 and the text for a generated one. All of arc_challenge (4,687
requests) is half a megabyte a model, hellaswag (40,168) 4, mmlu (56,168) 6. Nothing is ever removed: delete the
folder to empty it, whenever no run is under way.

Several processes may append to one file: each line is one write to a file opened for appending, which the system does
not tear. A line that a kill cut off is passed over and its request asked again. Of a request that two processes
answered, the line that was read last counts; answers of one protocol differ in rounding only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch

from pytest_llmslim.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from pytest_llmslim.evals import EvalContext

_VOLATILE: Final = ("_name_or_path", "transformers_version")


class Shelf:
    """Answers of one model under one protocol, by request.

    Args:
        file: where they are.

    Raises:
        EvaluationError: the file is there and cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Any] = {}
        self._whole = True
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            _refuse(file, "read", error)
        self._whole = not content or content.endswith(b"\n")
        for line in content.decode("utf-8", errors="replace").split("\n"):
            self._read(line)

    def _read(self, line: str) -> None:
        try:
            key, value = json.loads(line)
        except (ValueError, TypeError):
            return
        self._known[str(key)] = value

    def get(self, request: object) -> Any:  # noqa: ANN401  # JSON
        """What was answered to `request` (plain builtins), or `None`."""
        return self._known.get(digest(request))

    def put(self, request: object, answer: object) -> None:
        """Keep `answer` (plain builtins) to `request`, with the system before this returns.

        Raises:
            EvaluationError: the folder cannot be written.
        """
        key = digest(request)
        self._known[key] = answer
        # A line that was cut off stays a line of its own.
        line = ("" if self._whole else "\n") + json.dumps([key, answer]) + "\n"
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _append(self._file, line.encode())
        except OSError as error:
            _refuse(self._file, "written", error)
        self._whole = True


class Cache:
    """A folder of shelves.

    Args:
        folder: made when the first answer is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def shelf(self, weights_hash: str, protocol: object) -> Shelf:
        """The shelf of one model under one protocol (plain builtins)."""
        return Shelf(self._folder / weights_hash[:16] / f"{digest(protocol)[:24]}.jsonl")


def shelf_of(model: nn.Module, context: EvalContext, protocol: Mapping[str, str]) -> Shelf | None:
    """The shelf of `model` under `protocol` and its `conditions`; `None` where nothing is kept, or it has no name."""
    if context.cache is None or not context.weights_hash:
        return None
    return context.cache.shelf(context.weights_hash, {**protocol, **conditions(model, context.device)})


def conditions(model: nn.Module, device: str) -> dict[str, str]:
    """All on which an answer depends besides weights and request."""
    return {
        "dtype": str(getattr(model, "dtype", "")),
        "device": device.partition(":")[0],
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "architecture": _architecture(model),
    }


def _architecture(model: nn.Module) -> str:
    """sha256 of what equal weights can differ in: modules, configuration, what torchao does with activations."""
    settings: dict[str, Any] = getattr(getattr(model, "config", None), "to_dict", dict)()
    kept = {name: value for name, value in settings.items() if name not in _VOLATILE}
    packed: list[Any] = [
        (name, weight.__tensor_flatten__()[1])
        for name, weight in model.named_parameters()
        if hasattr(weight, "__tensor_flatten__")
    ]
    built = f"{model!r} {json.dumps(kept, sort_keys=True, default=str)} {packed}"
    return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", built).encode()).hexdigest()


def digest(value: object) -> str:
    """sha256 of plain builtins."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _append(file: Path, line: bytes) -> None:
    """One write at the end of the file, wherever that is by then.

    Raises:
        OSError: it cannot be opened, or the line was not written whole.
    """
    opened = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(opened, line)
    finally:
        os.close(opened)
    if written < len(line):
        raise OSError(28, "No space left on device")


def _refuse(file: Path, done: str, error: OSError) -> NoReturn:
    raise EvaluationError(
        f"The cache {file} cannot be {done} ({error.strerror}); "
        f"give --llm-cache a folder that can be written, or leave it out."
    ) from None
