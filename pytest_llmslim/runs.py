"""Stored runs: a folder of results, its `results.jsonl`, a JSON export, or a folder of baselines, read as a `Run`.

A run's folder has `results.jsonl` (one record a line, written as soon as it is measured), `run.json` (everything else
of the run) and `history.jsonl` (the figures of the runs before it, one record a line).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from pytest_llmslim.baselines import load_all
from pytest_llmslim.encoding import from_builtins, to_builtins
from pytest_llmslim.errors import BaselineError, RunError
from pytest_llmslim.records import Record
from pytest_llmslim.run_records import RUN_SCHEMA, Point, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

T = TypeVar("T")

RESULTS: Final = "results.jsonl"
RUN: Final = "run.json"
HISTORY: Final = "history.jsonl"
KEPT: Final = 50
"""Runs of a key that its history keeps."""
_MADE: Final = (
    "a run is a folder of results (llm-results), its results.jsonl, a file of --llm-json, or baselines"
)


class Lines(NamedTuple):
    """What a file of records held; `torn`: its last line was cut off, as when a writer was killed."""

    records: tuple[Any, ...]
    torn: bool


def read(path: Path) -> Run:
    """A stored run, whatever form it is in.

    Raises:
        RunError: there is none, or it cannot be read; with file, line and remedy.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise RunError(f"{path} does not exist; {_MADE}.")
    if path.suffix == ".jsonl":
        beside = _rest(path.parent) if path.name == RESULTS else Run(interrupted=True)
        return replace(beside, records=read_lines(path, Record).records)
    if path.name == RUN and (path.parent / RESULTS).exists():
        return _folder(path.parent)  # by itself it has no records
    return _export(path)


def read_lines(path: Path, kind: type[T]) -> Lines:
    """One record of class `kind` a line; a last line that was cut off is left out.

    Raises:
        RunError: the file cannot be read, or another line is no such record.
    """
    text = _text(path)
    found: list[T] = []
    # Not splitlines: strings may hold its other ends.
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, 1):
        try:
            found.append(from_builtins(kind, json.loads(line)))
        except ValueError as error:
            if number == len(lines) and not text.endswith("\n"):
                return Lines(tuple(found), torn=True)
            raise RunError(
                f"{path}, line {number}, is no {kind.__name__.lower()} of pytest-llmslim ({error}); delete the line, "
                "or measure again."
            ) from None
    return Lines(tuple(found), torn=False)


def line_of(record: Record | Point) -> str:
    """A record as it stands in `results.jsonl`, or a point in `history.jsonl`."""
    return json.dumps(to_builtins(record), sort_keys=True) + "\n"


def rest_of(run: Run) -> str:
    """The text of `run.json`: the run without its records and history, which have files of their own."""
    return json.dumps(to_builtins(replace(run, records=(), history=())), indent=1, sort_keys=True) + "\n"


def export(run: Run) -> str:
    """The whole run as one JSON document, which `read` reads back."""
    return json.dumps(to_builtins(run), indent=1, sort_keys=True) + "\n"


def with_history(known: Iterable[Point], new: Iterable[Point]) -> tuple[Point, ...]:
    """Points of a key in the order of time, each run once, the last `KEPT` of a key and device."""
    points = {(point.run, point.key): point for point in (*known, *new)}
    found: dict[tuple[object, str], list[Point]] = {}
    for point in sorted(points.values(), key=lambda point: point.started):
        found.setdefault((point.key, point.device), []).append(point)
    kept = [point for points in found.values() for point in points[-KEPT:]]
    return tuple(sorted(kept, key=lambda point: point.started))


def latest(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Of each device the last run, with the earlier ones among its history; in the order of the devices.

    A run without a start (a bare `results.jsonl`, baselines) counts as the oldest; of equal ones the last given wins.
    """
    found: dict[frozenset[str], Run] = {}
    for run in sorted(runs, key=lambda run: run.origin.started):
        devices = frozenset(run.devices)
        earlier = found.get(devices)
        points = () if earlier is None else (*earlier.history, *earlier.points)
        found[devices] = replace(run, history=with_history(points, run.history))
    return tuple(found.values())


def merged(runs: Sequence[Run]) -> Run:
    """Runs on several devices as one: all records, in order; the origin is the newest."""
    newest = max(runs, key=lambda run: run.origin.started)
    return replace(
        newest,
        records=tuple(record for run in runs for record in run.records),
        baselines=tuple(record for run in runs for record in run.baselines),
        unmeasured=tuple(dict.fromkeys(missed for run in runs for missed in run.unmeasured)),
        missing=tuple(dict.fromkeys(sentence for run in runs for sentence in run.missing)),
        interrupted=any(run.interrupted for run in runs),
        history=with_history((), (point for run in runs for point in run.history)),
    )


# Forms ------------------------------------------------------------------------------------------------------


def _folder(path: Path) -> Run:
    if (path / RESULTS).exists():
        return replace(_rest(path), records=read_lines(path / RESULTS, Record).records)
    try:
        stored = load_all(path)
    except BaselineError as error:
        raise RunError(f"{error}.") from None
    if not stored.rolling:
        raise RunError(f"{path} has neither {RESULTS} nor baselines; {_MADE}.")
    return Run(records=tuple(stored.rolling.values()))


def _rest(folder: Path) -> Run:
    """What stands beside the records; a run that was killed early, or copied by its records alone, has nothing."""
    run = _export(folder / RUN) if (folder / RUN).exists() else Run(interrupted=True)
    history = folder / HISTORY
    points = read_lines(history, Point).records if history.exists() else ()
    return replace(run, history=tuple(point for point in points if point.run != run.origin.id))


def _export(path: Path) -> Run:
    text = _text(path)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RunError(f"{path} is no JSON ({error}); {_MADE}.") from None
    schema = found.get("schema") if isinstance(found, dict) and "origin" in found else None
    if not isinstance(schema, int):
        raise RunError(f"{path} is no run of pytest-llmslim; {_MADE}.")
    if schema > RUN_SCHEMA:
        raise RunError(
            f"{path} has schema {schema}, and this version of pytest-llmslim reads up to {RUN_SCHEMA}; "
            "upgrade pytest-llmslim."
        )
    try:
        return from_builtins(Run, found)
    except ValueError as error:
        raise RunError(f"{path}: {error}; measure again.") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RunError(f"{path} is no UTF-8 text; {_MADE}.") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); see to its rights.") from None
