"""Every compression method by itself, against the model it was made from.

    pytest suites/test_standalone.py --llm-model MODEL --llm-profile balanced

measures quality, time, energy and size of each candidate next to the original, and ranks them by `opt`.
A lossy method is a result here and no failure: the gate of this suite is the stored baseline, and whatever
thresholds you give (`--llm-max-perplexity-increase 3%`).
"""

from __future__ import annotations

import pytest

STANDALONE = (
    "identity",  # the control: a candidate equal to its reference, whose every ratio has to be 1
    "int8",  # LLM.int8(): 8-bit weights, outlier activations apart
    "int4",  # 4-bit NormalFloat
    "fp4",  # 4-bit floating point
    "magnitude(sparsity=0.5)",  # half of every linear's weights, the smallest, are zero
    "magnitude(pattern=2:4)",  # two of every four weights are zero
    "ah90",  # without the heads that give one token more than 90 % of their attention
    "ah80",
)


@pytest.mark.llm(recipes=STANDALONE)
def test_standalone(measure):
    """The candidate gives finite probabilities and is what its method says; the control differs in nothing."""
    measured = measure()
    assert measured.candidate.perplexity > 1
    assert measured.integrity.status in ("compressed", "simulated", "control")
    if measured.integrity.status == "control":
        assert (measured.perplexity.value, measured.divergence.mean_kl, measured.divergence.top1) == (1, 0, 1)
