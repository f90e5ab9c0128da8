"""Strategies: they draw what they say, shrink to little, and print what was drawn."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.recipe import parse
from pytest_llmslim.registry import QUANTIZE, RECOVER, Registry
from pytest_llmslim.strategies import (
    DTYPES,
    FAMILIES,
    KINDS,
    Matrix,
    Tiny,
    bad_weights,
    recipes,
    tiny_models,
    weights,
)

REGISTRY = Registry(BUILTIN_METHODS)
SEARCH = settings(max_examples=1000, deadline=None, derandomize=True, database=None)
QUICK = settings(SEARCH, phases=[Phase.generate])
"""As it is found, not made smaller."""


def distinct(matrix, dim):
    """Least number of distinct values in the rows (1) or columns (0)."""
    return min(len(line.unique()) for line in (matrix.tensor if dim else matrix.tensor.T))


def spread(matrix, dim):
    """Largest magnitude of a column (0) or row (1) over the smallest one that is not zero."""
    largest = matrix.tensor.double().abs().amax(dim)
    return float(largest.max() / largest[largest > 0].min()) if bool((largest > 0).any()) else 0.0


HAS = {
    "simple": lambda m: len(m.tensor.unique()) > 4,
    "gaussian": lambda m: len(m.tensor.unique()) == m.tensor.numel() > 8,
    "ties": lambda m: len(m.tensor.abs().unique()) == 2,
    "equal-groups": lambda m: m.shape[1] == 6 and all(len(row[:3].unique()) == 1 for row in m.tensor),
    "zero-groups": lambda m: m.shape[1] >= 8 and bool((m.tensor[0, :4] == 0).all()) and bool(m.tensor[0, 4:].all()),
    "constant-rows": lambda m: m.shape[0] > 1 and m.shape[1] > 1 and distinct(m, 1) == 1 < distinct(m, 0),
    "outlier-columns": lambda m: m.shape[1] > 2 and spread(m, 0) >= 100,
    "outlier-rows": lambda m: m.shape[0] > 2 and spread(m, 1) >= 100,
    "subnormal": lambda m: 0 < m.tensor.abs().max() < torch.finfo(m.dtype).tiny,
    "huge-range": lambda m: m.tensor.abs().max() >= 1e3 > 1e-3 > m.tensor.abs().min(),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn(kind, dtype):
    """Each has what it is named for, in each dtype, and tells its kind."""
    found = find(weights(kinds=(kind,), dtypes=(dtype,)), HAS[kind], settings=QUICK)

    assert (kind, dtype, dtype) == (found.kind, found.dtype, found.tensor.dtype)


@given(matrix=weights())
@settings(max_examples=200, deadline=None)
def test_weights_are_finite_and_of_their_shape(matrix):
    """As many rows and columns as asked for, odd numbers among them; what is told is the tensor."""
    assert all(1 <= side <= 16 for side in matrix.shape)
    assert bool(matrix.tensor.isfinite().all())
    assert matrix == Matrix.of(matrix.tensor, matrix.kind)


@given(matrix=weights(3, (64, 200), multiple=64, dtypes=(torch.bfloat16,), zeros=False))
@settings(max_examples=50, deadline=None)
def test_sides_dtypes_and_zeros_can_be_asked_for(matrix):
    """A fixed number of rows, columns that are a multiple, and no weight that is zero."""
    assert (3, 0) == (matrix.shape[0], matrix.shape[1] % 64)
    assert 64 <= matrix.shape[1] <= 192
    assert torch.bfloat16 == matrix.dtype
    assert bool(matrix.tensor.all())


def test_huge_ranges_reach_as_far_as_the_dtype():
    """float32 and bfloat16 from 1e-30 on; float16 ends earlier."""
    for dtype, least in ((torch.float32, 1e-29), (torch.bfloat16, 1e-29), (torch.float16, 1e-3)):
        strategy = weights(kinds=("huge-range",), dtypes=(dtype,))
        found = find(strategy, lambda m, least=least: m.tensor.abs().min() < least, settings=QUICK)
        assert 0 < float(found.tensor.abs().min()) < least


def test_unknown_kinds_are_refused():
    """With those that are known."""
    with pytest.raises(ValueError, match=r"^kinds of weights are simple, gaussian, .*, got spiky"):
        find(weights(kinds=("spiky",)), bool)


@given(matrix=bad_weights())
@settings(max_examples=100, deadline=None)
def test_bad_weights_are_not_finite(matrix):
    """One to three of them."""
    assert 1 <= int((~matrix.tensor.isfinite()).sum()) <= 3


@pytest.mark.parametrize("test", [torch.isnan, torch.isposinf, torch.isneginf])
def test_bad_weights_are_nan_or_infinite(test):
    """Each of the three is drawn, and shrinks to a matrix of it alone."""
    found = find(bad_weights(), lambda m: bool(test(m.tensor).any()), settings=SEARCH)

    assert (1, 1) == found.shape


# Shrinking and printing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "printed"),
    [
        (lambda m: m.tensor.abs().max() > 2, "Matrix 1 x 1 float32, simple:\n  3"),
        (lambda m: m.shape[0] > 1 and m.shape[1] > 2, "Matrix 2 x 3 float32, simple:\n  0  0  0\n  0  0  0"),
        (lambda m: len(m.tensor.unique()) > 2, "Matrix 1 x 3 float32, simple:\n  1  0  -1"),
    ],
)
def test_a_counter_example_shrinks_to_few_simple_numbers(condition, printed):
    """Whatever kind of weights it was found among."""
    found = find(weights(), condition, settings=SEARCH)
    sorted_numbers = [sorted(line.split()) for line in repr(found).splitlines()]

    assert [sorted(line.split()) for line in printed.splitlines()] == sorted_numbers


def test_a_matrix_prints_aligned():
    """Shape, dtype, kind, and every number."""
    matrix = Matrix(((1.0, -0.5), (math.nan, -math.inf)), torch.float16, "not finite")

    assert "Matrix 2 x 2 float16, not finite:\n    1  -0.5\n  nan  -inf" == repr(matrix)


def test_a_matrix_tells_when_numbers_are_cut():
    """Four digits are shown, and a number of the dtype that they are is exact."""
    assert repr(Matrix.of(torch.tensor([[0.126, 1e-30]]))) == "Matrix 1 x 2 float32:\n  0.126  1e-30"
    assert repr(Matrix(((1 / 3,),))) == "Matrix 1 x 1 float32, to 4 digits:\n  0.3333"


def test_a_large_matrix_prints_its_corners():
    """Rows and columns in the middle are left out from 13 on."""
    printed = repr(Matrix.of(torch.arange(26.0).reshape(2, 13)))
    assert (
        "Matrix 2 x 13 float32:\n   0   1   2   3   4  ...  11  12\n  13  14  15  16  17  ...  24  25"
    ) == printed
    tall = repr(Matrix.of(torch.arange(13.0)[:, None])).splitlines()
    assert ["    0", "    1", "    2", "    3", "    4", "  ...", "   11", "   12"] == tall[1:]
    assert 12 == len(repr(Matrix.of(torch.zeros(12, 12))).splitlines()) - 1


# Models ---------------------------------------------------------------------------------------------------


@given(tiny=tiny_models())
@settings(max_examples=25, deadline=None)
def test_tiny_models_run(tiny):
    """Every drawn shape is a model of its family with finite logits, of the layers, heads and channels it tells."""
    module = tiny.module()
    layers = Blocks(module).layers
    grouped = tiny.family not in ("gpt2", "opt")

    assert bool(module(torch.arange(4, 12)[None]).logits.isfinite().all())
    assert (tiny.layers, tiny.heads) == (len(layers), layers[0].attention.heads)
    assert (tiny.kv_heads if grouped else tiny.heads) == layers[0].attention.kv_heads
    assert tiny.inner == module.get_submodule(layers[0].feed_forward.outer).in_features
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_drawn(family):
    """Those that were asked for, and an odd width among them."""
    found = find(tiny_models((family,), layers=(2, 3)), lambda tiny: tiny.inner % 2 == 1, settings=SEARCH)

    assert (family, 2, 1) == (found.family, found.layers, found.inner)


def test_a_tiny_model_prints_short_and_is_made_alike():
    """So that a counter-example can be typed, and has the same weights again."""
    tiny = Tiny("opt", heads=1, head_dim=4, inner=3)
    one, two = (dict(tiny.module().named_parameters()) for _ in range(2))

    assert "Tiny(family='opt', seed=0, layers=2, heads=1, kv_heads=2, head_dim=4, inner=3)" == repr(tiny)
    assert all(torch.equal(one[name], two[name]) for name in one)


# Recipes --------------------------------------------------------------------------------------------------


@given(text=recipes(REGISTRY))
@settings(max_examples=150, deadline=None)
def test_recipes_parse_and_their_text_is_canonical(text):
    """Whatever spaces, quotes and order of parameters they are written with."""
    recipe = parse(text, REGISTRY)

    assert recipe == parse(recipe.text, REGISTRY)
    assert recipe.text == parse(recipe.text, REGISTRY).text


@pytest.mark.parametrize(
    "condition",
    [
        lambda recipe: len(recipe.steps) == 4,
        lambda recipe: recipe.control,
        lambda recipe: any(len(step.parameters) > 2 for step in recipe.steps),
        lambda recipe: {QUANTIZE, RECOVER} <= {REGISTRY.get(step.name).stage for step in recipe.steps},
        lambda recipe: '"' in recipe.text,
    ],
)
def test_recipes_of_all_sorts_are_drawn(condition):
    """Long ones, the control, with parameters, with recovery after quantizing, with quotes."""
    found = find(recipes(REGISTRY), lambda text: condition(parse(text, REGISTRY)), settings=QUICK)

    assert condition(parse(found, REGISTRY))


def test_only_two_rooms_import_hypothesis():
    """It is loaded for those who ask for invariants, and for nobody else."""
    package = Path(__file__).parents[1] / "pytest_llmslim"
    rooms = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search(r"^\s*(from|import) hypothesis", path.read_text(), re.MULTILINE)
    }
    assert {"strategies", "conformance"} == rooms


def test_any_strategy_can_be_combined():
    """As any other of Hypothesis."""
    assert 1 == find(st.tuples(weights(), tiny_models()), lambda _: True, settings=SEARCH)[1].layers
