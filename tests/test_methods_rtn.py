"""Round to nearest against its plain definition, and linears that keep packed codes as parts of a model."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.integrity import check
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.grid import Grid
from pytest_llmslim.methods.packed import SIMULATED, PackedLinear
from pytest_llmslim.methods.rtn import RTN
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import (
    copy_model,
    movable,
    parameter_count,
    reallocate,
    stored_bytes,
    weights_hash,
)

TOKENS = tiny_tokens(2, 24)


def context(label: str = "tiny") -> Context:
    return Context(calibration=None, seed=0, device="cpu", family="llama", label=label)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def nearest(weight: np.ndarray, bits: int, *, symmetric: bool) -> np.ndarray:
    """The levels next to weights that share a scale, as the papers define them, in float64."""
    if symmetric:
        scale = np.abs(weight).max() / (2 ** (bits - 1) - 1)
        return scale * np.round(weight / scale)
    low, high = min(weight.min(), 0), max(weight.max(), 0)
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    return scale * (np.clip(np.round(weight / scale) + zero, 0, 2**bits - 1) - zero)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_it_rounds_as_it_is_defined(bits, symmetric):
    """A scale a group (the last is shorter), a row, or the tensor: each piece by itself, in plain float64."""
    weight = np.random.default_rng(bits).standard_normal((6, 20))
    linear = nn.Linear(20, 6, dtype=torch.float64)
    linear.weight.data = torch.tensor(weight)
    pieces = {
        "group": [(row, slice(at, at + 8)) for row in range(6) for at in (0, 8, 16)],
        "row": [(row, slice(None)) for row in range(6)],
        "tensor": [(slice(None), slice(None))],
    }
    for granularity, places in pieces.items():
        expected = np.empty_like(weight)
        for place in places:
            expected[place] = nearest(weight[place], bits, symmetric=symmetric)
        packed = PackedLinear.rounded(linear, RTN(bits, 8, symmetric, granularity).grid)

        np.testing.assert_allclose(packed.dequantized().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_every_block_linear_is_packed(bits, family):
    """Logits are those of a float model with rounded weights; bytes are the codes' and scales' and no more."""
    reference = tiny_model(family)
    expected = copy_model(reference)
    for linear in Blocks(expected).linears().values():
        linear.weight.data = Grid(bits, 32).round_to(linear.weight.data)
    applied = RTN(bits=bits, group=32).compress(copy_model(reference), context())
    linears = Blocks(applied.module).linears()
    weights = sum(linear.weight.numel() for linear in Blocks(reference).linears().values())

    assert all(type(linear) is PackedLinear for linear in linears.values())
    assert torch.equal(logits(expected), logits(applied.module))
    assert stored_bytes(reference) - 4 * weights + (bits + 1) * weights // 8 == stored_bytes(applied.module)
    assert parameter_count(reference) == parameter_count(applied.module)
    assert applied.sentence == (
        f"rtn: {len(linears)} linears with {bits}-bit symmetric codes, a scale every 32 weights, "
        f"{bits + 1:.2f} bits a weight stored"
    )
    assert SIMULATED == applied.simulated


@pytest.mark.parametrize(
    ("method", "words", "bits"),
    [
        (RTN(4, 64, False), "4-bit asymmetric codes, a scale every 64 weights", "4.62"),
        (RTN(4, granularity="row"), "4-bit symmetric codes, a scale a row", "4.44"),
        (RTN(2, granularity="tensor"), "2-bit symmetric codes, a scale a tensor", "2.01"),
    ],
)
def test_the_sentence_counts_what_is_stored(method, words, bits):
    """Zero points of asymmetric codes and the scales are in it, biases are not."""
    said = method.compress(tiny_model("opt"), context()).sentence

    assert f"rtn: 12 linears with {words}, {bits} bits a weight stored" == said


def test_fewer_bits_have_a_larger_error():
    """8 better than 4 better than 3 better than 2 bits, in logits and without luck: by a factor."""
    reference = tiny_model("llama")
    errors = [
        float(
            (logits(RTN(bits).compress(copy_model(reference), context()).module) - logits(reference)).norm()
        )
        for bits in (8, 4, 3, 2)
    ]

    assert all(1.5 * smaller < larger for smaller, larger in pairwise(errors))


def test_zeros_of_an_earlier_step_stay():
    """Pruned weights are level 0, on either kind of grid."""
    for symmetric in (True, False):
        model = tiny_model("llama")
        linear = model.model.layers[0].mlp.up_proj
        linear.weight.data[::2, 1::3] = 0
        pruned = linear.weight == 0
        RTN(3, 16, symmetric).compress(model, context())

        assert (model.model.layers[0].mlp.up_proj.dequantized()[pruned] == 0).all()


def test_a_packed_model_is_copied_moved_hashed_and_saved():
    """All that the harness does with models keeps codes and scales; another code is another hash."""
    model = RTN(4, 32, False).compress(tiny_model("gpt2"), context()).module
    copied, expected = copy_model(model), logits(model)
    reallocate(movable(copied), random.Random(0))
    other = copy_model(model)
    other.load_state_dict(model.state_dict())

    assert weights_hash(model) == weights_hash(copied) == weights_hash(other)
    assert torch.equal(expected, logits(copied))
    assert torch.equal(expected, logits(other))
    assert stored_bytes(model) == stored_bytes(copied)
    other.transformer.h[0].mlp.c_fc.packed[0, 0] ^= 1
    assert weights_hash(model) != weights_hash(other)
    assert logits(model.bfloat16()).dtype == torch.bfloat16


def test_the_candidate_is_simulated_and_smaller():
    """The harness calls it simulated because the method says so, and counts its real bytes."""
    reference = tiny_model("llama")
    applied = RTN().compress(copy_model(reference), context())
    found = check(reference, applied.module, control=False, simulated=(applied.simulated,))

    assert found.status == "simulated"
    assert found.sentence.startswith("codes are unpacked to float before every product")
    assert stored_bytes(applied.module) < stored_bytes(reference)
    assert "parameters" not in found.sentence


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays(dtype):
    """Weights and outputs keep the model's dtype; scales are float32, so that levels are the grid's."""
    reference = tiny_model("qwen2").to(dtype)
    model = RTN(4, 32, False).compress(copy_model(reference), context()).module
    linear, before = model.model.layers[0].mlp.down_proj, reference.model.layers[0].mlp.down_proj

    assert logits(model).dtype == linear.dequantized().dtype == dtype
    assert linear.scale.dtype == torch.float32
    assert torch.equal(Grid(4, 32, False).round_to(before.weight), linear.dequantized())


def test_a_packed_linear_says_what_it_is():
    """`print(model)` tells widths and grid; gradients reach its inputs, as recovery trains through it."""
    packed = PackedLinear.rounded(nn.Linear(5, 3), Grid(3, 4))
    inputs = torch.ones(2, 5, requires_grad=True)
    packed(inputs).sum().backward()

    assert repr(packed) == (
        "PackedLinear(in_features=5, out_features=3, 3-bit symmetric codes, a scale every 4 weights)"
    )
    torch.testing.assert_close(inputs.grad, packed.dequantized().sum(0).expand(2, 5))


def test_what_was_packed_is_not_packed_again():
    """A second quantizer has no float weights to work on."""
    model = RTN().compress(tiny_model("llama"), context()).module
    with pytest.raises(
        CompressionError,
        match=r"^rtn on tiny: \S+q_proj is a plain float nn.Linear, got PackedLinear; start from the float",
    ):
        RTN().compress(model, context())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "rtn: bits is a whole number from 2 to 8, got 1"),
        ({"group": 0}, "rtn: group is a whole number from 2 to 65536, got 0"),
        ({"symmetric": "yes"}, "rtn: symmetric is one of true, false, got 'yes'"),
        ({"granularity": "channel"}, "rtn: granularity is one of group, row, tensor, got 'channel'"),
    ],
)
def test_bad_parameters_are_refused(arguments, message):
    """Method, parameter, rule, got."""
    with pytest.raises(RecipeError) as caught:
        RTN(**arguments)
    assert message == str(caught.value)
