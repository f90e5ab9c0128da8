"""Whose code failed."""

from __future__ import annotations

import pytest

from pytest_llmslim.errors import EvaluationError, TextError
from pytest_llmslim.evals.blame import blaming


def test_a_failure_is_named():
    """The model, where it was, what was raised and what to do."""
    expected = r"int4 on gpt2 failed in a pass of 9 tokens \(ValueError: odd\); run the model by itself to see where$"
    with (
        pytest.raises(EvaluationError, match=expected),
        blaming("int4 on gpt2", "in a pass of 9 tokens"),
    ):
        raise ValueError("odd")


def test_our_own_sentences_stay():
    """They say all there is to say."""
    with pytest.raises(TextError, match=r"^too short$"), blaming("int4 on gpt2", "anywhere"):
        raise TextError("too short")


def test_what_works_is_not_blamed():
    """Control-C is nobody's fault either."""
    with blaming("int4 on gpt2", "anywhere"):
        pass
    with pytest.raises(KeyboardInterrupt), blaming("int4 on gpt2", "anywhere"):
        raise KeyboardInterrupt
