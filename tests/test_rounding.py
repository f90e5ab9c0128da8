"""Telling rounded weights from free ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.rounding import is_rounded


def free(rows: int = 96, columns: int = 128, *, seed: int = 0, heavy: bool = False) -> torch.Tensor:
    """Random weights as training leaves them; `heavy` has outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    return weight / torch.rand(rows, columns, generator=generator).clamp(0.05) if heavy else weight


def absmax(weight: torch.Tensor, bits: int, group: int | None = None) -> torch.Tensor:
    """Symmetric round-to-nearest with one scale a row or group, back in float."""
    parts = weight.reshape(-1, group or weight.shape[1])
    scale = parts.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((parts / scale).round() * scale).reshape(weight.shape)


def affine(weight: torch.Tensor, bits: int, group: int | None = None) -> torch.Tensor:
    """Round-to-nearest between minimum and maximum of a row or group, back in float."""
    parts = weight.reshape(-1, group or weight.shape[1])
    low = parts.amin(dim=1, keepdim=True)
    scale = (parts.amax(dim=1, keepdim=True) - low) / (2**bits - 1)
    return (((parts - low) / scale).round() * scale + low).reshape(weight.shape)


def pruned(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    """The smallest weights zero."""
    return torch.where(weight.abs() < weight.abs().quantile(sparsity), 0, weight)


@given(
    rows=st.integers(1, 80),
    columns=st.integers(1, 200),
    seed=st.integers(0, 1000),
    heavy=st.booleans(),
    sparsity=st.sampled_from([0, 0.5, 0.9]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_free_weights_are_not_rounded(rows, columns, seed, heavy, sparsity, dtype):
    """Neither free nor pruned weights of any shape and dtype are taken for rounded ones."""
    assert not is_rounded(pruned(free(rows, columns, seed=seed, heavy=heavy), sparsity).to(dtype))


@pytest.mark.parametrize("columns", [32, 64, 128, 768])
@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("quantize", [absmax, affine])
def test_rounded_weights_are_recognised(quantize, bits, group, heavy, columns):
    """Fake quantization of 3, 4 and 8 bits, a row or a group, symmetric or not, is seen in float32."""
    assert is_rounded(quantize(free(columns=columns, heavy=heavy), bits, group))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [64, 768])
def test_four_bits_are_recognised_in_half_precision(columns, dtype):
    """Fake 4-bit weights are seen in the dtypes in which checkpoints are stored."""
    assert is_rounded(absmax(free(columns=columns), 4, 64).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_eight_bits_a_row_are_recognised_in_half_precision(dtype):
    """256 levels a row of 768 are few in any dtype."""
    assert is_rounded(absmax(free(columns=768), 8).to(dtype))


def test_pruned_and_rounded_weights_are_recognised():
    """Zeros do not hide the grid."""
    assert is_rounded(absmax(pruned(free(), 0.5), 4))


@pytest.mark.parametrize("weight", [torch.zeros(8, 8), torch.zeros(64, 64), torch.randn(1, 1)])
def test_weights_that_say_nothing_are_not_rounded(weight):
    """Empty or tiny weights are no evidence."""
    assert not is_rounded(weight)


def test_constants_are_rounded():
    """One value everywhere is one level."""
    assert is_rounded(torch.full((64, 64), 0.5))
