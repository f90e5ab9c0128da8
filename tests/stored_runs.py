"""Runs on disk, for tests of what reads them: the files that a test run leaves, made of sample records."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from sample_records import KEY, record

from pytest_llmslim import runs
from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.run_records import Origin, Run

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmslim.records import Record

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STARTED = "2026-11-20T10:00:00Z"


def origin(**fields: Any) -> Origin:
    """Of a run that came to its end, at a commit of the branch main."""
    whole = Origin(
        id="20261120T100000Z-beef",
        started=STARTED,
        finished="2026-11-20T10:05:00Z",
        command="pytest",
        commit=COMMIT,
        branch="main",
        version="0.1.0",
    )
    return dataclasses.replace(whole, **fields)


def named(recipe: str, **fields: Any) -> Record:
    """A record of another recipe."""
    label = f"{recipe} on {KEY.model}"
    return record(key=dataclasses.replace(KEY, recipe=recipe), label=label, **fields)


def store(folder: Path, *records: Record, **fields: Any) -> Path:
    """A folder of results as a test run leaves it; `fields` are of the run."""
    run = Run(records=records, **({"origin": origin()} | fields))
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(to_builtins(each), sort_keys=True) + "\n" for each in records]
    (folder / runs.RESULTS).write_text("".join(lines))
    (folder / runs.RUN).write_text(runs.rest_of(run))
    return folder
