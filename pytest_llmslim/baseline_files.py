"""Files of the store of baselines: where they are, how they are read, refused and replaced.

A suite has two: `<suite>.json` with the entries that updates write, and `<suite>.anchor.json` with the first
accepted entry of each key that has been updated since. Both are JSON with a schema number and one record a
line, sorted, with sorted keys and six significant digits. Only what a comparison needs is kept: verdicts, the
losses of single windows and the texts of questions are left out, and of evaluations all but metric and answers.

A line has a digest of itself, so that `llmslim check` finds those that were edited by hand. It is of the line, since
git merges files line by line. Reading a file does not ask for it; writing one gives a digest to new lines alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim import units
from pytest_llmslim.encoding import from_builtins, to_builtins
from pytest_llmslim.errors import BaselineError
from pytest_llmslim.records import SCHEMA, Key, Record, unmeasured

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from pytest_llmslim.records import Evaluation

_FORMAT: Final = "pytest-llmslim baseline"
_HEAD: Final = f'{{"format": "{_FORMAT}", "schema": {SCHEMA}, "records": [\n'
_DIGITS: Final = 6
_DIGEST: Final = "digest"
_ADDED: Final = ("evaluations", "quality", "accepted")
_ANEW: Final = "restore it from version control, or delete it and write it anew with --llm-update"
_RESTORE: Final = (
    "restore it from version control, or measure again and accept with --llm-update or llmslim accept (an anchor, "
    "which an edited entry may have left, with --llm-anchor or --anchor too)"
)
_ANCHOR: Final = ".anchor"
_LIKE_AN_ANCHOR: Final = re.compile(r"\.anchor_*", re.IGNORECASE)


# Places -----------------------------------------------------------------------------------------------------


def path_of(directory: Path, key: Key) -> Path:
    """Where entries of a key's model and suite are."""
    return directory / units.safe_file_name(key.model) / f"{_suite(key)}.json"


def anchor_path_of(directory: Path, key: Key) -> Path:
    """Where anchors of a key's model and suite are."""
    return directory / units.safe_file_name(key.model) / f"{_suite(key)}{_ANCHOR}.json"


def is_anchor(path: Path) -> bool:
    """Whether a file holds anchors."""
    return path.stem.endswith(_ANCHOR)


def _suite(key: Key) -> str:
    """A suite's file name, which never looks like another suite's anchors.

    The module `x.anchor` is kept in `x.anchor_.json`, and `x.anchor_` in `x.anchor__.json`: no two ever meet.
    """
    name = units.safe_file_name(key.suite)
    last = name[name.rfind(".") :] if "." in name else ""
    return f"{name}_" if _LIKE_AN_ANCHOR.fullmatch(last) else name


# Text -------------------------------------------------------------------------------------------------------


def as_stored(record: Record) -> Record:
    """The record as it comes back from a file.

    Raises:
        ValueError: it holds NaN.
    """
    return from_builtins(Record, _entry(record))


def _text(records: Mapping[Key, Record], edited: Collection[Key]) -> str:
    lines = [
        _line(_entry(records[key]), edited=key in edited) for key in sorted(records, key=dataclasses.astuple)
    ]
    return _HEAD + ",\n".join(lines) + "\n]}\n"


def _line(entry: dict[str, Any], *, edited: bool) -> str:
    return _canonical(entry if edited else {**entry, _DIGEST: digest_of(entry)})


def _canonical(entry: dict[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, ensure_ascii=False)


def digest_of(entry: dict[str, Any]) -> str:
    """The first 16 hex digits of the SHA-256 of a line, its digest left out."""
    rest = {name: value for name, value in entry.items() if name != _DIGEST}
    return hashlib.sha256(_canonical(rest).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _entry(record: Record) -> dict[str, Any]:
    samples = replace(record.samples, nll_difference=(), window_tokens=(), kl=(), kl_by_position=())
    evaluations = tuple(_bare(each) for each in record.evaluations if each.metric)
    stored = to_builtins(replace(record, samples=samples, verdicts=(), evaluations=evaluations))
    # Without evaluations a line is what it was before there were any.
    stored = {name: value for name, value in stored.items() if value or name not in _ADDED}
    del stored["samples"]["kl_by_position"]
    entry: dict[str, Any] = _rounded(stored)
    return entry


def _bare(evaluation: Evaluation) -> Evaluation:
    """Without what no comparison needs, and what differs from run to run."""
    seconds = unmeasured("s", "none", "not stored")
    bare = replace(evaluation, figures=(), worst=(), tokens=0, seconds=seconds, notes=())
    # A later run has its own reference, whose answers are the same or not comparable.
    return replace(bare, reference_right="")


def _rounded(value: Any) -> Any:  # noqa: ANN401  # the JSON value type is recursive
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


# Reading ----------------------------------------------------------------------------------------------------


def load(directory: Path, path: Path) -> dict[Key, Record]:
    """The records of one file below `directory`; none where there is no file.

    Raises:
        BaselineError: it is unreadable, truncated, of a newer schema, not ours, or holds a record that belongs
            elsewhere; the sentence names file, line and remedy.
    """
    return {record.key: record for _, _, record in _read(directory, path)}


def edited(directory: Path, path: Path) -> dict[Key, str]:
    """The lines of one file below `directory` that have another digest than theirs, or none, a sentence each.

    Raises:
        BaselineError: as of `load`.
    """
    found = {}
    for where, entry, record in _read(directory, path):
        stored, right = entry.get(_DIGEST), digest_of(entry)
        if stored != right:
            how = "has no digest" if stored is None else f"was edited by hand (digest {stored}, now {right})"
            found[record.key] = f"{where}, {record.label} in {record.key.test}, {how}; {_RESTORE}."
    return found


def _read(directory: Path, path: Path) -> Iterator[tuple[str, dict[str, Any], Record]]:
    """Of each record its place in words, the line as it stands, and the record."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except UnicodeDecodeError:
        raise BaselineError(f"{path} is no UTF-8 text; {_ANEW}") from None
    except OSError as error:
        raise BaselineError(f"{path} cannot be read ({error.strerror}); see to its rights") from error
    known = set()
    for position, entry in enumerate(_entries(path, text)):
        where = _where(path, text, position)
        record = _decoded(entry, where)
        right = (anchor_path_of if is_anchor(path) else path_of)(directory, record.key)
        if right != path:
            raise BaselineError(f"{where} belongs to {right}; move it there, or delete the line")
        if record.key in known:
            raise BaselineError(
                f"{where} has the same test, model and recipe as a line above; delete one of them"
            )
        known.add(record.key)
        yield where, entry, record


def _decoded(entry: Any, where: str) -> Record:  # noqa: ANN401  # whatever JSON holds
    bare = (
        {name: value for name, value in entry.items() if name != _DIGEST}
        if isinstance(entry, dict)
        else entry
    )
    try:
        return from_builtins(Record, bare)
    except ValueError as error:
        raise BaselineError(f"{where}: {error}; {_ANEW}") from None


def _entries(path: Path, text: str) -> list[Any]:
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
    entries: list[Any] = frame["records"]
    return entries


def _broken(path: Path, text: str, error: json.JSONDecodeError) -> str:
    lines = text.splitlines()
    conflict = next((n for n, line in enumerate(lines, 1) if line.startswith(("<<<<<<< ", ">>>>>>> "))), None)
    if conflict:
        return f"{path}, line {conflict}, has a merge conflict; keep one side of it, or {_ANEW}"
    begun = any(text.startswith(head) or head.startswith(text) for head in _heads())
    if begun and not text.rstrip().endswith("]}"):
        return f"{path}, line {max(1, len(lines))}, ends in the middle; {_ANEW}"
    return f"{path}, line {error.lineno}, is no JSON ({error.msg}); {_ANEW}"


def _heads() -> Iterator[str]:
    """First lines of this and every earlier schema."""
    return (_HEAD.replace(f": {SCHEMA},", f": {schema},") for schema in range(1, SCHEMA + 1))


def _where(path: Path, text: str, position: int) -> str:
    """File and line of a record, as long as the file has one record a line."""
    line = position + 2
    one_a_line = text.count("\n", 0, len(text.rstrip())) == text.count("\n{") + 1
    return f"{path}, line {line}" if one_a_line else f"{path}, record {position + 1}"


# Writing ----------------------------------------------------------------------------------------------------


def write(path: Path, records: Mapping[Key, Record], edited: Collection[Key] = ()) -> None:
    """Replace a file in one step: readers see the old text or the new one. Without records it is removed.

    Args:
        path: of the file.
        records: all that it is to hold.
        edited: keys of those that get no digest, since what was edited by hand is not made good by a neighbour.

    Raises:
        BaselineError: the system refuses, e.g. since the disk is full; the file is then as it was.
    """
    text = _text(records, edited)
    try:
        if not records:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            _replace(path, text)
    except OSError as error:
        raise refusal(path, error) from error


def refusal(path: Path, error: OSError) -> BaselineError:
    """That a file cannot be written, and why."""
    return BaselineError(f"{path} cannot be written ({error.strerror}); see to its rights and space")


def _replace(path: Path, text: str) -> None:
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
def locked(directory: Path) -> Iterator[None]:
    """Keep other writers of this folder out. The lock is on the folder itself: no file is left behind.

    Windows cannot lock a folder; there two writers at once may lose one's lines.

    Raises:
        OSError: the folder cannot be opened.
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
