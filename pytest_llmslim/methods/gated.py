"""A model with gates on its layers, key/value groups, feed-forward channels and hidden channels, for a while.

A closed gate makes the model compute what it would without the part. Hidden channels are gated where they are
written (embeddings, attention, feed-forward part), and behind LayerNorm, whose bias writes to them, too; there only
the mean over channels is not what it will be.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.hidden_shape import hidden_norms, hidden_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_llmslim.models.blocks import Layer

    Hook = Callable[..., Any]
    """torch hooks are untyped."""

LAYERS, HEADS, INNER, HIDDEN = "layers", "heads", "inner", "hidden"
"""Kinds of gates, as parameters of recipes call them. HEADS are key/value groups, with all their query heads."""


def sizes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """(rows, gates in a row) by kind: a row for each layer, or one for the whole model."""
    layers = Blocks(module).layers
    inner = module.get_submodule(layers[0].feed_forward.outer).in_features
    return {
        LAYERS: (1, len(layers)),
        HEADS: (len(layers), layers[0].attention.kv_heads),
        INNER: (len(layers), int(inner)),
        HIDDEN: (1, hidden_width(module)),
    }


@contextmanager
def gated(module: nn.Module, gates: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Multiply what the parts of `module` give by `gates` until the block ends.

    Args:
        module: a causal language model that `Blocks` knows, with as many heads and channels in every layer.
        gates: by kind, [batch, rows, gates]; each window of the batch has its own.
    """
    handles: list[Any] = []
    try:
        for layer in Blocks(module).layers:
            handles += _parts(module, layer, gates)
            if LAYERS in gates:
                gate = gates[LAYERS][:, 0, layer.index, None]
                handles.append(layer.module.register_forward_hook(_bypass(gate), with_kwargs=True))
        if HIDDEN in gates:
            handles += _hidden(module, gates[HIDDEN][:, 0])
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(module: nn.Module, layer: Layer, gates: Mapping[str, torch.Tensor]) -> Iterator[Any]:
    if HEADS in gates:
        columns = layer.attention.groups * layer.attention.head_dim  # of the output projection, a group
        gate = gates[HEADS][:, layer.index].repeat_interleave(columns, dim=1)
        yield layer.attention.projection_output.register_forward_pre_hook(_enters(gate))
    if INNER in gates:
        outer = module.get_submodule(layer.feed_forward.outer)
        yield outer.register_forward_pre_hook(_enters(gates[INNER][:, layer.index]))


def _hidden(module: nn.Module, gate: torch.Tensor) -> Iterator[Any]:
    layers = Blocks(module).layers
    yield layers[0].module.register_forward_pre_hook(_begins(gate), with_kwargs=True)
    for layer in layers:
        for linear in (layer.attention.projection_output, module.get_submodule(layer.feed_forward.outer)):
            yield linear.register_forward_hook(_leaves(gate))
    for norm in hidden_norms(module):
        if isinstance(norm, nn.LayerNorm):
            yield norm.register_forward_hook(_leaves(gate))


def _enters(gate: torch.Tensor) -> Hook:
    def hook(_part: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (_multiplied(inputs[0], gate), *inputs[1:])

    return hook


def _begins(gate: torch.Tensor) -> Hook:
    """As `_enters`, for a block, which may be given its hidden states by name."""

    def hook(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        if inputs:
            return (_multiplied(inputs[0], gate), *inputs[1:]), named
        return inputs, {**named, "hidden_states": _multiplied(named["hidden_states"], gate)}

    return hook


def _leaves(gate: torch.Tensor) -> Hook:
    def hook(_part: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return _multiplied(output, gate)

    return hook


def _bypass(gate: torch.Tensor) -> Hook:
    """What a block adds to the hidden state is multiplied."""

    def hook(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:  # noqa: ANN401
        before = inputs[0] if inputs else named["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        mixed = before + _multiplied(after - before, gate)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    return hook


def _multiplied(states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """States [batch, tokens, n] (OPT: [batch * tokens, n]) times a gate [batch, n] or [batch, 1]."""
    windows = states.reshape(gate.shape[0], -1, states.shape[-1])
    return (windows * gate[:, None].to(states.dtype)).reshape(states.shape)
