"""SparseGPT against explicit inverses of every remaining Hessian, and against exact least squares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny_model, tiny_tokens

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.bitsandbytes_linear import FP4, NF4, Int8
from pytest_llmslim.methods.gptq import GPTQ
from pytest_llmslim.methods.hessian import inverse_factor
from pytest_llmslim.methods.linears import effective_weight
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.methods.rtn import RTN
from pytest_llmslim.methods.semi_structured import SIMULATED
from pytest_llmslim.methods.sparsegpt import BLOCK, SparseGPT, walk
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model

TOKENS = tiny_tokens(4, 32)


def context(calibration=TOKENS) -> Context:
    return Context(calibration=calibration, seed=0, device="cpu", family="llama", label="tiny")


def weights(module) -> dict[str, torch.Tensor]:
    return {name: linear.weight for name, linear in Blocks(module).linears().items()}


def problem(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [rows, columns] and correlated inputs [tokens, columns], some much larger than others; float64."""
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) + 2.0
    inputs = torch.randn(3 * columns, columns, generator=generator, dtype=torch.float64) @ mixing
    return weight, inputs * torch.rand(columns, generator=generator, dtype=torch.float64)


def explicit(weight: torch.Tensor, hessian: torch.Tensor, choose, stretch: int) -> torch.Tensor:
    """Inputs one after the other, each with the inverse of what is left of the Hessian.

    Args:
        weight: [out, in].
        hessian: [in, in], damped.
        choose: gets the place of a stretch of inputs and the errors [out, stretch] that its weights would cost.
        stretch: inputs that are chosen at once.
    """
    left, columns = weight.clone(), weight.shape[1]
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    cost = torch.stack([inverse[0, 0] for inverse in inverses])
    goes = torch.zeros_like(weight, dtype=torch.bool)
    for j in range(columns):
        if j % stretch == 0:
            place = slice(j, j + stretch)
            goes[:, place] = choose(place, left[:, place] ** 2 / cost[place])
        step = torch.where(goes[:, j], left[:, j], 0.0) / inverses[j][0, 0]
        left[:, j:] -= torch.outer(step, inverses[j][0])
        left[goes[:, j], j] = 0.0
    return left


def damped(inputs: torch.Tensor) -> torch.Tensor:
    hessian = inputs.T @ inputs / len(inputs)
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))


def pruned(weight: torch.Tensor, inputs: torch.Tensor, **parameters) -> torch.Tensor:
    factor = inverse_factor(inputs.T @ inputs / len(inputs), 0.01, "a")
    return SparseGPT(**parameters).prune(weight, factor)


def error(inputs: torch.Tensor, weight: torch.Tensor, other: torch.Tensor) -> float:
    return float((inputs @ (weight - other).T).square().sum())


def smallest_by_sorting(costs: torch.Tensor, count: int) -> torch.Tensor:
    order = sorted(range(costs.numel()), key=lambda i: float(costs.flatten()[i]))
    goes = torch.zeros(costs.numel(), dtype=torch.bool)
    goes[order[:count]] = True
    return goes.reshape(costs.shape)


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
@pytest.mark.parametrize("columns", [20, BLOCK, BLOCK + 30])
def test_a_share_is_chosen_and_made_up_for_as_the_inverses_say(columns, sparsity):
    """Masks over all rows of a block at once, updates across blocks."""
    weight, inputs = problem(4, columns)

    def choose(place, costs):
        upto = round(sparsity * 4 * min(place.stop, columns))
        return smallest_by_sorting(costs, upto - round(sparsity * 4 * place.start))

    expected = explicit(weight, damped(inputs), choose, BLOCK)
    torch.testing.assert_close(pruned(weight, inputs, sparsity=sparsity), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "3:5"])
def test_a_pattern_is_chosen_when_its_turn_comes(pattern):
    """Of every group the least costly go, by weights that have taken in all errors before; a rest stays dense."""
    kept, group = map(int, pattern.split(":"))
    weight, inputs = problem(4, BLOCK + 2 * group + 1)

    def choose(place, costs):
        short = costs.shape[1] < group
        return torch.stack([smallest_by_sorting(row, 0 if short else group - kept) for row in costs])

    expected = explicit(weight, damped(inputs), choose, group)
    torch.testing.assert_close(pruned(weight, inputs, pattern=pattern), expected, rtol=1e-7, atol=1e-9)


def test_what_stays_makes_up_for_what_goes():
    """Under a fixed mask the error is between that of least squares, which no weights get below, and of masking alone.

    Only inputs that come later make up for one that goes, so that the optimum is not reached.
    """
    weight, inputs = problem(8, 40)
    goes = smallest_by_sorting(weight.abs(), 160)
    best = torch.zeros_like(weight)
    for row, target, gone in zip(best, weight, goes, strict=True):
        used = inputs[:, ~gone]
        row[~gone] = torch.linalg.lstsq(used, (inputs @ target)[:, None]).solution[:, 0]
    masks = iter([goes.T])
    factor = inverse_factor(inputs.T @ inputs, 0.0, "a")
    found = walk(weight, factor, lambda score: next(masks), BLOCK)
    optimum, ours, masked = (
        error(inputs, weight, other) for other in (best, found, weight.masked_fill(goes, 0))
    )

    assert torch.equal(goes, found == 0)
    assert optimum < ours < 4 * optimum
    assert 5 * ours < masked


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 2 * BLOCK + 40),
    share=st.floats(0.01, 0.99),
    zeroed=st.floats(0, 1),
    seed=st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_counts_are_exact_with_zeros_that_are_there(rows, columns, share, zeroed, seed):
    """Zeros of an earlier step stay and count; only where they are more than asked for are more zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight *= torch.rand(rows, columns, generator=generator) >= zeroed
    inputs = torch.randn(2 * columns, columns, generator=generator)
    found = pruned(weight, inputs, sparsity=share)
    zeros = int((weight == 0).sum())

    assert max(zeros, round(share * weight.numel())) == int((found == 0).sum())
    assert bool((found[weight == 0] == 0).all())


def test_an_earlier_mask_counts_in_every_group():
    """Groups with a zero lose one weight less, groups with three zeros none."""
    weight, inputs = problem(3, 16)
    weight[:, 0] = 0
    weight[:, 4:7] = 0
    zeros = (pruned(weight, inputs, pattern="2:4") == 0).reshape(3, 4, 4).sum(dim=2)

    assert [[2, 3, 2, 2]] * 3 == zeros.tolist()
    assert bool((pruned(weight, inputs, pattern="2:4")[weight == 0] == 0).all())


def test_inputs_that_are_never_used_go_first():
    """They cost nothing; no more of them go than asked for, and those that stay are untouched."""
    weight, inputs = problem(4, 8)
    inputs[:, 2:5] = 0
    found = pruned(weight, inputs, sparsity=0.25)

    assert 8 == int((found[:, 2:5] == 0).sum()) == int((found == 0).sum())
    assert torch.equal(found[found != 0], weight[found != 0])


def test_weights_of_any_size_are_compared():
    """Squares of what is compared would overflow, or vanish."""
    inputs = torch.eye(4)
    for size in (1e30, 1e-30):
        weight = size * torch.tensor([[4.0, 1.0, 3.0, 2.0]])

        assert [[False, True, False, True]] == (pruned(weight, inputs) == 0).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_every_family_is_pruned(family):
    """Counts are exact in each; biases, embeddings and head stay as they are; outputs change less than by Wanda."""
    reference = tiny_model(family)
    applied = SparseGPT(sparsity=0.4).compress(copy_model(reference), context())
    before, linears = dict(reference.named_parameters()), weights(applied.module)
    total = sum(weight.numel() for weight in linears.values())

    for weight in linears.values():
        assert round(0.4 * weight.numel()) == int((weight == 0).sum())
    for name, parameter in applied.module.named_parameters():
        assert before[name].dtype == parameter.dtype
        assert not parameter.requires_grad
        if name.removesuffix(".weight") not in linears:
            assert torch.equal(before[name], parameter)
    assert applied.sentence == f"sparsegpt: 40.0% of {total} weights in {len(linears)} linears are zero"
    assert SIMULATED == applied.simulated


def test_rows_hold_the_pattern():
    """Two of every four stay, in every row of every linear."""
    applied = SparseGPT(pattern="2:4").compress(tiny_model("gpt2"), context())
    for weight in weights(applied.module).values():
        assert {2} == set((weight.reshape(-1, 4) == 0).sum(dim=1).tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(dtype):
    """The walk is in float32, what is stored is not."""
    module = SparseGPT().compress(tiny_model("llama").to(dtype), context()).module

    for weight in weights(module).values():
        assert dtype == weight.dtype
        assert weight.numel() == 2 * int((weight == 0).sum())


@pytest.mark.parametrize("parameters", [{}, {"pattern": "2:4"}])
def test_a_second_time_changes_nothing(parameters):
    """All zeros that are asked for are there, so that there is nothing to make up for."""
    once = SparseGPT(**parameters).compress(tiny_model("llama"), context()).module
    twice = SparseGPT(**parameters).compress(copy_model(once), context()).module

    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


@pytest.mark.parametrize("pruner", [SparseGPT(pattern="2:4"), Magnitude(pattern="2:4")])
@pytest.mark.parametrize("quantizer", [RTN(group=32), RTN(symmetric=False), GPTQ(), Int8(), NF4(), FP4()])
def test_quantizing_afterwards_keeps_the_zeros(pruner, quantizer):
    """An exact zero is a level of every grid, also where the others do not lie symmetric about it."""
    module = pruner.compress(tiny_model("llama"), context()).module
    zeros = {name: weight == 0 for name, weight in weights(module).items()}
    quantized = quantizer.compress(module, context()).module

    for name, linear in Blocks(quantized).linears().items():
        assert bool((effective_weight(linear)[zeros[name]] == 0).all())


def test_what_enters_has_to_be_finite():
    """An activation that overflows names the linear it enters."""
    model = tiny_model("llama")
    model.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    with pytest.raises(
        CompressionError, match=r"^sparsegpt on tiny: model.layers.1.self_attn.q_proj: what enters it over "
    ):
        SparseGPT().compress(model, context())


def test_text_is_needed():
    """Without calibration text there is no Hessian."""
    with pytest.raises(
        CompressionError, match=r"^sparsegpt on tiny: the method learns from calibration windo"
    ):
        SparseGPT().compress(tiny_model("llama"), context(None))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sparsity": 1.0}, "sparsegpt: sparsity is a number above 0 and below 1, got 1.0"),
        ({"pattern": "2"}, "sparsegpt: pattern is N:M with 1 <= N < M <= 64, e.g. 2:4, got '2'"),
        (
            {"sparsity": 0.5, "pattern": "2:4"},
            "sparsegpt: sparsity is left out where a pattern is given, got 0.5",
        ),
        ({"samples": 0}, "sparsegpt: samples is a whole number from 1 on, got 0"),
        ({"damp": -0.1}, "sparsegpt: damp is a number from 0 to 1, got -0.1"),
        ({"damp": True}, "sparsegpt: damp is a number from 0 to 1, got True"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    """By name, with the rule and the value."""
    with pytest.raises(RecipeError) as refused:
        SparseGPT(**parameters)

    assert message == str(refused.value)
