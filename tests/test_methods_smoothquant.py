"""SmoothQuant: smoothing is an identity that evens out activations and weights; then 8 bits lose less."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.layerwise import watching
from pytest_llmslim.methods.linears import effective_weight
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, stored_bytes, weights_hash

pytest.importorskip("torchao", reason="the extra torchao is not installed")

from pytest_llmslim.methods.smoothquant import SmoothQuant, factors, smooth
from pytest_llmslim.methods.torchao_linear import Int8Dynamic


def context(windows=4, length=32):
    calibration = tiny_tokens(windows, length) if windows else None
    return Context(calibration=calibration, seed=0, device="cpu", family="llama", label="tiny")


def with_outliers(family):
    """Two channels of every norm's output are two hundred times as large as the others, for small weights."""
    model = tiny_model(family)
    for layer in Blocks(model).layers:
        for norm in layer.norms:
            scale = model.get_submodule(norm.name).weight
            for channel in (5, 40):
                scale.data[channel] = 200.0 - (1.0 if norm.unit_offset else 0.0)
                for name in norm.linears:
                    model.get_submodule(name).weight.data[:, channel] /= 100
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def relative(reference, module):
    tokens = tiny_tokens(4, 64, seed=7)
    wanted = logits(reference, tokens)
    return float((logits(module, tokens) - wanted).norm() / wanted.norm())


def maxima(model, tokens):
    """max|x| [in] of what enters each linear of the blocks."""
    found = {}

    def watcher(name, states):
        here = states.abs().amax(dim=0)
        found[name] = torch.maximum(found[name], here) if name in found else here

    with watching(Blocks(model).linears(), watcher):
        for window in tokens:
            logits(model, window[None])
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_smoothing_is_an_identity(family, alpha):
    """Logits stay as they were, Gemma 3's too, although every norm changed."""
    reference = with_outliers(family)
    model = copy_model(reference)

    assert 4 == smooth(model, alpha, 4, context())
    assert relative(reference, model) < 1e-4
    for layer in Blocks(model).layers:
        for norm in layer.norms:
            before, after = (each.get_submodule(norm.name).weight for each in (reference, model))
            assert float((after - before).abs().max()) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_are_as_large_as_the_formula_says(family):
    """With alpha 0.5 activations and weights of a channel get equal maxima, with 1 and 0 one of them gets 1."""
    for alpha in (0.5, 1.0, 0.0):
        model = copy_model(with_outliers(family))
        smooth(model, alpha, 4, context())
        seen = maxima(model, context().calibration)
        for layer in Blocks(model).layers:
            for norm in layer.norms:
                inputs = seen[norm.linears[0]]
                stacked = torch.cat([model.get_submodule(name).weight for name in norm.linears])
                weights = stacked.abs().amax(dim=0)
                if alpha == 0.5:
                    torch.testing.assert_close(inputs, weights, rtol=1e-3, atol=1e-4)
                else:
                    evened = inputs if alpha else weights
                    torch.testing.assert_close(evened, torch.ones(64), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_outliers_cost_less_than_without_smoothing(family):
    """Under the same kernels the error of the logits is less than half."""
    reference = with_outliers(family)
    plain = Int8Dynamic().compress(copy_model(reference), context()).module
    smoothed = SmoothQuant(samples=4).compress(copy_model(reference), context()).module

    assert relative(reference, smoothed) < 0.5 * relative(reference, plain)


def test_the_factors_are_those_of_the_paper():
    """Equation 4 on two linears, and channels that are never used or multiplied by nothing keep finite factors."""
    largest = torch.tensor([16.0, 1.0, 0.0, 1.0])
    weights = [torch.tensor([[1.0, -1.0, 1.0, 0.0]]), torch.tensor([[-4.0, 0.25, 0.0, 0.0]])]

    torch.testing.assert_close(factors(largest, weights, 0.5)[:2], torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(factors(largest, weights, 0.75)[:2], torch.tensor([8 / 2**0.5, 1.0]))
    assert bool((factors(largest, weights, 0.5)[2:] > 0).all())
    assert bool(torch.isfinite(factors(largest, weights, 0.5)).all())


def test_what_is_stored_and_said():
    """As with int8-dynamic: real kernels, a byte a weight, the head in float."""
    reference = tiny_model("gpt2")
    applied = SmoothQuant(samples=4).compress(copy_model(reference), context())
    plain = Int8Dynamic().compress(copy_model(reference), context()).module
    import torchao

    said = f"smoothquant(alpha=0.5): 4 norms smoothed, 8 linears by torchao {torchao.__version__}"
    assert said == applied.sentence
    assert applied.simulated == ""
    assert stored_bytes(plain) == stored_bytes(applied.module)
    assert type(applied.module.lm_head) is nn.Linear


def test_exact_zeros_stay():
    """A pruned weight is still zero."""
    model = tiny_model("llama")
    masks = {}
    for name, linear in Blocks(model).linears().items():
        linear.weight.data[linear.weight.abs() < 0.1] = 0
        masks[name] = linear.weight == 0
    after = Blocks(SmoothQuant().compress(model, context()).module).linears()

    assert not any(bool(effective_weight(linear)[masks[name]].any()) for name, linear in after.items())


def test_twice_is_the_same_and_the_reference_stays():
    """Nothing is drawn."""
    reference = with_outliers("qwen3")
    digest = weights_hash(reference)
    one, other = (SmoothQuant().compress(copy_model(reference), context()).module for _ in range(2))

    assert weights_hash(one) == weights_hash(other)
    assert digest == weights_hash(reference)


def test_models_without_norms_before_linears_are_refused():
    """As opt-350m, whose norms come after."""
    with pytest.raises(
        CompressionError,
        match=r"^smoothquant on tiny: outliers are moved from norms into the linears that read them, got no norm with "
        r"a scale before the linears of a block; use int8-dynamic$",
    ):
        SmoothQuant().compress(tiny_model("opt", do_layer_norm_before=False), context())


def test_without_text_it_is_refused():
    """Where outliers are is learnt from text."""
    with pytest.raises(
        CompressionError, match=r"^smoothquant on tiny: the method learns from calibration windows"
    ):
        SmoothQuant().compress(tiny_model("llama"), context(windows=0))


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"alpha": 1.5}, "alpha is a number from 0 to 1, got 1.5"),
        ({"alpha": "half"}, "alpha is a number from 0 to 1, got 'half'"),
        ({"samples": 0}, "samples is a whole number from 1 to 65536, got 0"),
    ],
)
def test_bad_parameters_are_refused(bad, rule):
    """By name."""
    with pytest.raises(RecipeError, match=rf"^smoothquant: {rule}$"):
        SmoothQuant(**bad)
