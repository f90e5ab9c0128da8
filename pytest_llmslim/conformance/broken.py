"""How an invariant is said to be broken, and how examples of that are searched for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from hypothesis import HealthCheck, Phase, given, settings

from pytest_llmslim.errors import SlimError
from pytest_llmslim.strategies.matrix import WHOLE, Matrix

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from hypothesis.strategies import SearchStrategy

EXAMPLES: Final = 20
SHRINKING_S: Final = 10.0
"""Seconds in which a counter-example is made smaller; each try compresses a model."""

Value = TypeVar("Value")


class BrokenInvariantError(AssertionError):
    """A method does not keep an invariant; the message says how, with matrices where there are some."""


def require(
    condition: object, sentence: str, at: tuple[int, int] | None = None, **shown: torch.Tensor | Matrix
) -> None:
    """Raise unless `condition` holds.

    Args:
        condition: true when the invariant is kept.
        sentence: what is wrong: rule, got.
        at: row and column where it is wrong: of large matrices the part around it is printed.
        shown: matrices to print below the sentence, by what they are; `_` stands for a space.

    Raises:
        BrokenInvariantError: it does not hold.
    """
    if not condition:
        parts = [f"{name.replace('_', ' ')}{_printed(matrix, at)}" for name, matrix in shown.items()]
        raise BrokenInvariantError("\n".join([sentence, *parts]))


def first_of(wrong: torch.Tensor) -> tuple[int, int]:
    """Row and column of the first true value of [rows, columns]; (0, 0) where there is none."""
    return divmod(int(wrong.flatten().int().argmax()), wrong.shape[1])


def _printed(shown: torch.Tensor | Matrix, at: tuple[int, int] | None) -> str:
    matrix = shown if isinstance(shown, Matrix) else Matrix.of(shown)
    spans = [_span(place, count) for place, count in zip(at or (0, 0), matrix.shape, strict=True)]
    if at is None or all(len(span) == count for span, count in zip(spans, matrix.shape, strict=True)):
        return f": {matrix!r}"
    rows, columns = spans
    part = Matrix(
        tuple(matrix.rows[row][columns[0] : columns[-1] + 1] for row in rows), matrix.dtype, matrix.kind
    )
    size = "{} x {}".format(*matrix.shape)
    return f" from row {rows[0]}, column {columns[0]} on, of {size}: {part!r}"


def _span(place: int, count: int) -> range:
    """Indices around `place` of `count`, no more than are printed."""
    first = max(0, min(place - WHOLE // 2, count - WHOLE))
    return range(first, min(first + WHOLE, count))


def explore(
    strategy: SearchStrategy[Value],
    check: Callable[[Value], None],
    examples: int = EXAMPLES,
    first: Value | None = None,
) -> None:
    """Call `check` on drawn values; the same ones in every run, so that a failure is no matter of luck.

    Args:
        strategy: of the values.
        check: raises where the invariant is broken, and a `SlimError` where the method refuses the value.
        examples: how many are drawn.
        first: a value to begin with.

    Raises:
        BrokenInvariantError: for the smallest example that was found in time, or when all were refused.
    """
    search = _Search(check)
    if first is not None:
        search.look_at(first)

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: Value) -> None:
        search.look_at(value)

    run()
    require(
        search.held,
        f"a method takes some of {search.refused} examples, got all refused, the last one with: {search.refusal}",
    )


class _Search:
    """Ends the shrinking of an example after some seconds: what was not seen to fail till then passes."""

    def __init__(self, check: Callable[..., None]) -> None:
        self._check = check
        self._failed: dict[str, BrokenInvariantError] = {}
        self._began = 0.0
        self.held = self.refused = 0
        self.refusal = ""

    def look_at(self, value: object) -> None:
        key = repr(value)
        if self._failed and time.monotonic() - self._began > SHRINKING_S:
            if key in self._failed:
                raise self._failed[key]
            return
        try:
            self._check(value)
            self.held += 1
        except SlimError as error:
            self.refused, self.refusal = self.refused + 1, str(error)
        except BrokenInvariantError as error:
            self._began = self._began or time.monotonic()
            self._failed[key] = BrokenInvariantError(_with_example(str(error), value))
            raise self._failed[key] from error


def _with_example(sentence: str, value: object) -> str:
    """The sentence with what of the example it does not show; where it shows weights, these are the matrix's."""
    drawn = value if isinstance(value, tuple) else (value,)
    parts = [part for part in drawn if not (isinstance(part, Matrix) and "\nweights" in sentence)]
    return "\n".join([sentence, *(f"drawn: {part!r}" for part in parts if repr(part) not in sentence)])
