"""Magnitude pruning: the smallest weights become zero, layer by layer.

Unstructured: the share `sparsity` of every linear (Han et al. 2015, arXiv 1506.02626, one shot).
Pattern `N:M`: of every M neighbours along the input only the N largest stay (NVIDIA's 2:4, arXiv 2104.08378).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmslim.methods.linears import float_linears
from pytest_llmslim.methods.masks import check_zeros, settled, share_of, smallest, smallest_of_groups
from pytest_llmslim.methods.parameters import pattern_of

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods import Applied, Context


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
        return settled("magnitude", module, linears, self.pattern, context)

    def _prune(self, linear: nn.Linear) -> None:
        if self.pattern is None:
            zero_smallest(linear, share_of(self.sparsity))
        else:
            kept, group = pattern_of("magnitude", self.pattern)
            weight = linear.weight.data
            weight.masked_fill_(smallest_of_groups(weight.abs(), kept, group), 0)


def zero_smallest(linear: nn.Linear, sparsity: float) -> None:
    """Make round(sparsity * n) of the n weights zero, those of smallest magnitude."""
    weight = linear.weight.data
    weight.masked_fill_(smallest(weight.abs(), round(sparsity * weight.numel())), 0)
