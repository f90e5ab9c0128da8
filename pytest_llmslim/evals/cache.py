"""What models answered, kept in a folder: the reference is asked once, and an interrupted run goes on.

One JSON line a request, appended as soon as it is answered, in a file per model, protocol and data; a line that was
cut off by a kill is passed over.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Shelf:
    """Answers of one model under one protocol, by request.

    Args:
        file: where they are.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Any] = {}
        if file.exists():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
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
        """Keep `answer` (plain builtins) to `request`, on disk before this returns."""
        key = digest(request)
        self._known[key] = answer
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, answer]) + "\n")


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


def digest(value: object) -> str:
    """sha256 of plain builtins."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
