"""Wanda: weights go by their size times the size of what they are multiplied with, row by row.

Source: Sun et al. 2023, arXiv 2306.11695. The score of weight W[i, j] is |W[i, j]| * ||X_j||_2, X_j being what enters
by input j over all calibration tokens (equation 1); weights of one output are compared with each other only
(section 3). What stays is not touched.

Our own, since the libraries fail here: torchao 0.18's `WandaSparsifier` ranks over the whole layer, which is not the
paper's method, and llmcompressor 0.14's modifier does nothing on GPT-2's `Conv1D` and says nothing. The authors'
code chooses the same weights, but rounds the number of them down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmslim.methods.hessian import check_finite
from pytest_llmslim.methods.importance import input_norms
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import float_linears
from pytest_llmslim.methods.masks import (
    check_zeros,
    settled,
    share_of,
    smallest_of_groups,
    smallest_of_rows,
    zeros_first,
)
from pytest_llmslim.methods.parameters import check_number, pattern_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_llmslim.methods import Applied, Context


@dataclass(frozen=True)
class Wanda:
    """Zeroes weights of small magnitude times activation in every linear of the blocks.

    Args:
        sparsity: share of each row's weights that becomes zero; 0.5 when neither it nor a pattern is given.
        pattern: `N:M` instead of a share: N of every M weights along the input stay.
        samples: windows of calibration text.

    Raises:
        RecipeError: share and pattern are both given, or a value is out of range.
    """

    sparsity: float | None = None
    pattern: str | None = None
    samples: int = 32

    def __post_init__(self) -> None:
        check_zeros("wanda", self.sparsity, self.pattern)
        check_number(
            "wanda", "samples", self.samples, "a whole number from 1 on", low=1, high=1e6, whole=True
        )

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Zero weights in place, one block after the other.

        Raises:
            CompressionError: no calibration text, a model without float linears, or weights or inputs that are
                not finite.
        """
        linears = float_linears(module, "wanda", context)
        windows = calibration(context, "wanda", self.samples)
        for visit in visits(module, windows, context, "wanda"):
            for name, norms in input_norms(visit, visit.layer.linears).items():
                check_finite(norms, f"wanda on {context.label}: {name}")
                weight = linears[name].weight.data
                score = zeros_first(weight.abs() * norms, weight == 0)
                weight.masked_fill_(self._goes(score), 0)
        return settled("wanda", module, linears, self.pattern, context)

    def _goes(self, score: torch.Tensor) -> torch.Tensor:
        """Mask of the weights that become zero, by `score` [out, in]."""
        if self.pattern is None:
            return smallest_of_rows(score, round(share_of(self.sparsity) * score.shape[1]))
        return smallest_of_groups(score, *pattern_of("wanda", self.pattern))
