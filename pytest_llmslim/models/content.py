"""What a model's weights say, independent of where and in which layout they lie: their hash."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_PACKED_ROWS = 32
"""Output rows that bitsandbytes interleaves in one block of its CPU layout."""


def weights_hash(module: nn.Module) -> str:
    """SHA-256 (hex) of names, shapes, types and values of all weights and saved buffers.

    Equal models at different addresses have equal hashes. 4-bit weights enter as their codes and as scales
    rounded to bfloat16: the first forward on a CPU with AVX512-BF16 repacks the codes and rounds (and
    un-nests) the scales, so this is what stays the same before and after it.
    """
    digest = hashlib.sha256()
    for name, content in _contents(module):
        flat = content.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def packed_parts(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Weight and bias inside the packed objects of torch.ao's quantized layers, which are no tensors."""
    for name, value in vars(module).items():
        if isinstance(value, torch.ScriptObject) and hasattr(value, "unpack"):
            for index, part in enumerate(value.unpack()):
                if isinstance(part, torch.Tensor):
                    yield f"{name}.{index}", part


def _contents(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[int] = set()
    for path, child in module.named_modules():
        saved = {k: v for k, v in child._buffers.items() if k not in child._non_persistent_buffers_set}
        for name, tensor in {**child._parameters, **saved}.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield from _parts(f"{path}.{name}", tensor, child)
        for name, part in packed_parts(child):
            yield f"{path}.{name}", part.dequantize() if part.is_quantized else part


def _parts(label: str, tensor: torch.Tensor, owner: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A weight, or the codes and scales that make it up."""
    if getattr(tensor, "quant_state", None) is not None:
        yield f"{label}.codes.{tensor.quant_state.quant_type}", codes(tensor)
        yield f"{label}.scales", scales(tensor.quant_state).to(torch.bfloat16)
    elif hasattr(tensor, "SCB"):
        yield label, tensor.data
        # The first forward moves the scales from the weight to the state of its layer.
        found = tensor.SCB if tensor.SCB is not None else getattr(owner, "state", tensor).SCB
        if found is not None:
            yield f"{label}.scales", found
    elif hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(f"{label}.{name}", getattr(tensor, name), owner)
    else:
        yield label, tensor


def codes(weight: torch.Tensor) -> torch.Tensor:
    """The 4-bit codes [out, in] as uint8, whether still in rows or already interleaved for the CPU."""
    state: Any = weight.quant_state
    packed = weight.data.view(torch.uint8)
    low, high = packed & 0xF, packed >> 4
    if not getattr(state, "packing_format_for_cpu", False):
        return torch.stack([high, low], dim=-1).reshape(state.shape)
    rows, columns = state.shape
    block = (rows // _PACKED_ROWS, columns // 2, _PACKED_ROWS // 2, 2)
    halves = torch.stack([low.reshape(block), high.reshape(block)], dim=1)
    return halves.permute(0, 1, 3, 2, 4).reshape(rows, columns)


def scales(state: Any) -> torch.Tensor:  # noqa: ANN401  # bitsandbytes.functional.QuantState
    """One scale a block of weights, in the order of the weights; bfloat16 once packed for the CPU, else float32."""
    if getattr(state, "packing_format_for_cpu", False):
        return state.absmax.t().reshape(-1)
    if not state.nested:
        return state.absmax.reshape(-1)
    from bitsandbytes.functional import dequantize_blockwise

    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).reshape(-1)
