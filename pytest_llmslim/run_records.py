"""A whole run as one frozen record: where it comes from, what it measured, with what it was compared.

Reports, the command line tool and CI work on this and on nothing else, so that all of them say the same. Its JSON
form (`encoding.to_builtins`) has a published schema, `schemas/run.schema.json`, made from these classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_llmslim.readings import Estimate
from pytest_llmslim.records import Key, Outcome, Record, worst

RUN_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a run comes from.

    Args:
        id: tells runs apart: its start, and a few random letters.
        started: UTC, ISO 8601 with seconds.
        finished: likewise; empty: it is under way, or was killed.
        command: as it was typed, e.g. `pytest suites/ --llm-profile energy`.
        commit: of the project that was tested, 40 hex digits; empty: not in git, or unknown.
        branch: likewise.
        changed: whether files that git knows differed from that commit.
        version: of pytest-llmslim.
        settings: every setting that was not the default, as text.
    """

    id: str = ""
    started: str = ""
    finished: str = ""
    command: str = ""
    commit: str = ""
    branch: str = ""
    changed: bool = False
    version: str = ""
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Missed:
    """A test of ours that measured nothing, and why."""

    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class Point:
    """The figures of one record of an earlier run, for the history of its key.

    Args:
        run: `Origin.id`, `started` and `commit` of that run.
        device: `device_of` its fingerprint.
        key: of the record.
        perplexity: estimate of the ratio candidate / reference; `time`, `energy`, `stored_bytes` likewise.
        opt: the score.
        outcome: of all verdicts.
    """

    run: str
    started: str
    commit: str
    device: str
    key: Key
    perplexity: Estimate
    time: Estimate
    energy: Estimate
    stored_bytes: Estimate
    opt: Estimate
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that is known of a run.

    Args:
        origin: where it comes from.
        records: in the order in which they were measured.
        baselines: the stored entries with which records were compared, as they were before the run.
        unmeasured: tests that gave no record.
        missing: sentences on baselines with which nothing was compared.
        interrupted: whether it did not come to its end.
        history: earlier runs of the same keys, oldest first.
        schema: of this form.
    """

    origin: Origin = Origin()
    records: tuple[Record, ...] = ()
    baselines: tuple[Record, ...] = ()
    unmeasured: tuple[Missed, ...] = ()
    missing: tuple[str, ...] = ()
    interrupted: bool = False
    history: tuple[Point, ...] = ()
    schema: int = RUN_SCHEMA

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all records."""
        return worst(verdict for record in self.records for verdict in record.verdicts)

    @property
    def devices(self) -> tuple[str, ...]:
        """On what it was measured, each once."""
        return tuple(dict.fromkeys(device_of(record.fingerprint) for record in self.records))

    @property
    def points(self) -> tuple[Point, ...]:
        """This run as history."""
        return tuple(_point(self.origin, record) for record in self.records)


def device_of(fingerprint: dict[str, str]) -> str:
    """How a machine is called in reports: its GPU where one was used, else its CPU."""
    gpu = fingerprint.get("gpu", "none")
    return gpu if gpu not in ("none", "unknown", "") else fingerprint.get("cpu", "unknown")


def _point(origin: Origin, record: Record) -> Point:
    return Point(
        run=origin.id,
        started=origin.started,
        commit=origin.commit,
        device=device_of(record.fingerprint),
        key=record.key,
        perplexity=record.perplexity,
        time=record.time,
        energy=record.energy,
        stored_bytes=record.stored_bytes,
        opt=record.opt,
        outcome=record.outcome,
    )
