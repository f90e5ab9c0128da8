"""What `pytest --llm-conformance` runs: every invariant of every method asked for, a test each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_llmslim.conformance import cases
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.state import settings_of
from pytest_llmslim.strategies.tiny import Tiny

if TYPE_CHECKING:
    import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every trial."""
    found = cases.trials(metafunc.config)
    with quiet():
        Tiny("llama").module()  # transformers imports what it finds only now, and not without a word
    torch.set_num_threads(settings_of(metafunc.config).threads)
    metafunc.parametrize("trial", found, ids=[trial.id for trial in found])


def test_invariant(trial: cases.Trial) -> None:
    """The method keeps the invariant."""
    trial.run()


test_invariant.__test__ = True  # type: ignore[attr-defined]  # also where python_functions says otherwise
