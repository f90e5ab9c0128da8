"""The linears of a model's blocks, as methods may touch them, and the checks all methods share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.models.blocks import Blocks

if TYPE_CHECKING:
    from pytest_llmslim.methods import Context

_TOKENS = 8  # enough for every projection to see more than one position


def float_linears(module: nn.Module, method: str, context: Context) -> dict[str, nn.Linear]:
    """The linears inside the blocks by dotted name; never `lm_head` or an embedding.

    Raises:
        CompressionError: there are none, one of them is not a plain float `nn.Linear` (it was compressed
            before), or its weights are not finite.
    """
    linears = Blocks(module).linears()
    if not linears:
        raise CompressionError(f"{method} on {context.label}: the model's blocks hold no linears to compress")
    for name, linear in linears.items():
        if type(linear) is not nn.Linear or not linear.weight.is_floating_point():
            raise CompressionError(
                f"{method} on {context.label}: {name} is a plain float nn.Linear, "
                f"got {type(linear).__name__} in {linear.weight.dtype}; start from the float checkpoint"
            )
        if not torch.isfinite(linear.weight).all():
            raise CompressionError(
                f"{method} on {context.label}: weights are finite, got NaN or infinity in {name}; "
                "mend the checkpoint"
            )
    return dict(linears)


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
