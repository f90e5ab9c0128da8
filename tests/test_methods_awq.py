"""AWQ against plain rounding: never worse on a block, clearly better where channels stand out."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context, awq
from pytest_llmslim.methods.awq import AWQ, STEPS, Search, factors, means
from pytest_llmslim.methods.grid import Grid
from pytest_llmslim.methods.layerwise import visits
from pytest_llmslim.methods.packed import SIMULATED, PackedLinear
from pytest_llmslim.methods.rtn import RTN
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, weights_hash


def context(windows=4, length=32):
    calibration = tiny_tokens(windows, length) if windows else None
    return Context(calibration=calibration, seed=0, device="cpu", family="llama", label="tiny")


def with_outliers(family):
    """Two channels of every norm's output are thirty times as large as the others, as in large models."""
    model = tiny_model(family)
    for layer in Blocks(model).layers:
        for norm in layer.norms:
            scale = model.get_submodule(norm.name).weight
            offset = 1.0 if norm.unit_offset else 0.0
            for channel in (5, 40):
                scale.data[channel] = 30.0 - offset
                for name in norm.linears:
                    model.get_submodule(name).weight.data[:, channel] /= 10
    return model


def first(model, about):
    """The visit of the first block."""
    return next(visits(model, about.calibration, about, "awq"))


def block_error(reference, module, about):
    """Squared difference of the first block's outputs."""
    wanted, got = (first(model, about) for model in (reference, module))
    pairs = zip(wanted.inputs, got.inputs, strict=True)
    return sum(float((got.run(b) - wanted.run(a)).square().sum()) for a, b in pairs)


def relative(reference, module):
    tokens = tiny_tokens(4, 64, seed=7)
    with torch.no_grad():
        wanted = reference(tokens).logits
        return float((module(tokens).logits - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_is_never_worse_than_rounded_plainly(family, symmetric):
    """On the windows that decide; with room to spare, as weights without outliers have some, too."""
    reference, about = tiny_model(family), context()
    plain = RTN(3, 32, symmetric).compress(copy_model(reference), about).module
    scaled = AWQ(3, 32, symmetric).compress(copy_model(reference), about).module

    assert block_error(reference, scaled, about) < 0.99 * block_error(reference, plain, about)
    assert all(isinstance(linear, PackedLinear) for linear in Blocks(scaled).linears().values())


@pytest.mark.parametrize("family", FAMILIES)
def test_channels_that_stand_out_are_saved(family):
    """Logits for other text are off by less than half of plain rounding's error at 4 bits."""
    reference = with_outliers(family)
    plain = RTN(4, 32).compress(copy_model(reference), context()).module
    scaled = AWQ(4, 32).compress(copy_model(reference), context()).module

    assert relative(reference, scaled) < 0.5 * relative(reference, plain)


def test_the_share_of_the_error_is_what_is_left():
    """What the search tells equals the ratio of the block's errors, measured from outside."""
    reference, about = with_outliers("llama"), context()
    model = copy_model(reference)
    search = Search(model, first(model, about), Grid(3, 32))
    links = search.scale()
    scaled = RTN(3, 32).compress(model, about).module
    plain = RTN(3, 32).compress(copy_model(reference), about).module
    ratio = block_error(reference, scaled, about) / block_error(reference, plain, about)

    assert ratio == pytest.approx(search.left, rel=1e-3)
    assert search.left < 0.5
    assert 2 <= links <= len(search.links) == 3


def test_scaling_alone_changes_nothing():
    """After the search the block's weights are floats again and its output is the original one."""
    reference, about = with_outliers("opt"), context()
    model = copy_model(reference)

    assert Search(model, first(model, about), Grid(3, 32)).scale() > 0
    assert weights_hash(reference) != weights_hash(model)
    assert relative(reference, model) < 1e-5


def test_the_exponent_is_the_best_of_all(monkeypatch):
    """One link alone: the factor found is the one that trying all twenty by hand finds."""
    reference, about = with_outliers("llama"), context()
    monkeypatch.setattr(awq, "linear_links", lambda layer: [])
    monkeypatch.setattr(awq, "norm_links", lambda module, layer: NORMS(module, layer)[1:])
    model = copy_model(reference)
    search = Search(model, first(model, about), Grid(3, 32))
    search.scale()
    name = "model.layers.0.post_attention_layernorm"
    found = reference.get_submodule(name).weight / model.get_submodule(name).weight
    mean = means(first(reference, about), ["model.layers.0.mlp.gate_proj"])["model.layers.0.mlp.gate_proj"]

    def error(factor):
        tried = copy_model(reference)
        for each, linear in Blocks(tried).layers[0].linears.items():
            by = factor if each.endswith(("gate_proj", "up_proj")) else torch.ones(linear.in_features)
            linear.weight.data = Grid(3, 32).round_to(linear.weight * by) / by
        return block_error(reference, tried, about)

    best = min((factors(mean, step / STEPS) for step in range(STEPS)), key=error)
    torch.testing.assert_close(found, best)


NORMS = awq.norm_links


def test_factors_are_powers_of_the_mean():
    """Their largest and smallest multiply to 1; exponent 0 is no scaling, nor are channels that are never used."""
    mean = torch.tensor([4.0, 1.0, 0.25])

    torch.testing.assert_close(factors(mean, 0.5), torch.tensor([2.0, 1.0, 0.5]))
    torch.testing.assert_close(factors(mean, 0.0), torch.ones(3))
    torch.testing.assert_close(factors(torch.zeros(3), 0.5), torch.ones(3))
    torch.testing.assert_close(factors(torch.tensor([1.0, 0.0]), 1.0), torch.tensor([100.0, 0.01]))


def test_means_are_over_all_tokens():
    """Mean |x| of what enters a linear, against the same computed from the norm's output."""
    model, about = tiny_model("llama"), context()
    visit = first(model, about)
    name = "model.layers.0.self_attn.q_proj"
    states = torch.cat([visit.layer.module.input_layernorm(each)[0] for each in visit.inputs])

    torch.testing.assert_close(means(visit, [name])[name], states.abs().mean(dim=0))


def test_exact_zeros_stay():
    """A pruned weight is still zero."""
    model = tiny_model("llama")
    masks = {}
    for name, linear in Blocks(model).linears().items():
        linear.weight.data[linear.weight.abs() < 0.1] = 0
        masks[name] = linear.weight == 0
    after = Blocks(AWQ(3, 32).compress(model, context()).module).linears()

    assert not any(bool(linear.dequantized()[masks[name]].any()) for name, linear in after.items())


def test_what_is_said():
    """Grid, bytes, how many sets of channels and what is left of the error; speed is simulated."""
    applied = AWQ(4, 32).compress(with_outliers("gpt2"), context())

    assert applied.sentence.startswith("awq: 8 linears with 4-bit symmetric codes")
    assert " bits a weight stored; 6 of 6 sets of channels scaled, which leaves " in applied.sentence
    assert applied.sentence.endswith("% of the blocks' error")
    assert SIMULATED == applied.simulated


def test_twice_is_the_same_and_the_reference_stays():
    """Nothing is drawn."""
    reference = with_outliers("qwen3")
    digest = weights_hash(reference)
    one, other = (AWQ().compress(copy_model(reference), context()).module for _ in range(2))

    assert weights_hash(one) == weights_hash(other)
    assert digest == weights_hash(reference)


def test_without_text_it_is_refused():
    """Which channels count is learnt from text."""
    with pytest.raises(CompressionError, match=r"^awq on tiny: the method learns from calibration windows"):
        AWQ().compress(tiny_model("llama"), context(windows=0))


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"bits": 1}, "bits is a whole number from 2 to 8, got 1"),
        ({"group": 0}, "group is a whole number from 2 to 65536, got 0"),
        ({"symmetric": 1}, "symmetric is one of true, false, got 1"),
        ({"samples": 0}, "samples is a whole number from 1 to 65536, got 0"),
    ],
)
def test_bad_parameters_are_refused(bad, rule):
    """By name."""
    with pytest.raises(RecipeError, match=rf"^awq: {rule}$"):
        AWQ(**bad)
