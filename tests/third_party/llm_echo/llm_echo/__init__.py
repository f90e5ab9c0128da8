"""An evaluation for pytest-llmslim; pytest loads this file in every run, so it imports next to nothing."""

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_llmslim_evals(config):
    """Name the evaluation."""
    from pytest_llmslim.registry import Spec

    summary = "how often the next token is one that was there already"
    return [Spec("echo", "llm_echo.echo:Echo", summary, ("prompts",), origin="llm-echo")]
