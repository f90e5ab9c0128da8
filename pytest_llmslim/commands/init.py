"""`llmslim init`."""

from __future__ import annotations

import click


@click.command("init")
def command() -> None:
    """Set a project up: a starter suite, settings, and a CI workflow."""
    raise NotImplementedError
