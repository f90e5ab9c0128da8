"""One self-contained HTML file about a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmslim.run_records import Run


def page(run: Run) -> str:
    """The report of a run (of several devices: `runs.merged`) as one HTML file that needs no network."""
    raise NotImplementedError
