"""A compression method for pytest-llmslim; pytest loads this file in every run, so it imports next to nothing."""

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_llmslim_methods(config):
    """Name the method."""
    from pytest_llmslim.registry import PRUNE, Spec

    summary = "cuts the weakest half of the feed-forward channels"
    return [Spec("halve", "llm_halve.halve:Halve", summary, ("keep",), PRUNE, origin="llm-halve")]
