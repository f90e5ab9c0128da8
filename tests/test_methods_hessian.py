"""The Hessian of GPTQ and SparseGPT against explicit sums and explicit inverses."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.hessian import Hessian, hessians, inverse_factor
from pytest_llmslim.methods.layerwise import visits


def random(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 7, 256, 300])
def test_it_is_the_mean_of_outer_products(width):
    """Parts may come in any size; half precision is summed in float32; wide matrices are filled in strips."""
    inputs = random(50, width)
    hessian = Hessian()
    hessian.add(inputs[:20])
    hessian.add(inputs[20:])
    half = Hessian()
    half.add(inputs.bfloat16())

    torch.testing.assert_close(hessian.matrix, sum(torch.outer(x, x) for x in inputs) / 50)
    assert torch.equal(hessian.matrix, hessian.matrix.T)
    assert torch.float32 == half.matrix.dtype
    torch.testing.assert_close(half.matrix.double(), hessian.matrix, rtol=0, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_has_the_hessian_of_its_own_inputs(family):
    """What is shared between linears equals what each alone would have summed up."""
    model = tiny_model(family)
    context = Context(calibration=tiny_tokens(3, 16), seed=0, device="cpu", family=family, label="tiny")
    for visit in visits(model, context.calibration, context, "gptq"):
        apart: dict[str, Hessian] = {name: Hessian() for name in visit.layer.linears}
        visit.watch(lambda name, inputs, apart=apart: apart[name].add(inputs))
        found = hessians(visit)

        assert list(visit.layer.linears) == list(found)
        assert len({id(hessian) for hessian in found.values()}) == 4
        for name, hessian in found.items():
            assert apart[name].tokens == hessian.tokens == 3 * 16
            assert torch.equal(apart[name].matrix, hessian.matrix)


def test_the_factor_gives_the_inverse_of_every_remainder():
    """Row j of the factor is the scaled row of the inverse without the first j inputs (GPTQ, equation 3)."""
    inputs = random(40, 9)
    matrix = inputs.T @ inputs / 40
    factor = inverse_factor(matrix, 0.01, "a")
    damped = matrix + 0.01 * matrix.diagonal().mean() * torch.eye(9)

    assert torch.equal(factor.triu(), factor)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped))
    for j in range(9):
        rest = torch.linalg.inv(damped[j:, j:])
        torch.testing.assert_close(factor[j, j:], rest[0] / rest[0, 0].sqrt())


def test_inputs_that_are_always_zero_stand_alone():
    """They get no part of another's error and are cheapest, damped or not; only zeros have the identity."""
    inputs = random(40, 5)
    inputs[:, 2] = 0
    for damp in (0.0, 0.01):
        factor = inverse_factor(inputs.T @ inputs, damp, "a")
        others = [0, 1, 3, 4]

        assert [0.0] * 4 == factor[2, others].tolist() == factor[others, 2].tolist()
        assert factor[2, 2] > 1e4 * factor.diagonal()[others].max()
    assert torch.equal(torch.eye(3, dtype=torch.float64), inverse_factor(torch.zeros(3, 3), 0.01, "a"))


def test_damping_grows_until_the_matrix_is_positive_definite():
    """Fewer tokens than inputs and no damping: the least that works is taken."""
    inputs = random(3, 6)
    matrix = inputs.T @ inputs / 3
    mean = matrix.diagonal().mean()
    factor = inverse_factor(matrix, 0.0, "a")
    added = torch.linalg.inv(factor.T @ factor) - matrix

    torch.testing.assert_close(added, 1e-6 * mean * torch.eye(6, dtype=torch.float64), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(value):
    """NaN has no inverse."""
    matrix = torch.eye(3)
    matrix[1, 1] = value
    with pytest.raises(
        CompressionError, match=r"^gptq on a: b: what enters .* is finite, got NaN or infinity; "
    ):
        inverse_factor(matrix, 0.01, "gptq on a: b")


def test_a_matrix_that_no_damping_helps_is_refused():
    """A mean of outer products is never like this; one that is summed up badly could be."""
    with pytest.raises(
        CompressionError,
        match=r"^gptq on a: b: a Hessian that is damped by 10 means of its diagonal is positive definite, got ",
    ):
        inverse_factor(torch.tensor([[1.0, 100.0], [100.0, 1.0]]), 0.01, "gptq on a: b")
