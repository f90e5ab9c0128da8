"""`llmslim check`."""

from __future__ import annotations

import click


@click.command("check")
def command() -> None:
    """Look whether baselines were edited by hand."""
    raise NotImplementedError
