"""`llmslim doctor`."""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> None:
    """Say what this machine can measure, what is missing, and how to get it."""
    raise NotImplementedError
