"""`llmslim doctor`."""

from __future__ import annotations

import dataclasses
import importlib
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pytest_llmslim.commands import examples, ini_files
from pytest_llmslim.commands.findings import Finding, answer
from pytest_llmslim.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_llmslim.commands.findings import Probe

Groups = dict[str, tuple[Finding, ...]]
WIDTH: Final = 110
SCHEMA: Final = 1


@click.command(
    "doctor",
    epilog=examples(
        "llmslim doctor",
        "llmslim doctor path/to/project --format json",
        then="do what stands behind ->, from the top on; then pytest.",
    ),
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="For a terminal, or another program.",
)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".")
@click.pass_context
def command(ctx: click.Context, form: str, directory: Path) -> None:
    """Say what this machine can measure, what is missing, and how to get it.

    Devices, energy meters from the best on, clocks, other work on the machine, optional packages, data, and the
    project in DIRECTORY (here, without one): its settings, and whether cost can be compared with its baselines on this
    machine. Nothing is changed, and no model is loaded. It takes some seconds. Exit code 1: something that every run
    needs is missing.
    """
    groups = examined(directory.resolve())
    ready = is_ready(groups)
    click.echo(as_json(groups) if form == "json" else as_text(groups))
    ctx.exit(0 if ready else 1)


def examined(folder: Path) -> Groups:
    """What all probes find, by title; each is asked though others fail."""
    from pytest_llmslim.commands import machine_probes, project_probes

    found = _asked(project_probes.before())
    device = _device(folder)
    found |= _asked(machine_probes.probes(device))
    # A run takes the last meter that was looked at, if one works at all.
    last = next(reversed(next(group for title, group in found.items() if title.startswith("energy"))), None)
    source = "none" if last is None or last.state == "missing" else last.name.partition(",")[0]
    return found | _asked(project_probes.after(folder, device, source))


def is_ready(groups: Groups) -> bool:
    """Whether a run can be made."""
    return not _obstacles(groups)


def as_json(groups: Groups) -> str:
    """All findings as one JSON document."""
    findings = [
        {"group": title, **dataclasses.asdict(finding)}
        for title, group in groups.items()
        for finding in group
    ]
    document = {"schema": SCHEMA, "ready": is_ready(groups), "findings": findings}
    return json.dumps(document, indent=1, ensure_ascii=False)


def as_text(groups: Groups) -> str:
    """All findings for a terminal: the answer first, then a line each, and what to do below it."""
    return "\n".join(_lines(groups))


def _asked(groups: Mapping[str, tuple[Probe, ...]]) -> Groups:
    return {
        title: tuple(found for probe in probes for found in answer(probe)) for title, probes in groups.items()
    }


def _device(folder: Path) -> str:
    """The device that a run would take; `cpu` where that cannot be told."""
    try:
        wanted = ini_files.resolved(folder).device
    except SettingError:
        wanted = "auto"
    if wanted != "auto":
        return wanted
    try:
        return "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"
    except Exception:  # told of by the probe of torch
        return "cpu"


def _obstacles(groups: Groups) -> list[Finding]:
    return [found for group in groups.values() for found in group if found.needed and found.state != "ok"]


def _lines(groups: Groups) -> Iterator[str]:
    obstacles = _obstacles(groups)
    if obstacles:
        yield f"No run can be made here: {'; '.join(found.sentence for found in obstacles)}."
    else:
        yield "A run can be made here."
    for title, group in groups.items():
        yield ""
        yield title
        width = max((len(found.name) for found in group), default=0)
        for found in group:
            yield from _wrapped(f"  {found.state:<8} {found.name:<{width}}  ", found.sentence)
            if found.step:
                yield from _wrapped(" " * (13 + width) + "-> ", found.step)


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
