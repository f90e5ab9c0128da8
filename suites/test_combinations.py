"""Compression methods one after the other, as table 1 of the paper combines them.

A recipe's steps run from left to right, and heads are pruned before weights are quantized: what the paper
calls "int4 + AH90" is written `ah90+int4`.
"""

from __future__ import annotations

import pytest

COMBINATIONS = ("ah90+int8", "ah80+int8", "ah90+int4", "ah80+int4")


@pytest.mark.llm(recipes=COMBINATIONS)
def test_combination(measure):
    """The candidate is smaller than its reference and gives finite probabilities."""
    measured = measure()
    assert measured.candidate.perplexity > 1
    assert measured.candidate.stored_bytes < measured.reference.stored_bytes
