"""Layers with different numbers of heads in a checkpoint, whose config has one number for all.

Heads of zeros are added behind those that are left, until all layers have as many as the config can tell: their
values are zero, and so are the columns that read them, so every logit stays as it is. How many groups each layer
really has is kept beside, and `cut_padding` takes the zeros out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.linear_parts import FourBit, TorchAO, parts_of
from pytest_llmslim.models.shapes import loadable, states_head_dim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.models.blocks import Layer
    from pytest_llmslim.models.linear_parts import Dense, EightBit, Parts

    Sizeable = Dense | EightBit | FourBit

_SEARCH = 256
"""Numbers of groups that are tried at most, above those that a layer has."""


@dataclass(frozen=True, slots=True)
class Padding:
    """What a checkpoint tells of heads.

    Args:
        groups: key/value groups that each layer really has.
        told: how many the checkpoint has in every layer.
        config: what its config says, where that differs from the model's own.
    """

    groups: tuple[int, ...]
    told: int
    config: dict[str, int]

    @property
    def needed(self) -> bool:
        """Whether any layer gets heads of zeros."""
        return any(count != self.told for count in self.groups)


def padding_of(module: nn.Module, parts: dict[str, Parts]) -> Padding:
    """How many groups the checkpoint of `module` is to have, whose linears are `parts` by name.

    Raises:
        ModelError: heads of different widths or groups of different sizes, or no number that the config could tell.
    """
    layers = Blocks(module).layers
    groups = tuple(layer.attention.kv_heads for layer in layers)
    kinds = {(layer.attention.head_dim, layer.attention.groups) for layer in layers}
    if len(kinds) > 1:
        raise ModelError(
            "a checkpoint has heads of one width in groups of one size, got "
            f"{', '.join(f'{size} heads of {width}' for width, size in sorted(kinds))} a group in different layers; "
            "measure this candidate without saving it"
        )
    width, size = kinds.pop()
    for told in _numbers(module, groups, width):
        config = {"num_attention_heads": told * size}
        if states_head_dim(module):
            config |= {"num_key_value_heads": told, "head_dim": width}
        if loadable(module.config, **config) and all(_fits(layer, parts, told) for layer in layers):
            return Padding(groups, told, config)
    raise ModelError(
        f"the config of a checkpoint tells one number of heads for all layers, got {list(groups)} key/value groups, "
        "which no number covers; measure this candidate without saving it"
    )


def _numbers(module: nn.Module, groups: Sequence[int], width: int) -> range:
    """Numbers of groups that may cover all layers, the least first."""
    if states_head_dim(module):
        return range(max(groups), max(groups) + _SEARCH)
    heads, rest = divmod(module.config.hidden_size, width)  # the width of a head is what the config derives
    return range(heads, heads + 1 if rest == 0 and heads >= max(groups) else heads)


def padded(module: nn.Module, parts: dict[str, Parts], padding: Padding) -> dict[str, Parts]:
    """`parts` with heads of zeros in the layers that have fewer than the config will tell."""
    made = dict(parts)
    for layer, count in zip(Blocks(module).layers, padding.groups, strict=True):
        if count != padding.told:
            made |= _resized(layer, parts, padding.told)
    return made


def cut_padding(module: nn.Module, groups: Sequence[int]) -> None:
    """Take the heads of zeros out of a model that was loaded from such a checkpoint, in place.

    Args:
        module: as loaded, GPT-2 after `from_conv1d`.
        groups: key/value groups that each layer keeps, from `Padding`.

    Raises:
        ModelError: another number of layers, or more groups than there are.
    """
    layers = Blocks(module).layers
    there = [layer.attention.kv_heads for layer in layers]
    if len(groups) != len(there) or any(
        not 0 < keep <= have for keep, have in zip(groups, there, strict=True)
    ):
        raise ModelError(
            f"llmslim.json keeps at most {there} key/value groups of the layers, got {list(groups)}; save the "
            "candidate again"
        )
    for layer, keep in zip(layers, groups, strict=True):
        if keep == layer.attention.kv_heads:
            continue
        linears = {name: (linear, parts_of(linear, name)) for name, linear in layer.linears.items()}
        made = _resized(layer, {name: parts for name, (_, parts) in linears.items()}, keep)
        for name, parts in made.items():
            _install(linears[name][0], parts)
        layer.attention.tell()


@dataclass(frozen=True, slots=True)
class _Size:
    """What a linear of the attention has for some number of groups: rows in equal sections, or columns."""

    rows: int | None = None
    columns: int | None = None
    sections: int = 1


def _sizes(layer: Layer, groups: int) -> dict[str, _Size]:
    """The sizes of the linears of a layer's attention for so many key/value groups, by name."""
    attention, names = layer.attention, {id(linear): name for name, linear in layer.linears.items()}
    sizes = {}
    for attribute, sections in attention.inputs.items():
        linear = attention.module.get_submodule(attribute)
        rows = int(linear.out_features) * groups // attention.kv_heads
        sizes[names[id(linear)]] = _Size(rows=rows, sections=sections)
    columns = attention.groups * groups * attention.head_dim
    return sizes | {names[id(attention.projection_output)]: _Size(columns=columns)}


def _resized(layer: Layer, parts: dict[str, Parts], groups: int) -> dict[str, Sizeable]:
    made: dict[str, Sizeable] = {}
    for name, size in _sizes(layer, groups).items():
        old = parts[name]
        if isinstance(old, TorchAO):
            old = old.dense(name, "heads of zeros are added to it")
        made[name] = old.resized(rows=size.rows, columns=size.columns, sections=size.sections)
    return made


def _fits(layer: Layer, parts: dict[str, Parts], groups: int) -> bool:
    """Whether 4-bit projections still have shapes that bitsandbytes multiplies right."""
    for name, size in _sizes(layer, groups).items():
        old = parts[name]
        if isinstance(old, FourBit) and not old.fits_as(size.rows, size.columns):
            return False
    return True


def _install(linear: nn.Module, parts: Sizeable) -> None:
    """Make `parts` the weight and bias of a linear of their kind."""
    parts.install(linear)
    linear.bias = None if parts.bias is None else nn.Parameter(parts.bias, requires_grad=False)
    linear.out_features, linear.in_features = parts.shape
