"""Width pruning: the choice against its definition, the result against masking."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import FAMILIES, GROUPED, tiny_model, tiny_tokens

from pytest_llmslim.errors import CompressionError, NothingCompressedError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.importance import column_scores, input_norms, strongest
from pytest_llmslim.methods.layerwise import visits
from pytest_llmslim.methods.width import Width, kept_channels, rounding
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, stored_bytes, weights_hash

WINDOWS = tiny_tokens(3, 24)


def context(windows: torch.Tensor | None = WINDOWS) -> Context:
    return Context(windows, seed=0, device="cpu", family="llama", label="tiny")


def logits(module: torch.nn.Module) -> torch.Tensor:
    return module(input_ids=tiny_tokens(2, 16, seed=9)).logits


def inputs_of(model: torch.nn.Module, name: str) -> torch.Tensor:
    """What enters a linear [tokens, in] when the whole model runs, by a hook of the test's own."""
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(input_ids=WINDOWS)
    handle.remove()
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in seen])


def output_name(layer) -> str:
    return next(name for name, part in layer.linears.items() if part is layer.attention.projection_output)


def masked(model: torch.nn.Module, channels: int, groups: int) -> torch.nn.Module:
    """By the definition, layer after layer: the columns of all but the best zeroed in the full model."""
    for index in range(len(Blocks(model).layers)):
        layer = Blocks(model).layers[index]
        outer, output = layer.feed_forward.outer, output_name(layer)
        scores = {}
        for name in (outer, output):
            weight, inputs = layer.linears[name].weight, inputs_of(model, name)
            scores[name] = [
                float(weight[:, c].abs().sum()) * math.sqrt(float((inputs[:, c] ** 2).sum()))
                for c in range(weight.shape[1])
            ]
        order = sorted(range(len(scores[outer])), key=scores[outer].__getitem__)
        layer.linears[outer].weight[:, order[: len(order) - channels]] = 0
        columns = len(scores[output]) // layer.attention.kv_heads
        sums = [sum(scores[output][g * columns : (g + 1) * columns]) for g in range(layer.attention.kv_heads)]
        for group in sorted(range(len(sums)), key=sums.__getitem__)[: len(sums) - groups]:
            layer.linears[output].weight[:, group * columns : (group + 1) * columns] = 0
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("ratio", "heads"), [(0.5, 0.0), (0.25, 0.5), (0.0, 0.5)])
def test_the_weakest_are_cut_in_every_layer(family, ratio, heads):
    """The smaller model computes what the full one does with the chosen channels and groups zeroed."""
    model = tiny_model(family)
    attention, width = Blocks(model).layers[0].attention, 256 if family == "gpt2" else 128
    channels = round((1 - ratio) * width)
    groups = attention.kv_heads - round(heads * attention.kv_heads)
    expected = masked(copy_model(model), channels, groups)
    applied = Width(ratio=ratio, heads=heads).compress(copy_model(model), context())

    torch.testing.assert_close(logits(applied.module), logits(expected), rtol=0, atol=1e-5)
    assert stored_bytes(applied.module) < stored_bytes(model)
    for layer in Blocks(applied.module).layers:
        assert channels == layer.linears[layer.feed_forward.outer].in_features
        assert groups == layer.attention.kv_heads
    step = 16 if family == "gpt2" else 8
    said = [f"{width - channels} of {width} feed-forward channels, {channels} stay (a multiple of {step})"]
    said = (said if ratio else []) + (["2 of 4 attention heads"] if heads else [])
    assert f"width: removed in each of 2 layers: {' and '.join(said)}" == applied.sentence
    assert not applied.simulated


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_and_scores_by_definition(family):
    """Norms over all tokens of all windows; nothing is noted of linears that were not asked for."""
    model = tiny_model(family)
    visit = next(iter(visits(model, WINDOWS, context(), "width")))
    name = visit.layer.feed_forward.outer
    norms = input_norms(visit, (name,))
    inputs = inputs_of(model, name).double()

    assert [name] == list(norms)
    torch.testing.assert_close(norms[name], inputs.square().sum(0).sqrt(), rtol=1e-5, atol=0)
    weight = visit.layer.linears[name].weight.double()
    torch.testing.assert_close(
        column_scores(visit.layer.linears[name].weight, norms[name]), weight.abs().sum(0) * norms[name]
    )


def test_the_strongest_come_in_their_own_order():
    """Ascending indices; of equal scores the first stay."""
    assert [0, 1, 3] == strongest(torch.tensor([2.0, 1, 1, 3, 0]), 3)


@pytest.mark.parametrize(
    ("width", "ratio", "kept"),
    [
        (2048, 0.25, 1536),
        (2048, 0.3, 1408),  # 1434 to the next multiple of 64
        (2048, 0.99, 64),
        (2048, 0.01, 2048),  # nothing
        (172, 0.25, 128),  # multiples of 8
        (1000, 0.5, 512),  # multiples of 32
        (12, 0.25, 9),
        (100, 0.0, 100),
    ],
)
def test_widths_that_kernels_like(width, ratio, kept):
    """Rounded by at most 1/32 of the width, to multiples of 64 from 1024 on; at least one step stays."""
    assert kept == kept_channels(width, ratio)
    assert abs(kept - (1 - ratio) * width) <= max(0.5, width / 32) or kept == rounding(width)


@pytest.mark.parametrize(("width", "step"), [(4096, 64), (1024, 64), (1023, 32), (256, 16), (16, 1), (1, 1)])
def test_the_step_is_a_16th_of_the_width_at_most(width, step):
    """And a power of two up to 64."""
    assert step == rounding(width)


@pytest.mark.parametrize("family", GROUPED)
def test_at_least_one_group_goes_and_one_stays(family):
    """Two groups a layer: every share above 0 takes one of them."""
    for heads in (0.01, 0.99):
        applied = Width(ratio=0, heads=heads).compress(tiny_model(family), context())
        assert {1} == {layer.attention.kv_heads for layer in Blocks(applied.module).layers}


def test_heads_that_the_checkpoint_could_not_tell():
    """Llama's config refuses 6 heads in a hidden width of 64, so the choice is given."""
    model = tiny_model("llama", num_attention_heads=8, num_key_value_heads=8)
    with pytest.raises(CompressionError) as raised:
        Width(heads=0.25).compress(model, context())

    assert str(raised.value) == (
        "width on tiny: the number of heads that stay divides the hidden width, or the checkpoint would not load, "
        "got heads=0.25; choose of 0.5, 0.75, 0.875"
    )


def test_a_single_group_has_to_stay():
    """As in Gemma 3 270M."""
    model = tiny_model("gemma3", num_key_value_heads=1)
    with pytest.raises(
        CompressionError,
        match=r"^width on tiny: heads go by whole key/value groups, got 1 a layer and none that .*; leave heads",
    ):
        Width(heads=0.5).compress(model, context())


def test_a_share_that_rounds_to_nothing():
    """Compresses nothing, and says how much there was."""
    with pytest.raises(NothingCompressedError) as raised:
        Width(ratio=0.01).compress(tiny_model("llama"), context())

    assert str(raised.value) == (
        "width on tiny: removes a share of 128 feed-forward channels, got ratio=0.01, which rounds to none; "
        "raise ratio"
    )


def test_text_is_needed():
    """Activations come from text."""
    with pytest.raises(CompressionError, match=r"^width on tiny: .* of two tokens or more, got none; give"):
        Width().compress(tiny_model("llama"), context(None))


def test_the_same_every_time():
    """Nothing is drawn; only so many samples are looked at."""
    made = [Width(samples=1).compress(tiny_model("opt"), context()).module for _ in range(2)]
    alone = Width().compress(tiny_model("opt"), context(WINDOWS[:1])).module

    assert 1 == len({weights_hash(module) for module in (*made, alone)})


def test_weights_that_stay_are_untouched():
    """Rows of the kept channels are those of the model before, in their order."""
    model = tiny_model("llama")
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    after = Width().compress(model, context()).module.model.layers[0].mlp.up_proj.weight
    places = [int((before == row).all(dim=1).nonzero()) for row in after]

    assert sorted(set(places)) == places
    assert 96 == len(places)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"ratio": 1}, "ratio is a number from 0 and below 1, got 1"),
        ({"ratio": -0.1}, "ratio is a number from 0 and below 1, got -0.1"),
        ({"ratio": math.nan}, "ratio is a number from 0 and below 1, got nan"),
        ({"heads": 1.0}, "heads is a number from 0 and below 1, got 1.0"),
        ({"heads": True}, "heads is a number from 0 and below 1, got True"),
        ({"samples": 0}, "samples is a whole number from 1, got 0"),
        ({"ratio": 0}, "ratio is above 0 where heads is 0, got 0"),
    ],
)
def test_parameters(parameters, said):
    """Refused by name, with the rule."""
    with pytest.raises(RecipeError) as raised:
        Width(**parameters)

    assert f"width: {said}" == str(raised.value)
