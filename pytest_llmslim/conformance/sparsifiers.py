"""Invariants of methods that zero weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import strategies as st

from pytest_llmslim.conformance.broken import explore, first_of, require
from pytest_llmslim.conformance.methods import MethodInvariants, invariant
from pytest_llmslim.registry import SPARSIFY
from pytest_llmslim.strategies.matrix import Matrix
from pytest_llmslim.strategies.weights import DTYPES, weights

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from pytest_llmslim.conformance.subject import Subject

_PATTERNS: Final = ("2:4", "4:8", "1:2", "1:4")
_SHARES: Final = (0.5, 0.25, 0.7)
_LARGER: Final = 4.0
_HALF: Final = 0.5 + 1e-9  # of a weight, by which a share may be rounded


class SparsifierInvariants(MethodInvariants):
    """What a method that zeroes weights keeps, beside the invariants of every method.

    Its parameters `sparsity` (a share) and `pattern` (`N:M`) are set in turn, where it has them.
    """

    stage = SPARSIFY

    @invariant
    def test_ratio_exact(self, subject: Subject) -> None:
        """The share that was asked for is zero, to the weight: of every matrix, or of each of its rows."""
        if "sparsity" not in subject.parameters:
            pytest.skip("the method has no parameter sparsity")

        def one(drawn: tuple[Matrix, float]) -> None:
            matrix, share = drawn
            seen = subject.see(matrix, sparsity=share, pattern=None)
            zeros = (seen.after == 0).sum(dim=1)
            columns, total = matrix.shape[1], matrix.tensor.numel()
            whole = abs(int(zeros.sum()) - share * total) <= _HALF
            rows = ((zeros - share * columns).abs() <= _HALF).all()
            require(
                whole or rows,
                f"{share:g} of {total} weights, or of the {columns} of each row, become zero, got "
                f"{int(zeros.sum())} in rows of {zeros.tolist()}",
                weights=matrix,
                became=seen.after,
            )

        explore(st.tuples(_nonzero(subject), st.sampled_from(_SHARES)), one)

    @invariant
    def test_pattern_exact(self, subject: Subject) -> None:
        """Of every M neighbours in every row N stay; columns that fill no whole group stay too."""
        if "pattern" not in subject.parameters:
            pytest.skip("the method has no parameter pattern")

        def one(drawn: tuple[Matrix, str]) -> None:
            matrix, pattern = drawn
            kept, group = map(int, pattern.split(":"))
            seen = subject.see(matrix, pattern=pattern, sparsity=None)
            whole = matrix.shape[1] - matrix.shape[1] % group
            left = (seen.after[:, :whole] != 0).reshape(matrix.shape[0], -1, group).sum(dim=2)
            shown = {"weights": matrix, "became": seen.after}
            for row, place in (left != kept).nonzero().tolist():
                said = f"{kept} of every {group} weights stay, got {int(left[row, place])} in row {row}"
                require(False, f"{said} from column {group * place} on", (row, group * place), **shown)
            require(
                (seen.after[:, whole:] != 0).all(), f"columns that fill no group of {group} stay", **shown
            )

        explore(st.tuples(_nonzero(subject, wide=8), st.sampled_from(_PATTERNS)), one)

    @invariant
    def test_kept_untouched(self, subject: Subject) -> None:
        """A weight that does not become zero stays what it was."""

        def one(matrix: Matrix) -> None:
            seen = subject.see(matrix)
            touched = (seen.after != 0) & (seen.after != seen.before)
            said = "weights that are kept are not changed"
            require(not touched.any(), said, first_of(touched), weights=matrix, became=seen.after)

        explore(_any(subject), one)

    @invariant
    def test_idempotent(self, subject: Subject) -> None:
        """A second time changes nothing: zeros count towards the share."""

        def one(matrix: Matrix) -> None:
            first = subject.see(matrix)
            second = subject.see(Matrix.of(first.after))
            changed = first.after != second.after
            shown = {"weights": matrix, "once": first.after, "twice": second.after}
            require(not changed.any(), "a second time changes nothing", first_of(changed), **shown)

        explore(_any(subject), one)

    @invariant
    def test_monotone_in_score(self, subject: Subject) -> None:
        """A weight that is kept is kept when it is larger, too."""

        def one(drawn: tuple[Matrix, int]) -> None:
            matrix, index = drawn
            seen = subject.see(matrix)
            kept = (seen.after != 0).nonzero().tolist()
            if not kept:
                return
            row, column = kept[index % len(kept)]
            larger = matrix.tensor
            larger[row, column] *= _LARGER
            again = subject.see(Matrix.of(larger))
            said = f"the weight at row {row}, column {column} is kept, and so it is when {_LARGER:g} times as large"
            shown = {"weights": matrix, "became": seen.after, "became_then": again.after}
            require(again.after[row, column] != 0, said, (row, column), **shown)

        explore(st.tuples(_nonzero(subject), st.integers(0, 999)), one)


def _any(subject: Subject) -> SearchStrategy[Matrix]:
    return weights(
        (1, 6), (subject.multiple, max(12, 2 * subject.multiple)), multiple=subject.multiple, dtypes=DTYPES
    )


def _nonzero(subject: Subject, wide: int = 1) -> SearchStrategy[Matrix]:
    """Weights of which none is zero, so that zeros can be counted afterwards."""
    least = max(subject.multiple, wide)
    kinds = ("simple", "gaussian", "ties", "equal-groups", "constant-rows", "outlier-columns", "outlier-rows")
    return weights(
        (1, 6),
        (least, max(18, 2 * least)),
        multiple=subject.multiple,
        dtypes=DTYPES,
        kinds=kinds,
        zeros=False,
    )
