"""`llmslim report`."""

from __future__ import annotations

from pathlib import Path

import click

from pytest_llmslim.commands import examples


@click.command(
    "report",
    epilog=examples(
        "llmslim report llm-results",
        "llmslim report results-cpu results-h200 -o devices.html",
        "llmslim report old/* llm-results -o report.html",
        then="open the file in a browser; it needs no network and no server.",
    ),
)
@click.argument("run", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The file to write; one that is there is replaced.",
)
@click.option("--title", default="", metavar="TEXT", help="Stands at the top; without it, pytest-llmslim.")
def command(run: tuple[Path, ...], output: Path, title: str) -> None:
    """Write one HTML report of one run, or of several.

    Of each device the last RUN is shown, and the earlier ones are its history; runs on several devices stand side by
    side.
    """
    from pytest_llmslim import outputs, runs
    from pytest_llmslim.commands import printing
    from pytest_llmslim.errors import RunError

    found = [runs.read(path) for path in run]
    if not any(each.records for each in found):
        raise RunError(
            f"{run[0]} has no record, so that there is nothing to report; measure first, with pytest."
        )
    whole = runs.merged(runs.latest(found))
    printing.write(output, outputs.html(whole, title))
    records = f"{len(whole.records)} record{'s' * (len(whole.records) != 1)}"
    devices = f", {len(whole.devices)} devices" if len(whole.devices) > 1 else ""
    earlier = len({point.run for point in whole.history})
    history = f", {earlier} earlier run{'s' * (earlier != 1)}" if earlier else ""
    click.echo(f"report: {output} ({records}{devices}{history})")
