"""What changed against the baselines, for a pull request: regressions first, under sixty lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.comparison import Compared
    from pytest_llmslim.run_records import Run


def page(run: Run, found: Sequence[Compared]) -> str:
    """The Markdown of a run that was compared."""
    raise NotImplementedError
