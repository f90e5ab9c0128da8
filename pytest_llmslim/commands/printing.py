"""What several commands print and write: coloured lines, where a run comes from, files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pytest_llmslim import units
from pytest_llmslim.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_llmslim.reports.terminal import Line
    from pytest_llmslim.run_records import Run


def show(lines: Iterable[Line]) -> None:
    """Print lines, coloured on a terminal and plain in a pipe; names in them steer no terminal."""
    for line, markup in lines:
        text = units.printable(line)
        colour = next((name for name in markup if name != "bold"), None)
        click.echo(click.style(text, fg=colour, bold="bold" in markup or None) if markup else text)


def warn(sentence: str) -> None:
    """Print what a user should know before going on."""
    click.echo(click.style(f"warning: {units.printable(sentence)}", fg="yellow"), err=True)


def about(path: Path, run: Run, name: str = "") -> Line:
    """Where a run comes from, in one line, which begins with `name`."""
    origin = run.origin
    words = [f"{len(run.records)} record{'s' * (len(run.records) != 1)}"]
    words += [f"of {origin.started}"] if origin.started else []
    if origin.commit:
        branch = f" on {origin.branch}" if origin.branch else ""
        words.append(f"at commit {origin.commit[:12]}{branch}{', with changes' if origin.changed else ''}")
    text = f"{name}{path}: {' '.join(words)}"
    text += f"; {' and '.join(run.devices)}" if run.devices else ""
    return (f"{text}; interrupted", ("yellow",)) if run.interrupted else (text, ("bold",))


def write(path: Path, text: str) -> None:
    """Write a file, and the folders above it.

    Raises:
        RunError: the system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name from a command line may hold bytes that are no text.
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); give another name with -o.") from None
