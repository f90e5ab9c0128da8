"""Integer grids: rounding against its invariants and its plain definition, packing against the codes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.errors import RecipeError
from pytest_llmslim.methods.grid import Grid, check_grid, pack, packed_columns, unpack

BITS = range(2, 9)
LARGEST = torch.finfo(torch.float32).max
SMALLEST = 2.0**-149  # a subnormal float32

grids = st.builds(
    Grid,
    bits=st.sampled_from(BITS),
    group=st.sampled_from([2, 3, 8, 128]),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["group", "row", "tensor"]),
)


@st.composite
def weights(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[out, in] of odd widths: free values, whole numbers that fall on ties, outliers, one sign, zeros."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["free", "whole", "outliers", "one sign", "pruned", "equal"]))
    if kind == "whole":
        weight = (4 * weight).round()
    elif kind == "outliers":
        weight[:, 0] *= 1000
    elif kind == "one sign":
        weight = weight.abs() + 1
    elif kind == "pruned":
        weight[torch.rand(rows, columns, generator=generator) < 0.5] = 0
    elif kind == "equal":
        weight = torch.full_like(weight, float(weight[0, 0]))
    return (weight * 2.0 ** draw(st.integers(-8, 8))).to(dtype)


@given(grid=grids, weight=weights())
@settings(max_examples=150, deadline=None)
def test_the_error_is_at_most_half_a_step(grid, weight):
    """Every weight goes to the nearest level, whatever shares a scale with it."""
    error = (grid.round_to(weight).double() - weight.double()).abs()
    blur = 2.0**-19 * float(weight.abs().max())

    assert (error <= grid.step(weight).double() / 2 + blur).all()


@given(grid=grids, weight=weights())
@settings(max_examples=200, deadline=None)
def test_rounding_again_changes_nothing(grid, weight):
    """Scales, zero points and values of rounded weights are found again, bit by bit."""
    once = grid.round_to(weight)

    assert torch.equal(once, grid.round_to(once))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@given(data=st.data(), bits=st.sampled_from(BITS), granularity=st.sampled_from(["group", "row", "tensor"]))
@settings(max_examples=60, deadline=None)
def test_symmetric_rounding_is_idempotent_in_every_dtype(dtype, data, bits, granularity):
    """Also where the levels themselves are rounded to the weight's dtype, which the result keeps."""
    grid = Grid(bits, 8, True, granularity)
    once = grid.round_to(data.draw(weights(dtype)))

    assert dtype == once.dtype
    assert torch.equal(once, grid.round_to(once))


@given(grid=grids, weight=weights(), power=st.integers(-20, 20))
@settings(max_examples=100, deadline=None)
def test_levels_follow_sign_and_scale(grid, weight, power):
    """A power of two scales all levels; a symmetric grid has no preferred sign; zeros stay zeros."""
    rounded = grid.round_to(weight)

    assert torch.equal(rounded * 2.0**power, grid.round_to(weight * 2.0**power))
    if grid.symmetric:
        assert torch.equal(-rounded, grid.round_to(-weight))
    assert (rounded[weight == 0] == 0).all()


@given(weight=weights(), symmetric=st.booleans())
@settings(max_examples=50, deadline=None)
def test_more_bits_never_have_longer_steps(weight, symmetric):
    """From 2 to 8 bits every step gets at most as long as before; so does the largest possible error."""
    steps = [Grid(bits, 8, symmetric).step(weight) for bits in BITS]

    for shorter, longer in zip(steps[1:], steps, strict=False):
        assert (shorter <= longer).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 0.0],
        [SMALLEST, 0.0, -SMALLEST],
        [1e-38, -3e-38, 1e-40],
        [LARGEST, SMALLEST, 0.0],
        [-LARGEST, -LARGEST, -LARGEST],
        [LARGEST, -LARGEST, 1.0],
    ],
)
def test_extreme_weights_have_finite_levels(values, bits, symmetric):
    """Scales are normal numbers above zero, also for subnormals and the largest floats; zeros stay zeros."""
    weight = torch.tensor([values])
    grid = Grid(bits, 4, symmetric)
    scale = grid.fit(weight).scale
    rounded = grid.round_to(weight)
    error = (rounded.double() - weight.double()).abs()

    assert (scale >= torch.finfo(torch.float32).tiny).all()
    assert torch.isfinite(scale).all()
    assert torch.isfinite(rounded).all()
    assert (error <= scale.double() * (0.5 + 2.0**-10)).all()
    assert (rounded[weight == 0] == 0).all()


def test_levels_beyond_the_dtype_are_cut():
    """float16 ends at 65504, where two bits would put a level at twice the step below zero."""
    rounded = Grid(2, 4, False).round_to(torch.tensor([[65504.0, -65504.0]], dtype=torch.float16))

    assert -65504.0 == float(rounded[0, 1])


@pytest.mark.parametrize(
    ("grid", "shape"),
    [
        (Grid(4, 4), (3, 3)),
        (Grid(4, 128), (3, 1)),
        (Grid(4, None, True, "row"), (3, 1)),
        (Grid(4, 4, False, "tensor"), (1, 1)),
    ],
)
def test_what_shares_a_scale(grid, shape):
    """A scale a group, of which the last may be shorter, a row, or the whole tensor; spread over its weights."""
    weight = torch.tensor([[1.0] * 4 + [7] * 4 + [14] * 2, [2.0] * 10, [3.0] * 10])
    scales = grid.fit(weight)

    assert shape == scales.scale.shape
    assert (scales.zero is None) == grid.symmetric
    assert weight.shape == grid.step(weight).shape
    if shape == (3, 3):
        torch.testing.assert_close(grid.step(weight)[0], torch.tensor([1 / 7] * 4 + [1.0] * 4 + [2.0] * 2))


def test_levels_on_paper():
    """Four bits: -7..7 thirds of 2.1 / 7 = 0.3; and from -1 to 2 in fifteen steps of 0.2 with 0 at code 5."""
    symmetric, asymmetric = Grid(4, 8), Grid(4, 8, False)
    first, second = torch.tensor([[-2.1, 0.5, 0.0, 1.0]]), torch.tensor([[-1.0, 0.29, 0.0, 2.0]])

    assert [[1, 10, 8, 11]] == symmetric.codes(first, symmetric.fit(first)).tolist()
    torch.testing.assert_close(symmetric.round_to(first), torch.tensor([[-2.1, 0.6, 0.0, 0.9]]))
    assert [[5]] == asymmetric.fit(second).zero.tolist()
    assert [[0, 6, 5, 15]] == asymmetric.codes(second, asymmetric.fit(second)).tolist()
    torch.testing.assert_close(asymmetric.round_to(second), torch.tensor([[-1.0, 0.2, 0.0, 2.0]]))


@given(bits=st.integers(1, 8), rows=st.integers(1, 4), columns=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_packed_codes_come_back(bits, rows, columns, seed):
    """Any width of codes in any number of columns, in as few whole bytes a row as hold them."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)

    assert (rows, math.ceil(columns * bits / 8)) == packed.shape == (rows, packed_columns(columns, bits))
    assert torch.equal(codes, unpack(packed, bits, columns))


def test_the_first_code_takes_the_lowest_bits():
    """The layout is part of what is saved."""
    assert [[0x21, 0x03]] == pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist()
    assert [[0b10_001_111, 0b0]] == pack(torch.tensor([[7, 1, 2]], dtype=torch.uint8), 3).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 128, True), "awq: bits is a whole number from 2 to 8, got 1"),
        ((9, 128, True), "awq: bits is a whole number from 2 to 8, got 9"),
        ((4.0, 128, True), "awq: bits is a whole number from 2 to 8, got 4.0"),
        ((4, 1, True), "awq: group is a whole number from 2 to 65536, got 1"),
        ((4, None, True), "awq: group is a whole number from 2 to 65536, got None"),
        ((4, "all", True, "row"), "awq: group is a whole number from 2 to 65536, got 'all'"),
        ((4, 128, 1), "awq: symmetric is one of true, false, got 1"),
        ((4, 128, True, "column"), "awq: granularity is one of group, row, tensor, got 'column'"),
    ],
)
def test_parameters_that_make_no_grid_are_refused(arguments, message):
    """Method, parameter, rule, got: in the name of whoever asks."""
    with pytest.raises(RecipeError) as caught:
        check_grid("awq", *arguments)
    assert message == str(caught.value)
    with pytest.raises(RecipeError, match=r"^grid: "):
        Grid(*arguments)
