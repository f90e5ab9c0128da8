"""A linear with a low-rank term beside it: y = base(x) + x downᵀ upᵀ.

What LoRA (Hu et al. 2021, arXiv 2106.09685, equation 3) trains and EoRA (Liu et al. 2024, arXiv 2410.21271)
computes. The factor alpha / rank of LoRA is 1 here. peft has such a layer, for a fixed list of kinds of base that
leaves out `PackedLinear`, and its merge fills the zeros of a pruned weight; so this one is our own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pytest_llmslim.methods.linears import effective_weight, is_plain


class LowRank(nn.Module):
    """Any linear `base` [out, in] plus the product of `up` [out, rank] and `down` [rank, in].

    Args:
        base: never changed.
        down: float; stored as given, multiplied in the dtype of the input.
        up: float, likewise.
        masked: the product counts only where the base's weight is not exactly zero, so that a pruned base stays
            pruned when both are merged. Costs a product of the size of the weight in every forward pass.
    """

    def __init__(
        self, base: nn.Module, down: torch.Tensor, up: torch.Tensor, *, masked: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)
        self.masked = masked
        self.in_features: int = base.in_features
        self.out_features: int = base.out_features

    @property
    def rank(self) -> int:
        """How many outer products the term sums."""
        return int(self.down.shape[0])

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's."""
        return bias_of(self.base)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs [..., out] for inputs [..., in]."""
        if self.masked:  # without keeping a weight a layer for the backward pass
            return checkpoint(self._whole, inputs, use_reentrant=False, preserve_rng_state=False)
        term = F.linear(F.linear(inputs, self.down.to(inputs.dtype)), self.up.to(inputs.dtype))
        return through(self.base, inputs) + term

    def _whole(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.linear(inputs, self.dequantized().to(inputs.dtype), self.bias)

    def dequantized(self) -> torch.Tensor:
        """The float weight [out, in] of base and term together, with gradients for the term where it wants them."""
        weight = effective_weight(self.base)
        term = (self.up.float() @ self.down.float()).to(weight.dtype)
        return weight + term * (weight != 0) if self.masked else weight + term

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"rank={self.rank}, masked={self.masked}"


def merge(low_rank: LowRank) -> nn.Linear:
    """One `nn.Linear` for base and term, in the dtype of the base's weight; exact zeros of a masked base stay."""
    weight = low_rank.dequantized().detach()
    merged = nn.Linear(low_rank.in_features, low_rank.out_features, bias=False, device="meta")
    merged.weight = nn.Parameter(weight, requires_grad=False)
    bias = low_rank.bias
    merged.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return merged.eval()


def bias_of(linear: nn.Module) -> torch.Tensor | None:
    """The bias [out] of a linear of any kind, torch.ao's too, which have it as a method."""
    bias = linear.bias
    return bias() if callable(bias) and not isinstance(bias, torch.Tensor) else bias


def through(linear: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What `linear` gives, with gradients for its inputs where they are wanted.

    Quantized linears give none (bitsandbytes' 4-bit ones once the CPU kernel packed them, torch.ao's), so theirs
    are those of the product with the effective weight: rounding of the inputs passes gradients straight through,
    as in bitsandbytes.
    """
    own = is_plain(linear) or isinstance(linear, LowRank)
    if own or not (torch.is_grad_enabled() and inputs.requires_grad):
        return linear(inputs)
    return _Through.apply(inputs, linear)


class _Through(torch.autograd.Function):
    """A quantized linear forwards, a product with its effective weight backwards."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, linear: nn.Module) -> torch.Tensor:  # noqa: ANN401
        ctx.linear = linear
        return linear(inputs.detach())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        return gradient @ effective_weight(ctx.linear).to(gradient.dtype), None
