"""Editing shapes: against models run by hand, against masking, and against what a checkpoint reloads."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_models import FAMILIES, GROUPED, tiny_model, tiny_tokens
from transformers import AutoModelForCausalLM

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.blocks import FAMILIES as LAYOUTS
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.conv1d import from_conv1d, to_conv1d
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.shapes import (
    keep_channels,
    keep_kv_groups,
    keep_layers,
    loadable,
    statable_groups,
    states_head_dim,
    with_layers,
)
from pytest_llmslim.models.storage import copy_model, parameter_count, stored_bytes, weights_hash

TOKENS = tiny_tokens(2, 40, seed=9)  # longer than the sliding window of 32
DEPTH = 4
SLIDING = ["sliding_attention", "full_attention"] * 2


def deep(family: str, **overrides: object) -> torch.nn.Module:
    """A tiny model of four layers; where a family has two kinds of layers, of both kinds."""
    told = {"n_layer" if family == "gpt2" else "num_hidden_layers": DEPTH}
    if family in ("qwen2", "qwen3"):
        told |= {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 2}
    if family == "gemma3":
        told |= {"layer_types": SLIDING}
    return tiny_model(family, **{**told, **overrides})


def logits(module: torch.nn.Module) -> torch.Tensor:
    """Of the test's tokens, without a cache."""
    with torch.no_grad():
        return module(input_ids=TOKENS, use_cache=False).logits


def reloaded(module: torch.nn.Module, folder) -> torch.nn.Module:
    """The model as its own checkpoint gives it."""
    with quiet():
        saved = copy_model(module)
        to_conv1d(saved) if Blocks(module).family == "gpt2" else None
        saved.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    from_conv1d(loaded)
    return loaded.eval()


def generates_as_without_cache(module: torch.nn.Module) -> bool:
    """Whether greedy generation gives the same tokens with and without the cache."""
    arguments = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 3}
    with quiet():
        made = [module.generate(TOKENS, use_cache=cached, **arguments) for cached in (True, False)]
    return torch.equal(*made)


def check_whole(module: torch.nn.Module, folder) -> None:
    """The model generates with its cache, and its checkpoint computes the same."""
    assert generates_as_without_cache(module)
    torch.testing.assert_close(logits(reloaded(module, folder)), logits(module), rtol=0, atol=1e-5)


class Skipped(torch.nn.Module):
    """A block that hands on what it gets."""

    def forward(self, hidden_states, *arguments, **named):
        return hidden_states


def skipping(model: torch.nn.Module, order: list[int]) -> torch.Tensor:
    """Logits of a copy of `model` with all blocks but those of `order` replaced by nothing."""
    twin = copy_model(model)
    blocks = twin.get_submodule(LAYOUTS[Blocks(model).family].layers)
    for index in set(range(len(blocks))) - set(order):
        blocks[index] = Skipped()
    return logits(twin)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [[0, 2, 3], [1, 3], [2]])
def test_fewer_layers_compute_as_the_model_that_skips_the_others(family, order, tmp_path):
    """Without layers = with blocks that do nothing in their place; the checkpoint computes the same."""
    model = deep(family)
    expected = skipping(model, order)
    keep_layers(model, order)

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert len(order) == model.config.num_hidden_layers == len(Blocks(model).layers)
    check_whole(model, tmp_path)


def by_hand(model: torch.nn.Module, order: list[int]) -> torch.Tensor:
    """Logits of a plain decoder without positions that depend on layers: the blocks of `order` in turn."""
    decoder = model.model
    hidden = decoder.embed_tokens(TOKENS)
    places = torch.arange(TOKENS.shape[1])[None]
    rotary = decoder.rotary_emb(hidden, places)
    for index in order:
        hidden = decoder.layers[index](hidden, position_ids=places, position_embeddings=rotary)
    return model.lm_head(decoder.norm(hidden))


@pytest.mark.parametrize("order", [[2, 0, 3], [0, 1, 1, 2, 3], [3, 3, 3, 3, 0]])
def test_any_order_computes_as_the_blocks_run_by_hand(order):
    """Skipped, repeated and reordered blocks, one after the other."""
    model = tiny_model("llama", num_hidden_layers=DEPTH)
    with torch.no_grad():
        expected = by_hand(model, order)
    keep_layers(model, order)

    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", [[3, 0, 0, 2], [0, 1, 2, 2, 1, 3]])
def test_repeated_and_reordered_layers_are_whole_models(family, order, tmp_path):
    """Each layer finds its own part of the cache, and repeats are stored as weights of their own."""
    model = deep(family)
    before = [stored_bytes(layer.module) for layer in Blocks(model).layers]
    embedded = stored_bytes(model) - sum(before)
    keep_layers(model, order)

    assert embedded + sum(before[index] for index in order) == stored_bytes(model)
    places = [
        {part.layer_idx for part in layer.module.modules() if hasattr(part, "layer_idx")}
        for layer in Blocks(model).layers
    ]
    assert [{place} for place in range(len(order))] == places
    assert all(part.config is model.config for part in model.modules() if hasattr(part, "config"))
    check_whole(model, tmp_path)


def test_the_kinds_of_layers_go_with_them():
    """Gemma 3: which layer attends to a window is told per layer; each keeps its own kind."""
    model = deep("gemma3")
    keep_layers(model, [3, 0, 1])

    assert ["full_attention", "sliding_attention", "full_attention"] == model.config.layer_types
    assert model.config.layer_types == [layer.attention.module.layer_type for layer in Blocks(model).layers]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize(("order", "full"), [([0, 2, 3], 1), ([0, 1], 2), ([2, 3], 0)])
def test_qwen_is_told_how_many_layers_attend_to_everything(family, order, full):
    """`max_window_layers` counts what is left of the layers before the first with a window."""
    model = deep(family)
    keep_layers(model, order)

    assert full == model.config.max_window_layers
    assert ["full_attention"] * full + ["sliding_attention"] * (len(order) - full) == model.config.layer_types
    assert model.model.has_sliding_layers == (full < len(order))


@pytest.mark.parametrize("order", [[1, 3], [2, 0, 0]])
def test_gpt2_with_scores_scaled_by_layer(order, tmp_path):
    """`scale_attn_by_inverse_layer_idx` divides by the layer's number; queries make up for a new one."""
    model = deep("gpt2", scale_attn_by_inverse_layer_idx=True)
    expected = skipping(model, order) if order == sorted(order) else None
    keep_layers(model, order)

    if expected is not None:
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    check_whole(model, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_leaves_no_trace(family):
    """Within the block the model computes without the layers; after it, also after an error, as before."""
    model = deep(family)
    before, told, values = logits(model), model.config.to_dict(), weights_hash(model)
    expected = skipping(model, [1, 3])
    with with_layers(model, [1, 3]):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    with pytest.raises(IndexError), with_layers(model, [0]):
        model(input_ids=TOKENS + 10**6)

    assert told == model.config.to_dict()
    assert values == weights_hash(model)
    assert torch.equal(before, logits(model))
    assert getattr(model.base_model, "has_sliding_layers", True)


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_channels_compute_as_zeroed_ones(family, tmp_path):
    """Other channels in every layer; the config knows the width, the checkpoint computes the same."""
    model = deep(family)
    width = Blocks(model).layers[0].linears[Blocks(model).layers[0].feed_forward.outer].in_features
    chosen = {index: sorted(random.Random(index).sample(range(width), 64)) for index in range(DEPTH)}
    masked = copy_model(model)
    for layer in Blocks(masked).layers:
        weight = layer.linears[layer.feed_forward.outer].weight
        weight[:, [c for c in range(width) if c not in chosen[layer.index]]] = 0
    keep_channels(model, chosen)

    torch.testing.assert_close(logits(model), logits(masked), rtol=0, atol=1e-5)
    for layer in Blocks(model).layers:
        inner = {layer.linears[name].out_features for name in layer.feed_forward.inner}
        assert {64} == inner | {layer.linears[layer.feed_forward.outer].in_features}
    if family in GROUPED:
        assert 64 == model.config.intermediate_size == model.model.layers[0].mlp.intermediate_size
    check_whole(model, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_groups_compute_as_masked_heads(family, tmp_path):
    """Another group in every layer; where the config can tell it, the checkpoint computes the same."""
    model = deep(family)
    attention = Blocks(model).layers[0].attention
    groups, size, width = attention.kv_heads, attention.groups, attention.head_dim
    stays = {index: range(index % 2, groups, 2) for index in range(DEPTH)}
    masked = copy_model(model)
    for layer in Blocks(masked).layers:
        layer.attention.mask_heads(
            {h for h in range(layer.attention.heads) if h // size not in stays[layer.index]}
        )
    keep_kv_groups(model, stays)

    torch.testing.assert_close(logits(model), logits(masked), rtol=0, atol=1e-5)
    assert parameter_count(model) < parameter_count(masked)
    assert generates_as_without_cache(model)
    assert states_head_dim(model) == (family in GROUPED)
    if states_head_dim(model):
        told = model.config
        assert (2, 1, width) == (told.num_attention_heads, told.num_key_value_heads, told.head_dim)
        check_whole(model, tmp_path)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", [1, 2, 4]),
        ("gemma3", [1, 2, 4]),
        ("mistral", [1, 2, 3, 4]),
        ("qwen2", [1, 2, 3, 4]),
        ("qwen3", [1, 2, 3, 4]),
    ],
)
def test_counts_of_groups_that_a_config_can_state(family, expected, tmp_path):
    """Llama and Gemma 3 refuse 6 heads for a hidden width of 64; the others load them."""
    model = tiny_model(family, num_attention_heads=8, num_key_value_heads=4, head_dim=8)

    assert expected == statable_groups(model)
    if 3 in expected:
        keep_kv_groups(model, {layer: [0, 1, 3] for layer in range(2)})
        check_whole(model, tmp_path)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_any_count_of_heads_of_a_fixed_width(family):
    """GPT-2's and OPT's config tells no width of a head; what of it can be saved is the saver's matter."""
    assert [1, 2, 3, 4] == statable_groups(tiny_model(family))


def test_what_a_config_may_say():
    """A config that its class refuses is not loadable; the config itself is left alone."""
    config = tiny_model("llama").config

    assert loadable(config)
    assert not loadable(config, num_attention_heads=3)
    assert not loadable(config, num_hidden_layers="many")
    assert (4, 2) == (config.num_attention_heads, config.num_hidden_layers)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([], r"^the model keeps at least one layer, got none; keep one$"),
        ([0, 2], r"^the model has the layers 0 to 1, got 2; name only layers it has$"),
        ([-1], r"^the model has the layers 0 to 1, got -1;"),
    ],
)
def test_layers_that_are_not_there(order, said):
    """Neither for good nor for a trial."""
    with pytest.raises(ModelError, match=said):
        keep_layers(tiny_model("llama"), order)
    with pytest.raises(ModelError, match=said), with_layers(tiny_model("llama"), order):
        pass


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({0: [0]}, r"^{} are named for each of the layers 0 to 1, got \[0\]; name all$"),
        (
            {0: [0], 1: [0, 1]},
            r"^every layer keeps the same number of {}, .* got \[1, 2\]; keep as many in each$",
        ),
        ({0: [], 1: []}, r"^layer 0 keeps at least one {}, got none; keep one$"),
        ({0: [0], 1: [128]}, r"^layer 1 has the {}s 0 to \d+, got 128; name only {}s it has$"),
        ({0: [0, 0], 1: [0, 1]}, r"^layer 0 keeps each {} once, got \[0, 0\]; name each once$"),
    ],
)
def test_channels_and_groups_that_cannot_be_kept(kept, said):
    """Refused before anything is cut."""
    model = tiny_model("llama")
    before = weights_hash(model)
    several = "are named" in said or "every layer" in said
    with pytest.raises(
        ModelError, match=said.replace("{}", "feed-forward channels" if several else "channel")
    ):
        keep_channels(model, kept)
    words = "key/value groups" if several else "key/value group"
    with pytest.raises(ModelError, match=said.replace("{}", words)):
        keep_kv_groups(model, kept)

    assert before == weights_hash(model)


def test_quantized_layers_are_not_narrowed():
    """Packed rows cannot be cut out."""

    class Packed(torch.nn.Linear):
        pass

    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj = Packed(128, 64)
    with pytest.raises(
        ModelError,
        match=r"^channels of model.layers.1.mlp.down_proj are cut from plain nn.Linear weights, got Packed; prune",
    ):
        keep_channels(model, {0: [1], 1: [1]})
