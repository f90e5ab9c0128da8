"""Moving factors between modules is an identity on every family; what cannot pass a factor is no link."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, GROUPED, tiny_model, tiny_tokens

from pytest_llmslim.methods.smoothing import Link, fold, linear_links, norm_links
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model


def factors(count, seed=0):
    """Positive factors over two orders of magnitude."""
    return torch.exp(1.5 * torch.randn(count, generator=torch.Generator().manual_seed(seed)))


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens(2, 40)).logits


def width(model, link):
    return model.get_submodule(link.readers[0]).in_features


def fold_all(model, links):
    for number, link in enumerate(links):
        fold(model, link, factors(width(model, link), number))


def all_links(model, kind):
    layers = Blocks(model).layers
    if kind == "norms":
        return [link for layer in layers for link in norm_links(model, layer)]
    return [link for layer in layers for link in linear_links(layer)]


@pytest.mark.parametrize("kind", ["norms", "linears"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folding_is_an_identity(family, kind):
    """Weights change by factors of up to fifty, logits by no more than float32 rounds, Gemma 3's too."""
    heads = {"num_key_value_heads": 4} if family in GROUPED else {}
    before = tiny_model(family, **heads)
    after = copy_model(before)
    links = all_links(after, kind)
    fold_all(after, links)

    assert 4 == len(links) or (family, kind, len(links)) == ("gpt2", "linears", 2)
    for link in links:
        for name in (link.source, *link.readers):
            changed = (after.get_submodule(name).weight - before.get_submodule(name).weight).abs().max()
            assert changed > 0.1, name
    torch.testing.assert_close(
        logits(after), logits(before), rtol=0, atol=2e-5 * float(logits(before).abs().max())
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_factors_reach_every_module_they_should(family):
    """A fold that leaves out one reader is no identity: the test above can fail."""
    before = tiny_model(family)
    after = copy_model(before)
    link = norm_links(after, Blocks(after).layers[0])[-1]
    fold(after, Link(link.source, link.readers[1:], link.rows, link.unit_offset), factors(64))

    assert float((logits(after) - logits(before)).norm() / logits(before).norm()) > 0.05


def test_gemma_3_feeds_its_gates_from_the_norm_before_them():
    """Not from the one after attention, which scales the attention's output and feeds no linear."""
    model = tiny_model("gemma3")
    sources = [link.source for link in norm_links(model, Blocks(model).layers[0])]

    assert ["model.layers.0.input_layernorm", "model.layers.0.pre_feedforward_layernorm"] == sources


def test_norms_after_the_linears_feed_none():
    """As in opt-350m; value and output, fc1 and fc2 are linked all the same."""
    model = tiny_model("opt", do_layer_norm_before=False)

    assert [] == all_links(model, "norms")
    assert 4 == len(all_links(model, "linears"))


def test_norms_without_a_scale_are_no_source():
    """OPT can be configured so."""
    assert [] == all_links(tiny_model("opt", layer_norm_elementwise_affine=False), "norms")


def test_shared_values_are_no_source():
    """With half as many value heads as query heads two columns of the output would read one row."""
    model = tiny_model("llama")

    assert [("model.layers.0.mlp.up_proj",), ("model.layers.1.mlp.up_proj",)] == [
        (link.source,) for link in all_links(model, "linears")
    ]


def test_activations_that_are_no_relu_let_no_factor_pass():
    """GPT-2 has GELU, OPT can have it."""
    assert ["transformer.h.0.attn.c_attn"] == [
        link.source for link in linear_links(Blocks(tiny_model("gpt2")).layers[0])
    ]
    gelu = Blocks(tiny_model("opt", activation_function="gelu")).layers[0]
    assert ["model.decoder.layers.0.self_attn.v_proj"] == [link.source for link in linear_links(gelu)]


def test_exact_zeros_stay():
    """A mask of zeros survives on both sides."""
    model = tiny_model("llama")
    linears = Blocks(model).linears()
    for linear in linears.values():
        linear.weight.data[linear.weight.abs() < 0.1] = 0
    masks = {name: linear.weight == 0 for name, linear in linears.items()}
    for kind in ("norms", "linears"):
        fold_all(model, all_links(model, kind))

    assert all(torch.equal(masks[name], linear.weight == 0) for name, linear in linears.items())


def test_bfloat16_folds_as_exactly_as_it_can():
    """Each number is computed in float32 and rounded once."""
    model = tiny_model("gemma3").to(torch.bfloat16)
    link = norm_links(model, Blocks(model).layers[0])[0]
    weight = model.get_submodule(link.source).weight.float()
    fold(model, link, factors(64))

    assert torch.equal(
        ((weight + 1) / factors(64) - 1).to(torch.bfloat16), model.get_submodule(link.source).weight
    )
