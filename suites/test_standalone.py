"""Every compression method by itself, against the model it was made from.

    pytest suites/test_standalone.py --llm-model MODEL --llm-profile balanced

measures quality, time, energy and size of each candidate next to the original, and ranks them by `opt`.
A lossy method is a result here and no failure: the gate of this suite is the stored baseline, and whatever
thresholds you give (`--llm-max-perplexity-increase 3%`). Methods that train for minutes are in `suites/trained.py`.
"""

from __future__ import annotations

import pytest

STANDALONE = (
    "identity",  # the control: a candidate equal to its reference, whose every ratio has to be 1
    # quantized by kernels that are there
    "int8",  # LLM.int8(): 8-bit weights, outlier activations apart
    "int4",  # 4-bit NormalFloat
    "fp4",  # 4-bit floating point
    "int8-fbgemm",  # 8-bit weights and activations, by torch
    "int8-dynamic",  # the same by torchao
    "smoothquant",  # the same after outliers moved from activations into weights
    # on integer grids; packed bytes are real, speed is not
    "rtn",  # round to nearest, 4 bits
    "gptq",  # the rest makes up for what rounding loses
    "awq",  # channels with large activations are scaled up first
    # with zeros
    "magnitude(sparsity=0.5)",  # half of every linear's weights, the smallest, are zero
    "magnitude(pattern=2:4)",  # two of every four weights are zero
    "wanda",  # half of the weights, by size and input
    "wanda(pattern=2:4)",
    "sparsegpt",  # half of the weights, and the rest makes up for them
    "sparsegpt(pattern=2:4)",
    # smaller shapes
    "ah90",  # without the heads that give one token more than 90 % of their attention
    "ah80",
    "depth",  # without a quarter of the layers
    "width",  # without a quarter of the feed-forward channels
    "hidden",  # without a quarter of the hidden state
    # trained
    "kd",  # half of the layers, taught by the original
)


@pytest.mark.llm(recipes=STANDALONE)
def test_standalone(measure):
    """The candidate gives finite probabilities and is what its method says; the control differs in nothing."""
    measured = measure()
    assert measured.candidate.perplexity is None or measured.candidate.perplexity > 1
    assert measured.integrity.status in ("compressed", "simulated", "changed", "control")
    if measured.integrity.status == "control":
        assert (measured.perplexity.value, measured.divergence.mean_kl, measured.divergence.top1) == (1, 0, 1)
