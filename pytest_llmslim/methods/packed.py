"""A linear whose weight is kept as packed integer codes: real bytes, and a float product like any other's.

bitsandbytes has no integer grids, compressed-tensors' layers become float at their first forward on a CPU, and
gptqmodel's want its own loading; none of them has odd widths, 5 to 7 bits and every family at once. So this one is
our own.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from torch.nn import functional

from pytest_llmslim.methods.grid import Grid, Scales, pack, unpack
from pytest_llmslim.models.storage import stored_bytes

SIMULATED: Final = (
    "codes are unpacked to float before every product, as no kernel multiplies them; bytes are real"
)


class PackedLinear(nn.Module):
    """y = x Wᵀ + b, with W [out, in] on an integer grid.

    Scales stay in float32 for half-precision models too: the levels are then those that the method chose.

    Args:
        grid: where W's levels lie.
        codes: uint8 [out, in], from `grid.codes`.
        scales: of the codes.
        bias: [out], or `None`.
        dtype: of W when it is asked for; a forward pass takes that of its input.
    """

    def __init__(
        self,
        grid: Grid,
        codes: torch.Tensor,
        scales: Scales,
        bias: torch.Tensor | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.grid = grid
        self.dtype = dtype
        self.register_buffer("packed", pack(codes, grid.bits))
        self.register_buffer("scale", scales.scale.contiguous())
        self.register_buffer("zero", None if scales.zero is None else scales.zero.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear, grid: Grid, codes: torch.Tensor, scales: Scales) -> PackedLinear:
        """What takes the place of `linear`: its bias, dtype and mode, and the codes of another weight."""
        return cls(grid, codes, scales, linear.bias, linear.weight.dtype).train(linear.training)

    @classmethod
    def rounded(cls, linear: nn.Linear, grid: Grid) -> PackedLinear:
        """`linear` with its weight rounded to the nearest levels."""
        weight = linear.weight.detach()
        scales = grid.fit(weight)
        return cls.of(linear, grid, grid.codes(weight, scales), scales)

    @property
    def packed_weights(self) -> int:
        """How many weights the codes stand for; `parameter_count` reads it."""
        return self.in_features * self.out_features

    @property
    def codes(self) -> torch.Tensor:
        """uint8 [out, in]."""
        return unpack(self.packed, self.grid.bits, self.in_features)

    @property
    def scales(self) -> Scales:
        """Of the codes."""
        return Scales(self.scale, self.zero)

    def dequantized(self) -> torch.Tensor:
        """The float weight [out, in] that the codes stand for."""
        return self.grid.dequantize(self.codes, self.scales, self.dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs [..., out] for inputs [..., in], in the dtype of the inputs."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return functional.linear(inputs, self.dequantized().to(inputs.dtype), bias)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.grid.words}"


def packed_sentence(method: str, packed: list[PackedLinear]) -> str:
    """What a method did that left these linears, all on one grid: how many, on which, how dense."""
    held = sum(stored_bytes(linear) - _bias_bytes(linear) for linear in packed)
    bits = 8 * held / sum(linear.packed_weights for linear in packed)
    return f"{method}: {len(packed)} linears with {packed[0].grid.words}, {bits:.2f} bits a weight stored"


def _bias_bytes(linear: PackedLinear) -> int:
    return 0 if linear.bias is None else linear.bias.nbytes
