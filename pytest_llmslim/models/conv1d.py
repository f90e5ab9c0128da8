"""GPT-2's `Conv1D` as `nn.Linear` and back.

transformers keeps GPT-2's projections transposed, in a class of their own that quantisers and pruners pass
over in silence. As `nn.Linear` no method needs a special case. A checkpoint needs them transposed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from collections.abc import Callable


def from_conv1d(module: nn.Module) -> int:
    """Replace every `Conv1D` inside `module`, in place, by an equal `nn.Linear`; returns how many.

    A `Conv1D` weight is [in, out]; the `nn.Linear` weight is its transpose [out, in], stored contiguously.
    """
    return _replace(module, Conv1D, _to_linear)


def to_conv1d(module: nn.Module) -> int:
    """Undo `from_conv1d` inside the blocks of a GPT-2, in place, e.g. before saving; returns how many.

    Only plain `nn.Linear` modules below a layer list are replaced, so `lm_head` stays as it is.
    """
    return sum(
        _replace(blocks, nn.Linear, _to_conv1d)
        for blocks in module.modules()
        if isinstance(blocks, nn.ModuleList)
    )


def _replace(root: nn.Module, kind: type[nn.Module], convert: Callable[[nn.Module], nn.Module]) -> int:
    places = [
        (parent, name, child)
        for parent in root.modules()
        for name, child in parent.named_children()
        if type(child) is kind
    ]
    made: dict[int, nn.Module] = {}
    for parent, name, child in places:
        if id(child) not in made:
            made[id(child)] = convert(child)
        setattr(parent, name, made[id(child)])
    return len(made)


def _to_linear(old: nn.Module) -> nn.Module:
    rows, columns = old.weight.shape
    new = nn.Linear(rows, columns, bias=True, device="meta")
    return _fill(new, old)


def _to_conv1d(old: nn.Module) -> nn.Module:
    rows, columns = old.weight.shape
    with torch.device("meta"):
        new = Conv1D(rows, columns)
    return _fill(new, old)


def _fill(new: nn.Module, old: nn.Module) -> nn.Module:
    weight, bias = old.weight, old.bias
    new.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=weight.requires_grad)
    new.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return new.train(old.training)
