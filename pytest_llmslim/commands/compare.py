"""`llmslim compare`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pytest_llmslim.commands import examples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.comparison import Compared
    from pytest_llmslim.reports.terminal import Line
    from pytest_llmslim.run_records import Run

PATH = click.Path(path_type=Path)


@click.command(
    "compare",
    epilog=examples(
        "llmslim compare main-results llm-results",
        "llmslim compare baselines llm-results --fail",
        "llmslim compare main-results llm-results --format markdown -o comment.md",
        then='mend what is worse, or accept it: llmslim accept RUN_B --reason "why that is right".',
    ),
)
@click.argument("run_a", type=PATH)
@click.argument("run_b", type=PATH)
@click.option("--fail", is_flag=True, help="Exit with 1 on a regression, or where nothing could be compared.")
@click.option(
    "--strict", is_flag=True, help="Also on what is inconclusive, not comparable or gone; implies --fail."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "json"]),
    default="text",
    show_default=True,
    help="For a terminal, a pull request, or another program.",
)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write it there instead of printing it.")
@click.option(
    "--quality-regression", metavar="PCT", help="A larger increase of perplexity is a regression, e.g. 1%."
)
@click.option("--regression", metavar="PCT", help="A larger increase of time, energy or opt is one, e.g. 2%.")
@click.option("--resolve", metavar="PCT", help="The largest increase of those that may be missed, e.g. 10%.")
def command(
    run_a: Path,
    run_b: Path,
    fail: bool,
    strict: bool,
    form: str,
    output: Path | None,
    quality_regression: str | None,
    regression: str | None,
    resolve: str | None,
) -> None:
    """Compare two runs by the rules of the gate, regressions first.

    RUN_A stands where the baselines stand in a test run: the sentences call it the baseline. Each is a folder of
    results, its results.jsonl, a file of --llm-json, or a folder of baselines. Limits that are not given are those of
    RUN_B.
    """
    from pytest_llmslim import comparison, runs
    from pytest_llmslim.commands import printing
    from pytest_llmslim.commands.limits import limits_of

    old, new = runs.read(run_a), runs.read(run_b)
    limits = limits_of(new, quality_regression, regression, resolve)
    found = comparison.two_runs(old.records, new.records, limits)
    shown = _lines((run_a, old), (run_b, new), found, wide=output is not None) if form == "text" else []
    if output is not None:
        text = "\n".join(line for line, _ in shown) if form == "text" else _text(form, old, new, found)
        printing.write(output, text.rstrip("\n") + "\n")
        click.echo(f"comparison: {output}")
    elif form == "text":
        printing.show(shown)
    else:
        click.echo(_text(form, old, new, found).rstrip("\n"))
    if fail or strict:
        _end(found, strict=strict)


def _lines(
    old: tuple[Path, Run], new: tuple[Path, Run], found: Sequence[Compared], *, wide: bool
) -> list[Line]:
    from pytest_llmslim.commands import printing
    from pytest_llmslim.reports import two_runs

    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() and not wide else sys.maxsize
    heads = [printing.about(path, run, name) for name, (path, run) in (("RUN_A ", old), ("RUN_B ", new))]
    out = [*heads, ("", ()), *two_runs.lines(found, columns)]
    if any(each.outcome == "failed" for each in found):
        out.append((f'next: mend it, or accept it: llmslim accept {new[0]} --reason "why that is right"', ()))
    return out


def _text(form: str, old: Run, new: Run, found: Sequence[Compared]) -> str:
    if form == "json":
        from pytest_llmslim.reports import two_runs

        return json.dumps(two_runs.document(old, new, found), indent=1, sort_keys=True)
    from pytest_llmslim.reports import markdown

    return markdown.page_of_two(old, new, found)


def _end(found: Sequence[Compared], *, strict: bool) -> None:
    """Exit with 1 where that was asked for; a comparison of nothing is no green one."""
    both = [each for each in found if each.old and each.new]
    bad = {"failed", "inconclusive", "not comparable"} if strict else {"failed"}
    gone = strict and any(each.new is None for each in found)
    # Of a new key the gate says failed where nothing was compressed, too.
    if not both or gone or any(each.outcome in bad for each in found):
        raise click.exceptions.Exit(1)
