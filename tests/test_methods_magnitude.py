"""Magnitude pruning against sorting; exhaustive search is in the tests of `masks`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny_model
from torch import nn

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.magnitude import Magnitude, zero_smallest
from pytest_llmslim.methods.semi_structured import SIMULATED
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model


def context(label: str = "tiny") -> Context:
    return Context(calibration=None, seed=0, device="cpu", family="llama", label=label)


@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 16),
    sparsity=st.floats(0.01, 0.99),
    seed=st.integers(0, 100),
)
@settings(max_examples=50, deadline=None)
def test_the_smallest_weights_become_zero(rows, columns, sparsity, seed):
    """Exactly round(sparsity * n) weights are zero, and they are the ones that sorting puts first."""
    linear = nn.Linear(columns, rows)
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    linear.weight.data = torch.tensor(values)
    zero_smallest(linear, sparsity)
    smallest = np.argsort(np.abs(values).ravel())[: round(sparsity * values.size)]
    values.ravel()[smallest] = 0

    assert values.tolist() == linear.weight.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [Magnitude(), Magnitude(sparsity=0.5), Magnitude(pattern="2:4")])
def test_half_of_every_block_linear_is_zero(method, family):
    """Every linear of every family is halved, biases, embeddings and head are not touched."""
    reference = tiny_model(family)
    applied = method.compress(copy_model(reference), context())
    linears = Blocks(applied.module).linears()
    before = dict(reference.named_parameters())

    assert all(linear.weight.numel() == 2 * int((linear.weight == 0).sum()) for linear in linears.values())
    for name, parameter in applied.module.named_parameters():
        if name.removesuffix(".weight") not in linears:
            assert torch.equal(before[name], parameter)
    total = sum(linear.weight.numel() for linear in linears.values())
    assert applied.sentence == f"magnitude: 50.0% of {total} weights in {len(linears)} linears are zero"
    assert SIMULATED == applied.simulated


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_a_second_time_changes_nothing(pattern):
    """Zeros that are there already are the smallest weights, and count."""
    once = Magnitude(pattern=pattern).compress(tiny_model("llama"), context()).module
    twice = Magnitude(pattern=pattern).compress(copy_model(once), context()).module

    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_odd_widths_are_told():
    """A linear whose input is no multiple of the group keeps a dense rest, and the sentence says so."""
    model = tiny_model("llama", intermediate_size=126)
    applied = Magnitude(pattern="2:4").compress(model, context())

    assert applied.sentence.endswith("; 2 are not a multiple of 2:4 wide and keep a dense rest")
    assert 64 * (62 + 2) == int((model.model.layers[0].mlp.down_proj.weight != 0).sum())


@pytest.mark.parametrize("value", [0, 1, -0.5, 1.5, float("nan"), True, "0.5", None])
def test_sparsity_is_a_share(value):
    """A sparsity that would keep all, keep nothing, or is no number is refused; `None` means the default."""
    if value is None:
        assert Magnitude() == Magnitude(sparsity=value)
        return
    with pytest.raises(RecipeError, match=r"^magnitude: sparsity is a number above 0 and below 1, got"):
        Magnitude(sparsity=value)


@pytest.mark.parametrize("value", ["4:4", "0:4", "4:2", "2", "2:4:8", "2:65", "a:b", "", 2, "²:4", True])
def test_patterns_are_n_of_m(value):
    """A pattern that is no N:M with N below M is refused."""
    with pytest.raises(RecipeError, match=r"^magnitude: pattern is N:M with 1 <= N < M <= 64, e.g. 2:4, got"):
        Magnitude(pattern=value)


def test_share_and_pattern_exclude_each_other():
    """A pattern fixes the share."""
    with pytest.raises(RecipeError, match=r"sparsity is left out where a pattern is given, got 0.5"):
        Magnitude(sparsity=0.5, pattern="2:4")


def test_weights_that_are_not_finite_are_refused():
    """NaN has no magnitude."""
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(
        CompressionError,
        match=r"^magnitude on tiny: weights are finite, got NaN or infinity in .*layers.1.mlp.up_proj; mend",
    ):
        Magnitude().compress(model, context())


def test_logits_that_are_not_finite_are_refused():
    """A candidate that computes NaN is not handed on."""
    model = tiny_model("llama")
    model.model.norm.weight.data[0] = float("inf")
    with pytest.raises(CompressionError, match=r"^magnitude on tiny: logits are finite, got NaN or infinity"):
        Magnitude().compress(model, context())
