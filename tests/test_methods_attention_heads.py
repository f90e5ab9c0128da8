"""Head pruning by concentration: by hand, against transformers' own attentions, and against masking."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, GROUPED, tiny_model, tiny_tokens

from pytest_llmslim.errors import CompressionError, NothingCompressedError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.attention_heads import (
    SIMULATED,
    AttentionHeads,
    Cut,
    choose,
    concentration,
    concentrations,
)
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, parameter_count

WINDOWS = tiny_tokens(3, 24)


def context(windows: torch.Tensor | None = WINDOWS) -> Context:
    return Context(calibration=windows, seed=0, device="cpu", family="gpt2", label="tiny")


def logits(module: torch.nn.Module) -> torch.Tensor:
    return module(input_ids=tiny_tokens(2, 16, seed=9)).logits


class Heads:
    """As many groups as `choose` needs to know of."""

    def __init__(self, kv_heads: int) -> None:
        self.kv_heads = kv_heads


def test_concentration_by_hand():
    """The mean over queries comes first, then the largest key."""
    sink = [[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0]]
    diagonal = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    mixed = [[1.0, 0, 0], [0.5, 0.5, 0], [0.1, 0.8, 0.1]]
    found = concentration(torch.tensor([[sink, diagonal, mixed]]))

    assert [1, pytest.approx(1 / 3), pytest.approx(1.6 / 3)] == found.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_concentrations_equal_those_of_output_attentions(family):
    """Every layer's scores are those that the attentions which transformers returns give."""
    model = tiny_model(family)
    found = concentrations(model, WINDOWS, context())
    model.set_attn_implementation("eager")
    expected = torch.stack(
        [
            torch.stack([layer[0].mean(dim=1).max(dim=1).values for layer in attentions])
            for attentions in (model(input_ids=w[None], output_attentions=True).attentions for w in WINDOWS)
        ]
    ).mean(dim=0)

    torch.testing.assert_close(torch.stack(found), expected)


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(broken):
    """Attention implementation and hooks are put back, also when a forward pass fails."""
    model = tiny_model("llama")
    before = model.config._attn_implementation
    windows = WINDOWS + 10**6 if broken else WINDOWS
    try:
        concentrations(model, windows, context())
    except IndexError:
        assert broken

    assert "sdpa" == before == model.config._attn_implementation
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("scores", "groups", "cut"),
    [
        ([0.5, 0.95, 0.2, 0.91], 4, Cut(frozenset({1, 3}), frozenset())),
        ([0.9, 0.9, 0.9, 0.2], 4, Cut(frozenset(), frozenset())),
        ([0.99, 0.95, 0.97, 0.98], 4, Cut(frozenset({0, 2, 3}), frozenset())),
        ([0.95, 0.96, 0.1, 0.2], 2, Cut(frozenset({0}), frozenset())),
        ([0.95, 0.3, 0.1, 0.92], 2, Cut(frozenset(), frozenset({0, 3}))),
        ([0.95, 0.96, 0.1, 0.92], 2, Cut(frozenset({0}), frozenset({3}))),
        ([0.95, 0.96, 0.94, 0.92], 2, Cut(frozenset({0}), frozenset())),
        ([0.95, 0.96, 0.94, 0.92], 1, Cut(frozenset(), frozenset())),
    ],
)
def test_what_is_cut(scores, groups, cut):
    """Above the threshold means above; whole groups go, heads of others are masked, one group stays."""
    assert cut == choose(torch.tensor(scores), Heads(groups), 0.9)


def between(family: str, rank: int, **overrides: object) -> tuple[torch.nn.Module, float, list[torch.Tensor]]:
    """A model, a threshold below its `rank` most concentrated heads, and the scores."""
    model = tiny_model(family, **overrides)
    scores = concentrations(model, WINDOWS, context())
    ordered = sorted(torch.cat(scores).tolist(), reverse=True)
    return model, (ordered[rank - 1] + ordered[rank]) / 2, scores


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("rank", [1, 3])
def test_heads_above_the_threshold_are_removed(family, rank):
    """The model without the heads computes what it computes with their outputs zeroed, with fewer weights."""
    reference, threshold, scores = between(family, rank)
    masked = copy_model(reference)
    for layer, score in zip(Blocks(masked).layers, scores, strict=True):
        layer.attention.mask_heads(set((score > threshold).nonzero().flatten().tolist()))
    applied = AttentionHeads(threshold).compress(copy_model(reference), context())

    torch.testing.assert_close(logits(applied.module), logits(masked))
    assert parameter_count(reference) - parameter_count(applied.module) == rank * (4 * 16 * 64 + 3 * 16)
    assert not applied.simulated
    highest = max(float(score.max()) for score in scores)
    assert applied.sentence == (
        f"ah(threshold={threshold:g}): {rank} of 8 heads removed, 0 masked; "
        f"the highest concentration was {highest:.3f}"
    )


@pytest.mark.parametrize("family", GROUPED)
def test_single_heads_of_a_group_are_masked(family):
    """With grouped heads one head above the threshold is silenced; nothing gets smaller, and that is said."""
    reference, threshold, _ = between(family, 1)
    module = copy_model(reference)
    applied = AttentionHeads(threshold).compress(module, context())

    assert ": 0 of 8 heads removed, 1 masked; " in applied.sentence
    assert SIMULATED == applied.simulated
    assert parameter_count(reference) == parameter_count(module)
    assert not torch.allclose(logits(reference), logits(module))


@pytest.mark.parametrize(("family", "kept"), [*((family, 1) for family in FAMILIES)])
def test_one_group_stays_in_every_layer(family, kept):
    """A threshold below all heads leaves the least concentrated group of each layer."""
    model = tiny_model(family)
    scores = concentrations(model, WINDOWS, context())
    groups = Blocks(model).layers[0].attention.kv_heads
    stays = [int(score.reshape(groups, -1).mean(dim=1).argmin()) for score in scores]
    masked = copy_model(model)
    for layer, keep in zip(Blocks(masked).layers, stays, strict=True):
        size = layer.attention.groups
        layer.attention.mask_heads({h for h in range(layer.attention.heads) if h // size != keep})
    applied = AttentionHeads(1e-6).compress(model, context())

    assert [kept, kept] == [layer.attention.kv_heads for layer in Blocks(applied.module).layers]
    torch.testing.assert_close(logits(applied.module), logits(masked))


def test_no_head_above_the_threshold():
    """Nothing to remove is an error that tells how far away the threshold was."""
    model, _, scores = between("gpt2", 1)
    highest = max(float(score.max()) for score in scores)
    with pytest.raises(
        NothingCompressedError,
        match=rf"^ah on tiny: removes heads .* 0.9 of .*, and no head gives more than {highest:.3f}; lower",
    ):
        AttentionHeads().compress(model, context())


def test_only_heads_that_have_to_stay():
    """With one group a layer none can go, and lowering the threshold would not help."""
    model = tiny_model("llama", num_key_value_heads=1)
    with pytest.raises(
        NothingCompressedError, match=r"in groups that have to stay, one in every layer; use a model"
    ):
        AttentionHeads(1e-6).compress(model, context())


@pytest.mark.parametrize(
    ("windows", "got"),
    [
        (None, "none"),
        (torch.zeros(0, 8).long(), r"shape \[0, 8\]"),
        (torch.zeros(2, 1).long(), r"shape \[2, 1\]"),
    ],
)
def test_calibration_text_is_needed(windows, got):
    """Without text, or with windows in which every head looks at one token, there is no concentration."""
    with pytest.raises(
        CompressionError, match=rf"^ah on tiny: .* two tokens or more, got {got}; give a calibration"
    ):
        AttentionHeads().compress(tiny_model("gpt2"), context(windows))


def test_attention_that_cannot_be_read(monkeypatch):
    """A layer that returns no probabilities is an error, not a head without concentration."""
    model = tiny_model("llama")
    attention = model.model.layers[0].self_attn
    inner = attention.forward
    monkeypatch.setattr(attention, "forward", lambda *args, **kwargs: (inner(*args, **kwargs)[0], None))
    with pytest.raises(
        CompressionError, match=r"returns its probabilities, got them from 1 of 2 layers; this model"
    ):
        AttentionHeads().compress(model, context())


@pytest.mark.parametrize("value", [0, 1, -1, 90, float("nan"), "0.9", True])
def test_thresholds_are_shares(value):
    """A threshold that removes all or no heads, or is no number, is refused."""
    with pytest.raises(RecipeError, match=r"^ah: threshold is a number above 0 and below 1, got"):
        AttentionHeads(value)
