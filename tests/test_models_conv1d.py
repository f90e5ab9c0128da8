"""GPT-2's Conv1D becomes nn.Linear without changing the model, and goes back."""

from __future__ import annotations

import pytest
import torch
from tiny_models import GROUPED, tiny_model, tiny_tokens
from torch import nn
from transformers.pytorch_utils import Conv1D

from pytest_llmslim.models.conv1d import from_conv1d, to_conv1d


def kinds(module: nn.Module) -> set[type[nn.Module]]:
    return {type(part) for part in module.modules()}


def test_the_model_is_the_same_function() -> None:
    """Logits agree to 1e-6 of their scale."""
    original, converted = (tiny_model("gpt2", conv1d=True) for _ in range(2))
    from_conv1d(converted)
    tokens = tiny_tokens(2, 40)
    torch.testing.assert_close(converted(tokens).logits, original(tokens).logits, atol=1e-6, rtol=1e-6)


def test_every_conv1d_is_replaced_and_counted() -> None:
    """Four projections in each of two blocks."""
    model = tiny_model("gpt2", conv1d=True)
    assert from_conv1d(model) == 8
    assert Conv1D not in kinds(model)


def test_the_fused_projection_stays_one_linear() -> None:
    """Query, key and value are rows of one weight [3 * hidden, hidden]."""
    assert tiny_model("gpt2").transformer.h[0].attn.c_attn.weight.shape == (192, 64)


def test_weights_are_contiguous_and_frozen_as_before() -> None:
    """A transposed view would be slower than what it replaces."""
    linear = tiny_model("gpt2").transformer.h[0].mlp.c_fc
    assert linear.weight.is_contiguous()
    assert not linear.weight.requires_grad
    assert not linear.training


def test_there_and_back_is_the_original() -> None:
    """Names, shapes and values of the state dict are those of an untouched GPT-2, the head included."""
    original, model = (tiny_model("gpt2", conv1d=True) for _ in range(2))
    from_conv1d(model)
    assert to_conv1d(model) == 8
    assert kinds(model) == kinds(original)
    theirs = original.state_dict()
    assert model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_a_shared_conv1d_stays_shared() -> None:
    """Two names of one module are two names of one linear."""
    shared = Conv1D(4, 3)
    pair = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    assert from_conv1d(pair) == 1
    assert pair["a"] is pair["b"][0]


@pytest.mark.parametrize("family", ["opt", *GROUPED])
def test_other_families_have_none(family: str) -> None:
    """Nothing is replaced where there is no Conv1D."""
    model = tiny_model(family)
    before = kinds(model)
    assert from_conv1d(model) == 0
    assert kinds(model) == before
