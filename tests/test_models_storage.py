"""Bytes as stored: counted once, hashed by content, moved and copied without changing the model."""

from __future__ import annotations

import copy
import random

import bitsandbytes
import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import (
    copy_model,
    movable,
    parameter_count,
    reallocate,
    stored_bytes,
    stored_tensors,
    weights_hash,
)

WIDE = {"gpt2": {"n_embd": 128}, "llama": {"hidden_size": 128}}
TOKENS = tiny_tokens(1, 16)

# torch.ao's quantized tensors are deprecated; they are counted as long as torch has them.
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")


def pack_4bit(linear: nn.Linear, *, nested: bool) -> nn.Module:
    packed = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        quant_type="nf4",
        compress_statistics=nested,
        compute_dtype=torch.float32,
    )
    packed.weight = bitsandbytes.nn.Params4bit(
        linear.weight.data, quant_type="nf4", compress_statistics=nested, module=packed
    )
    packed.bias = linear.bias
    return packed.to("cpu")


def pack_8bit(linear: nn.Linear) -> nn.Module:
    packed = bitsandbytes.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,
    )
    packed.weight = bitsandbytes.nn.Int8Params(linear.weight.data, requires_grad=False)
    packed.bias = linear.bias
    return packed.to("cpu")


def packed_model(kind: str, family: str) -> nn.Module:
    model = tiny_model(family, **WIDE[family])
    make = {
        "dense": lambda linear: linear,
        "nf4": lambda linear: pack_4bit(linear, nested=False),
        "nested": lambda linear: pack_4bit(linear, nested=True),
        "int8": pack_8bit,
        "torch.ao": lambda linear: torch.ao.nn.quantized.dynamic.Linear.from_float(observed(linear)),
    }[kind]
    for name, linear in Blocks(model).linears().items():
        model.set_submodule(name, make(linear))
    return model.eval()


def observed(linear: nn.Linear) -> nn.Linear:
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return linear


@pytest.fixture(params=["gpt2", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["dense", "nf4", "nested", "int8", "torch.ao"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["before", "after"])
def model(kind: str, family: str, request: pytest.FixtureRequest) -> nn.Module:
    """Of every kind, before and after the first forward, which repacks bitsandbytes' weights."""
    model = packed_model(kind, family)
    if request.param == "after":
        logits(model)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def addresses(model: nn.Module) -> set[int]:
    """Of all storages that are not empty and not behind a packed object of torch.ao."""
    return {
        tensor.untyped_storage().data_ptr()
        for label, tensor in stored_tensors(model)
        if tensor.numel() and "_packed_params" not in label
    }


def test_reallocating_moves_everything_and_changes_nothing(model: nn.Module) -> None:
    """All addresses are new; logits are bit-equal, bytes and hash the same."""
    same, old = copy_model(model), addresses(model)
    size, digest = stored_bytes(model), weights_hash(model)
    gaps = reallocate(movable(model), random.Random(1))
    assert gaps
    assert not old & addresses(model)
    assert (stored_bytes(model), weights_hash(model)) == (size, digest)
    assert torch.equal(logits(model), logits(same))


def test_reallocating_keeps_ties_and_parameters() -> None:
    """The head and the embedding stay one parameter; optimizers and hooks still hold the right objects."""
    model = tiny_model("gpt2")
    parameters = [id(parameter) for parameter in model.parameters()]
    reallocate(movable(model), random.Random(0))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert [id(parameter) for parameter in model.parameters()] == parameters


def test_reallocating_keeps_views() -> None:
    """Two tensors on one storage still see each other's writes, at the same offset and strides."""
    model = nn.Module()
    model.register_buffer("whole", torch.arange(12.0).reshape(3, 4))
    model.register_buffer("part", model.whole.t()[1:3])
    reallocate(movable(model), random.Random(0))
    assert model.part.stride() == (1, 4)
    model.whole[2, 1] = 99
    assert model.part[0, 2] == 99
    assert stored_bytes(model) == 48


def test_the_layout_is_drawn_from_the_generator() -> None:
    """Equal seeds draw equal gaps, other seeds others."""
    gaps = [
        [len(gap) for gap in reallocate(movable(tiny_model("llama")), random.Random(seed))]
        for seed in (1, 1, 2)
    ]
    assert gaps[0] == gaps[1] != gaps[2]
    assert len(set(gaps[0])) > 5


def test_a_copy_is_equal_and_independent(model: nn.Module) -> None:
    """Same function, bytes and hash; no storage in common; writing to one leaves the other alone."""
    made = copy_model(model)
    assert not addresses(model) & addresses(made)
    assert stored_bytes(made) == stored_bytes(model)
    assert weights_hash(made) == weights_hash(model)
    kept = logits(made)
    assert torch.equal(kept, logits(model))
    for tensor in model.parameters():
        tensor.data.zero_()
    assert torch.equal(kept, logits(made))


def test_a_copy_is_in_eval_mode_without_gradients() -> None:
    """Whatever the original was."""
    original = tiny_model("llama").train().requires_grad_(True)
    made = copy_model(original)
    assert not made.training
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert original.training
    assert all(parameter.requires_grad for parameter in original.parameters())


def test_a_copy_of_a_4bit_model_does_not_point_back() -> None:
    """The weight belongs to the new layer and shares its quant state with it, unlike after a deepcopy."""
    model = packed_model("nf4", "llama")
    first = next(iter(Blocks(copy_model(model)).linears().values()))
    assert first.weight.module is first
    assert first.quant_state is first.weight.quant_state


@pytest.mark.parametrize("name", FAMILIES)
def test_ties_survive_a_copy(name: str) -> None:
    """As many parameters as before, under the same names."""
    model = tiny_model(name)
    assert [n for n, _ in copy_model(model).named_parameters()] == [n for n, _ in model.named_parameters()]


def test_stored_bytes_of_a_dense_model_are_its_parameters_and_buffers() -> None:
    """Four bytes each, tied ones once."""
    model = tiny_model("gpt2")
    numbers = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    assert stored_bytes(model) == 4 * numbers


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("nf4", 6.5, 7.6), ("nested", 6.0, 8.0), ("int8", 3.9, 4.0)]
)
@pytest.mark.parametrize("used", [False, True])
def test_packed_linears_are_counted_as_stored(kind: str, low: float, high: float, used: bool) -> None:
    """4-bit weights with their scales take about a seventh of float32, 8-bit ones about a quarter."""
    dense = nn.Linear(512, 512, bias=False)
    make = {"int8": pack_8bit}.get(kind, lambda linear: pack_4bit(linear, nested=kind == "nested"))
    packed = make(copy.deepcopy(dense)).eval()
    if used:
        with torch.no_grad():
            packed(torch.randn(3, 512))
    assert low <= stored_bytes(dense) / stored_bytes(packed) <= high


@pytest.mark.parametrize("kind", ["nf4", "nested", "int8"])
def test_quantizing_keeps_the_parameter_count(kind: str, family: str) -> None:
    """Two 4-bit weights in a byte are still two parameters, before and after repacking."""
    model = packed_model(kind, family)
    expected = parameter_count(tiny_model(family, **WIDE[family]))
    assert parameter_count(model) == expected
    logits(model)
    assert parameter_count(model) == expected


def test_parameters_in_packed_objects_are_counted() -> None:
    """torch.ao hides weight [8, 4] and bias [8] from `parameters()`."""
    packed = torch.ao.nn.quantized.dynamic.Linear.from_float(observed(nn.Linear(4, 8)))
    assert parameter_count(packed) == 40
    assert stored_bytes(packed) >= 32 + 8 * 4


def test_meta_tensors_take_no_bytes() -> None:
    """There is nothing behind them."""
    assert stored_bytes(nn.Linear(8, 8, device="meta")) == 0


def test_wrapped_and_nested_tensors_are_found() -> None:
    """Tensor subclasses are opened, lists and dicts of tensors too, each object once, even in a cycle."""
    model = nn.Module()
    model.weight = nn.Parameter(TwoTensor(torch.ones(3), torch.ones(5)[:3]), requires_grad=False)
    model.cache = {"keys": [torch.ones(2), torch.ones(2)]}
    model.cache["self"] = model.cache
    labels = [label for label, _ in stored_tensors(model)]
    assert labels == ["weight.a", "weight.b", "cache.keys.0", "cache.keys.1"]
    assert stored_bytes(model) == 4 * (3 + 5 + 2 + 2)


def test_hash_is_equal_for_equal_models_and_over_a_forward(kind: str, family: str) -> None:
    """Two builds of the same weights agree, and the repacking of the first forward does not show."""
    model = packed_model(kind, family)
    digest = weights_hash(model)
    assert len(digest) == 64
    assert weights_hash(packed_model(kind, family)) == digest
    logits(model)
    assert weights_hash(model) == digest


def test_hashing_and_counting_leave_packed_weights_packed() -> None:
    """Unlike `state_dict()`, which makes bitsandbytes undo its layout, so that the next forward is slow."""
    model = packed_model("nf4", "llama")
    logits(model)
    state = Blocks(model).layers[0].attention.module.q_proj.weight.quant_state
    before = vars(state).get("packing_format_for_cpu")
    weights_hash(model), stored_bytes(model), parameter_count(model), copy_model(model)
    assert vars(state).get("packing_format_for_cpu") == before


@pytest.mark.parametrize("place", [0, -1])
def test_hash_sees_one_changed_number(kind: str, place: int) -> None:
    """The first or last code or value of one linear."""
    if kind == "torch.ao":
        pytest.skip("packed objects of torch.ao cannot be written")
    model = packed_model(kind, "llama")
    digest = weights_hash(model)
    weight = Blocks(model).layers[1].attention.module.v_proj.weight.data
    weight.view(torch.uint8).flatten()[place] ^= 1
    assert weights_hash(model) != digest


def test_hash_sees_scales() -> None:
    """Equal codes under other scales are other weights."""
    for kind in ("nf4", "int8"):
        model = packed_model(kind, "llama")
        digest = weights_hash(model)
        weight = Blocks(model).layers[1].attention.module.v_proj.weight
        (weight.quant_state.absmax if kind == "nf4" else weight.SCB).mul_(1.5)
        assert weights_hash(model) != digest


def test_hash_sees_shape_type_and_name() -> None:
    """The same bytes in another guise are other weights."""

    class Holder(nn.Module):
        def __init__(self, name: str, value: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer(name, value)

    value = torch.zeros(4)
    guises = [
        Holder("a", value),
        Holder("b", value),
        Holder("a", value.reshape(2, 2)),
        Holder("a", value.view(torch.int32)),
    ]
    assert len({weights_hash(guise) for guise in guises}) == 4


def test_hash_leaves_out_what_is_not_saved() -> None:
    """Rotary tables follow from the config and may grow with the text."""
    model = tiny_model("llama")
    digest = weights_hash(model)
    model.model.rotary_emb.inv_freq.mul_(2)
    assert weights_hash(model) == digest


def test_codes_are_those_that_bitsandbytes_dequantizes() -> None:
    """Independent reference: the code book at the hashed codes, times the scales, is the library's weight."""
    from pytest_llmslim.models.content import codes, scales

    packed = pack_4bit(nn.Linear(128, 64, bias=False).requires_grad_(False), nested=False)
    weight = packed.weight
    expected = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    factors = scales(weight.quant_state).float().repeat_interleave(64).reshape(64, 128)
    ours = weight.quant_state.code[codes(weight).long()] * factors
    torch.testing.assert_close(ours, expected, rtol=2**-8, atol=0)
