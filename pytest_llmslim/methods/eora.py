"""EoRA: low-rank terms that make up for what compression lost, without training (Liu et al. 2024, arXiv 2410.21271).

Per linear, with W the reference's weight, V the compressed one and C the mean of x xᵀ over what enters it in the
compressed model: B and A of rank r minimise ||(W - V - B A) C^½||_F, the error of the output. The paper projects
the residual into the eigenspace of C, scaled by the roots of its eigenvalues, truncates the SVD there, and divides
the scale out again (section 3, algorithm 1). The truncated SVD keeps U Uᵀ (W - V) C^½ with U the leading left
singular vectors, so B = U and A = Uᵀ (W - V) gives the same outputs without dividing by eigenvalues near zero,
which makes weights of any size in directions that the calibration text does not show.

gptqmodel has the algorithm as a function for its own quantizers; it is no dependency, and the residual of any
earlier step (quantized or pruned) is what is needed here. peft has no EoRA.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.errors import CompressionError, NothingCompressedError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.hessian import hessians
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import check_forward, effective_weight
from pytest_llmslim.methods.low_rank import LowRank
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.models.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pytest_llmslim.methods.layerwise import Visit


@dataclass(frozen=True)
class EoRA:
    """Puts a low-rank term beside every linear of the blocks that differs from the reference's.

    The linears stay as they are, quantized or with their zeros: merging would round the terms away or fill zeros.

    Args:
        rank: of each term; at most the smaller side of the linear.
        samples: calibration windows.

    Raises:
        RecipeError: a value out of range.
    """

    rank: int = 16
    samples: int = 32

    def __post_init__(self) -> None:
        check_number("eora", "rank", self.rank, "a whole number from 1 to 4096", low=1, high=4096, whole=True)
        rule = "a whole number from 1 to 100000"
        check_number("eora", "samples", self.samples, rule, low=1, high=100000, whole=True)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Wrap linears in `LowRank`, in place.

        Raises:
            CompressionError: no reference, one of other shapes, no calibration text, or weights that are not finite.
            NothingCompressedError: every linear equals the reference's.
        """
        wanted = reference_weights(module, context)
        errors: list[tuple[float, float]] = []
        for visit in visits(module, calibration(context, "eora", self.samples), context, "eora"):
            errors += self._heal(module, visit, wanted)
        if not errors:
            raise NothingCompressedError(
                f"eora on {context.label}: earlier steps changed a linear, got all as in the uncompressed model; put "
                "a step that compresses before it"
            )
        check_forward(module, "eora", context)
        before, after = (fmean(values) for values in zip(*errors, strict=True))
        return Applied(
            module,
            f"eora: terms of rank {self.rank} beside {len(errors)} linears; error of their outputs {before:.2%} to "
            f"{after:.2%} on calibration text",
        )

    def _heal(
        self, module: nn.Module, visit: Visit, wanted: Mapping[str, nn.Module]
    ) -> list[tuple[float, float]]:
        """Wrap the linears of one block; the relative output errors of each, before and after."""
        errors = []
        for name, hessian in hessians(visit).items():
            old, target = visit.layer.linears[name], effective_weight(wanted[name])
            residual = target.double() - effective_weight(old).double()
            if not residual.any():
                continue
            down, up = compensate(residual, hessian.matrix, self.rank)
            dtype = target.dtype
            module.set_submodule(name, LowRank(old, down.to(dtype), up.to(dtype)).eval())
            whole = output_norm(target, hessian.matrix) or 1.0  # a linear that nothing enters
            left = residual - up @ down
            lost, remaining = (output_norm(part, hessian.matrix) / whole for part in (residual, left))
            errors.append((lost, remaining))
        return errors


def compensate(
    residual: torch.Tensor, covariance: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of rank at most `rank` that are nearest to `residual` [out, in] in the error of the output.

    Args:
        residual: what is missing.
        covariance: mean of x xᵀ over inputs [in, in]; may be singular.
        rank: of the product.

    Returns:
        `down` [rank, in] and `up` [out, rank] in float64; the columns of `up` are orthonormal.
    """
    exact, cov = residual.double(), covariance.double()
    rows, columns = exact.shape
    if rows <= columns:  # U from the smaller side: (W - V) C (W - V)ᵀ has the left singular vectors
        up = torch.linalg.eigh(exact @ cov @ exact.T).eigenvectors[:, -rank:]
    else:
        values, basis = torch.linalg.eigh(cov)
        projected = exact @ (basis * values.clamp_min(0).sqrt())
        right = torch.linalg.eigh(projected.T @ projected).eigenvectors[:, -rank:]
        up = torch.linalg.qr(projected @ right).Q
    return up.T @ exact, up


def output_norm(weight: torch.Tensor, covariance: torch.Tensor) -> float:
    """Root mean square of the outputs of `weight` [out, in] over inputs of this `covariance`, summed over outputs."""
    exact = weight.double()
    return float((exact @ covariance.double() * exact).sum().clamp_min(0).sqrt())


def reference_weights(module: nn.Module, context: Context) -> dict[str, nn.Module]:
    """The linears of the uncompressed model that those of `module` came from, by name.

    Raises:
        CompressionError: there is no reference, or names or shapes are not the same.
    """
    if context.reference is None:
        raise CompressionError(
            f"eora on {context.label}: the method makes up for the difference to the uncompressed model, got no such "
            "model; pass it as Context(reference=...)"
        )
    wanted, got = Blocks(context.reference).linears(), Blocks(module).linears()
    if len(wanted) != len(got):
        found = f"{len(got)} linears instead of {len(wanted)}"
    else:
        shapes = {name: [part.out_features, part.in_features] for name, part in wanted.items()}
        other = [
            name for name, part in got.items() if shapes.get(name) != [part.out_features, part.in_features]
        ]
        if not other:
            return wanted
        shape = [got[other[0]].out_features, got[other[0]].in_features]
        found = f"{shape} instead of {shapes.get(other[0])} in {other[0]}"
    raise CompressionError(
        f"eora on {context.label}: linears have the shapes of the uncompressed model, got {found}, as an earlier step "
        "cut shapes; use lora"
    )
