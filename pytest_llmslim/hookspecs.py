"""What a conftest.py or a plugin may implement to add to pytest-llmslim."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.registry import Spec
    from pytest_llmslim.run_records import Run


@pytest.hookspec
def pytest_llmslim_methods(config: pytest.Config) -> Sequence[Spec]:  # type: ignore[empty-body]
    """Add compression methods; they may be named in recipes of tests below the implementing conftest.py.

    In a `conftest.py`, marked optional so that `-p no:llmslim` still runs:

        @pytest.hookimpl(optionalhook=True)
        def pytest_llmslim_methods(config):
            halve = "my_package.halve:Halve"
            return [Spec("halve", halve, "halves every weight", ("factor",), origin="my_package")]

    A name that is taken already is an error that names both origins.
    """


@pytest.hookspec
def pytest_llmslim_evals(config: pytest.Config) -> Sequence[Spec]:  # type: ignore[empty-body]
    """Add evaluations; they may be named with `--llm-eval` and in markers of tests below the implementing conftest.py.

        @pytest.hookimpl(optionalhook=True)
        def pytest_llmslim_evals(config):
            haiku = "my_package.haiku:Haiku"
            return [Spec("haiku", haiku, "syllables of three lines", ("poems",), origin="my_package")]

    A name that is taken already is an error that names both origins.
    """


@pytest.hookspec
def pytest_llmslim_report(config: pytest.Config, run: Run) -> None:
    """Write a report of your own: called once at the end of a run that measured something, in the controller.

        @pytest.hookimpl(optionalhook=True)
        def pytest_llmslim_report(config, run):
            worst = max(run.records, key=lambda record: record.perplexity.value or 0)
            Path("worst.txt").write_text(f"{worst.label} {worst.outcome}")

    `run` is a `pytest_llmslim.run_records.Run`.
    """
