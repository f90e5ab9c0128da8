"""What a linear is made of, whatever class holds it: to write it into a checkpoint, and to cut or pad its heads.

bitsandbytes' own `state_dict` undoes the layout that its first forward made, rounds nested scales a second time on
the way and changes the module; here codes and scales are read as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from pytest_llmslim.errors import CompressionError, ModelError
from pytest_llmslim.methods.linears import effective_weight, is_plain
from pytest_llmslim.methods.low_rank import LowRank, bias_of
from pytest_llmslim.models.content import codes, scales

if TYPE_CHECKING:
    from typing import Self

_OUT_MULTIPLE: Final = 32
"""Rows that bitsandbytes' kernel for CPUs with AVX512-BF16 takes together; it fails on any other number."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """A float weight [out, in]; `note` says what it was made from, where that was something else."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    note: str = ""

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.weight.shape

    def resized(self, *, rows: int | None = None, columns: int | None = None, sections: int = 1) -> Self:
        """See `resized`."""
        return replace(self, **_sizes(self, "weight", rows, columns, sections))

    def tensors(self) -> dict[str, torch.Tensor]:
        """As they are called in a checkpoint, behind the linear's name."""
        return {"weight": self.weight}

    def install(self, linear: nn.Module) -> None:
        """Make them the weight of `linear`, a plain one."""
        linear.weight = nn.Parameter(self.weight, requires_grad=False)


@dataclass(frozen=True, slots=True, eq=False)
class EightBit:
    """LLM.int8(): `codes` int8 [out, in], and one scale a row, of which 127 steps are the largest weight."""

    codes: torch.Tensor
    rows: torch.Tensor
    threshold: float
    bias: torch.Tensor | None

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.codes.shape

    def resized(self, *, rows: int | None = None, columns: int | None = None, sections: int = 1) -> Self:
        """See `resized`."""
        sized = _sizes(self, "codes", rows, columns, sections)
        if rows is not None:
            sized["rows"] = resized(self.rows, 0, rows, sections)
        return replace(self, **sized)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As they are called in a checkpoint, behind the linear's name."""
        return {"weight": self.codes, "SCB": self.rows, "weight_format": torch.tensor(0, dtype=torch.uint8)}

    def install(self, linear: nn.Module) -> None:
        """Make them the weight of `linear`, a `Linear8bitLt`."""
        from bitsandbytes.nn import Int8Params

        stored: Any = linear
        stored.weight = Int8Params(self.codes, requires_grad=False, CB=self.codes, SCB=self.rows)
        stored.state.CB = stored.state.SCB = None


@dataclass(frozen=True, slots=True, eq=False)
class FourBit:
    """bitsandbytes' 4 bits: `codes` uint8 [out, in] into a book of 16 levels, a scale for every `block` of a row.

    Args:
        codes: one a weight.
        scales: [out, in / block], float32.
        state: bitsandbytes' description of them.
        nested: the scales as they are stored in 8 bits, if they are and nothing was cut or padded.
        compute: the dtype that is multiplied in; `None`: that of the input.
        bias: [out], or `None`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    state: Any
    nested: dict[str, torch.Tensor] | None
    compute: torch.dtype | None
    bias: torch.Tensor | None

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.codes.shape

    @property
    def fits(self) -> bool:
        """Whether every kernel of bitsandbytes for CPUs multiplies weights of this shape right."""
        return self.fits_as(None, None)

    def fits_as(self, rows: int | None, columns: int | None) -> bool:
        """Whether `fits` holds with so many rows or columns instead."""
        own = self.codes.shape
        return (rows or own[0]) % _OUT_MULTIPLE == 0 and (columns or own[1]) % self.state.blocksize == 0

    def resized(self, *, rows: int | None = None, columns: int | None = None, sections: int = 1) -> Self:
        """See `resized`."""
        blank = int((self.state.code == 0).nonzero()[0, 0])
        sized = _sizes(self, "codes", rows, columns, sections, fill=blank)
        if rows is not None:
            sized["scales"] = resized(self.scales, 0, rows, sections)
        if columns is not None:
            sized["scales"] = resized(self.scales, 1, columns // self.state.blocksize, 1)
        return replace(self, **sized, nested=None)

    def dense(self, dtype: torch.dtype) -> Dense:
        """The float weight that they stand for."""
        values = self.state.code[self.codes.long()].reshape(-1)
        spread = self.scales.reshape(-1).repeat_interleave(self.state.blocksize)[: values.numel()]
        weight = (values * spread).reshape(self.codes.shape).to(dtype)
        return Dense(
            weight,
            self.bias,
            "bitsandbytes' 4-bit weights are stored as float where some CPUs cannot multiply their shape",
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """As they are called in a checkpoint, behind the linear's name."""
        return {
            "weight": self._packed(),
            **{f"weight.{name}": value for name, value in self._stored().items()},
        }

    def install(self, linear: nn.Module) -> None:
        """Make them the weight of `linear`, a `Linear4bit`."""
        from bitsandbytes.nn import Params4bit

        packed, stored = self._packed(), self._stored()
        linear.weight = Params4bit.from_prequantized(packed, stored, device=packed.device, module=linear)

    def _packed(self) -> torch.Tensor:
        flat = self.codes.reshape(-1)
        return ((flat[::2] << 4) | flat[1::2])[:, None].contiguous()

    def _stored(self) -> dict[str, torch.Tensor]:
        from bitsandbytes.functional import QuantState

        if self.nested is not None:
            return dict(self.nested)
        state = QuantState(
            absmax=self.scales.reshape(-1).contiguous(),
            shape=self.codes.shape,
            code=self.state.code.clone(),
            blocksize=self.state.blocksize,
            quant_type=self.state.quant_type,
            dtype=getattr(self.state, "original_dtype", self.state.dtype),  # packing sets another
        )
        return state.as_dict(packed=True)


@dataclass(frozen=True, slots=True, eq=False)
class TorchAO:
    """8 bits a weight as a tensor of torchao, kept as it is; `dynamic`: inputs are rounded, too."""

    weight: torch.Tensor
    dynamic: bool
    bias: torch.Tensor | None

    def dense(self, name: str, why: str) -> Dense:
        """The float weight that they stand for.

        Raises:
            ModelError: inputs are rounded too, which no float weight does.
        """
        if self.dynamic:
            raise ModelError(
                f"weights of int8-dynamic are saved as torchao's tensors, got {name}, where that fails since {why}; "
                "use int8-weight or rtn(bits=8)"
            )
        note = f"weights of torchao are stored as float where a checkpoint needs it, since {why}"
        return Dense(self.weight.dequantize(), self.bias, note)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As they are called in a checkpoint, behind the linear's name."""
        return {"weight": self.weight}


Parts = Dense | EightBit | FourBit | TorchAO


def parts_of(linear: nn.Module, name: str) -> Parts:
    """What `linear` is made of; nothing is changed, float weights are not copied.

    Raises:
        ModelError: a kind that no checkpoint of transformers can hold; `name` is where it is in the model.
    """
    bias = _detached(bias_of(linear))
    weight: Any = getattr(linear, "weight", None)
    if isinstance(linear, LowRank):
        return _with_terms(linear, name)
    if getattr(weight, "quant_state", None) is not None:
        return _four_bit(linear, bias)
    if hasattr(weight, "SCB"):
        held: Any = linear
        rows = weight.SCB if weight.SCB is not None else held.state.SCB
        return EightBit(weight.data, rows.float(), float(held.state.threshold), bias)
    if type(weight).__module__.startswith("torchao."):
        return TorchAO(weight.detach(), getattr(weight, "act_quant_kwargs", None) is not None, bias)
    if is_plain(linear):
        return Dense(weight.detach(), bias)
    if type(linear).__module__.startswith("torch.ao."):
        raise ModelError(
            f"a checkpoint holds linears that transformers can load, got torch.ao's packed one in {name}; use "
            "int8-weight, int8-dynamic or rtn(bits=8)"
        )
    kind = type(weight if type(linear) is nn.Linear else linear).__name__
    try:
        return Dense(effective_weight(linear).detach(), bias, f"weights of {kind} are stored as float")
    except CompressionError as error:
        raise ModelError(f"a checkpoint holds linears that can be read, got {name}: {error}") from None


def resized(
    values: torch.Tensor, dimension: int, size: int, sections: int = 1, fill: int = 0
) -> torch.Tensor:
    """`values` with `size` entries along `dimension`: the first ones of each of equal `sections`, then `fill`."""
    pieces = []
    for piece in values.chunk(sections, dimension):
        have, want = piece.shape[dimension], size // sections
        if want <= have:
            pieces.append(piece.narrow(dimension, 0, want))
            continue
        shape = [*piece.shape]
        shape[dimension] = want - have
        pieces.append(torch.cat([piece, piece.new_full(shape, fill)], dimension))
    return torch.cat(pieces, dimension)


def _sizes(
    parts: Any,  # noqa: ANN401  # any of the classes above
    field: str,
    rows: int | None,
    columns: int | None,
    sections: int,
    *,
    fill: int = 0,
) -> dict[str, Any]:
    """The fields of `parts` that change with its shape: rows with the bias, or columns."""
    values, changed = getattr(parts, field), {}
    if rows is not None:
        values = resized(values, 0, rows, sections, fill)
        changed["bias"] = None if parts.bias is None else resized(parts.bias, 0, rows, sections)
    if columns is not None:
        values = resized(values, 1, columns, 1, fill)
    return {**changed, field: values}


def _four_bit(linear: Any, bias: torch.Tensor | None) -> FourBit:  # noqa: ANN401
    state = linear.weight.quant_state
    stored = state.as_dict(packed=True) if state.nested else None
    rows = linear.out_features
    factors = scales(state).float()
    if factors.numel() % rows == 0:
        factors = factors.reshape(rows, -1)
    return FourBit(codes(linear.weight), factors, state, stored, linear.compute_dtype, bias)


def _with_terms(linear: LowRank, name: str) -> Dense:
    root: nn.Module = linear
    while isinstance(root, LowRank):
        root = root.base
    base = parts_of(root, name)
    if not isinstance(base, Dense):
        raise ModelError(
            f"a checkpoint holds a quantized linear or low-rank terms, not both, got terms over {type(root).__name__} "
            f"in {name}; use lora(merge=true), or measure this candidate without saving it"
        )
    kind = "low-rank terms are merged into float weights"
    note = f"{kind}; {base.note}" if base.note else kind
    return Dense(linear.dequantized().detach(), base.bias, note)


def _detached(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach()
