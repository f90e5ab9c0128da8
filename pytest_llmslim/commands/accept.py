"""`llmslim accept`."""

from __future__ import annotations

import click


@click.command("accept")
def command() -> None:
    """Make a run the baselines, with a reason."""
    raise NotImplementedError
