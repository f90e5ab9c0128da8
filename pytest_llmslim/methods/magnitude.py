"""Magnitude pruning: the smallest weights become zero, layer by layer.

Unstructured: the share `sparsity` of every linear (Han et al. 2015, arXiv 1506.02626, one shot).
Pattern `N:M`: of every M neighbours along the input only the N largest stay (NVIDIA's 2:4, arXiv 2104.08378).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils import prune

from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_number, pattern_of, refuse

SIMULATED = "zeros are stored and multiplied as any other weight on this device"


@dataclass(frozen=True)
class Magnitude:
    """Zeroes the smallest weights of every linear in the blocks.

    Args:
        sparsity: share of each linear's weights that becomes zero; 0.5 when neither argument is given.
        pattern: `N:M` instead of a share: N of every M weights along the input stay.

    Raises:
        RecipeError: both are given, or a value is out of range.
    """

    sparsity: float | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.pattern is None:
            rule = "a number above 0 and below 1"
            check_number("magnitude", "sparsity", self._share, rule, low=1e-9, high=1 - 1e-9)
        elif self.sparsity is not None:
            refuse("magnitude", "sparsity", "left out where a pattern is given", self.sparsity)
        else:
            pattern_of("magnitude", self.pattern)

    @property
    def _share(self) -> float:
        return 0.5 if self.sparsity is None else self.sparsity

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Zero weights in place.

        Raises:
            CompressionError: a model without float linears, or with weights that are not finite.
        """
        linears = float_linears(module, "magnitude", context)
        dense = [name for name, linear in linears.items() if self._prune(linear)]
        check_forward(module, "magnitude", context)
        zeros = sum(int((linear.weight == 0).sum()) for linear in linears.values())
        total = sum(linear.weight.numel() for linear in linears.values())
        said = f"magnitude: {zeros / total:.1%} of {total} weights in {len(linears)} linears are zero"
        if dense:
            said += f"; {len(dense)} are not a multiple of {self.pattern} wide and keep a dense rest"
        return Applied(module, said, SIMULATED)

    def _prune(self, linear: nn.Linear) -> bool:
        """Prune one linear; True when columns were left over that fill no group."""
        if self.pattern is None:
            zero_smallest(linear, self._share)
            return False
        kept, group = pattern_of("magnitude", self.pattern)
        linear.weight.data.mul_(largest_of_group(linear.weight, kept, group))
        return linear.in_features % group != 0


def zero_smallest(linear: nn.Linear, sparsity: float) -> None:
    """Make round(sparsity * n) of the n weights zero for good, those of smallest magnitude."""
    prune.l1_unstructured(linear, "weight", amount=round(sparsity * linear.weight.numel()))
    prune.remove(linear, "weight")


def largest_of_group(weight: torch.Tensor, kept: int, group: int) -> torch.Tensor:
    """Mask [out, in] that is true for the `kept` largest magnitudes of every `group` columns.

    Of equal magnitudes the first stays. Columns that fill no whole group stay.
    """
    rows, columns = weight.shape
    whole = columns - columns % group
    groups = weight[:, :whole].abs().reshape(rows, -1, group)
    order = groups.argsort(dim=-1, descending=True, stable=True)
    inside = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :kept], value=True)
    mask = torch.ones_like(weight, dtype=torch.bool)
    mask[:, :whole] = inside.reshape(rows, whole)
    return mask
