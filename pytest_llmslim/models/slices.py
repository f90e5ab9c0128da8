"""Cutting rows and columns out of linears, in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_llmslim.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence


def keep_rows(linear: nn.Linear, rows: Sequence[int] | torch.Tensor) -> None:
    """Keep only these outputs of `linear`, in this order: rows of its weight [out, in], with the bias."""
    linear.weight = kept(linear.weight, rows, 0)
    if linear.bias is not None:
        linear.bias = kept(linear.bias, rows, 0)
    linear.out_features = len(rows)


def keep_columns(linear: nn.Linear, columns: Sequence[int] | torch.Tensor) -> None:
    """Keep only these inputs of `linear`, in this order: columns of its weight [out, in]."""
    linear.weight = kept(linear.weight, columns, 1)
    linear.in_features = len(columns)


def kept(parameter: nn.Parameter, indices: Sequence[int] | torch.Tensor, dimension: int) -> nn.Parameter:
    """A parameter of its own with these `indices` of `dimension` and nothing else."""
    index = torch.as_tensor(indices, dtype=torch.int64, device=parameter.device)
    cut = parameter.detach().index_select(dimension, index)
    return nn.Parameter(cut, requires_grad=parameter.requires_grad)


def dense(linear: nn.Module, label: str, what: str) -> nn.Linear:
    """`linear` as what it has to be to be cut.

    Args:
        linear: any module.
        label: its dotted name, or its block's, for the message.
        what: what is cut, e.g. `heads`.

    Raises:
        ModelError: it is quantized, or no linear at all.
    """
    if type(linear) is not nn.Linear:
        raise ModelError(
            f"{what} of {label} are cut from plain nn.Linear weights, got {type(linear).__name__}; "
            "prune before quantizing"
        )
    return linear
