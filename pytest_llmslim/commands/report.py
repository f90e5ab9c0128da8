"""`llmslim report`."""

from __future__ import annotations

import click


@click.command("report")
def command() -> None:
    """Write the HTML report of one run, or of several."""
    raise NotImplementedError
