"""`llmslim compare`."""

from __future__ import annotations

import click


@click.command("compare")
def command() -> None:
    """Compare two runs, key by key, by the rules of the gate."""
    raise NotImplementedError
