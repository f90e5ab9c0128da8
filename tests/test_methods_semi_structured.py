"""Where 2:4 kernels are put in, decided without a GPU; torch's own packing runs on a CPU too."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Context, semi_structured
from pytest_llmslim.methods.linears import effective_weight, float_linears
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.methods.semi_structured import SIMULATED, fits, make_dense, speed_up
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, stored_bytes


class OnGPU:
    """A weight as `fits` looks at it."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
        self.shape, self.dtype, self.device = torch.Size(shape), dtype, torch.device(device)


@pytest.fixture
def ampere(monkeypatch):
    """A machine whose GPU has capability 8.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


@pytest.fixture
def kernels(monkeypatch):
    """A CPU that passes for such a GPU, except that it cannot multiply."""
    monkeypatch.setattr(semi_structured, "fits", lambda weight: weight.shape[1] % 64 == 0)
    monkeypatch.setattr(
        SparseSemiStructuredTensor, "_validate_device_dim_dtype_shape", classmethod(lambda kind, weight: None)
    )
    monkeypatch.setattr(
        semi_structured, "to_sparse_semi_structured", SparseSemiStructuredTensorCUTLASS.from_dense
    )


def halved(rows: int, columns: int) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias=False).half().requires_grad_(False)
    linear.weight.view(rows, -1, 4)[..., 1:3] = 0
    return linear


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(32, 64), (2048, 640)])
def test_a_fitting_weight_fits(ampere, dtype, shape):
    """Half precision in whole tiles on a GPU with sparse tensor cores."""
    assert fits(OnGPU(shape, dtype, "cuda:0"))


@pytest.mark.parametrize(
    ("shape", "dtype", "device"),
    [
        ((32, 64), torch.float16, "cpu"),
        ((32, 64), torch.float32, "cuda:0"),
        ((16, 64), torch.float16, "cuda:0"),
        ((32, 96), torch.float16, "cuda:0"),
    ],
)
def test_other_weights_do_not(ampere, shape, dtype, device):
    """A CPU, another dtype, rows or columns that fill no tile."""
    assert not fits(OnGPU(shape, dtype, device))


def test_an_older_gpu_has_no_kernels(monkeypatch):
    """Turing is 7.5."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))

    assert not fits(OnGPU((32, 64), torch.float16, "cuda:0"))


def test_on_a_cpu_nothing_changes():
    """The weight is the same object, and why its cost is not real is said."""
    linear = halved(32, 64)
    weight = linear.weight

    assert speed_up({"a": linear}, "2:4") == SIMULATED
    assert linear.weight is weight
    assert SIMULATED == "zeros are stored and multiplied as any other weight on this device"


def test_real_kernels_are_not_simulated(kernels):
    """What fits is packed to 9/16 of its bytes, values and all; the rest stays dense."""
    linears = {"a": halved(32, 64), "b": halved(32, 68)}
    before = [linear.weight.clone() for linear in linears.values()]

    assert speed_up(linears, "2:4") == ""
    assert isinstance(linears["a"].weight, SparseSemiStructuredTensor)
    assert 32 * 64 * 2 * 9 // 16 == stored_bytes(linears["a"])
    assert torch.equal(before[0], linears["a"].weight.to_dense())
    assert torch.equal(before[1], linears["b"].weight)


@pytest.mark.parametrize("pattern", [None, "4:8", "1:4"])
def test_other_patterns_have_no_kernels(kernels, pattern):
    """Only 2:4 is what GPUs know."""
    assert speed_up({"a": halved(32, 64)}, pattern) == SIMULATED


def test_a_torch_without_kernels_leaves_all_dense(kernels, monkeypatch):
    """One that cannot pack the second weight has packed none."""
    pack, calls = SparseSemiStructuredTensorCUTLASS.from_dense, itertools.count()

    def failing(weight):
        if next(calls):
            raise RuntimeError("cuSPARSELt is not supported on this machine")
        return pack(weight)

    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", failing)
    linears = {"a": halved(32, 64), "b": halved(64, 64)}

    assert speed_up(linears, "2:4") == SIMULATED
    assert all(type(linear.weight) is nn.Parameter for linear in linears.values())


def test_packed_weights_are_copied_and_read(kernels):
    """A recipe copies its model between steps, and compensators read what a linear stands for."""
    linear = halved(32, 64)
    dense = linear.weight.clone()
    speed_up({"a": linear}, "2:4")
    twin = copy_model(linear)
    make_dense(linear)

    assert torch.equal(dense, effective_weight(twin))
    assert torch.equal(dense, linear.weight)
    assert nn.Parameter is type(linear.weight)


def test_a_later_step_begins_with_dense_weights(kernels, monkeypatch):
    """Quantizing after 2:4 gets the float weights, zeros included."""
    monkeypatch.setattr("pytest_llmslim.methods.masks.check_forward", lambda *args: None)
    context = Context(calibration=None, seed=0, device="cpu", family="llama", label="tiny")
    model = tiny_model("llama").half()
    applied = Magnitude(pattern="2:4").compress(copy_model(model), context)
    dense = Magnitude(pattern="4:8").compress(copy_model(model), context)
    packed = [linear.weight for linear in Blocks(applied.module).linears().values()]
    linears = float_linears(applied.module, "rtn", context)

    assert "" == applied.simulated
    assert SIMULATED == dense.simulated
    assert all(isinstance(weight, SparseSemiStructuredTensor) for weight in packed)
    assert all(2 * int((linear.weight == 0).sum()) == linear.weight.numel() for linear in linears.values())


def test_other_linears_are_left_alone():
    """A quantized linear has no dense weight to go back to."""
    linear = nn.Identity()
    make_dense(linear)

    assert not hasattr(linear, "weight")
    with pytest.raises(CompressionError):
        effective_weight(linear)
