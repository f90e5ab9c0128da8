"""Depth pruning: the choice against its definitions, the rest against `models.shapes`."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens

from pytest_llmslim.errors import CompressionError, NothingCompressedError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.depth import (
    Depth,
    Layers,
    greedy,
    influence,
    influences,
    loss_without,
    order_of,
    spelled,
)
from pytest_llmslim.models.blocks import FAMILIES as LAYOUTS
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.shapes import keep_layers
from pytest_llmslim.models.storage import copy_model, weights_hash

WINDOWS = tiny_tokens(3, 24)
DEPTH = 4


def context(windows: torch.Tensor | None = WINDOWS, said: list[str] | None = None) -> Context:
    tell = None if said is None else said.append
    return Context(windows, seed=0, device="cpu", family="llama", label="tiny", progress=tell)


def deep(family: str = "llama") -> torch.nn.Module:
    told = {"n_layer" if family == "gpt2" else "num_hidden_layers": DEPTH}
    if family == "gemma3":
        told |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
    return tiny_model(family, **told)


def logits(module: torch.nn.Module) -> torch.Tensor:
    return module(input_ids=tiny_tokens(2, 16, seed=9)).logits


def without(model: torch.nn.Module, *gone: int) -> torch.nn.Module:
    """A copy that lacks these layers."""
    twin = copy_model(model)
    keep_layers(twin, [index for index in range(DEPTH) if index not in gone])
    return twin


def loss(model: torch.nn.Module) -> float:
    """What transformers itself gives as loss, a mean over windows of one length."""
    return float(model(input_ids=WINDOWS, labels=WINDOWS).loss)


def test_influence_by_hand():
    """1 - the mean cosine: a scaled state counts for nothing, one at right angles 1, a reversed one 2."""
    before = torch.tensor([[[1.0, 0], [1, 0], [1, 1]]])
    after = torch.tensor([[[3.0, 0], [0, 2], [-1, -1]]])

    assert pytest.approx((0 + 1 + 2) / 3) == influence(before, after)


@pytest.mark.parametrize("family", FAMILIES)
def test_influences_equal_those_of_the_hidden_states_that_transformers_returns(family):
    """Of all layers but the last, whose returned state is behind the final norm."""
    model = deep(family)
    found = influences(model, WINDOWS, context())
    states = model(input_ids=WINDOWS, output_hidden_states=True).hidden_states
    cosines = [torch.cosine_similarity(a, b, dim=-1).mean() for a, b in pairwise(states[:-1])]
    expected = [1 - float(cosine) for cosine in cosines]

    assert pytest.approx(expected, abs=1e-5) == found[:-1]
    assert DEPTH == len(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_layers_of_least_influence_go(family, count):
    """The others compute as they are; the sentence names who went and by how much."""
    model = deep(family)
    scores = influences(model, WINDOWS, context())
    order = sorted(range(DEPTH), key=lambda index: scores[index])
    gone = sorted(order[:count])
    applied = Depth(layers=count).compress(copy_model(model), context())

    assert torch.equal(logits(without(model, *gone)), logits(applied.module))
    low = ", ".join(f"{scores[index]:.3f}" for index in gone)
    assert applied.sentence == (
        f"depth(by=influence): layer{'s' * (count > 1)} {spelled(gone)} of 0-3 removed, "
        f"with block influence {low}; the others have {scores[order[count]]:.3f} or more"
    )
    assert not applied.simulated


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_without_a_layer(family):
    """The loss of the model that lacks the layer, as transformers computes it."""
    model = deep(family)

    assert pytest.approx(loss(model), rel=1e-5) == loss_without(model, WINDOWS, range(DEPTH), None)
    assert pytest.approx(loss(without(model, 1)), rel=1e-5) == loss_without(model, WINDOWS, range(DEPTH), 1)


def test_each_removal_raises_the_loss_least():
    """Brute force in every turn, given those that went before."""
    model, gone, losses = deep(), [], [loss(deep())]
    for _ in range(3):
        trials = {i: loss(without(model, *gone, i)) for i in range(DEPTH) if i not in gone}
        gone.append(min(trials, key=trials.__getitem__))
        losses.append(trials[gone[-1]])
    said: list[str] = []
    found, measured = greedy(model, WINDOWS, 3, context(said=said))

    assert gone == found
    assert pytest.approx(losses, rel=1e-5) == measured
    assert said[0] == "depth: removal 1 of 3, without layer 0"
    assert 4 + 3 + 2 == len(said)


def test_removal_by_perplexity():
    """The sentence tells the order and the losses."""
    model = deep()
    gone, losses = greedy(model, WINDOWS, 2, context())
    applied = Depth(layers=2, by="perplexity").compress(copy_model(model), context())

    assert torch.equal(logits(without(model, *gone)), logits(applied.module))
    assert applied.sentence == (
        f"depth(by=perplexity): layers {spelled(sorted(gone))} of 0-3 removed, with the loss growing from "
        f"{losses[0]:.3f}: {gone[0]} ({losses[1]:.3f}), then {gone[1]} ({losses[2]:.3f})"
    )


@pytest.mark.parametrize(
    ("count", "gone", "which"),
    [(1, [2], "layer 2"), (2, [1, 2], "layers 1, 2"), (3, [0, 1, 2], "layers 0-2")],
)
def test_the_last_before_the_final_one(count, gone, which):
    """The final layer stays; no text is needed."""
    model = deep()
    applied = Depth(layers=count, by="last").compress(copy_model(model), context(None))

    assert torch.equal(logits(without(model, *gone)), logits(applied.module))
    assert f"depth(by=last): {which} of 0-3 removed, the deepest before the final one" == applied.sentence


@pytest.mark.parametrize(
    ("method", "left"),
    [(Depth(by="last"), 3), (Depth(ratio=0.01, by="last"), 3), (Depth(ratio=0.7, by="last"), 1)],
)
def test_a_share_of_the_layers(method, left):
    """A quarter when nothing is said, rounded, and at least one."""
    assert left == len(Blocks(method.compress(deep(), context()).module).layers)


@pytest.mark.parametrize(
    ("method", "got"), [(Depth(layers=4), 4), (Depth(layers=9), 9), (Depth(ratio=0.9), 4)]
)
def test_one_layer_stays(method, got):
    """A model without layers is no model."""
    with pytest.raises(
        CompressionError,
        match=rf"^depth on tiny: at least one of its 4 layers stays, got {got} to remove; remove fewer, or use",
    ):
        method.compress(deep(), context())


@pytest.mark.parametrize("by", ["influence", "perplexity"])
def test_text_is_needed_to_choose(by):
    """Without a text only `last` knows which."""
    with pytest.raises(
        CompressionError, match=r"^depth on tiny: .* windows of two tokens or more, got none;"
    ):
        Depth(by=by).compress(deep(), context(None))


@pytest.mark.parametrize("by", ["influence", "perplexity"])
def test_so_many_samples(by):
    """Only the first windows are looked at."""
    model = deep()
    one = Depth(by=by, samples=1).compress(copy_model(model), context())
    alone = Depth(by=by).compress(copy_model(model), context(WINDOWS[:1]))

    assert alone.sentence == one.sentence
    assert weights_hash(alone.module) == weights_hash(one.module)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"layers": 0}, "layers is a whole number from 1, got 0"),
        ({"layers": 1.5}, "layers is a whole number from 1, got 1.5"),
        ({"layers": True}, "layers is a whole number from 1, got True"),
        ({"ratio": 0}, "ratio is a number above 0 and below 1, got 0"),
        ({"ratio": 1.0}, "ratio is a number above 0 and below 1, got 1.0"),
        ({"ratio": math.nan}, "ratio is a number above 0 and below 1, got nan"),
        ({"layers": 1, "ratio": 0.5}, "ratio is left out where layers is given, got 0.5"),
        ({"by": "luck"}, "by is one of influence, perplexity, last, got 'luck'"),
        ({"samples": 0}, "samples is a whole number from 1, got 0"),
    ],
)
def test_parameters_of_depth(parameters, said):
    """Refused by name, with the rule."""
    with pytest.raises(RecipeError) as raised:
        Depth(**parameters)

    assert f"depth: {said}" == str(raised.value)


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("0-2,2,4,3", [0, 1, 2, 2, 4, 3]),
        ("0-1/1/3", [0, 1, 1, 3]),
        (" 0 , 2-2 ", [0, 2]),
        ("007", [7]),
        (3, [3]),
    ],
)
def test_maps(text, order):
    """Layers and ranges in the order written; a lone number comes as such from the recipe."""
    assert order == order_of(text)


@pytest.mark.parametrize(
    "value", ["", "a", "0,", "0--2", "-1", "3-0", "0;1", "0 1", "99999", "²", True, 0.5, None]
)
def test_maps_that_cannot_be_read(value):
    """Anything else is refused."""
    with pytest.raises(RecipeError) as raised:
        Layers(value)

    assert str(raised.value) == (
        "layers: map is a list of layers from 0 and ascending ranges of them, as '0-2,2,5' or 0-2/2/5, "
        f"got {value!r}"
    )


@pytest.mark.parametrize("order", [[0], [0, 1], [0, 1, 2, 3], [0, 2, 3, 4, 1, 1], [5, 4, 3]])
def test_a_map_spelled_is_the_map_read(order):
    """What a sentence names can be written in a recipe."""
    assert order == order_of(spelled(order))


@pytest.mark.parametrize(
    ("text", "order", "said"),
    [
        ("0,2-3", [0, 2, 3], "layers: 0, 2, 3 of 0-3, 3 instead of 4"),
        ("0-3,3", [0, 1, 2, 3, 3], "layers: 0-3, 3 of 0-3, 5 instead of 4"),
        ("1,0,2,3", [1, 0, 2, 3], "layers: 1, 0, 2, 3 of 0-3, 4 instead of 4"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_recombination(family, text, order, said):
    """As the blocks in that order compute; repeating makes a larger model, which is not refused."""
    model = deep(family)
    expected = copy_model(model)
    blocks = [copy_model(layer.module) for layer in Blocks(expected).layers]
    parent, _, name = LAYOUTS[Blocks(model).family].layers.rpartition(".")
    setattr(expected.get_submodule(parent), name, torch.nn.ModuleList([blocks[index] for index in order]))
    expected.config.num_hidden_layers = len(order)
    if family in ("qwen2", "qwen3", "gemma3"):
        expected.config.layer_types = [expected.config.layer_types[index] for index in order]
    applied = Layers(text).compress(model, context(None))
    tokens = tiny_tokens(2, 40, seed=9)
    found = applied.module(input_ids=tokens, use_cache=False).logits

    torch.testing.assert_close(found, expected(input_ids=tokens, use_cache=False).logits)
    assert said == applied.sentence


def test_a_layer_that_the_model_lacks():
    """Known only when the model is there."""
    with pytest.raises(CompressionError) as raised:
        Layers("0-4").compress(deep(), context())

    assert str(raised.value) == (
        "layers on tiny: the model has the layers 0 to 3, got 4 in map='0-4'; name only layers it has"
    )


def test_the_map_of_the_model_itself():
    """Compresses nothing."""
    with pytest.raises(
        NothingCompressedError,
        match=r"^layers on tiny: a map skips, .* got all 4 as they are; leave one out$",
    ):
        Layers("0-3").compress(deep(), context())


@pytest.mark.parametrize("method", [Depth(), Depth(by="perplexity"), Layers("0-1")])
def test_candidates_that_compute_nan_are_not_handed_on(method):
    """However the layers were chosen."""
    model = deep()
    model.model.norm.weight.data[0] = float("nan")
    name = "layers" if isinstance(method, Layers) else "depth"
    with pytest.raises(CompressionError, match=rf"^{name} on tiny: logits are finite, got NaN"):
        method.compress(model, context())
