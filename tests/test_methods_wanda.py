"""Wanda against its definition, by loops, and in its order between magnitude and SparseGPT."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.layerwise import visits
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.methods.semi_structured import SIMULATED
from pytest_llmslim.methods.wanda import Wanda
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model

TOKENS = tiny_tokens(3, 16)


def context(calibration=TOKENS) -> Context:
    return Context(calibration=calibration, seed=0, device="cpu", family="llama", label="tiny")


def weights(module) -> dict[str, torch.Tensor]:
    return {name: linear.weight for name, linear in Blocks(module).linears().items()}


def prune_by_definition(module, sparsity: float) -> None:
    """Equation 1 in loops, layer by layer: the inputs of a block come from blocks that are pruned already."""
    for visit in visits(module, TOKENS, context(), "test"):
        seen: dict[str, list[torch.Tensor]] = {}
        visit.watch(lambda name, inputs, seen=seen: seen.setdefault(name, []).append(inputs))
        for name, linear in visit.layer.linears.items():
            columns = torch.cat(seen[name]).double().T.tolist()
            norms = [math.sqrt(sum(x * x for x in column)) for column in columns]
            rows = linear.weight.tolist()
            for row in rows:
                scores = sorted(
                    (abs(w) * norm, i) for i, (w, norm) in enumerate(zip(row, norms, strict=True))
                )
                for _, place in scores[: round(sparsity * len(row))]:
                    row[place] = 0.0
            linear.weight.data.copy_(torch.tensor(rows))


@pytest.mark.parametrize(
    ("family", "sparsity"), [*((family, 0.5) for family in FAMILIES), ("gpt2", 0.3), ("llama", 0.9)]
)
def test_every_row_loses_what_the_definition_says(family, sparsity):
    """Every row exactly its share, and what stays is untouched."""
    reference = tiny_model(family)
    module = Wanda(sparsity=sparsity).compress(copy_model(reference), context()).module
    prune_by_definition(reference, sparsity)

    for name, weight in weights(module).items():
        assert {round(sparsity * weight.shape[1])} == set((weight == 0).sum(dim=1).tolist())
        assert torch.equal(weights(reference)[name], weight)


@pytest.mark.parametrize(
    ("family", "pattern"), [*((family, "2:4") for family in FAMILIES), ("gpt2", "4:8"), ("llama", "1:3")]
)
def test_patterns_hold_in_every_row(family, pattern):
    """N of every M stay, untouched; nothing but the linears of blocks changes."""
    reference = tiny_model(family)
    applied = Wanda(pattern=pattern).compress(copy_model(reference), context())
    kept, group = map(int, pattern.split(":"))
    before, after = dict(reference.named_parameters()), dict(applied.module.named_parameters())
    linears = weights(applied.module)
    for name, parameter in after.items():
        if name.removesuffix(".weight") not in linears:
            assert torch.equal(before[name], parameter)
            continue
        whole = parameter.shape[1] - parameter.shape[1] % group
        stays = parameter[:, :whole].reshape(-1, group) != 0

        assert bool((stays.sum(dim=1) == kept).all())
        assert torch.equal(before[name][parameter != 0], parameter[parameter != 0])
        assert torch.equal(before[name][:, whole:], parameter[:, whole:])


def test_it_says_what_it_did():
    """Zeros in numbers, and that no device here is faster for them."""
    applied = Wanda().compress(tiny_model("llama"), context())
    total = sum(weight.numel() for weight in weights(applied.module).values())

    assert applied.sentence == f"wanda: 50.0% of {total} weights in 14 linears are zero"
    assert SIMULATED == applied.simulated


def test_zeros_that_are_there_count():
    """A mask of an earlier step stays, and a second time changes nothing."""
    masked = Magnitude(pattern="1:4").compress(tiny_model("llama"), context()).module
    once = Wanda().compress(copy_model(masked), context()).module
    more = Wanda(sparsity=0.8).compress(copy_model(masked), context()).module
    twice = Wanda(sparsity=0.8).compress(copy_model(more), context()).module

    for name, weight in weights(masked).items():
        assert torch.equal(weight, weights(once)[name])  # three quarters are more than a half
        assert bool(((weights(more)[name] == 0) | (weight != 0)).all())
        assert {round(0.8 * weight.shape[1])} == set((weights(more)[name] == 0).sum(dim=1).tolist())
        assert torch.equal(weights(more)[name], weights(twice)[name])


def test_only_so_many_windows_are_drawn():
    """`samples` bounds the text, and other text gives another choice."""
    counts = []

    def draw(count):
        counts.append(count)
        return TOKENS[:count]

    drawn = Context(None, 0, "cpu", "llama", "tiny", draw=draw)
    few = Wanda(samples=1).compress(tiny_model("llama"), drawn).module
    many = Wanda(samples=3).compress(tiny_model("llama"), drawn).module

    assert [1, 3] == counts
    assert any(not torch.equal(a, b) for a, b in zip(few.parameters(), many.parameters(), strict=True))


def test_text_is_needed():
    """Without calibration text there is no activation."""
    with pytest.raises(CompressionError, match=r"^wanda on tiny: the method learns from calibration windows"):
        Wanda().compress(tiny_model("llama"), context(None))


def test_inputs_that_are_not_finite_are_refused():
    """An activation that overflows names the linear it enters."""
    model = tiny_model("llama")
    model.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    with pytest.raises(
        CompressionError,
        match=r"^wanda on tiny: model.layers.1.self_attn.q_proj: what enters it over .* is finite, got NaN",
    ):
        Wanda().compress(model, context())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sparsity": 0}, "wanda: sparsity is a number above 0 and below 1, got 0"),
        ({"pattern": "4:4"}, "wanda: pattern is N:M with 1 <= N < M <= 64, e.g. 2:4, got '4:4'"),
        (
            {"sparsity": 0.5, "pattern": "2:4"},
            "wanda: sparsity is left out where a pattern is given, got 0.5",
        ),
        ({"samples": 0}, "wanda: samples is a whole number from 1 on, got 0"),
        ({"samples": 1.5}, "wanda: samples is a whole number from 1 on, got 1.5"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    """By name, with the rule and the value."""
    with pytest.raises(RecipeError) as error:
        Wanda(**parameters)

    assert message == str(error.value)
