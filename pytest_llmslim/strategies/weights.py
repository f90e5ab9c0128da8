"""Weights as they really are: outliers, ties, equal and empty groups, subnormals, huge ranges, odd widths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from hypothesis import strategies as st

from pytest_llmslim.strategies.matrix import Matrix

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Array = np.ndarray[Any, np.dtype[np.float64]]
    Draw = Callable[[st.SearchStrategy[Any]], Any]

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)

_SIMPLE: Final = (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5)
_OUTLIERS: Final = (8.0, 64.0, 1000.0)
_DIGITS: Final = 3  # of a Gaussian weight, so that a counter-example can be typed
_SMALLEST, _LARGEST = -30, 4  # powers of ten of a huge range
_DRAWN: Final = 64
"""Weights of a matrix that are drawn one by one."""

Sides = int | tuple[int, int]
"""One length, or the shortest and the longest."""


@st.composite
def weights(
    draw: Draw,
    rows: Sides = (1, 16),
    columns: Sides = (1, 16),
    *,
    multiple: int = 1,
    dtypes: Sequence[torch.dtype] = DTYPES,
    kinds: Sequence[str] = (),
    zeros: bool = True,
) -> Matrix:
    """Finite weights [rows, columns] of one of `KINDS`; shrinks to few rows and columns of simple numbers.

    Args:
        draw: given by Hypothesis.
        rows: outputs: one number, or the least and the most.
        columns: inputs, likewise.
        multiple: the number of columns is a multiple of it.
        dtypes: which the values are rounded to.
        kinds: which of `KINDS` are drawn; all when empty.
        zeros: whether a weight may be exactly zero.

    Raises:
        ValueError: no such kind.
    """
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise ValueError(f"kinds of weights are {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    dtype = draw(st.sampled_from(tuple(dtypes)))
    kind = draw(st.sampled_from(tuple(kinds) or tuple(KINDS)))
    shape = draw(_side(rows)), multiple * draw(_side(columns, multiple))
    return _matrix(KINDS[kind](draw, shape, dtype), dtype, kind, zeros=zeros)


@st.composite
def bad_weights(
    draw: Draw,
    rows: Sides = (1, 16),
    columns: Sides = (1, 16),
    *,
    multiple: int = 1,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> Matrix:
    """Weights of which one or more are NaN or infinite: methods refuse them."""
    good = draw(weights(rows, columns, multiple=multiple, dtypes=dtypes, kinds=("simple", "gaussian")))
    values = np.array(good.rows)
    places = st.integers(0, values.size - 1)
    for place in draw(st.lists(places, min_size=1, max_size=3, unique=True)):
        values.flat[place] = draw(st.sampled_from((np.nan, np.inf, -np.inf)))
    return Matrix(tuple(map(tuple, values.tolist())), good.dtype, "not finite")


def _side(length: Sides, multiple: int = 1) -> st.SearchStrategy[int]:
    least, most = (length, length) if isinstance(length, int) else length
    return st.integers(-(-least // multiple), max(most // multiple, -(-least // multiple)))


def _matrix(values: Array, dtype: torch.dtype, kind: str, *, zeros: bool) -> Matrix:
    """The values in `dtype`, finite."""
    info = torch.finfo(dtype)
    tensor = torch.from_numpy(np.clip(values, info.min, info.max)).to(dtype)
    if not zeros:
        tensor[tensor == 0] = info.tiny if kind in ("subnormal", "huge-range") else 1.0
    return Matrix.of(tensor, kind)


# Kinds ------------------------------------------------------------------------------------------------------


def _simple(draw: Draw, shape: tuple[int, int], _dtype: torch.dtype) -> Array:
    """Small numbers, of which each is drawn by itself."""
    return _table(draw, shape, _SIMPLE)


def _table(draw: Draw, shape: tuple[int, int], values: Sequence[float]) -> Array:
    """Any of `values` [rows, columns]; the columns of a wide one repeat, so that an example stays quick to shrink."""
    rows, columns = shape
    width = min(columns, max(1, _DRAWN // rows))
    count = rows * width
    drawn = draw(st.tuples(*[st.sampled_from(values)] * count))
    return np.tile(np.reshape(drawn, (rows, width)), -(-columns // width))[:, :columns].astype(np.float64)


def _gaussian(draw: Draw, shape: tuple[int, int], _dtype: torch.dtype) -> Array:
    """As after initialisation or training, to three digits."""
    # Drawn for nothing: the example of fewest choices counts as the simplest, and that is to be one of `_simple`.
    _simple(draw, shape, _dtype)
    deviation = draw(st.sampled_from((1.0, 0.02)))
    values = np.random.default_rng(draw(st.integers(0, 2**16))).normal(0, deviation, shape)
    return _digits(values)


def _digits(values: Array) -> Array:
    """Rounded to significant digits; nothing becomes zero."""
    scale = 10.0 ** (_DIGITS - 1 - np.floor(np.log10(np.abs(values) + 1e-300)))
    return np.round(values * scale) / scale


def _base(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Array:
    """What other kinds start from."""
    return draw(st.sampled_from((_simple, _gaussian)))(draw, shape, dtype)


def _ties(draw: Draw, shape: tuple[int, int], _dtype: torch.dtype) -> Array:
    """Two magnitudes at most, of either sign: every choice among weights is between equals."""
    low, high = draw(st.sampled_from(((1.0, 1.0), (1.0, 2.0), (0.25, 0.75))))
    return _table(draw, shape, (low, -low, high, -high))


def _equal_groups(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Array:
    """Neighbours in a row are equal, so that a group has a range of zero."""
    width = draw(st.sampled_from((1, 2, 3, 4, 8, 16, 32, 64, 128)))
    return np.repeat(_base(draw, shape, dtype), width, axis=1)[:, : shape[1]]


def _zero_groups(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Array:
    """Neighbours in a row are zero together, as after pruning; single ones too."""
    width = draw(st.sampled_from((1, 2, 4, 8, 16, 32, 64)))
    kept = _table(draw, (shape[0], -(-shape[1] // width)), (1.0, 0.0))
    return _base(draw, shape, dtype) * np.repeat(kept, width, axis=1)[:, : shape[1]]


def _constant_rows(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Array:
    """Every row is one number."""
    return np.repeat(_base(draw, (shape[0], 1), dtype), shape[1], axis=1)


def _outlier_columns(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Array:
    """Some inputs have weights many times larger than the others."""
    return _base(draw, shape, dtype) * _factors(draw, shape[1])[None, :]


def _outlier_rows(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Array:
    """Some outputs have weights many times larger than the others."""
    return _base(draw, shape, dtype) * _factors(draw, shape[0])[:, None]


def _factors(draw: Draw, count: int) -> Array:
    places = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3, unique=True))
    factors = np.ones(count)
    factors[places] = draw(st.sampled_from(_OUTLIERS))
    return factors


def _subnormal(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Array:
    """Below the smallest number that `dtype` holds with all its digits."""
    return _base(draw, shape, dtype) * torch.finfo(dtype).tiny / 8


def _huge_range(draw: Draw, shape: tuple[int, int], dtype: torch.dtype) -> Array:
    """From 1e-30 to 1e4 in one matrix, as far as `dtype` reaches."""
    least = max(_SMALLEST, int(np.log10(torch.finfo(dtype).smallest_normal)))
    powers = sorted(range(least, _LARGEST + 1), key=abs)
    return _table(draw, shape, (1.0, -1.0)) * 10.0 ** _table(draw, shape, powers)


KINDS: Final[Mapping[str, Callable[[Draw, tuple[int, int], torch.dtype], Array]]] = {
    "simple": _simple,
    "gaussian": _gaussian,
    "ties": _ties,
    "equal-groups": _equal_groups,
    "zero-groups": _zero_groups,
    "constant-rows": _constant_rows,
    "outlier-columns": _outlier_columns,
    "outlier-rows": _outlier_rows,
    "subnormal": _subnormal,
    "huge-range": _huge_range,
}
"""What `weights` draws, the simplest first: a failing example shrinks towards it."""
