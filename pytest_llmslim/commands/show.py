"""`llmslim show`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmslim.commands import examples

if TYPE_CHECKING:
    from pytest_llmslim.reports.terminal import Line
    from pytest_llmslim.run_records import Run

WHOLE = 250
"""Columns of the table where nobody's terminal ends."""


@click.command(
    "show",
    epilog=examples(
        "llmslim show llm-results",
        "llmslim show -v llm-results | less",
        "llmslim show --format csv llm-results > figures.csv",
        then="llmslim compare with another run, llmslim report for plots, or llmslim accept to make it the baseline.",
    ),
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-v", "--verbose", is_flag=True, help="Below each recipe, where every number came from.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "csv", "json"]),
    default="table",
    show_default=True,
    help="The summary as pytest printed it; the text for a pull request; all figures; or the whole run.",
)
def command(run: Path, verbose: bool, form: str) -> None:
    """Print a run: the best recipe first, and all that did not pass.

    RUN is a folder of results, its results.jsonl, a file of --llm-json, or a folder of baselines.
    """
    from pytest_llmslim import outputs, runs
    from pytest_llmslim.commands import printing

    found = runs.read(run)
    if form == "table":
        printing.show([printing.about(run, found), *_lines(run, found, verbose=verbose)])
        return
    makers = {"markdown": outputs.markdown, "csv": outputs.csv, "json": runs.export}
    click.echo(makers[form](found).rstrip("\n"))


def _lines(path: Path, run: Run, *, verbose: bool) -> list[Line]:
    from pytest_llmslim.reports import terminal
    from pytest_llmslim.runs import RESULTS

    shown = terminal.Shown(
        records=run.records,
        unmeasured=tuple((missed.label, missed.reason) for missed in run.unmeasured),
        changes=(),
        troubles=(),
        baseline=run.origin.settings.get("baseline", "baselines"),
        results=str(path) if (path / RESULTS).exists() else "",
        update=False,
        verbose=verbose,
        columns=shutil.get_terminal_size().columns if sys.stdout.isatty() else WHOLE,
        missing=run.missing,
        attributions=_attributions(run),
    )
    return terminal.lines(shown)


def _attributions(run: Run) -> tuple[str, ...]:
    if run.origin.settings.get("ablate") != "True":
        return ()
    from pytest_llmslim.ablation import attributions
    from pytest_llmslim.reports import ablation

    return tuple(ablation.lines(attributions(run.records)))
