"""Figures and verdicts as properties of JUnit's XML, where CI systems show them beside a test or a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.reports.files import figures

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from pytest_llmslim.records import Record
    from pytest_llmslim.run_records import Run

PREFIX = "llmslim."


def properties(record: Record, *, alone: bool) -> list[tuple[str, object]]:
    """Of a test: its figures, and the sentence of each verdict that is not passed.

    Args:
        record: what it measured.
        alone: it measured nothing else; otherwise names hold the recipe.
    """
    prefix = PREFIX if alone else f"{PREFIX}{record.key.recipe}."
    found = [
        (prefix + name, to_builtins(value)) for name, value in figures(record).items() if value is not None
    ]
    return found + [
        (f"{prefix}{verdict.outcome} {verdict.evaluation or verdict.axis}", verdict.sentence)
        for verdict in record.verdicts
        if verdict.outcome != "passed"
    ]


def tell_suite(config: pytest.Config, run: Run) -> None:
    """Put on pytest's own XML what holds for the whole run; nothing where it writes none.

    Its fixture for this, `record_testsuite_property`, is lost in a worker of xdist, so its plugin is asked.
    """
    for plugin in config.pluginmanager.get_plugins():
        if hasattr(type(plugin), "add_global_property"):  # a class of pytest that has no public name
            for name, value in suite_properties(run):
                plugin.add_global_property(name, value)


def suite_properties(run: Run) -> list[tuple[str, str]]:
    """Of a run: where it comes from, and under what it measured; several values are joined by commas."""
    origin, records = run.origin, run.records
    found = {
        "run": origin.id,
        "commit": origin.commit,
        "changed_files": "yes" if origin.changed else "",
        "device": _each(run.devices),
        "profile": _each(record.profile.name for record in records),
        "text_sha256": _each(record.protocol.text_sha256 for record in records),
        "version": origin.version,
        "outcome": run.outcome if records else "nothing was measured",
    }
    return [(PREFIX + name, value) for name, value in found.items() if value]


def _each(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
