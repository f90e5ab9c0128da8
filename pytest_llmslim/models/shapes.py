"""Shapes of whole models, edited in place together with the config: layers, feed-forward channels, heads.

A checkpoint has one config for all layers. What it cannot state is refused here, with one exception: GPT-2 and
OPT derive the width of a head from the number of heads, so fewer heads of the same width have no config.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.blocks import FAMILIES, Blocks
from pytest_llmslim.models.slices import dense, keep_columns, keep_rows
from pytest_llmslim.models.storage import copy_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedConfig

    from pytest_llmslim.models.blocks import Layer

_DERIVED_HEAD_DIM = ("gpt2", "opt")
"""Families whose config states no width of a head: it is the hidden width over the number of heads."""

_INNER = {"gpt2": "n_inner", "opt": "ffn_dim"}
"""Where a family's config keeps the feed-forward width, if not in `intermediate_size`."""

_LAYER_FIELDS = ("num_hidden_layers", "layer_types", "max_window_layers")
"""What a config tells of its layers one by one."""


def keep_layers(module: nn.Module, order: Sequence[int]) -> None:
    """Make the model's blocks those of `order`, in that order; an index that comes again is a copy of its own.

    The config tells the new number of layers and their kinds (`layer_types`), and every module that knows its
    place (`layer_idx`, by which it finds its part of the cache) is told the new one.

    Args:
        module: a causal language model that `Blocks` knows.
        order: indices of layers, at least one.

    Raises:
        ModelError: no index, or one of a layer that is not there.
    """
    blocks = [layer.module for layer in Blocks(module).layers]
    _check_indices("layer", order, len(blocks), "the model", repeats=True)
    seen: set[int] = set()
    chosen = []
    for index in order:
        chosen.append(_twin(blocks[index]) if index in seen else blocks[index])
        seen.add(index)
    _set_blocks(module, chosen)
    for place, block in enumerate(chosen):
        _move(block, place)
    _tell_layers(module, order)


@contextmanager
def with_layers(module: nn.Module, order: Sequence[int]) -> Iterator[None]:
    """The model with only the blocks of `order` for a while, without copies; only for passes without a cache.

    Raises:
        ModelError: as `keep_layers`.
    """
    blocks = [layer.module for layer in Blocks(module).layers]
    _check_indices("layer", order, len(blocks), "the model", repeats=True)
    told = {name: getattr(module.config, name) for name in _LAYER_FIELDS if hasattr(module.config, name)}
    _set_blocks(module, [blocks[index] for index in order])
    _tell_layers(module, order)
    try:
        yield
    finally:
        _set_blocks(module, blocks)
        for name, value in told.items():
            setattr(module.config, name, value)
        _tell_sliding(module)


def keep_channels(module: nn.Module, channels: Mapping[int, Sequence[int]]) -> None:
    """Keep only these inner channels of the feed-forward part of each layer, in this order.

    Args:
        module: a causal language model that `Blocks` knows, with plain float linears.
        channels: indices by layer; every layer is named and keeps the same number, as the config has one.

    Raises:
        ModelError: other layers than the model's, unequal numbers, none, an index that is not there, or
            quantized linears.
    """
    layers = Blocks(module).layers
    count = _check_layers("feed-forward channels", layers, channels)
    parts = [_feed_forward(module, layer) for layer in layers]
    for layer, (_, outer) in zip(layers, parts, strict=True):
        _check_indices("channel", channels[layer.index], outer.in_features, f"layer {layer.index}")
    for layer, (inner, outer) in zip(layers, parts, strict=True):
        for linear in inner:
            keep_rows(linear, channels[layer.index])
        keep_columns(outer, channels[layer.index])
        parent = module.get_submodule(layer.feed_forward.outer.rpartition(".")[0])
        if hasattr(parent, "intermediate_size"):
            parent.intermediate_size = count
    setattr(module.config, _INNER.get(Blocks(module).family, "intermediate_size"), count)


def keep_kv_groups(module: nn.Module, groups: Mapping[int, Sequence[int]]) -> None:
    """Keep only these key/value groups of each layer: a key/value head with all query heads that read it.

    The config tells the new numbers of heads and, explicitly, their width; not for GPT-2 and OPT (see above).
    Whether a checkpoint's config may state the number is another matter: see `statable_groups`.

    Args:
        module: a causal language model that `Blocks` knows, with plain float linears.
        groups: indices by layer; every layer is named and keeps the same number.

    Raises:
        ModelError: other layers than the model's, unequal numbers, none, an index that is not there, or
            quantized linears.
    """
    layers = Blocks(module).layers
    count = _check_layers("key/value groups", layers, groups)
    for layer in layers:
        _check_indices(
            "key/value group", groups[layer.index], layer.attention.kv_heads, f"layer {layer.index}"
        )
    for layer in layers:
        layer.attention.remove_kv_groups(set(range(layer.attention.kv_heads)) - set(groups[layer.index]))
    if states_head_dim(module):
        config, attention = module.config, layers[0].attention
        config.head_dim = attention.head_dim
        config.num_attention_heads = attention.heads
        config.num_key_value_heads = count


def states_head_dim(module: nn.Module) -> bool:
    """Whether the family's config can tell heads whose number times width is not the hidden width."""
    return Blocks(module).family not in _DERIVED_HEAD_DIM


def statable_groups(module: nn.Module) -> list[int]:
    """Numbers of key/value groups a layer, up to those it has, with which the model's config can be loaded.

    Llama and Gemma 3 refuse a config whose hidden width is no multiple of the number of heads, although no
    part of the model needs it. For GPT-2 and OPT, whose config tells no such thing, all numbers.
    """
    attention = Blocks(module).layers[0].attention
    counts = range(1, attention.kv_heads + 1)
    if not states_head_dim(module):
        return list(counts)
    return [
        count for count in counts if loadable(module.config, num_attention_heads=count * attention.groups)
    ]


def loadable(config: PreTrainedConfig, **changes: object) -> bool:
    """Whether transformers would load the `config` with these `changes`."""
    try:
        type(config).from_dict({**config.to_dict(), **changes})
    except (StrictDataclassError, ValueError, TypeError):
        return False
    return True


def _twin(block: nn.Module) -> nn.Module:
    """A copy of `block` that shares nothing with it but the config."""
    twin = copy_model(block)
    for part, source in zip(twin.modules(), block.modules(), strict=True):
        if hasattr(source, "config"):
            part.config = source.config
        part.training = source.training
    for parameter, source in zip(twin.parameters(), block.parameters(), strict=True):
        parameter.requires_grad_(source.requires_grad)
    return twin


def _set_blocks(module: nn.Module, blocks: Sequence[nn.Module]) -> None:
    parent, _, name = FAMILIES[Blocks(module).family].layers.rpartition(".")
    setattr(module.get_submodule(parent), name, nn.ModuleList(blocks).train(module.training))


def _tell_layers(module: nn.Module, order: Sequence[int]) -> None:
    config = module.config
    config.num_hidden_layers = len(order)
    types = getattr(config, "layer_types", None)
    if types is not None:
        config.layer_types = [types[index] for index in order]
    if hasattr(config, "max_window_layers"):  # Qwen: so many layers at the input attend to everything
        config.max_window_layers = sum(index < config.max_window_layers for index in order)
    _tell_sliding(module)


def _tell_sliding(module: nn.Module) -> None:
    """Qwen's model notes when it is made whether any layer attends to a window only."""
    for part in module.modules():
        if hasattr(part, "has_sliding_layers"):
            part.has_sliding_layers = "sliding_attention" in module.config.layer_types


def _move(block: nn.Module, place: int) -> None:
    """Tell every part of `block` its new place."""
    for part in block.modules():
        old = getattr(part, "layer_idx", None)
        if old is None:
            continue
        if getattr(part, "scale_attn_by_inverse_layer_idx", False):
            _rescale(part, (place + 1) / (old + 1))
        part.layer_idx = place


def _rescale(attention: nn.Module, factor: float) -> None:
    """GPT-2 may divide its scores by the layer's number: keep the quotient where the number is another."""
    fused = dense(attention.c_attn, "GPT-2's attention scores scaled by layer", "rows")
    queries = fused.out_features // 3
    with torch.no_grad():
        fused.weight[:queries] *= factor
        fused.bias[:queries] *= factor
    attention.scaling /= factor


def _feed_forward(module: nn.Module, layer: Layer) -> tuple[list[nn.Linear], nn.Linear]:
    names = layer.feed_forward
    inner = [dense(module.get_submodule(name), name, "channels") for name in names.inner]
    return inner, dense(module.get_submodule(names.outer), names.outer, "channels")


def _check_layers(what: str, layers: list[Layer], kept: Mapping[int, Sequence[int]]) -> int:
    """How many each layer keeps."""
    if sorted(kept) != list(range(len(layers))):
        raise ModelError(
            f"{what} are named for each of the layers 0 to {len(layers) - 1}, got {sorted(kept)}; name all"
        )
    counts = {len(indices) for indices in kept.values()}
    if len(counts) != 1:
        raise ModelError(
            f"every layer keeps the same number of {what}, as the config has one for all, got {sorted(counts)}; "
            "keep as many in each"
        )
    return counts.pop()


def _check_indices(
    kind: str, indices: Sequence[int], count: int, owner: str, *, repeats: bool = False
) -> None:
    if len(indices) == 0:
        raise ModelError(f"{owner} keeps at least one {kind}, got none; keep one")
    if not repeats and len(set(indices)) < len(indices):
        raise ModelError(f"{owner} keeps each {kind} once, got {list(indices)}; name each once")
    wrong = sorted(index for index in indices if not 0 <= index < count)
    if wrong:
        raise ModelError(
            f"{owner} has the {kind}s 0 to {count - 1}, got {wrong[0]}; name only {kind}s it has"
        )
