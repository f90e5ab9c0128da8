"""`llmslim accept`."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmslim.commands import examples

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.baselines import Store
    from pytest_llmslim.records import Record
    from pytest_llmslim.run_records import Run


@click.command(
    "accept",
    epilog=examples(
        'llmslim accept llm-results --reason "int4 with group size 32: smaller, and 0.4 % worse"',
        'llmslim accept llm-results --reason "new machine" --only "int4*" --dry-run',
        'llmslim accept llm-results --reason "all small losses of this year are agreed" --anchor',
        then="commit the baselines together with what changed them; the next pytest compares with them.",
    ),
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--reason", default="", metavar="TEXT", help="Why this is right; it is stored with each baseline."
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the baselines are; without it, where the run had them.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Accept only what has this recipe, model or test, e.g. 'int4*'; repeatable.",
)
@click.option("--anchor", is_flag=True, help="Also start anew to count small losses, from this run on.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and write nothing.")
def command(
    run: Path, reason: str, baseline: Path | None, only: tuple[str, ...], anchor: bool, dry_run: bool
) -> None:
    """Make a run the baselines, with a reason.

    What was measured is written as --llm-update would have written it, without measuring again; every figure is
    printed, old -> new. Baselines of other tests, models and recipes stay.
    """
    from pytest_llmslim import runs
    from pytest_llmslim.baselines import Store, told
    from pytest_llmslim.commands import printing
    from pytest_llmslim.errors import RunError

    if not reason.strip():
        raise RunError('accepting needs --reason, e.g. --reason "group size 32: smaller, and 0.4 % worse"')
    found = runs.read(run)
    _refuse(run, found)
    picked = _picked(found.records, only)
    store = Store(baseline or Path(found.origin.settings.get("baseline", "baselines")))
    if found.baselines and baseline is None and not store.directory.exists():
        raise RunError(
            f"there is no folder {store.directory} here, and {run} was compared with baselines; go to the folder in "
            "which it was measured, or give --baseline"
        )
    accepted = [_accepted(record, found, reason.strip()) for record in picked]
    new = [each for each in accepted if anchor or not _is_there(store, each)]
    warnings = [*_warnings(picked), *([] if anchor else _still_red(store, new, found))]
    changes = told(store.update(new, anchor=anchor, dry_run=dry_run))
    printing.show([printing.about(run, found), *((f"  {line}", ()) for line in changes)])
    if len(new) < len(picked):
        click.echo(f"  {len(picked) - len(new)} of {len(picked)} were these baselines already")
    for sentence in warnings:
        printing.warn(sentence)
    if not new:
        click.echo(f"nothing to accept into {store.directory}")
    elif dry_run:
        click.echo(f"nothing was written: {len(new)} would be accepted into {store.directory}")
    else:
        click.echo(f"{len(new)} accepted into {store.directory}: {len(changes)} changes")
        click.echo(f"next: commit {store.directory} with what changed it")


def _refuse(path: Path, run: Run) -> None:
    from pytest_llmslim.errors import RunError

    if run.interrupted:
        raise RunError(
            f"{path} did not come to its end (it was interrupted, is still running, or its run.json is missing), and "
            "half of it may not be meant; let a run end, or name the tests that are to be accepted"
        )
    if not run.origin.finished:
        raise RunError(
            f"{path} is no run that was measured, so that nothing says where it comes from; give a run"
        )
    if run.origin.settings.get("ablate") == "True":
        raise RunError(
            f"{path} was measured with --llm-ablate, whose parts of recipes have no baselines; run without it"
        )


def _picked(records: Sequence[Record], patterns: Sequence[str]) -> list[Record]:
    """The records that a pattern names; all without patterns.

    Raises:
        RunError: there is none, a pattern names none, or in one of them nothing was compressed.
    """
    from pytest_llmslim.errors import RunError

    for pattern in patterns:
        if not any(_named(record, pattern) for record in records):
            known = ", ".join(sorted({record.key.recipe for record in records}))
            raise RunError(
                f"--only {pattern} is no recipe, model or test of the run; its recipes are: {known}"
            )
    found = [record for record in records if not patterns or any(_named(record, each) for each in patterns)]
    if not found:
        raise RunError(
            "the run measured nothing, so that there is nothing to accept; measure first, with pytest"
        )
    for record in found:
        if record.integrity.status == "nothing":
            raise RunError(
                f"{record.label}: nothing was compressed, which is no baseline "
                f"({record.integrity.sentence.rstrip('.')}); mend the recipe, or leave it out with --only"
            )
    return found


def _named(record: Record, pattern: str) -> bool:
    key = record.key
    return any(fnmatchcase(name, pattern) for name in (key.recipe, key.model, key.test))


def _accepted(record: Record, run: Run, reason: str) -> Record:
    """The record as it is stored: with what is noted where a run updates, too."""
    from pytest_llmslim.conditions import BUSY_BASELINE, busier
    from pytest_llmslim.origin import now
    from pytest_llmslim.records import Accepted

    notes = dict.fromkeys((*record.notes, *([BUSY_BASELINE] if busier(record, None) else [])))
    accepted = Accepted(reason, run.origin.commit, run.origin.id, now())
    return replace(record, accepted=accepted, notes=tuple(notes))


def _is_there(store: Store, record: Record) -> bool:
    """Whether the stored entry is this measurement, whoever accepted it."""
    from pytest_llmslim.baseline_files import as_stored

    stored = store.get(record.key)
    return stored is not None and replace(stored, accepted=None) == replace(as_stored(record), accepted=None)


def _warnings(records: Iterable[Record]) -> list[str]:
    """What makes a baseline a poor one, or does not end with accepting."""
    from pytest_llmslim.conditions import BUSY_BASELINE, busier

    out = dict.fromkeys(
        f"{record.label}: time is not measured and will not be compared ({record.time.reason.rstrip('.')})"
        for record in records
        if record.time.method == "unmeasured"
    )
    busy = [record.label for record in records if busier(record, None)]
    if busy:
        out[f"{', '.join(busy)}: {BUSY_BASELINE}"] = None
    failed = [
        v.sentence for r in records for v in r.verdicts if (v.outcome, v.against) == ("failed", "threshold")
    ]
    out |= dict.fromkeys(
        f"accepting leaves this limit of its test as it is: {sentence}" for sentence in failed
    )
    return list(out)


def _still_red(store: Store, records: Iterable[Record], run: Run) -> list[str]:
    """What the next run will fail on all the same: a loss that is too large for one step, or for the sum of all."""
    from pytest_llmslim.baseline_files import as_stored
    from pytest_llmslim.commands.limits import limits_of
    from pytest_llmslim.gate import Thresholds, decide

    out, limits = [], limits_of(run)
    for record in records:
        # An entry that is replaced for the first time becomes the anchor.
        first = store.anchor(record.key) or store.get(record.key)
        verdicts = decide(record, Thresholds(), as_stored(record), anchor=first, limits=limits)
        out += [
            f"the next run will fail all the same, unless you accept with --anchor: {verdict.sentence}"
            for verdict in verdicts
            if (verdict.outcome, verdict.against) == ("failed", "anchor")
        ]
    return out
