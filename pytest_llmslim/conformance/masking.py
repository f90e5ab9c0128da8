"""What a cut model is to equal: the whole one with the same parts silenced, found from the weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pytest_llmslim.models.blocks import Layer


def masked(reference: nn.Module, candidate: nn.Module) -> nn.Module | None:
    """A copy of `reference` in which all is zero that `candidate` lacks.

    Rows of random weights are all different, so that a layer is known by the rows that are left of it: of the first
    widening linear for its channels, of the queries for its heads.

    Returns:
        `None` where a layer of the candidate is none of the reference's, or comes before an earlier one.
    """
    silenced = copy_model(reference)
    ours, theirs = Blocks(silenced).layers, Blocks(candidate).layers
    channels = _channels(reference, candidate)
    if channels is None:
        return None
    position = -1
    left: dict[int, tuple[list[int], list[int], Layer]] = {}
    for layer in theirs:
        found = _found(layer, candidate, ours[position + 1 :], silenced, channels)
        if found is None:
            return None
        position, inner, heads = found
        left[position] = inner, heads, layer
    for layer in ours:
        _silence(layer, silenced, left.get(layer.index), candidate)
    _silence_channels(silenced, channels)
    return silenced


def _found(
    layer: Layer, candidate: nn.Module, among: list[Layer], whole: nn.Module, channels: list[int]
) -> tuple[int, list[int], list[int]] | None:
    """Index of the layer that this one was cut from, and which rows of its widening linear and queries are left."""
    for old in among:
        inner = _rows(
            candidate.get_submodule(layer.feed_forward.inner[0]).weight,
            whole.get_submodule(old.feed_forward.inner[0]).weight[:, channels],
        )
        heads = _rows(_queries(layer), _queries(old)[:, channels])
        if inner is not None and heads is not None:
            return old.index, inner, heads
    return None


def _rows(part: torch.Tensor, whole: torch.Tensor) -> list[int] | None:
    """Indices of the rows of `whole` that `part` consists of, in any order; `None` if it has others."""
    if part.shape[1] != whole.shape[1]:
        return None
    places = {tuple(row): index for index, row in enumerate(whole.tolist())}
    found = [places.get(tuple(row)) for row in part.tolist()]
    return None if None in found else [index for index in found if index is not None]


def _queries(layer: Layer) -> torch.Tensor:
    """Weights of the queries [heads * head_dim, hidden]; they come first where one linear gives all three."""
    module = layer.attention.module
    linear = module.q_proj if hasattr(module, "q_proj") else module.c_attn
    weight: torch.Tensor = linear.weight[: layer.attention.projection_output.in_features]
    return weight


def _channels(reference: nn.Module, candidate: nn.Module) -> list[int] | None:
    """Channels of the hidden state that are left, by the columns of the embedding."""
    ours, theirs = (each.get_input_embeddings().weight.T for each in (reference, candidate))
    return _rows(theirs, ours)


def _silence(
    layer: Layer, whole: nn.Module, left: tuple[list[int], list[int], Layer] | None, candidate: nn.Module
) -> None:
    """Zero the columns that read what is gone, and all that a layer gives that is gone as a whole."""
    outer, output = whole.get_submodule(layer.feed_forward.outer), layer.attention.projection_output
    if left is None:
        for linear in (outer, output):
            linear.weight.data.zero_()
            if linear.bias is not None:
                linear.bias.data.zero_()
        return
    inner, heads, cut = left
    _keep(outer.weight, inner)
    _keep(output.weight, heads)
    # heads that were masked instead of cut
    silent = (cut.attention.projection_output.weight == 0).all(dim=0)
    output.weight.data[:, [column for column, gone in zip(heads, silent.tolist(), strict=True) if gone]] = 0


def _keep(weight: torch.Tensor, columns: list[int]) -> None:
    gone = torch.ones(weight.shape[1], dtype=torch.bool)
    gone[columns] = False
    weight.data[:, gone] = 0


def _silence_channels(module: nn.Module, channels: list[int]) -> None:
    """Nothing is written into the channels of the hidden state that are gone, and nothing is read from them.

    What is written into those that are left is centred before LayerNorm, which subtracts their mean in the cut
    model, but the mean of all channels in the whole one.
    """
    hidden = module.get_input_embeddings().weight.shape[1]
    kept = torch.zeros(hidden, 1)
    kept[channels] = 1
    if kept.all():
        return
    head = module.get_output_embeddings()
    head.weight = torch.nn.Parameter(
        head.weight * kept.T, requires_grad=False
    )  # no longer tied to the embedding
    centred = any(isinstance(part, torch.nn.LayerNorm) for part in module.modules())
    for written in _written(module):
        rows = written.reshape(hidden, -1).mul_(kept)
        if centred:
            rows.sub_(kept * (rows.sum(dim=0) / kept.sum()))
    for layer in Blocks(module).layers:
        writers = {id(linear) for linear in _writers(module, layer)}
        for linear in layer.linears.values():
            if id(linear) not in writers:
                linear.weight.data.mul_(kept.T)


def _written(module: nn.Module) -> Iterator[torch.Tensor]:
    """All that is added to the hidden state, as tensors whose first dimension are its channels."""
    for part in module.modules():
        if isinstance(part, torch.nn.Embedding):
            yield part.weight.data.T
    for layer in Blocks(module).layers:
        for linear in _writers(module, layer):
            yield linear.weight.data
            if linear.bias is not None:
                yield linear.bias.data


def _writers(module: nn.Module, layer: Layer) -> tuple[nn.Module, nn.Module]:
    return module.get_submodule(layer.feed_forward.outer), layer.attention.projection_output
