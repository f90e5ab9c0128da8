"""Cutting channels out of the hidden state: everything that writes or reads it gets narrower at once.

A norm divides by a mean over the channels that are there, so taking channels away differs from zeroing them. With
S the sum of squares of the n channels that stay out of N:

    w x / sqrt(S / N + eps)  =  w sqrt(N / n) x / sqrt(S / n + eps N / n)

so the scale of every norm is multiplied by sqrt(N / n). Its epsilon stays what the config says: OPT has none there,
and Qwen3 and Gemma3 share theirs with the norms of heads. LayerNorm also subtracts the mean, over n channels from
now on; the same as centring what is written to the channels that stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.blocks import FAMILIES, Blocks
from pytest_llmslim.models.classifiers import head_of
from pytest_llmslim.models.shapes import loadable, states_head_dim
from pytest_llmslim.models.slices import dense, keep_columns, keep_rows, kept

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_llmslim.models.blocks import Layer


def hidden_width(module: nn.Module) -> int:
    """Channels of the hidden state."""
    return int(module.config.hidden_size)


def hidden_step(module: nn.Module) -> int:
    """The hidden state can be a multiple of so many channels wide.

    GPT-2 and OPT: one head's. Llama and Gemma 3: the number of heads, as their config is refused otherwise.
    """
    attention, width = Blocks(module).layers[0].attention, hidden_width(module)
    if not states_head_dim(module):
        return attention.head_dim
    return 1 if loadable(module.config, hidden_size=width - 1) else attention.heads


def keep_hidden(module: nn.Module, channels: Sequence[int]) -> None:
    """Keep only these `channels` of the hidden state, in place; the config tells the new width.

    In GPT-2 and OPT so many heads have to be removed before that those that are left fill the new width; the
    config is told their number.

    Raises:
        ModelError: channels that are not there or are repeated, heads that do not fill the new width where they
            have to, embeddings of another width, norms without a scale, or linears that are quantized.
    """
    check_hidden(module)
    _check_channels(module, channels)
    width, index = hidden_width(module), torch.tensor(sorted(channels), device=module.device)
    factor = (width / len(index)) ** 0.5
    tied = head_of(module).weight is module.get_input_embeddings().weight
    # Gemma multiplies its embeddings by the root of the width: its hidden state shrinks by the factor, by itself
    shrinks = [_cut_embedding(part, index) for part in module.modules() if isinstance(part, nn.Embedding)]
    for layer in Blocks(module).layers:
        _cut_linears(module, layer, index)
        reads = {norm.name for norm in layer.norms}
        for name, norm in _norms(module, layer):
            # and what its other norms write shrinks likewise, when their scale stays as it is
            scale = 1.0 if any(shrinks) and name not in reads else factor
            _cut_norm(norm, index, scale, unit_offset=_unit_offset(module))
    for norm in _last_norms(module):
        _cut_norm(norm, index, factor, unit_offset=_unit_offset(module))
    _cut_head(module, index, tied=tied)
    _tell(module, width, len(index))


def check_hidden(module: nn.Module) -> None:
    """Refuse models whose hidden state cannot be cut, whatever the channels.

    Raises:
        ModelError: embeddings of another width (opt-350m), norms without a scale, or linears that are quantized.
    """
    width = hidden_width(module)
    embedded = getattr(module.config, "word_embed_proj_dim", width)
    if embedded != width:
        raise ModelError(
            f"the hidden state is cut where embeddings are as wide as it is ({width}), got {embedded}; "
            "cut the width of layers instead"
        )
    for name, linear in Blocks(module).linears().items():
        dense(linear, name, "hidden channels")
    if any(isinstance(part, nn.LayerNorm) and part.weight is None for part in module.modules()):
        raise ModelError(
            "the hidden state is cut where norms have a scale to correct, got a norm without; "
            "cut the width of layers instead"
        )


def hidden_norms(module: nn.Module) -> list[nn.Module]:
    """All norms of the hidden state, those of blocks first."""
    blocks = [norm for layer in Blocks(module).layers for _, norm in _norms(module, layer)]
    return blocks + _last_norms(module)


def _check_channels(module: nn.Module, channels: Sequence[int]) -> None:
    width = hidden_width(module)
    if not channels or len(set(channels)) < len(channels) or not set(channels) <= set(range(width)):
        raise ModelError(
            f"the hidden channels to keep are some of 0 to {width - 1}, each once, got {list(channels)}; "
            "name those that are there"
        )
    if states_head_dim(module):
        return
    for layer in Blocks(module).layers:
        attention = layer.attention
        if attention.heads * attention.head_dim != len(channels):
            raise ModelError(
                f"the heads of {module.config.model_type} fill the hidden state, got {attention.heads} heads of "
                f"{attention.head_dim} for {len(channels)} channels in layer {layer.index}; remove heads as well"
            )


def _unit_offset(module: nn.Module) -> bool:
    """Whether norms multiply by 1 + weight."""
    return FAMILIES[module.config.model_type].unit_offset


def _cut_embedding(embedding: nn.Embedding, index: torch.Tensor) -> bool:
    """Cut one embedding; whether it multiplies by the root of its width."""
    embedding.weight = kept(embedding.weight, index, 1)
    embedding.embedding_dim = len(index)
    if not hasattr(embedding, "embed_scale"):
        return False
    embedding.scalar_embed_scale = len(index) ** 0.5
    embedding.embed_scale.fill_(embedding.scalar_embed_scale)
    return True


def _cut_linears(module: nn.Module, layer: Layer, index: torch.Tensor) -> None:
    """Rows of the two linears that write to the hidden state, columns of all others."""
    writes = {id(layer.attention.projection_output), id(module.get_submodule(layer.feed_forward.outer))}
    for linear in layer.linears.values():
        cut = keep_rows if id(linear) in writes else keep_columns
        cut(linear, index)


def _cut_norm(norm: nn.Module, index: torch.Tensor, factor: float, *, unit_offset: bool) -> None:
    weight = kept(norm.weight, index, 0)
    if factor != 1.0:
        offset = int(unit_offset)
        weight.copy_((weight.double() + offset) * factor - offset)
    norm.weight = weight
    if getattr(norm, "bias", None) is not None:
        norm.bias = kept(norm.bias, index, 0)
    if isinstance(norm, nn.LayerNorm):
        norm.normalized_shape = (len(index),)


def _norms(module: nn.Module, layer: Layer) -> Iterator[tuple[str, nn.Module]]:
    """The norms of the hidden state in a block, by dotted name; those of heads are inside its attention."""
    prefix = f"{FAMILIES[module.config.model_type].layers}.{layer.index}"
    for name, part in layer.module.named_children():
        if _is_norm(part):
            yield f"{prefix}.{name}", part


def _last_norms(module: nn.Module) -> list[nn.Module]:
    """Norms that are in no block."""
    inside = {id(part) for layer in Blocks(module).layers for part in layer.module.modules()}
    return [part for part in module.modules() if _is_norm(part) and id(part) not in inside]


def _is_norm(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1


def _cut_head(module: nn.Module, index: torch.Tensor, *, tied: bool) -> None:
    head = head_of(module)
    if tied:
        head.weight = module.get_input_embeddings().weight
        head.in_features = len(index)
    else:
        keep_columns(head, index)


def _tell(module: nn.Module, width: int, count: int) -> None:
    """The config and the modules' own notes of the width."""
    config, attention = module.config, Blocks(module).layers[0].attention
    if config.model_type == "gpt2" and config.n_inner is None:
        config.n_inner = 4 * width
    if states_head_dim(module):
        config.head_dim = attention.head_dim
    else:
        config.num_attention_heads = attention.heads
    config.hidden_size = count
    if hasattr(config, "word_embed_proj_dim"):
        config.word_embed_proj_dim = count
    for part in module.modules():
        for note in ("hidden_size", "embed_dim"):
            if vars(part).get(note) == width:
                setattr(part, note, count)
