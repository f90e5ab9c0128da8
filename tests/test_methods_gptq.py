"""GPTQ against the explicit inverse of what is left of the Hessian, and against least squares."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.gptq import BLOCK, GPTQ, quantize
from pytest_llmslim.methods.grid import Grid
from pytest_llmslim.methods.hessian import inverse_factor
from pytest_llmslim.methods.layerwise import visits
from pytest_llmslim.methods.linears import effective_weight
from pytest_llmslim.methods.packed import SIMULATED, PackedLinear
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, stored_bytes, weights_hash

DAMP = 0.01


def context(windows: int = 16, *, seed: int = 0) -> Context:
    return Context(tiny_tokens(windows, 64, seed=seed), seed=0, device="cpu", family="llama", label="tiny")


def random(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def correlated(tokens: int, columns: int) -> torch.Tensor:
    """Inputs [tokens, columns] of which each is like the others in part."""
    return random(tokens, columns) @ (torch.eye(columns) + random(columns, columns, seed=1) / columns**0.5)


def damped_hessian(inputs: torch.Tensor) -> torch.Tensor:
    hessian = inputs.T @ inputs / len(inputs)
    return hessian + DAMP * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def one_after_another(weight: torch.Tensor, inputs: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Rounded weights [out, in] by the OBQ update, with the remaining Hessian inverted anew for every input."""
    hessian, left = damped_hessian(inputs), weight.clone()
    group = grid.group or weight.shape[1]
    for j in range(weight.shape[1]):
        if j % group == 0:
            scales = grid.fit(left[:, j : j + group])
        inverse = torch.linalg.inv(hessian[j:, j:])
        rounded = grid.dequantize(grid.codes(left[:, j : j + 1], scales), scales)
        left[:, j:] -= (left[:, j : j + 1] - rounded) / inverse[0, 0] * inverse[0]
        left[:, j : j + 1] = rounded
    return left


def ours(weight: torch.Tensor, inputs: torch.Tensor, grid: Grid) -> torch.Tensor:
    factor = inverse_factor(inputs.T @ inputs / len(inputs), DAMP, "a")
    return grid.dequantize(*quantize(weight, factor, grid))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("columns", "group"),
    [(24, 8), (24, 24), (20, 8), (BLOCK + 40, 48), (2 * BLOCK + 20, BLOCK), (2 * BLOCK + 30, BLOCK + 60)],
)
def test_it_equals_taking_out_one_input_after_another(columns, group, symmetric):
    """The same weights as with explicit inverses: groups in a block, over blocks, and not dividing either."""
    weight, inputs = random(5, columns, seed=2), correlated(3 * columns, columns)
    grid = Grid(3, group, symmetric)
    expected = one_after_another(weight, inputs, grid)

    torch.testing.assert_close(ours(weight, inputs, grid), expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(expected, grid.round_to(weight), atol=0.1)


def test_what_is_left_is_the_best_answer_to_what_was_rounded():
    """At every input the weights not yet rounded minimise the damped error of the output, by least squares."""
    weight, inputs, grid = random(3, 12, seed=2), correlated(40, 12), Grid(4, None, True, "row")
    root = torch.linalg.cholesky(damped_hessian(inputs)).T  # its rows stand for the inputs
    scales, left = grid.fit(weight), weight.clone()
    for j in range(12):
        left[:, j : j + 1] = grid.dequantize(grid.codes(left[:, j : j + 1], scales), scales)
        if j < 11:
            wanted = root @ (weight - left * (torch.arange(12) <= j)).T
            left[:, j + 1 :] = torch.linalg.lstsq(root[:, j + 1 :], wanted).solution.T

    torch.testing.assert_close(ours(weight, inputs, Grid(4, 12)), left, rtol=1e-9, atol=1e-9)


def test_inputs_without_correlation_are_rounded_to_nearest():
    """Nothing can be made up for; nor by inputs that are never used, whose weights are only rounded."""
    weight, grid = random(4, 16, seed=2), Grid(4, 8)
    dead = correlated(50, 16)
    dead[:, [0, 5, 15]] = 0

    torch.testing.assert_close(ours(weight, torch.eye(16, dtype=torch.float64), grid), grid.round_to(weight))
    torch.testing.assert_close(
        ours(weight, dead, Grid(8, 2))[:, [0, 15]], Grid(8, 2).round_to(weight)[:, [0, 15]], rtol=0, atol=0.02
    )
    assert torch.isfinite(ours(weight, torch.zeros(3, 16, dtype=torch.float64), grid)).all()


def test_pruned_weights_stay_zero_and_hand_their_error_on():
    """Zeros stay on either kind of grid, and the output is nearer than with rounding to nearest."""
    weight, inputs = random(8, 64, seed=2), correlated(500, 64)
    weight[torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) < 0.5] = 0
    for symmetric in (True, False):
        grid = Grid(3, 16, symmetric)
        found = ours(weight, inputs, grid)
        error, nearest = ((inputs @ (weight - w).T).norm() for w in (found, grid.round_to(weight)))

        assert (found[weight == 0] == 0).all()
        assert error < 0.95 * nearest


def output_errors(reference: nn.Module, model: nn.Module) -> dict[str, float]:
    """Per linear ||X (W - V)ᵀ|| over windows of other text, with the reference's inputs X."""
    found: dict[str, float] = {}
    floats, others = (Blocks(each).linears() for each in (reference, model))
    for visit in visits(reference, tiny_tokens(8, 64, seed=9), context(), "gptq"):

        def watcher(name: str, inputs: torch.Tensor) -> None:
            gap = effective_weight(floats[name]) - effective_weight(others[name])
            found[name] = found.get(name, 0) + float((inputs @ gap.T).square().sum())

        visit.watch(watcher)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_nearer_than_with_rounding_to_nearest(family):
    """On like text every linear of every family has less error than RTN; only the linears of the blocks change."""
    reference = tiny_model(family)
    digest = weights_hash(reference)
    applied = GPTQ(bits=4, group=32, samples=48).compress(copy_model(reference), context(48))
    linears = Blocks(applied.module).linears()
    rounded = copy_model(reference)
    for name, linear in Blocks(reference).linears().items():
        rounded.set_submodule(name, PackedLinear.rounded(linear, Grid(4, 32)))
    errors, nearest = output_errors(reference, applied.module), output_errors(reference, rounded)

    assert all(type(linear) is PackedLinear for linear in linears.values())
    assert all(errors[name] < nearest[name] for name in linears)
    assert sum(errors.values()) < 0.85 * sum(nearest.values())
    assert stored_bytes(rounded) == stored_bytes(applied.module)
    assert digest == weights_hash(reference)
    assert SIMULATED == applied.simulated
    assert applied.sentence == (
        f"gptq: {len(linears)} linears with 4-bit symmetric codes, a scale every 32 weights, "
        "5.00 bits a weight stored"
    )


def test_a_block_is_calibrated_on_what_the_compressed_blocks_give():
    """The second block's codes differ from those that it gets behind an uncompressed first one."""
    reference = tiny_model("llama")
    model = GPTQ(bits=3, group=32).compress(copy_model(reference), context()).module
    first = model.model.layers[0]
    model = copy_model(reference)
    model.model.layers[0] = first
    before = [visit.inputs[0].clone() for visit in visits(model, context().calibration, context(), "gptq")]
    plain = [visit.inputs[0].clone() for visit in visits(reference, context().calibration, context(), "gptq")]

    assert torch.equal(before[0], plain[0])
    assert not torch.allclose(before[1], plain[1], rtol=0.01)


def test_the_same_seed_gives_the_same_codes_and_samples_count():
    """Nothing is drawn; more windows are other statistics."""
    model = tiny_model("opt")
    few, again, more = (
        weights_hash(GPTQ(samples=count, group=64).compress(copy_model(model), context()).module)
        for count in (2, 2, 16)
    )

    assert few == again != more


def test_half_precision_and_generation():
    """A bfloat16 model stays one, and generates with its cache."""
    model = GPTQ(group=32, symmetric=False).compress(tiny_model("gemma3").bfloat16(), context()).module
    made = model.generate(
        tiny_tokens(1, 5), max_new_tokens=4, do_sample=False, pad_token_id=3, eos_token_id=None
    )

    assert made.shape == (1, 9)
    assert {torch.bfloat16} == {linear.dequantized().dtype for linear in Blocks(model).linears().values()}


def test_without_text_there_is_no_hessian():
    """The message names the option that gives text."""
    with pytest.raises(CompressionError, match=r"^gptq on tiny: the method learns from calibration windows"):
        GPTQ().compress(tiny_model("llama"), Context(None, 0, "cpu", "llama", "tiny"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 16}, "gptq: bits is a whole number from 2 to 8, got 16"),
        ({"group": -1}, "gptq: group is a whole number from 2 to 65536, got -1"),
        ({"symmetric": None}, "gptq: symmetric is one of true, false, got None"),
        ({"samples": 0}, "gptq: samples is a whole number from 1 on, got 0"),
        ({"damp": -0.1}, "gptq: damp is a number from 0 to 1, got -0.1"),
    ],
)
def test_bad_parameters_are_refused(arguments, message):
    """Method, parameter, rule, got."""
    with pytest.raises(RecipeError) as caught:
        GPTQ(**arguments)
    assert message == str(caught.value)
