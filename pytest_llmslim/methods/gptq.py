"""GPTQ: weights are rounded one input after the other, and those not yet rounded make up for the error.

Source: Frantar et al. 2022, arXiv 2210.17323, algorithm 1. All rows go through the inputs in the same order; the
error of input j, divided by U[j, j], is put on the inputs after it along row j of U, the factor of the inverse
Hessian that `hessian` gives. A group's scale is fitted when its first input comes, on weights that have taken in
all errors before. What the paper calls lazy batches is kept: only weights of one block are brought up to
date at every input, the others after the block.

Weights that are exactly zero stay so, as an earlier step pruned them. They take part as in SparseGPT's joint form
(Frantar & Alistarh 2023, arXiv 2301.00774, section 3.5): what reaches them from inputs before goes on as their
error to those after, which lowers the error of the output below that of leaving them out.

Our own: llmcompressor 0.14 raises on GPT-2's `Conv1D`, and gptqmodel 7.6 wants to load the model itself and
crashes on two cores. The authors' code fits the scale of a group that is smaller than a block of 128 on weights
that lack the errors of that block, makes weights of inputs that are never used zero (here they are rounded to
nearest), and uses 2^b levels on a symmetric grid where 2^b - 1 are symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.grid import Grid, Scales, check_grid, working_dtype
from pytest_llmslim.methods.hessian import factors, hessians
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.packed import SIMULATED, PackedLinear, packed_sentence
from pytest_llmslim.methods.parameters import check_number

if TYPE_CHECKING:
    from torch import nn

BLOCK: Final = 128
"""Inputs after which the rest of the weight is brought up to date."""


@dataclass(frozen=True)
class GPTQ:
    """Rounds the linears of all blocks to an integer grid so that their outputs on calibration text stay alike.

    Args:
        bits: of a weight, 2 to 8.
        group: neighbours along the input that share a scale; one as wide as the input makes it a scale a row.
        symmetric: levels lie symmetric about 0; otherwise they cover the range of the weights.
        samples: windows of calibration text.
        damp: what is added to the Hessian's diagonal, in means of that diagonal.

    Raises:
        RecipeError: a value that is none of these.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    samples: int = 32
    damp: float = 0.01

    def __post_init__(self) -> None:
        check_grid("gptq", self.bits, self.group, self.symmetric)
        rule = "a whole number from 1 on"
        check_number("gptq", "samples", self.samples, rule, low=1, high=1e6, whole=True)
        check_number("gptq", "damp", self.damp, "a number from 0 to 1", low=0, high=1)

    @property
    def grid(self) -> Grid:
        """Where the weights go."""
        return Grid(self.bits, self.group, self.symmetric)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Replace the linears of the blocks by `PackedLinear`, in place, one block after the other.

        Raises:
            CompressionError: no calibration text, a model without float linears, or weights or inputs that are
                not finite.
        """
        linears = float_linears(module, "gptq", context)
        windows = calibration(context, "gptq", self.samples)
        packed = []
        for visit in visits(module, windows, context, "gptq"):
            for name, factor in factors(hessians(visit), self.damp, f"gptq on {context.label}"):
                linear = linears.pop(name)  # the last hold on its float weight
                codes, scales = quantize(linear.weight.detach(), factor, self.grid)
                packed.append(PackedLinear.of(linear, self.grid, codes, scales))
                module.set_submodule(name, packed[-1])
        check_forward(module, "gptq", context)
        return Applied(module, packed_sentence("gptq", packed), SIMULATED)


def quantize(weight: torch.Tensor, factor: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, Scales]:
    """Codes (uint8 [out, in]) and scales of `weight` [out, in], whose zeros stay.

    Args:
        weight: finite.
        factor: upper triangular [in, in], from `hessian.inverse_factor`.
        grid: with a scale a group.
    """
    walk = _Walk(weight, factor, grid)
    columns, group = weight.shape[1], min(grid.group or weight.shape[1], weight.shape[1])
    # a block begins where a group does, or lies inside one
    stride = max(group, BLOCK - BLOCK % group)
    for first in range(0, columns, stride):
        for start in range(first, min(first + stride, columns), BLOCK):
            walk.block(slice(start, min(start + BLOCK, first + stride, columns)))
    return walk.codes.T.contiguous(), walk.scales()


class _Walk:
    """The state while one weight is gone through."""

    def __init__(self, weight: torch.Tensor, factor: torch.Tensor, grid: Grid) -> None:
        dtype = working_dtype(weight.dtype)
        self.left = weight.T.to(dtype, copy=True).contiguous()  # [in, out]: weights of an input lie together
        self.factor = factor.to(dtype)
        self.zero = self.left == 0
        self.grid = grid
        self.group = grid.group or len(self.left)
        self.codes = torch.empty_like(self.left, dtype=torch.uint8)
        self.fitted: list[Scales] = []
        self.stored = weight.dtype

    def block(self, place: slice) -> None:
        """Round the inputs of `place`, and put their errors on all after it."""
        left, factor = self.left[place], self.factor[place, place]
        errors = torch.empty_like(left)
        for j in range(len(left)):
            errors[j] = (left[j] - self._round(place.start + j)) / factor[j, j]
            left[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
        self.left[place.stop :].addmm_(self.factor[place, place.stop :].T, errors, alpha=-1)

    def _round(self, column: int) -> torch.Tensor:
        """The levels [out] next to the weights of one input; of a new group the scale is fitted first."""
        if column % self.group == 0:
            ahead = slice(column, column + self.group)
            self.fitted.append(self.grid.fit(self.left[ahead].masked_fill(self.zero[ahead], 0).T))
        scales = self.fitted[-1]
        wanted = self.left[column].masked_fill(self.zero[column], 0)[:, None]
        codes = self.grid.codes(wanted, scales)
        self.codes[column] = codes[:, 0]
        return self.grid.dequantize(codes, scales, self.stored)[:, 0].to(self.left.dtype)

    def scales(self) -> Scales:
        """Of all groups, [out, groups]."""
        zeros = [scales.zero for scales in self.fitted if scales.zero is not None]
        scale = torch.cat([scales.scale for scales in self.fitted], dim=1)
        return Scales(scale, torch.cat(zeros, dim=1) if zeros else None)
