"""One view of blocks, heads and linears; removing heads equals silencing them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, GROUPED, tiny_model, tiny_tokens
from torch import nn
from transformers import BertConfig, BertLMHeadModel

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models import blocks
from pytest_llmslim.models.blocks import Blocks

LINEARS = {"gpt2": 4, "opt": 6, **dict.fromkeys(GROUPED, 7)}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def generated(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model.generate(tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=3)


def test_layers_and_heads_are_those_of_the_config(family: str) -> None:
    """Two layers of four heads; half as many key/value heads where the family groups them."""
    layers = Blocks(tiny_model(family)).layers
    assert [layer.index for layer in layers] == [0, 1]
    attention = layers[0].attention
    shared = 2 if family in GROUPED else 1
    assert (attention.heads, attention.kv_heads, attention.groups) == (4, 4 // shared, shared)
    assert attention.head_dim == (32 if family in ("qwen3", "gemma3") else 16)
    assert attention.projection_output.in_features == 4 * attention.head_dim


def test_linears_are_all_in_blocks_and_found_by_name(family: str) -> None:
    """Dotted names lead to the module; neither head nor embeddings are among them."""
    model = tiny_model(family)
    linears = Blocks(model).linears()
    assert len(linears) == 2 * LINEARS[family]
    assert all(model.get_submodule(name) is linear for name, linear in linears.items())
    everywhere = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    assert everywhere - set(linears) == {"lm_head"}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_removing_groups_equals_masking_their_heads(family: str, implementation: str) -> None:
    """Logits agree to 1e-5 in one pass, greedy text with the cache is the same; both differ from before."""
    original = tiny_model(family)
    original.set_attn_implementation(implementation)
    removed, masked = copy.deepcopy(original), copy.deepcopy(original)
    attention = Blocks(removed).layers[1].attention
    groups = attention.groups
    attention.remove_kv_groups({1})
    Blocks(masked).layers[1].attention.mask_heads(set(range(groups, 2 * groups)))
    tokens = tiny_tokens(2, 50)  # longer than the tiny models' sliding window
    torch.testing.assert_close(logits(removed, tokens), logits(masked, tokens), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(removed, tokens), logits(original, tokens), atol=1e-2)
    assert torch.equal(generated(removed, tokens), generated(masked, tokens))


@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    kv_heads=st.sampled_from([1, 2, 4]),
    picks=st.sets(st.integers(0, 3), max_size=3),
)
def test_any_choice_of_groups_can_go(family: str, kv_heads: int, picks: set[int]) -> None:
    """Whatever goes, one by one, in any grouping: sizes add up and the function is the masked one."""
    overrides = {"num_key_value_heads": kv_heads} if family in GROUPED else {}
    removed, masked = (tiny_model(family, **overrides) for _ in range(2))
    attention = Blocks(removed).layers[0].attention
    count, shared, width = attention.kv_heads, attention.groups, attention.head_dim
    gone = {group for group in picks if group < count}
    if len(gone) == count:
        gone = gone - {0}
    Blocks(masked).layers[0].attention.mask_heads({g * shared + i for g in gone for i in range(shared)})
    for group in sorted(gone, reverse=True):
        attention.remove_kv_groups({group})
    assert attention.kv_heads == count - len(gone)
    assert attention.heads == attention.kv_heads * shared
    assert attention.projection_output.weight.shape == (64, attention.heads * width)
    tokens = tiny_tokens(1, 12)
    torch.testing.assert_close(logits(removed, tokens), logits(masked, tokens), atol=1e-5, rtol=1e-5)


def test_removing_really_shrinks_weights_and_biases(family: str) -> None:
    """One of two groups (one of four heads) less: that share of the attention's parameters is gone."""
    model = tiny_model(family)
    attention = Blocks(model).layers[0].attention
    width = attention.head_dim
    lost_rows = (attention.groups + 2) * width  # query, key and value rows of 64 inputs and, maybe, a bias
    lost = lost_rows * 64 + attention.groups * width * 64
    if family in ("gpt2", "opt", "qwen2"):
        lost += lost_rows
    before = sum(p.numel() for p in model.parameters())
    attention.remove_kv_groups({0})
    assert before - sum(p.numel() for p in model.parameters()) == lost


def test_removing_nothing_changes_nothing(family: str) -> None:
    """The very parameters stay in place."""
    model = tiny_model(family)
    before = [id(p) for p in model.parameters()]
    Blocks(model).layers[0].attention.remove_kv_groups(set())
    assert [id(p) for p in model.parameters()] == before


def test_one_group_has_to_stay(family: str) -> None:
    """A block without heads is refused before anything is cut."""
    model = tiny_model(family)
    attention = Blocks(model).layers[1].attention
    with pytest.raises(ModelError, match=r"layers.1|h.1 keeps at least one key/value group, got all \d"):
        attention.remove_kv_groups(set(range(attention.kv_heads)))
    assert attention.heads == 4


@pytest.mark.parametrize("index", [-1, 4])
def test_heads_that_are_not_there_are_named(index: int) -> None:
    """The message gives the range and the wrong one."""
    attention = Blocks(tiny_model("gpt2")).layers[0].attention
    with pytest.raises(ModelError, match=rf"h.0 has the heads 0 to 3, got {index}; name only heads it has"):
        attention.mask_heads({index, 0})
    with pytest.raises(ModelError, match=rf"key/value groups 0 to 3, got {index}"):
        attention.remove_kv_groups({index})


class Packed(nn.Linear):
    """Stands for a quantized linear."""


def test_quantized_heads_are_not_cut() -> None:
    """The remedy is the order of the recipe; nothing is cut before the refusal."""
    model = tiny_model("llama")
    attention = Blocks(model).layers[0].attention
    model.model.layers[0].self_attn.o_proj = Packed(64, 64)
    with pytest.raises(ModelError, match=r"plain nn.Linear weights, got Packed; prune before quantizing"):
        attention.remove_kv_groups({0})
    assert attention.module.q_proj.out_features == 64
    with pytest.raises(ModelError, match="prune before quantizing"):
        attention.mask_heads({0})


def test_quantized_linears_are_still_linears() -> None:
    """Subclasses, and classes of other packages with in_features and out_features."""
    foreign = nn.Module()
    foreign.in_features = foreign.out_features = 4
    assert blocks.is_linear(Packed(2, 2))
    assert blocks.is_linear(foreign)
    assert not blocks.is_linear(nn.Embedding(2, 2))


def test_an_unknown_family_is_refused_by_name() -> None:
    """The message lists what is known."""
    model = BertLMHeadModel(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, is_decoder=True)
    )
    known = ", ".join(sorted(blocks.FAMILIES))
    with pytest.raises(
        ModelError, match=f"model families {known}, got 'bert'; choose a model of one of these"
    ):
        Blocks(model)
    with pytest.raises(ModelError, match="got 'Linear'"):
        Blocks(nn.Linear(2, 2))


def test_half_a_model_is_refused() -> None:
    """The inner model without its head has its blocks elsewhere."""
    with pytest.raises(ModelError, match=r"blocks at 'model.layers', got LlamaModel without them"):
        Blocks(tiny_model("llama").model)


def test_a_gpt2_with_conv1d_is_refused() -> None:
    """Otherwise methods would find nothing and change nothing."""
    with pytest.raises(ModelError, match=r"got none in transformer.h.0; call from_conv1d on a GPT-2"):
        Blocks(tiny_model("gpt2", conv1d=True))
