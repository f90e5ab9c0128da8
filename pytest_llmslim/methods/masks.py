"""Which weights become zero: masks by a score, and what is said of them; shared by all methods that zero weights.

A mask is true for a weight that goes. Of equal scores the first stays, so that a choice is the same everywhere;
`torch.nn.utils.prune` leaves it to `topk`. A weight that is zero already goes first and counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_llmslim.methods import Applied
from pytest_llmslim.methods.linears import check_forward
from pytest_llmslim.methods.parameters import check_number, pattern_of, refuse
from pytest_llmslim.methods.semi_structured import speed_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_llmslim.methods import Context

_HALF = 0.5


def check_zeros(method: str, sparsity: float | None, pattern: str | None) -> None:
    """Refuse anything but a share, a pattern `N:M`, or neither.

    Raises:
        RecipeError: both are given, or a value is out of range.
    """
    if pattern is None:
        check_number(
            method, "sparsity", share_of(sparsity), "a number above 0 and below 1", low=1e-9, high=1 - 1e-9
        )
    elif sparsity is not None:
        refuse(method, "sparsity", "left out where a pattern is given", sparsity)
    else:
        pattern_of(method, pattern)


def share_of(sparsity: float | None) -> float:
    """The share that becomes zero: a half when neither it nor a pattern is given."""
    return _HALF if sparsity is None else sparsity


def zeros_first(score: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """`score` with -1, less than any score, where a weight is `zero` already."""
    return score.masked_fill(zero, -1.0)


def smallest(score: torch.Tensor, count: int) -> torch.Tensor:
    """Mask of exactly `count` of all the scores, in the shape of `score`."""
    flat = score.flatten()
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    limit = flat.kthvalue(count).values
    goes = flat < limit
    equal = (flat == limit).nonzero().flatten()
    goes[equal[len(equal) - count + int(goes.sum()) :]] = True
    return goes.reshape(score.shape)


def smallest_of_rows(score: torch.Tensor, count: int) -> torch.Tensor:
    """Mask [rows, columns] of exactly `count` in every row of `score` [rows, columns]."""
    order = score.argsort(dim=-1, descending=True, stable=True)
    going = order[..., score.shape[-1] - count :]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, going, value=True)


def smallest_of_groups(score: torch.Tensor, kept: int, group: int) -> torch.Tensor:
    """Mask [rows, columns] of all but `kept` of every `group` neighbours in a row of `score` [rows, columns].

    Columns at the end that fill no whole group stay.
    """
    rows, columns = score.shape
    whole = columns - columns % group
    goes = torch.zeros_like(score, dtype=torch.bool)
    groups = score[:, :whole].reshape(-1, group)
    goes[:, :whole] = smallest_of_rows(groups, group - kept).reshape(rows, whole)
    return goes


def settled(
    method: str, module: nn.Module, linears: Mapping[str, nn.Linear], pattern: str | None, context: Context
) -> Applied:
    """What a pruner gives, once its zeros are in `linears`: fast 2:4 weights where there is hardware for them.

    Raises:
        CompressionError: the pruned model's logits are not finite.
    """
    said = counted(method, linears, pattern)
    simulated = speed_up(linears, pattern)
    check_forward(module, method, context)
    return Applied(module, said, simulated)


def counted(method: str, linears: Mapping[str, nn.Linear], pattern: str | None) -> str:
    """What `method` did to `linears`, in numbers; call it while their weights are dense."""
    zeros = sum(int((linear.weight == 0).sum()) for linear in linears.values())
    total = sum(linear.weight.numel() for linear in linears.values())
    said = f"{method}: {zeros / total:.1%} of {total} weights in {len(linears)} linears are zero"
    group = 1 if pattern is None else pattern_of(method, pattern)[1]
    odd = sum(linear.in_features % group != 0 for linear in linears.values())
    if odd:
        said += f"; {odd} are not a multiple of {pattern} wide and keep a dense rest"
    return said
