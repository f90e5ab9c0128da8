"""SparseGPT: weights go where it hurts the output least, and those that stay make up for it.

Source: Frantar & Alistarh 2023, arXiv 2301.00774. Inputs are gone through from first to last, all rows at once; what
a weight that goes would have added to the output is put on the inputs after it (algorithm 1), by the factor U of
the inverse Hessian that `hessian` gives. The error of weight w at input j is w² / U[j, j]², by which weights are
chosen: for a share at the beginning of every block of 128 inputs, over all rows together (section 3.3,
adaptive masks); for a pattern N:M in every group of M when its turn comes (section 3.4).

Our own, as llmcompressor 0.14's modifier does nothing on GPT-2's `Conv1D` and says nothing. The authors' code zeroes
one weight a block too many (`<=` a threshold), always zeroes inputs that are never used, and knows only groups
that divide 128; here counts are exact, unused inputs go first and no more than asked, and any group fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from pytest_llmslim.methods.hessian import factors, hessians
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import float_linears
from pytest_llmslim.methods.masks import (
    check_zeros,
    settled,
    share_of,
    smallest,
    smallest_of_groups,
    zeros_first,
)
from pytest_llmslim.methods.parameters import check_number, pattern_of

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods import Applied, Context

BLOCK: Final = 128
"""Inputs for which a mask is chosen at once, and after which the rest of the weight is brought up to date."""

Choose = Callable[[torch.Tensor], torch.Tensor]
"""From the scores [inputs, out] of some inputs, asked from first to last, to the mask of what goes of them."""


@dataclass(frozen=True)
class SparseGPT:
    """Zeroes weights of every linear in the blocks and changes the others, so that the output stays alike.

    Weights that are zero already stay zero and count.

    Args:
        sparsity: share of each linear's weights that becomes zero; 0.5 when neither it nor a pattern is given.
        pattern: `N:M` instead of a share: N of every M weights along the input stay.
        samples: windows of calibration text.
        damp: what is added to the Hessian's diagonal, in means of that diagonal.

    Raises:
        RecipeError: share and pattern are both given, or a value is out of range.
    """

    sparsity: float | None = None
    pattern: str | None = None
    samples: int = 32
    damp: float = 0.01

    def __post_init__(self) -> None:
        check_zeros("sparsegpt", self.sparsity, self.pattern)
        rule = "a whole number from 1 on"
        check_number("sparsegpt", "samples", self.samples, rule, low=1, high=1e6, whole=True)
        check_number("sparsegpt", "damp", self.damp, "a number from 0 to 1", low=0, high=1)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Zero and change weights in place, one block after the other.

        Raises:
            CompressionError: no calibration text, a model without float linears, or weights or inputs that are
                not finite.
        """
        linears = float_linears(module, "sparsegpt", context)
        windows = calibration(context, "sparsegpt", self.samples)
        for visit in visits(module, windows, context, "sparsegpt"):
            for name, factor in factors(hessians(visit), self.damp, f"sparsegpt on {context.label}"):
                weight = linears[name].weight.data
                weight.copy_(self.prune(weight, factor))
        return settled("sparsegpt", module, linears, self.pattern, context)

    def prune(self, weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The pruned `weight` [out, in] under the factor [in, in] of its inverse Hessian."""
        if self.pattern is None:
            return walk(weight, factor, by_share(weight, share_of(self.sparsity)), BLOCK)
        kept, group = pattern_of("sparsegpt", self.pattern)
        return walk(weight, factor, by_group(kept, group), group)


def by_share(weight: torch.Tensor, share: float) -> Choose:
    """Chooses so many in every block that round(share * n) of all n weights [out, in] are zero in the end.

    Weights that are zero now are among them; the others that go are spread evenly over those that could.
    """
    blocks = (weight != 0).sum(dim=0).split(BLOCK)
    could = torch.stack([block.sum() for block in blocks]).cumsum(0).tolist()
    wanted = max(0, round(share * weight.numel()) - weight.numel() + could[-1])
    upto = [round(wanted * count / max(could[-1], 1)) for count in could]
    quotas = (end - begin for begin, end in zip([0, *upto], upto, strict=False))
    return lambda score: smallest(score, next(quotas) + int((score < 0).sum()))


def by_group(kept: int, group: int) -> Choose:
    """Chooses all but `kept` of the `group` inputs of every row; a rest that is no whole group stays."""
    return lambda score: smallest_of_groups(score.T, kept, group).T


def walk(weight: torch.Tensor, factor: torch.Tensor, choose: Choose, stretch: int) -> torch.Tensor:
    """Zero what `choose` chooses, a stretch of inputs at a time, and let the inputs after it make up for it.

    Args:
        weight: [out, in]; its zeros stay.
        factor: upper triangular [in, in], from `hessian.inverse_factor`.
        choose: gets -1 as the score of a weight that is zero already.
        stretch: inputs for which it chooses at once, at most `BLOCK`.

    Returns:
        [out, in] in float32, float64 for a float64 weight.
    """
    # [in, out], so that the weights of one input lie together
    left = weight.T.to(torch.promote_types(weight.dtype, torch.float32), copy=True).contiguous()
    factor = factor.to(left.dtype)
    zero = left == 0
    width = BLOCK - BLOCK % stretch
    for start in range(0, len(left), width):
        place, rest = slice(start, start + width), slice(start + width, None)
        errors = _walk_block(left[place], factor[place, place], zero[place], choose, stretch)
        left[rest].addmm_(factor[place, rest].T, errors, alpha=-1)
    return left.T


def _walk_block(
    block: torch.Tensor, factor: torch.Tensor, zero: torch.Tensor, choose: Choose, stretch: int
) -> torch.Tensor:
    """Go through a `block` [inputs, out] in place; returns the errors [inputs, out] to be made up for after it."""
    errors = torch.empty_like(block)
    goes = zero.clone()
    for at, row in enumerate(factor):
        if at % stretch == 0:
            some = slice(at, at + stretch)
            score = (
                block[some] / factor.diagonal()[some, None]
            ).abs_()  # the error's root, which cannot overflow
            goes[some] |= choose(zeros_first(score, zero[some]))
        torch.div(block[at] * goes[at], row[at], out=errors[at])
        block[at + 1 :].addr_(row[at + 1 :], errors[at], alpha=-1)
        block[at].masked_fill_(goes[at], 0)
    return errors
