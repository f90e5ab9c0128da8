"""Compression methods one after the other: the twelve combinations of table 1 of the paper (arXiv 2502.00046).

A recipe's steps run from left to right, and heads are pruned before weights are quantized: what the paper
calls "int4 + AH90" is written `ah90+int4`. `--llm-ablate` measures what each step contributes.
"""

from __future__ import annotations

import pytest

COMBINATIONS = (
    "kd+ah90",
    "kd+ah80",
    "kd+int8",
    "kd+int4",
    "kd+ah90+int8",
    "kd+ah80+int8",
    "kd+ah90+int4",
    "kd+ah80+int4",
    "ah90+int8",
    "ah80+int8",
    "ah90+int4",
    "ah80+int4",
)


@pytest.mark.llm(recipes=COMBINATIONS)
def test_combination(measure):
    """The candidate gives finite probabilities and is really another model."""
    measured = measure()
    assert measured.candidate.perplexity is None or measured.candidate.perplexity > 1
    assert measured.integrity.status in ("compressed", "simulated", "changed")
