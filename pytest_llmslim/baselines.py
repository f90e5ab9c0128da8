"""The store of baselines: `baselines/<model>/<suite>.json`, made for reading diffs in git.

A file is JSON with a schema number and one record a line, sorted, with sorted keys and six significant
digits. Only what a comparison needs is kept: verdicts and the losses of single windows are left out. Writing
merges and never deletes, holds a lock, and replaces the file in one step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim import units
from pytest_llmslim.encoding import from_builtins, to_builtins
from pytest_llmslim.errors import BaselineError
from pytest_llmslim.records import SCHEMA, Key, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_FORMAT: Final = "pytest-llmslim baseline"
_HEAD: Final = f'{{"format": "{_FORMAT}", "schema": {SCHEMA}, "records": [\n'
_DIGITS: Final = 6
_ANEW: Final = "restore it from version control, or delete it and write it anew with --llm-update"
_FIGURES: Final = ("perplexity", "time", "energy", "stored_bytes", "opt")


@dataclass(frozen=True, slots=True)
class Change:
    """What an update did to one figure of one record; `None`: there was or is no such number."""

    label: str
    figure: str
    old: float | None
    new: float | None
    is_new: bool = False

    def __str__(self) -> str:
        figure = self.figure.replace("_", " ")
        change = ""
        if self.old and self.new:
            change = f" ({units.percent(self.new / self.old - 1)})"
        return f"{self.label}: {figure} {units.ratio(self.old)} -> {units.ratio(self.new)}{change}"


def told(changes: Iterable[Change]) -> list[str]:
    """The changes as lines: one a figure, and one for all figures of a record that is new."""
    lines: list[str] = []
    for (label, is_new), group in groupby(changes, key=lambda change: (change.label, change.is_new)):
        if is_new:
            figures = [f"{change.figure.replace('_', ' ')} {units.ratio(change.new)}" for change in group]
            lines.append(f"{label}: new, {', '.join(figures)}")
        else:
            lines += map(str, group)
    return lines


class Store:
    """The baselines below a folder, read when first asked for.

    Args:
        directory: the folder; it need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def _records(self) -> dict[Key, Record]:
        return load_all(self.directory)

    def get(self, key: Key) -> Record | None:
        """The stored record, or `None`.

        Raises:
            BaselineError: a file is unusable (see `load_all`).
        """
        return self._records.get(key)

    def update(self, records: Iterable[Record]) -> tuple[Change, ...]:
        """Write records, each over the stored one of its key; all others stay (see `update`).

        Raises:
            BaselineError: a file is unusable or cannot be written.
        """
        self.__dict__.pop("_records", None)
        return update(self.directory, records)


def path_of(directory: Path, key: Key) -> Path:
    """Where records of a key's model and suite are."""
    return directory / units.safe_file_name(key.model) / f"{units.safe_file_name(key.suite)}.json"


def load_all(directory: Path) -> dict[Key, Record]:
    """Every stored record; none where the folder does not exist.

    Raises:
        BaselineError: a file that is unreadable, truncated, of a newer schema, not ours or in the wrong
            place; the sentence names file, line and remedy.
    """
    if directory.exists() and not directory.is_dir():
        raise BaselineError(
            f"baselines are in a folder, got the file {directory}; give a folder with --llm-baseline"
        )
    found: dict[Key, Record] = {}
    for path in sorted(directory.glob("*/*.json")):
        found |= _load(directory, path)
    return found


def update(directory: Path, records: Iterable[Record]) -> tuple[Change, ...]:
    """Merge records into the store, and say what changed. Two writers at once lose nothing.

    Raises:
        BaselineError: a file is unusable or cannot be written; files before it may have been written.
        ValueError: a record holds NaN; nothing was written.
    """
    by_path: dict[Path, list[Record]] = {}
    for record in records:
        _line(record)  # fails before anything is written
        by_path.setdefault(path_of(directory, record.key), []).append(record)
    changes: list[Change] = []
    for path, group in sorted(by_path.items()):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent):
                changes += _merge(directory, path, group)
        except OSError as error:
            raise BaselineError(
                f"{path} cannot be written ({error.strerror}); see to its rights and space"
            ) from error
    return tuple(changes)


def _merge(directory: Path, path: Path, records: list[Record]) -> list[Change]:
    stored = _load(directory, path) if path.exists() else {}
    kept = dict(stored)
    changes: list[Change] = []
    for record in records:
        kept[record.key] = from_builtins(Record, json.loads(_line(record)))
        changes += _changes(stored.get(record.key), kept[record.key])
    text = _text(kept)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        _write(path, text)
    return changes


def _changes(old: Record | None, new: Record) -> Iterator[Change]:
    for figure in _FIGURES:
        value = getattr(new, figure).value
        before = getattr(old, figure).value if old else None
        if value != before:
            yield Change(new.label, figure, before, value, is_new=old is None)


# Text -------------------------------------------------------------------------------------------------------


def _text(records: dict[Key, Record]) -> str:
    lines = [_line(records[key]) for key in sorted(records, key=dataclasses.astuple)]
    return _HEAD + ",\n".join(lines) + "\n]}\n"


def _line(record: Record) -> str:
    samples = replace(record.samples, nll_difference=(), window_tokens=())
    stored = to_builtins(replace(record, samples=samples, verdicts=()))
    return json.dumps(_rounded(stored), sort_keys=True, ensure_ascii=False)


def _rounded(value: Any) -> Any:  # noqa: ANN401  # the JSON value type is recursive
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


# Reading ----------------------------------------------------------------------------------------------------


def _load(directory: Path, path: Path) -> dict[Key, Record]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BaselineError(f"{path} is no UTF-8 text; {_ANEW}") from None
    except OSError as error:
        raise BaselineError(f"{path} cannot be read ({error.strerror}); see to its rights") from error
    found: dict[Key, Record] = {}
    for position, entry in enumerate(_entries(path, text)):
        try:
            record = from_builtins(Record, entry)
        except ValueError as error:
            raise BaselineError(f"{_where(path, text, position)}: {error}; {_ANEW}") from None
        if path_of(directory, record.key) != path or record.key in found:
            raise BaselineError(f"{_where(path, text, position)} {_misplaced(directory, path, record.key)}")
        found[record.key] = record
    return found


def _misplaced(directory: Path, path: Path, key: Key) -> str:
    right = path_of(directory, key)
    if right != path:
        return f"belongs to {right}; move it there, or delete the line"
    return "has the same test, model and recipe as a line above; delete one of them"


def _entries(path: Path, text: str) -> list[object]:
    """The records of a file as builtins, once its frame is in order."""
    try:
        frame = json.loads(text)
    except json.JSONDecodeError as error:
        raise BaselineError(_broken(path, text, error)) from None
    except (RecursionError, ValueError):
        raise BaselineError(f"{path} is no baseline of pytest-llmslim; move it away, or {_ANEW}") from None
    ours = (
        isinstance(frame, dict) and frame.get("format") == _FORMAT and isinstance(frame.get("records"), list)
    )
    schema = frame.get("schema") if ours else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BaselineError(f"{path} is no baseline of pytest-llmslim; move it away, or {_ANEW}")
    if schema > SCHEMA:
        raise BaselineError(
            f"{path} has schema {schema}, and this version of pytest-llmslim reads up to {SCHEMA}; "
            "upgrade pytest-llmslim"
        )
    entries: list[object] = frame["records"]
    return entries


def _broken(path: Path, text: str, error: json.JSONDecodeError) -> str:
    lines = text.splitlines()
    conflict = next((n for n, line in enumerate(lines, 1) if line.startswith(("<<<<<<< ", ">>>>>>> "))), None)
    if conflict:
        return f"{path}, line {conflict}, has a merge conflict; keep one side of it, or {_ANEW}"
    begun = text.startswith(_HEAD) or _HEAD.startswith(text)
    if begun and not text.rstrip().endswith("]}"):
        return f"{path}, line {max(1, len(lines))}, ends in the middle; {_ANEW}"
    return f"{path}, line {error.lineno}, is no JSON ({error.msg}); {_ANEW}"


def _where(path: Path, text: str, position: int) -> str:
    """File and line of a record, as long as the file has one record a line."""
    line = position + 2
    one_a_line = text.count("\n", 0, len(text.rstrip())) == text.count("\n{") + 1
    return f"{path}, line {line}" if one_a_line else f"{path}, record {position + 1}"


# Writing ----------------------------------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    """Replace a file in one step: readers see the old text or the new one."""
    temporary = path.with_name(f".{path.stem[:80]}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other writers of this folder out. The lock is on the folder itself: no file is left behind.

    Windows cannot lock a folder; there two writers at once may lose one's lines.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
