"""Quantized linears against codes and scales computed by hand."""

from __future__ import annotations

import logging
import subprocess
import sys

import bitsandbytes as bnb
import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.bitsandbytes_linear import FP4, NF4, Int8, rows_fit
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, stored_bytes

# QLoRA (arXiv 2305.14314), appendix E
NF4_CODES = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
# sign, two bits of exponent, one of mantissa; 0.0052 is the subnormal of bitsandbytes
_FP4 = torch.tensor([0, 0.005208333, 1 / 6, 0.25, 1 / 3, 0.5, 2 / 3, 1.0])
FP4_CODES = torch.cat([-_FP4, _FP4])


def context() -> Context:
    return Context(calibration=None, seed=0, device="cpu", family="llama", label="tiny")


def compressed(method: Int8 | NF4 | FP4, reference: nn.Module) -> nn.Module:
    return method.compress(copy_model(reference), context()).module


def logits(module: nn.Module) -> torch.Tensor:
    return module(input_ids=tiny_tokens(2, 32, seed=5)).logits


def error(module: nn.Module, reference: nn.Module) -> float:
    expected = logits(reference)
    return float((logits(module) - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return tiny_model("llama")


@pytest.fixture
def unpacked(monkeypatch) -> None:
    """As on a CPU without AVX512-BF16, where weights keep the layout of the quantizer."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def test_int8_is_the_nearest_multiple_of_the_row_scale(reference):
    """Every weight is within half a step of row absmax / 127, and stored as int8."""
    before = Blocks(reference).linears()
    for name, linear in Blocks(compressed(Int8(), reference)).linears().items():
        weight = before[name].weight
        scale = linear.state.SCB[:, None] / 127
        assert torch.int8 == linear.weight.dtype == linear.state.CB.dtype
        torch.testing.assert_close(linear.state.SCB, weight.abs().amax(dim=1), rtol=1e-3, atol=0)
        rounding = 0.5 + 127 * 2**-11  # to a whole step, from a float16
        assert float(((linear.weight * scale - weight).abs() / scale).max()) <= rounding


@pytest.mark.parametrize(("method", "codes"), [(NF4, NF4_CODES), (FP4, FP4_CODES)])
@pytest.mark.usefixtures("unpacked")
def test_four_bits_are_the_nearest_code_of_the_block(method, codes, reference):
    """Every block of 64 weights is what a search over all 16 codes gives."""
    before = Blocks(reference).linears()
    for name, linear in Blocks(compressed(method(double_quant=False), reference)).linears().items():
        blocks = before[name].weight.reshape(-1, 64)
        absmax = blocks.abs().amax(dim=1, keepdim=True)
        nearest = (blocks[:, :, None] / absmax[:, :, None] - codes).abs().argmin(dim=2)
        found = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)

        torch.testing.assert_close(found.reshape(-1, 64), codes[nearest] * absmax, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [NF4, FP4])
@pytest.mark.usefixtures("unpacked")
def test_double_quant_stores_scales_in_eight_bits(method, reference):
    """The second quantization saves bytes and moves the logits little."""
    single = compressed(method(double_quant=False), reference)
    double = compressed(method(double_quant=True), reference)
    state = next(iter(Blocks(double).linears().values())).weight.quant_state

    assert torch.uint8 == state.absmax.dtype
    assert state.nested
    assert abs(error(double, reference) - error(single, reference)) < 0.02


@pytest.mark.parametrize("method", [NF4(), FP4()])
def test_the_packed_kernel_computes_the_same(method, reference, monkeypatch):
    """Where the CPU packs weights, the logits are those of the other layout, up to bfloat16."""
    packed = compressed(method, reference)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    plain = compressed(method, reference)

    assert float((logits(packed) - logits(plain)).norm() / logits(plain).norm()) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_quantized(family):
    """All block linears and nothing else are replaced; the error grows from int8 over nf4 to fp4."""
    reference = tiny_model(family)
    errors = []
    for method, kind, share in (
        (Int8(), "Linear8bitLt", 4),
        (NF4(), "Linear4bit", 7),
        (FP4(), "Linear4bit", 7),
    ):
        module = compressed(method, reference)
        linears = Blocks(module).linears()
        assert {kind} == {type(linear).__name__ for linear in linears.values()}
        assert type(module.get_submodule("lm_head")) is nn.Linear
        dense = sum(stored_bytes(linear) for linear in Blocks(reference).linears().values())
        assert sum(stored_bytes(linear) for linear in linears.values()) < 1.25 * dense / share
        assert not any(part.training or part.weight.requires_grad for part in linears.values())
        errors.append(error(module, reference))

    assert 0 < errors[0] < 0.1 < errors[1] < errors[2] < 0.7


def test_the_sentence_counts_linears(reference):
    """The step says how many linears it replaced, and that its cost is real."""
    applied = Int8(threshold=4.5).compress(copy_model(reference), context())

    assert "int8: 14 linears by bitsandbytes, outliers from 4.5 on" == applied.sentence
    assert "" == applied.simulated
    assert "nf4: 14 linears by bitsandbytes" == NF4().compress(copy_model(reference), context()).sentence


def test_the_threshold_keeps_outliers_in_float(reference):
    """An input feature above the threshold is multiplied in float, one below it is not."""
    name = "model.layers.0.mlp.up_proj"
    inputs = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    inputs[..., 7] = 20
    expected = reference.get_submodule(name)(inputs)

    def off(threshold: float) -> float:
        return float((compressed(Int8(threshold), reference).get_submodule(name)(inputs) - expected).norm())

    assert off(6.0) < off(30.0) / 2
    assert off(30.0) == off(0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_compute_dtype_is_handed_on(dtype, reference):
    """The layers multiply in the dtype that was asked for, and give back the dtype of the input."""
    module = compressed(NF4(compute_dtype=dtype), reference)

    assert {getattr(torch, dtype)} == {linear.compute_dtype for linear in Blocks(module).linears().values()}
    assert torch.float32 == logits(module).dtype


@pytest.mark.parametrize("method", [Int8(), NF4(), FP4()])
def test_bfloat16_models(method):
    """A model loaded in bfloat16 is quantized as well."""
    reference = tiny_model("llama").bfloat16()

    assert error(compressed(method, reference), reference) < 0.7


@pytest.mark.parametrize(("columns", "fits"), [(64, True), (192, True), (96, False), (32, False)])
def test_which_rows_hold_whole_blocks(columns, fits):
    """Multiples of the 64 weights that share a scale."""
    assert fits == rows_fit(nn.Linear(columns, 8))


def uneven(intermediate: int) -> nn.Module:
    """A model whose rows of weights differ in size fivefold: a wrong scale shows."""
    module = tiny_model("llama", intermediate_size=intermediate)
    for linear in Blocks(module).linears().values():
        linear.weight.data.mul_(torch.logspace(-0.7, 0, linear.out_features)[:, None])
    return module


@pytest.mark.parametrize("method", [NF4(), NF4(double_quant=False), FP4()])
@pytest.mark.parametrize(("intermediate", "kept"), [(128, 0), (192, 0), (144, 2), (96, 2)])
def test_every_four_bit_linear_uses_its_own_scales(method, intermediate, kept):
    """No row is off by more than 4 bits explain, whatever the widths; rows that do not fit stay in float."""
    reference = uneven(intermediate)
    applied = method.compress(copy_model(reference), context())
    before = Blocks(reference).linears()
    after = Blocks(applied.module).linears()

    assert kept == sum(type(linear) is nn.Linear for linear in after.values())
    assert (f"; {kept} stay in float, since their rows are no multiple of 64" in applied.sentence) == bool(
        kept
    )
    for name, linear in after.items():
        inputs = torch.randn(256, linear.in_features, generator=torch.Generator().manual_seed(0))
        rows = linear(inputs) - before[name](inputs)
        assert float((rows.norm(dim=0) / before[name](inputs).norm(dim=0)).max()) < 0.35, name


def test_a_model_without_fitting_rows_is_refused():
    """Nothing could be quantized rightly, and int8 can."""
    reference = tiny_model("llama", hidden_size=32, intermediate_size=96, head_dim=8)
    with pytest.raises(
        CompressionError, match=r"on a CPU a row of weights is a multiple of 64, got .*; use int8"
    ):
        NF4().compress(reference, context())


def test_int8_has_no_limit_on_widths():
    """One scale a row, whatever its length."""
    reference = uneven(120)
    assert error(compressed(Int8(), reference), reference) < 0.1


def test_copies_are_equal(reference):
    """What is stored has settled: a copy computes the same, and a forward pass changes no bytes."""
    for method in (Int8(), NF4()):
        module = compressed(method, reference)
        before = stored_bytes(module)
        assert torch.equal(logits(copy_model(module)), logits(module))
        assert before == stored_bytes(module)


def test_random_numbers_are_not_used(reference):
    """The global generator is where it was, so that what comes after is not moved."""
    before = torch.random.get_rng_state()
    compressed(Int8(), reference)
    compressed(NF4(), reference)

    assert torch.equal(before, torch.random.get_rng_state())


def test_bitsandbytes_is_silent(reference, caplog):
    """Neither compressing nor running logs anything."""
    with caplog.at_level(logging.INFO):
        logits(compressed(Int8(), reference))

    assert [] == [record.name for record in caplog.records if record.name.startswith("bitsandbytes")]


def test_importing_bitsandbytes_is_silent():
    """With every warning an error the first use still works and prints nothing."""
    code = (
        "from pytest_llmslim.methods.bitsandbytes_linear import _bitsandbytes; _bitsandbytes().nn.Linear4bit"
    )
    flags = ["-W", "error", "-W", "default::ImportWarning"]
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)

    assert (0, "") == (done.returncode, done.stderr)


def test_quantized_models_are_refused(reference):
    """Quantizing twice is told by the layer that is quantized already."""
    with pytest.raises(
        CompressionError,
        match=r"^nf4 on tiny: .*self_attn.q_proj is a plain float nn.Linear, got Linear8bitLt in torch.int8",
    ):
        NF4().compress(compressed(Int8(), reference), context())


def test_weights_beyond_float16_are_refused(reference):
    """int8 goes through float16, where such weights would become infinite."""
    module = copy_model(reference)
    module.model.layers[0].mlp.up_proj.weight.data[0, 0] = 70000
    with pytest.raises(
        CompressionError, match=r"^int8 on tiny: .* ends at 65504, got 70000 in .*up_proj; use int4$"
    ):
        Int8().compress(module, context())


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 65505, "6", True, None])
def test_thresholds_are_magnitudes(value):
    """A threshold that no float16 activation can have is refused."""
    with pytest.raises(RecipeError, match=r"^int8: threshold is a number from 0 to 65504, got"):
        Int8(value)


@pytest.mark.parametrize("value", [1, 0, "true", None])
def test_double_quant_is_a_truth_value(value):
    """Numbers and words are no truth values."""
    with pytest.raises(RecipeError, match=r"^nf4: double_quant is one of true, false, got"):
        NF4(double_quant=value)


@pytest.mark.parametrize("value", ["int8", "fp16", 16, True])
def test_compute_dtypes_are_listed(value):
    """An unknown dtype is answered with the known ones."""
    with pytest.raises(
        RecipeError, match=r"^fp4: compute_dtype is one of auto, float32, bfloat16, float16, got"
    ):
        FP4(compute_dtype=value)
