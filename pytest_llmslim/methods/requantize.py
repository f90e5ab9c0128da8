"""Another weight in the place of a quantized one, rounded by the quantizer that made the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods.packed import PackedLinear

if TYPE_CHECKING:
    import torch
    from torch import nn


def requantizes(linear: nn.Module) -> bool:
    """Whether `requantized` knows the quantizer of this linear."""
    return isinstance(linear, PackedLinear) or _of_bitsandbytes(linear)


def requantized(linear: nn.Module, weight: torch.Tensor) -> nn.Module:
    """A linear like the quantized `linear`, with its bias, for another float weight [out, in].

    Raises:
        CompressionError: the linear's quantizer is not known here.
    """
    if isinstance(linear, PackedLinear):
        grid = linear.grid
        scales = grid.fit(weight)
        return PackedLinear(grid, grid.codes(weight, scales), scales, linear.bias, linear.dtype).eval()
    if not _of_bitsandbytes(linear):
        raise CompressionError(
            "weights are rounded anew by the quantizers of rtn, gptq, awq, qat, int8, int4 and fp4, "
            f"got {type(linear).__name__}; leave low-rank terms beside it"
        )
    new = _four_bit(linear, weight) if hasattr(linear.weight, "quant_state") else _eight_bit(linear, weight)
    new.bias = linear.bias
    return new.to(weight.device).eval()


def _of_bitsandbytes(linear: nn.Module) -> bool:
    weight = getattr(linear, "weight", None)
    return getattr(weight, "quant_state", None) is not None or hasattr(weight, "SCB")


def _four_bit(old: Any, weight: torch.Tensor) -> Any:  # noqa: ANN401  # bitsandbytes.nn.Linear4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    kind = {"compress_statistics": old.weight.compress_statistics, "quant_type": old.weight.quant_type}
    size = (old.in_features, old.out_features)
    new = Linear4bit(*size, bias=False, compute_dtype=old.compute_dtype, device="meta", **kind)
    new.weight = Params4bit(weight, requires_grad=False, module=new, **kind)
    new.compute_type_is_set = old.compute_type_is_set
    new.support_avx512bf16_for_cpu = old.support_avx512bf16_for_cpu
    return new


def _eight_bit(old: Any, weight: torch.Tensor) -> Any:  # noqa: ANN401  # bitsandbytes.nn.Linear8bitLt
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    size = (old.in_features, old.out_features)
    threshold = old.state.threshold
    new = Linear8bitLt(*size, bias=False, has_fp16_weights=False, threshold=threshold, device="meta")
    new.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    return new
