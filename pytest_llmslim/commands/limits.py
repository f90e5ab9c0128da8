"""The rules by which a stored run is compared: those of its own tests, unless others are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim.errors import SettingError
from pytest_llmslim.gate import Limits
from pytest_llmslim.units import parse_percent

if TYPE_CHECKING:
    from pytest_llmslim.run_records import Run


def limits_of(
    run: Run, quality: str | None = None, regression: str | None = None, resolve: str | None = None
) -> Limits:
    """What is given, as text, else as the run was judged, else the defaults of a test run.

    Raises:
        SettingError: a limit is no percentage, or they contradict each other.
    """
    given = {
        "baseline_perplexity": ("quality-regression", quality),
        "limit": ("regression", regression),
        "resolve": ("resolve", resolve),
    }
    values = {}
    for field, (name, text) in given.items():
        if text is not None:
            values[field] = parse_percent(text, f"--{name}")
        elif name in run.origin.settings:
            values[field] = float(run.origin.settings[name])
    try:
        return Limits(**values)
    except SettingError as error:
        raise SettingError(str(error).replace("--llm-", "--")) from None
