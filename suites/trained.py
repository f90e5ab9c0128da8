"""Methods that train, and recovery: minutes a model, so that this file runs only when it is named.

    pytest suites/trained.py --llm-model MODEL --llm-profile balanced

What training costs is part of the result: the line `building` says after how many tokens it has paid.
"""

from __future__ import annotations

import pytest

TRAINED = (
    "seqkd",  # half of the layers, taught by text that the original writes
    "minillm",  # by reverse KL on the student's own text
    "gkd",  # by a generalised Jensen-Shannon divergence
    "minitron",  # a quarter of the feed-forward channels less, then taught by the original
    "depth+kd",  # a quarter of the layers less, then taught
    "shear(inner=192)",  # to a given shape, by learnt masks
    "sheared(inner=192)",  # and then trained on text
    "rtn(bits=3)",
    "qat(bits=3)",  # trained while rounded
    "rtn(bits=3)+eora",  # low-rank terms beside rounded weights, computed
    "rtn(bits=3)+lora",  # or trained
    "wanda(pattern=2:4)+lora",  # trained under the zeros of pruned weights
    "sparsegpt(pattern=2:4)+eora",
)


@pytest.mark.llm(recipes=TRAINED)
def test_trained(measure):
    """The candidate gives finite probabilities and is what its method says."""
    measured = measure()
    assert measured.candidate.perplexity is None or measured.candidate.perplexity > 1
    assert measured.integrity.status in ("compressed", "simulated", "changed")
