"""What any linear stands for, against feeding it the identity; a low-rank term beside it, against writing it out."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.bitsandbytes_linear import FP4, NF4, Int8
from pytest_llmslim.methods.grid import Grid
from pytest_llmslim.methods.linears import effective_weight, float_linears
from pytest_llmslim.methods.low_rank import LowRank, merge, through
from pytest_llmslim.methods.packed import PackedLinear
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, parameter_count, stored_bytes

IN, OUT = 128, 96


def dense(rows: int = OUT, *, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(IN, rows).requires_grad_(False).eval()
    linear.weight.copy_(torch.randn(rows, IN, generator=generator))
    return linear


def by_bitsandbytes(method, *, used: bool, rows: int = OUT) -> nn.Module:
    """`used`: after its first forward, which repacks 4-bit weights on a CPU with AVX512-BF16."""
    old = dense(rows)
    new = method._quantized(old)
    new.bias = old.bias
    new = new.to("cpu").eval()
    if used:
        new(torch.zeros(1, IN))
    return new


def by_torchao(config: str) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    holder = nn.Sequential(dense())
    quantization.quantize_(holder, getattr(quantization, config)())
    return holder[0]


def by_torch() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(dense()), {nn.Linear}, inplace=True)[0]


def low_rank(base: nn.Module, *, rank: int = 4, masked: bool = False, seed: int = 1) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, base.in_features, generator=generator)
    up = torch.randn(base.out_features, rank, generator=generator)
    return LowRank(base, down, up, masked=masked)


KINDS = {
    "float": dense,
    "int8": lambda: by_bitsandbytes(Int8(threshold=0), used=True),
    "int8, not used yet": lambda: by_bitsandbytes(Int8(), used=False),
    **{
        f"{method.name}{' packed' * used}{' nested' * double}": (
            lambda method=method, used=used, double=double: by_bitsandbytes(
                method(double_quant=double), used=used
            )
        )
        for method in (NF4, FP4)
        for used in (False, True)
        for double in (False, True)
    },
    "nf4 of an odd height": lambda: by_bitsandbytes(NF4(), used=True, rows=40),
    "packed codes": lambda: PackedLinear.rounded(dense(), Grid(3, 32)),
    "torchao": lambda: by_torchao("Int8WeightOnlyConfig"),
    "torch.ao": by_torch,
    "low rank": lambda: low_rank(dense()),
    "low rank over nf4": lambda: low_rank(by_bitsandbytes(NF4(), used=True)),
    "low rank over packed codes, masked": lambda: low_rank(
        PackedLinear.rounded(dense(), Grid(2, 64)), masked=True
    ),
    "low rank twice": lambda: low_rank(low_rank(dense()), seed=2),
}
"""Linears of all kinds, by name."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_effective_weight_is_what_the_identity_gives(kind):
    """Output for the identity, less the output for zero: the weight, whatever holds it, and however it is packed."""
    linear = KINDS[kind]()
    weight = effective_weight(linear)
    with torch.no_grad():
        zero = linear(torch.zeros(1, IN))
        columns = linear(torch.eye(IN)) - zero
    expected = columns.T
    # a CPU with AVX512-BF16 multiplies 4-bit weights in bfloat16 from the first forward on, which is here
    coarse = "nf4" in kind or "fp4" in kind
    # torch.ao and bitsandbytes' 8 bits round the inputs, too, which hardly changes an identity
    tolerance = (2**-7 if coarse else 1e-4) * float(weight.abs().max())

    assert (linear.out_features, IN) == weight.shape
    assert weight.is_floating_point()
    assert not weight.requires_grad
    assert float((expected - weight).abs().max()) < tolerance


@pytest.mark.parametrize("double", [True, False])
def test_packing_changes_no_code(double):
    """Before and after the first forward the 4-bit weight is the same up to the rounding of scales to bfloat16."""
    fresh = effective_weight(by_bitsandbytes(NF4(double_quant=double), used=False))
    packed = effective_weight(by_bitsandbytes(NF4(double_quant=double), used=True))

    torch.testing.assert_close(fresh, packed, rtol=2**-6, atol=0)
    assert not ((fresh == 0) ^ (packed == 0)).any()


def test_a_weight_of_an_unknown_kind_is_refused():
    """The message says what a linear of one's own needs."""
    with pytest.raises(
        CompressionError,
        match=r"^a linear's weight can be read from nn.Linear and the quantized .* got Identity; "
        r"give it a method dequantized\(\) that returns float \[out, in\]$",
    ):
        effective_weight(nn.Identity())


@pytest.mark.parametrize("masked", [False, True])
def test_a_low_rank_term_adds_its_product(masked):
    """The output is base(x) + x downᵀ upᵀ; with a mask the product of the factors is zero wherever the base is."""
    base = dense()
    base.weight[:, ::3] = 0
    both = low_rank(base, masked=masked)
    inputs = torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(3))
    product = both.up @ both.down
    expected = base(inputs) + inputs @ (product * (base.weight != 0) if masked else product).T

    torch.testing.assert_close(both(inputs), expected, rtol=1e-4, atol=1e-4)
    assert (4, OUT, IN) == (both.rank, both.out_features, both.in_features)
    assert "rank=4" in repr(both)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_merging_changes_the_form_alone(masked, bias):
    """The merged linear is a plain one that gives the same; the base is as it was, a masked one's zeros stay."""
    base = dense()
    base.weight[:, ::3] = 0
    base.bias = base.bias if bias else None
    before = base.weight.clone()
    both = low_rank(base, masked=masked)
    merged = merge(both)
    inputs = torch.randn(7, IN, generator=torch.Generator().manual_seed(3))

    assert type(merged) is nn.Linear
    assert (OUT, IN, bias) == (merged.out_features, merged.in_features, merged.bias is not None)
    torch.testing.assert_close(merged(inputs), both(inputs), rtol=1e-4, atol=1e-4)
    assert torch.equal(before, base.weight)
    assert masked == bool((merged.weight[:, ::3] == 0).all())
    assert not any(parameter.requires_grad for parameter in merged.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_follow_the_dtype_of_the_input(dtype):
    """Terms in float32 beside a half-precision base give half precision, alone and merged."""
    base = dense().to(dtype)
    both = low_rank(base)
    inputs = torch.ones(3, IN, dtype=dtype)

    assert dtype == both(inputs).dtype
    assert dtype == merge(both).weight.dtype
    torch.testing.assert_close(merge(both)(inputs), both(inputs), rtol=0.05, atol=0.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["int8", "nf4 packed", "nf4", "packed codes", "torchao", "torch.ao"])
def test_gradients_pass_quantized_linears(kind):
    """The gradient for the inputs is that of a product with the effective weight; the output is the linear's own."""
    linear = KINDS[kind]()
    inputs = torch.randn(2, 3, IN, generator=torch.Generator().manual_seed(4), requires_grad=True)
    outputs = through(linear, inputs)
    slope = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(5))
    outputs.backward(slope)

    torch.testing.assert_close(inputs.grad, slope @ effective_weight(linear).float(), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(outputs, linear(inputs))


def test_gradients_reach_both_factors():
    """By finite differences, under a mask too."""
    base = dense()
    base.weight[:, ::3] = 0
    for masked in (False, True):
        both = low_rank(base, rank=2, masked=masked).double()
        both.up.requires_grad_(True)
        both.down.requires_grad_(True)
        inputs = torch.randn(1, IN, generator=torch.Generator().manual_seed(6)).double()
        both(inputs).square().sum().backward()
        step = 0.1  # the loss is quadratic in each weight, so that central differences are exact
        for factor in (both.up, both.down):
            with torch.no_grad():
                factor[1, 1] += step
                above = both(inputs).square().sum()
                factor[1, 1] -= 2 * step
                below = both(inputs).square().sum()
                factor[1, 1] += step
            assert float((above - below) / (2 * step)) == pytest.approx(float(factor.grad[1, 1]), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_list_a_low_rank_linear_once(family):
    """Its base is inside it; names stay those of the model, copies are equal, storage counts base and term."""
    model = tiny_model(family)
    names = list(Blocks(model).linears())
    bytes_before, parameters_before = stored_bytes(model), parameter_count(model)
    for name, linear in Blocks(model).linears().items():
        model.set_submodule(name, low_rank(linear))
    linears = Blocks(model).linears()
    terms = sum(4 * (linear.in_features + linear.out_features) for linear in linears.values())

    assert names == list(linears)
    assert all(isinstance(linear, LowRank) for linear in linears.values())
    assert bytes_before + 4 * terms == stored_bytes(model)
    assert parameters_before + terms == parameter_count(model)
    tokens = tiny_tokens(1, 8)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, copy_model(model)(tokens).logits)


def test_methods_for_float_linears_refuse_a_low_rank_one():
    """It has no single weight that could be pruned."""
    model = tiny_model("llama")
    name, linear = next(iter(Blocks(model).linears().items()))
    model.set_submodule(name, low_rank(copy.deepcopy(linear)))
    context = Context(calibration=None, seed=0, device="cpu", family="llama", label="tiny")
    with pytest.raises(CompressionError, match=r"q_proj is a plain float nn.Linear, got LowRank; start from"):
        float_linears(model, "magnitude", context)
