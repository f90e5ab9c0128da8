"""The second-order view of a linear that GPTQ and SparseGPT share: its Hessian, and the factor they walk along.

The error ||X(W - V)ᵀ||² of a linear has the Hessian 2 XᵀX for every row of W alike (GPTQ, Frantar et al. 2022,
arXiv 2210.17323, section 3.1). Both methods only use ratios of its inverse, so the mean of x xᵀ over tokens serves.

The upper triangular U with H⁻¹ = UᵀU holds all they need (ibid., section 3.3, step 3): row j of U is row j of
the inverse of H without its first j rows and columns, divided by the root of that inverse's first entry. It is
found without forming H⁻¹: H = R Rᵀ with R upper triangular, and U = R⁻¹.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from pytest_llmslim.errors import CompressionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llmslim.methods.layerwise import Visit

HIGHEST_DAMP: Final = 10.0
"""Damping is raised tenfold up to this, in means of the diagonal, before a Hessian is given up."""

_UNUSED: Final = 1e-12
"""What stands for the mean square of an input that is always zero, in means of the diagonal."""

_STRIP: Final = 256
"""Inputs that are multiplied with all after them at once."""


class Hessian:
    """The mean of x xᵀ over the tokens seen, in float32 (float64 for float64 inputs)."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sum = torch.zeros(0)

    def add(self, inputs: torch.Tensor) -> None:
        """Take in `inputs` [tokens, in]."""
        seen = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        if not self.tokens:
            self._sum = torch.zeros(seen.shape[1], seen.shape[1], dtype=seen.dtype, device=seen.device)
        for first in range(0, seen.shape[1], _STRIP):  # the half below the diagonal is not multiplied out
            strip = slice(first, first + _STRIP)
            self._sum[strip, first:].addmm_(seen[:, strip].T, seen[:, first:])
        self.tokens += len(seen)

    @property
    def matrix(self) -> torch.Tensor:
        """[in, in], symmetric; computed anew every time."""
        upper = self._sum.triu().div_(self.tokens)
        return upper + upper.triu(1).T


def hessians(visit: Visit) -> dict[str, Hessian]:
    """The Hessian of every linear of a block, by name; linears that read one tensor share one.

    The block runs once over its windows, as it is.
    """
    shared: dict[str, Hessian] = {}
    owners: set[str] = set()
    last: list[tuple[torch.Tensor, str]] = []  # holds the tensor, so that its memory is not given to another

    def watcher(name: str, inputs: torch.Tensor) -> None:
        if name not in shared:
            if last and _same(last[0][0], inputs):
                shared[name] = shared[last[0][1]]
            else:
                shared[name] = Hessian()
                owners.add(name)
        if name in owners:
            shared[name].add(inputs)
        last[:] = [(inputs, name)]

    visit.watch(watcher)
    return {name: shared[name] for name in visit.layer.linears}


def inverse_factor(matrix: torch.Tensor, damp: float, subject: str) -> torch.Tensor:
    """Upper triangular U [in, in] in float64 with UᵀU the inverse of the damped Hessian `matrix` [in, in].

    `damp` means of the diagonal are added to it, ten times as much as often as it is not positive definite.
    Inputs that are always zero neither give nor take an error, and their weights cost less than any other's.

    Raises:
        CompressionError: the matrix is not finite, or no damping helps; `subject` begins the message.
    """
    check_finite(matrix, subject)
    flipped = matrix.double().flip(0, 1)
    diagonal = flipped.diagonal().clone()
    mean = diagonal.mean()
    least = _UNUSED * mean if mean > 0 else 1.0
    while damp <= HIGHEST_DAMP:
        flipped.diagonal().copy_(torch.where(diagonal == 0, least, diagonal + damp * mean))
        lower, failed = torch.linalg.cholesky_ex(flipped)
        if not failed:
            identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
        damp = max(10 * damp, 1e-6)
    raise CompressionError(
        f"{subject}: a Hessian that is damped by {HIGHEST_DAMP:g} means of its diagonal is positive definite, "
        "got one that is not; give a longer text with --llm-text"
    )


def factors(found: dict[str, Hessian], damp: float, subject: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Each linear of `found` with its `inverse_factor`, made once for neighbours that share a Hessian.

    Raises:
        CompressionError: as `inverse_factor`; `subject` begins the message.
    """
    last: Hessian | None = None
    for name, hessian in found.items():
        if hessian is not last:
            factor = inverse_factor(hessian.matrix, damp, f"{subject}: {name}")
            last = hessian
        yield name, factor


def check_finite(seen: torch.Tensor, subject: str) -> None:
    """Refuse a statistic of inputs that is not finite.

    Raises:
        CompressionError: NaN or infinity; `subject` begins the message.
    """
    if not torch.isfinite(seen).all():
        raise CompressionError(
            f"{subject}: what enters it over the calibration text is finite, got NaN or infinity; "
            "use another dtype, or an uncompressed checkpoint"
        )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one._version == other._version
