"""Invariants of methods that round weights to few levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import torch

from pytest_llmslim.conformance import hosts
from pytest_llmslim.conformance.broken import explore, first_of, require
from pytest_llmslim.conformance.methods import MethodInvariants, invariant
from pytest_llmslim.errors import SlimError
from pytest_llmslim.methods.grid import pack
from pytest_llmslim.registry import QUANTIZE
from pytest_llmslim.strategies.matrix import Matrix
from pytest_llmslim.strategies.weights import DTYPES, KINDS, weights

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from pytest_llmslim.conformance.subject import Subject

_BITS: Final = (3, 4, 8)
_ORDINARY: Final = tuple(kind for kind in KINDS if kind not in ("subnormal", "huge-range"))
"""Kinds that can be doubled and halved without leaving the range of a dtype."""
_FLOAT_ERROR: Final = 2.0**-18
"""Of the largest weight: what float32 arithmetic on scales may add to half a step."""


class QuantizerInvariants(MethodInvariants):
    """What a quantizer keeps, beside the invariants of every method.

    Its weights are read where they stand afterwards; the attribute `bits` of a method is how many bits a weight has,
    `group` how many neighbours share a scale (`None`: a row), and `grid.step(weight)` how far two levels lie apart.
    """

    stage = QUANTIZE

    @invariant
    def test_weights_finite(self, subject: Subject) -> None:
        """Finite weights of any kind stay finite."""

        def one(matrix: Matrix) -> None:
            seen = subject.see(matrix)
            bad = ~torch.isfinite(seen.after)
            said = "weights stay finite, got NaN or infinity"
            require(not bad.any(), said, first_of(bad), weights=matrix, became=seen.after)

        explore(_any(subject, DTYPES), one)

    @invariant
    def test_half_a_step(self, subject: Subject) -> None:
        """Every weight moves by half the distance of two levels at most."""
        grid: Any = getattr(subject.method(), "grid", None)
        if not callable(getattr(grid, "step", None)):
            pytest.skip("the method has no attribute grid with step(weight)")

        def one(matrix: Matrix) -> None:
            seen = subject.see(matrix)
            before, after = seen.before.double(), seen.after.double()
            half = grid.step(seen.before).double() / 2
            held = torch.finfo(matrix.dtype)  # how finely levels can be stored, below normal numbers too
            rounding = held.eps * after.abs().clamp_min(held.tiny) + _FLOAT_ERROR * before.abs().max()
            excess = (before - after).abs() - half - rounding
            at = first_of(excess > 0)
            require(
                (excess <= 0).all(),
                f"a weight moves by half a step at most, {float(half[at]):.4g} at row {at[0]}, column {at[1]}, got "
                f"{float(before[at]):.6g} moved to {float(after[at]):.6g}",
                at,
                weights=matrix,
                became=seen.after,
            )

        explore(_any(subject, DTYPES), one)

    @invariant
    def test_levels(self, subject: Subject) -> None:
        """The weights that share a scale have at most 2^bits values."""
        method = subject.method()
        bits = getattr(method, "bits", None)
        if not isinstance(bits, int):
            pytest.skip("the method has no attribute bits")
        shared = _shared(method)

        def one(matrix: Matrix) -> None:
            seen = subject.see(matrix)
            for row, values in enumerate(seen.after):
                for start in range(0, len(values), shared or len(values)):
                    stretch = values[start : start + (shared or len(values))]
                    found = len(stretch.unique())
                    require(
                        found <= 2**bits,
                        f"{bits} bits are {2**bits} levels, got {found} in row {row} from column {start} on",
                        (row, start),
                        weights=matrix,
                        became=seen.after,
                    )

        explore(_any(subject, DTYPES, (1, 2), (1, 4 * max(subject.multiple, 2 ** min(bits, 6)))), one)

    @invariant
    def test_idempotent(self, subject: Subject) -> None:
        """Weights that lie on the levels already stay where they are."""

        def one(matrix: Matrix) -> None:
            first = subject.see(matrix)
            second = subject.see(Matrix.of(first.after.to(matrix.dtype)))
            _equal("a second time changes nothing", matrix, second.before, second.after)

        explore(_any(subject), one)

    @invariant
    def test_sign_equivariant(self, subject: Subject) -> None:
        """Negative weights become the negative of what the weights become, on a symmetric grid."""
        if getattr(subject.method(), "symmetric", True) is False:
            pytest.skip("an even number of levels with 0 among them cannot lie symmetric")

        def one(matrix: Matrix) -> None:
            plain, negative = subject.see(matrix), subject.see(Matrix.of(-matrix.tensor))
            _equal("-W becomes the negative of what W becomes", matrix, -plain.after, negative.after)

        explore(_any(subject), one)

    @invariant
    def test_scale_equivariant(self, subject: Subject) -> None:
        """Weights times a power of two become that times what the weights become."""

        def one(matrix: Matrix) -> None:
            for factor in (4.0, 0.25):
                plain, scaled = subject.see(matrix), subject.see(Matrix.of(factor * matrix.tensor))
                said = f"{factor:g} W becomes {factor:g} times what W becomes"
                _equal(said, matrix, factor * plain.after, scaled.after)

        explore(_any(subject), one, 8)

    @invariant
    def test_monotone_in_bits(self, subject: Subject) -> None:
        """More bits make no larger error on random weights."""
        if "bits" not in subject.parameters:
            pytest.skip("the method has no parameter bits")
        reference = subject.tiny.module()
        wanted = hosts.weights(reference)
        errors: dict[int, float] = {}
        for bits in _BITS:
            try:
                found = hosts.weights(subject.compressed(reference, bits=bits).module)
            except SlimError:
                continue
            errors[bits] = sum(float((wanted[name] - found[name]).square().sum()) for name in wanted)
        said = ", ".join(f"{error:.4g} with {bits} bits" for bits, error in errors.items())
        falling = sorted(errors.values(), reverse=True) == list(errors.values())
        require(falling and errors, f"more bits make no larger squared error, got {said or 'all refused'}")

    @invariant
    def test_zeros_stay(self, subject: Subject) -> None:
        """A weight that is exactly zero stays so: that is how masks survive."""

        def one(matrix: Matrix) -> None:
            seen = subject.see(matrix)
            filled = (seen.before == 0) & (seen.after != 0)
            said = "zeros stay zero, got some filled"
            require(not filled.any(), said, first_of(filled), weights=matrix, became=seen.after)

        kinds = ("zero-groups", "simple", "outlier-columns")
        explore(
            weights((1, 8), _columns(subject), multiple=subject.multiple, dtypes=DTYPES, kinds=kinds), one
        )

    @invariant
    def test_pack_and_unpack(self, subject: Subject) -> None:
        """Codes come out of their bytes as they went in, within the bits they have, and stand for the weight."""

        def one(matrix: Matrix) -> None:
            seen = subject.see(matrix)
            linear: Any = seen.linear
            if not all(hasattr(linear, name) for name in ("grid", "codes", "packed", "scales")):
                pytest.skip("the weights are not packed as in pytest_llmslim.methods.packed")
            codes, bits = linear.codes, linear.grid.bits
            shown = {"weights": matrix, "codes": codes.float()}
            require(int(codes.max()) < 2**bits, f"codes have {bits} bits, got {int(codes.max())}", **shown)
            require(
                torch.equal(pack(codes, bits), linear.packed),
                "codes pack to the bytes they came from",
                **shown,
            )
            told = linear.grid.dequantize(codes, linear.scales, seen.after.dtype)
            require(torch.equal(told, seen.after), "codes stand for the weight", **shown, became=seen.after)

        explore(_any(subject, DTYPES), one)


def _any(
    subject: Subject,
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
    rows: tuple[int, int] = (1, 6),
    columns: tuple[int, int] | None = None,
) -> SearchStrategy[Matrix]:
    """Weights of widths that the method compresses."""
    kinds = tuple(KINDS) if len(dtypes) > 1 else _ORDINARY
    sides = columns or _columns(subject)
    return weights(rows, sides, multiple=subject.multiple, dtypes=dtypes, kinds=kinds)


def _columns(subject: Subject) -> tuple[int, int]:
    return subject.multiple, max(12, 3 * subject.multiple)


def _shared(method: object) -> int | None:
    """How many neighbours share a scale; `None`: a row or more."""
    if getattr(method, "granularity", "group") != "group":
        return None
    group = getattr(method, "group", None)
    return group if isinstance(group, int) else None


def _equal(rule: str, matrix: Matrix, wanted: torch.Tensor, got: torch.Tensor) -> None:
    """Equal up to the last digits of the largest weight of a row."""
    largest = wanted.abs().amax(dim=1, keepdim=True).double()
    apart = (wanted.double() - got.double()).abs() > 4 * torch.finfo(matrix.dtype).eps * largest
    at = first_of(apart)
    said = (
        f"{rule}, got {float(got[at]):.6g} instead of {float(wanted[at]):.6g} at row {at[0]}, column {at[1]}"
    )
    require(not apart.any(), said, at, weights=matrix, expected=wanted, got=got)
