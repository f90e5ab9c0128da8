"""`llmslim check`."""

from __future__ import annotations

from pathlib import Path

import click

from pytest_llmslim.commands import examples


@click.command(
    "check",
    epilog=examples(
        "llmslim check",
        "llmslim check baselines/gpt2/test_ptq.json",
        then="git checkout the file that is named, or measure again and accept it: llmslim accept --help.",
    ),
)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    default=Path("baselines"),
    show_default=True,
    help="The folder that is looked through where no FILES are given.",
)
def command(files: tuple[Path, ...], baseline: Path) -> None:
    """Look whether baselines were edited by hand.

    Every line of a file of baselines has a digest of itself, which whoever edits the line breaks; a line that was
    measured is a fact, and is replaced by measuring again. Lines of two branches can be merged. This is what the
    pre-commit hook runs. Exit code 1: a line was edited; 2: a file cannot be read.
    """
    from pytest_llmslim import units
    from pytest_llmslim.baseline_files import edited, load
    from pytest_llmslim.errors import BaselineError

    paths = files or tuple(sorted(baseline.glob("*/*.json")))
    if not paths:
        raise BaselineError(
            f"there is no baseline below {baseline}; write one with --llm-update, or give --baseline"
        )
    broken: list[str] = []
    found: list[str] = []
    lines = 0
    for path in paths:
        # As given, so that the sentences say it as given; a bare name does not tell in which folder it lies.
        place = path if len(path.parts) > 2 else path.absolute()
        try:
            if not place.exists():
                raise BaselineError(f"{path} does not exist; give files of baselines")
            found += edited(place.parent.parent, place).values()
            lines += len(load(place.parent.parent, place))
        except BaselineError as error:
            broken.append(str(error))
    for sentence in (*broken, *found):
        click.echo(units.printable(sentence), err=True)
    if broken or found:
        raise click.exceptions.Exit(2 if broken else 1)
    click.echo(f"as they were written: baselines {lines}, files {len(paths)}")
