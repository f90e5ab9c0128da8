"""The linears of a model's blocks, as methods may touch them, what they stand for, and the checks all methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.sparse import SparseSemiStructuredTensor

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods.semi_structured import make_dense
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.content import codes, packed_parts, scales

if TYPE_CHECKING:
    from pytest_llmslim.methods import Context

_TOKENS = 8  # enough for every projection to see more than one position


def float_linears(module: nn.Module, method: str, context: Context) -> dict[str, nn.Linear]:
    """The linears inside the blocks by dotted name, with dense weights; never `lm_head` or an embedding.

    Raises:
        CompressionError: there are none, one of them is not a plain float `nn.Linear` (it was compressed
            before), or its weights are not finite.
    """
    linears = Blocks(module).linears()
    if not linears:
        raise CompressionError(f"{method} on {context.label}: the model's blocks hold no linears to compress")
    for name, linear in linears.items():
        make_dense(linear)
        if not is_plain(linear):
            raise CompressionError(
                f"{method} on {context.label}: {name} is a plain float nn.Linear, "
                f"got {_kind(linear)}; start from the float checkpoint"
            )
        if not torch.isfinite(linear.weight).all():
            raise CompressionError(
                f"{method} on {context.label}: weights are finite, got NaN or infinity in {name}; "
                "mend the checkpoint"
            )
    return dict(linears)


def is_plain(linear: nn.Module) -> bool:
    """Whether `linear` is an `nn.Linear` with a float weight in the usual layout: neither quantized nor sparse."""
    if type(linear) is not nn.Linear or not isinstance(linear.weight, torch.Tensor):
        return False
    return linear.weight.is_floating_point() and not hasattr(linear.weight, "__tensor_flatten__")


def effective_weight(linear: nn.Module) -> torch.Tensor:
    """The float weight [out, in] that a linear of any kind multiplies by, without its bias.

    A plain `nn.Linear` gives its own weight, not a copy. LLM.int8() and int8-dynamic also round their inputs,
    which no weight tells.

    Args:
        linear: `nn.Linear`, of bitsandbytes (packed by its first forward or not), of torchao or torch.ao, or one
            that has `dequantized()`, as `PackedLinear` and `LowRank`.

    Raises:
        CompressionError: another kind.
    """
    if hasattr(linear, "dequantized"):
        return linear.dequantized()
    weight = getattr(linear, "weight", None)
    if getattr(weight, "quant_state", None) is not None:
        return _four_bit(weight)
    if hasattr(weight, "SCB"):
        return _eight_bit(linear)
    if isinstance(weight, SparseSemiStructuredTensor):
        return weight.detach().to_dense()
    if isinstance(weight, torch.Tensor) and hasattr(weight, "__tensor_flatten__"):
        return weight.detach().dequantize()
    if isinstance(weight, torch.Tensor) and weight.is_floating_point():
        return weight.detach()
    for part in linear.modules():  # torch.ao packs the weight inside a child
        for _, tensor in packed_parts(part):
            return tensor.dequantize()
    raise CompressionError(
        f"a linear's weight can be read from nn.Linear and the quantized linears of bitsandbytes, torchao, torch.ao "
        f"and pytest-llmslim, got {_kind(linear)}; give it a method dequantized() that returns float [out, in]"
    )


def _four_bit(weight: Any) -> torch.Tensor:  # noqa: ANN401  # bitsandbytes.nn.Params4bit
    state = weight.quant_state
    factors = scales(state)
    book = state.code.to(factors.dtype)  # packed weights are multiplied in bfloat16
    values = book[codes(weight).long()].reshape(-1)
    products = values * factors.repeat_interleave(state.blocksize)[: values.numel()]
    return products.reshape(state.shape).float()


def _eight_bit(linear: Any) -> torch.Tensor:  # noqa: ANN401  # bitsandbytes.nn.Linear8bitLt
    rows = linear.weight.SCB if linear.weight.SCB is not None else linear.state.SCB
    return linear.weight.data.float() * rows.float()[:, None] / 127


def _kind(linear: nn.Module) -> str:
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return type(linear).__name__
    layout = f" with {type(weight).__name__}" if hasattr(weight, "__tensor_flatten__") else ""
    return f"{type(linear).__name__}{layout} in {weight.dtype}"


def check_forward(module: nn.Module, method: str, context: Context) -> None:
    """Run a few tokens through the compressed `module`.

    bitsandbytes packs its weights in the first forward pass, so this also settles what is stored.

    Raises:
        CompressionError: the logits are not finite.
    """
    tokens = torch.arange(_TOKENS)[None] if context.calibration is None else context.calibration[:1, :_TOKENS]
    device = next(module.parameters()).device
    with torch.no_grad():
        logits = module(input_ids=tokens.to(device), use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise CompressionError(
            f"{method} on {context.label}: logits are finite, got NaN or infinity from the compressed model; "
            "use another method or dtype"
        )
