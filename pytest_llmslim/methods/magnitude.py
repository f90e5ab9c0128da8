"""Magnitude pruning: the smallest weights become zero, layer by layer.

Unstructured: the share `sparsity` of every linear (Han et al. 2015, arXiv 1506.02626, one shot).
Pattern `N:M`: of every M neighbours along the input only the N largest stay (NVIDIA's 2:4, arXiv 2104.08378).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.masks import HALF, check_zeros, counted, smallest, smallest_of_groups
from pytest_llmslim.methods.parameters import pattern_of
from pytest_llmslim.methods.semi_structured import speed_up

if TYPE_CHECKING:
    from torch import nn


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
        check_zeros("magnitude", self.sparsity, self.pattern)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Zero weights in place.

        Raises:
            CompressionError: a model without float linears, or with weights that are not finite.
        """
        linears = float_linears(module, "magnitude", context)
        for linear in linears.values():
            self._prune(linear)
        said = counted("magnitude", linears, self.pattern)
        simulated = speed_up(linears, self.pattern)
        check_forward(module, "magnitude", context)
        return Applied(module, said, simulated)

    def _prune(self, linear: nn.Linear) -> None:
        if self.pattern is None:
            zero_smallest(linear, HALF if self.sparsity is None else self.sparsity)
        else:
            kept, group = pattern_of("magnitude", self.pattern)
            weight = linear.weight.data
            weight.masked_fill_(smallest_of_groups(weight.abs(), kept, group), 0)


def zero_smallest(linear: nn.Linear, sparsity: float) -> None:
    """Make round(sparsity * n) of the n weights zero, those of smallest magnitude."""
    weight = linear.weight.data
    weight.masked_fill_(smallest(weight.abs(), round(sparsity * weight.numel())), 0)
