"""All figures of a run as CSV, a row a candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llmslim.run_records import Run


def text(run: Run) -> str:
    """The CSV of a run, with a header row."""
    raise NotImplementedError
