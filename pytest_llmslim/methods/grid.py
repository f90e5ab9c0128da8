"""Integer grids for weights: where the levels lie, the codes of weights on them, and codes packed into bytes.

Symmetric: `scale = absmax / (2^(b-1) - 1)`, codes `-(2^(b-1) - 1) .. 2^(b-1) - 1`. Asymmetric: the range of the
weights, widened to hold 0, in `2^b - 1` steps, with the whole-numbered zero point `round(-low / scale)`
(Jacob et al. 2018, arXiv 1712.05877, section 2.1). Either way 0 is a level, so an exact zero stays one. Our own
since the libraries tie their grids to their modules; the invariants below are what the tests prove.

The arithmetic makes rounding idempotent bit by bit. A scale is rounded to two significant bits less than its
dtype has, so that the float error of the outermost levels does not move it when they are fitted again. Asymmetric
codes round ties, and what is nearer to a tie than that rounding can tell, away from zero, so that both ends
are attained. What this costs is an error of half a step and 2^-19 of the largest weight at most (float32). Not
idempotent are asymmetric grids of float16 and bfloat16 weights, where fitting rounded ends again may move a value
by that rounding, and ranges that are wider than the largest float.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from torch.nn import functional

from pytest_llmslim.methods.parameters import check_choice, check_number

GRANULARITIES = ("group", "row", "tensor")
_HELD_BACK = 2  # significant bits of its dtype that a scale leaves unused


def check_grid(
    method: str, bits: object, group: object, symmetric: object, granularity: object = "group"
) -> None:
    """Refuse parameters that make no grid, in the name of `method`.

    Raises:
        RecipeError: method, parameter, rule, got.
    """
    check_number(method, "bits", bits, "a whole number from 2 to 8", low=2, high=8, whole=True)
    check_choice(method, "granularity", granularity, GRANULARITIES)
    if group is not None or granularity == "group":
        rule = "a whole number from 2 to 65536"
        check_number(method, "group", group, rule, low=2, high=65536, whole=True)
    check_choice(method, "symmetric", symmetric, (True, False))


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """Where the levels of a weight [out, in] lie: one entry a group, a row, or the tensor.

    Args:
        scale: distance of two levels, float32 (float64 for float64 weights), above 0; shape [out, groups],
            [out, 1] or [1, 1].
        zero: the code of 0, uint8 of the same shape; `None` on a symmetric grid, where it is `2^(bits-1)`.
    """

    scale: torch.Tensor
    zero: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Grid:
    """An integer grid.

    Args:
        bits: of a code, 2 to 8.
        group: neighbours along the input that share a scale; the last group of a row may be shorter. Read only
            where `granularity` is `group`.
        symmetric: levels lie symmetric about 0; otherwise they cover the range of the weights and 0.
        granularity: `group`, `row` or `tensor`: what shares a scale.

    Raises:
        RecipeError: a value that is none of these.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True
    granularity: str = "group"

    def __post_init__(self) -> None:
        check_grid("grid", self.bits, self.group, self.symmetric, self.granularity)

    @property
    def steps(self) -> int:
        """From 0 to the last level (symmetric), or from the first to the last."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def words(self) -> str:
        """In words, e.g. `4-bit symmetric codes, a scale every 128 weights`."""
        kind = "symmetric" if self.symmetric else "asymmetric"
        shared = f"every {self.group} weights" if self.granularity == "group" else f"a {self.granularity}"
        return f"{self.bits}-bit {kind} codes, a scale {shared}"

    @property
    def middle(self) -> int:
        """The code of 0 on a symmetric grid."""
        return int(2 ** (self.bits - 1))

    def fit(self, weight: torch.Tensor) -> Scales:
        """The levels for finite weights [out, in] of any float dtype."""
        low, high = self._range(weight)
        dtype = working_dtype(weight.dtype)
        if self.symmetric:
            return Scales(_scale(torch.maximum(-low, high) / self.steps, dtype), None)
        scale = _scale((high - low) / self.steps, dtype)
        zero = -self._nearest(low.to(dtype) / scale)
        return Scales(scale, zero.clamp_(0, self.steps).to(torch.uint8))

    def codes(self, weight: torch.Tensor, scales: Scales) -> torch.Tensor:
        """The code of the nearest level for every weight, uint8 [out, in], from 0 to `2^bits - 1`."""
        columns = weight.shape[1]
        scale = self.spread(scales.scale, columns)
        nearest = self._nearest(weight.to(scale.dtype) / scale)
        if scales.zero is None:
            return nearest.clamp_(-self.steps, self.steps).add_(self.middle).to(torch.uint8)
        return nearest.add_(self.spread(scales.zero, columns)).clamp_(0, self.steps).to(torch.uint8)

    def dequantize(
        self, codes: torch.Tensor, scales: Scales, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The levels [out, in] that `codes` stand for, in `dtype` (that of the scales)."""
        dtype = dtype or scales.scale.dtype
        columns = codes.shape[1]
        zero = self.middle if scales.zero is None else self.spread(scales.zero, columns)
        levels = codes.to(scales.scale.dtype).sub_(zero).mul_(self.spread(scales.scale, columns))
        # the level next to the largest weight may lie beyond
        largest = min(torch.finfo(dtype).max, torch.finfo(levels.dtype).max)
        return levels.clamp_(-largest, largest).to(dtype)

    def round_to(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest level for every weight, [out, in] in the weight's dtype."""
        scales = self.fit(weight)
        return self.dequantize(self.codes(weight, scales), scales, weight.dtype)

    def step(self, weight: torch.Tensor) -> torch.Tensor:
        """Distance of two levels at every weight, [out, in] in the scales' dtype."""
        return self.spread(self.fit(weight).scale, weight.shape[1]).expand_as(weight)

    def spread(self, entries: torch.Tensor, columns: int) -> torch.Tensor:
        """Entries of scales [out, groups] at every column [out, columns]; [out, 1] and [1, 1] as they are."""
        if entries.shape[1] == 1 or self.group is None:
            return entries
        return entries.repeat_interleave(self.group, dim=1)[:, :columns]

    def _range(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Smallest and largest weight of all that share a scale, and 0; float64, shaped as the scales."""
        rows, columns = weight.shape
        pieces = weight[:, None]
        if self.granularity == "tensor":
            pieces = weight.reshape(1, 1, -1)
        elif self.granularity == "group" and self.group is not None:
            pieces = functional.pad(weight, (0, -columns % self.group)).reshape(rows, -1, self.group)
        low, high = pieces.amin(dim=-1).double(), pieces.amax(dim=-1).double()
        return low.clamp(max=0), high.clamp(min=0)

    def _nearest(self, position: torch.Tensor) -> torch.Tensor:
        """Whole numbers next to positions counted in steps from 0."""
        if self.symmetric:
            return position.round()
        blur = self.steps * _grain(position.dtype)
        return (position.abs() + (0.5 + blur)).floor_().copysign_(position)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which weights of `dtype` are computed with: float32 at least.

    float16 cannot hold the steps of small weights, and a scale in bfloat16 moves the last of 127 levels by a
    quarter of a step; so scales are float32 for these too.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def _grain(dtype: torch.dtype) -> float:
    """Relative distance of two neighbouring scales."""
    return torch.finfo(dtype).eps * 2**_HELD_BACK


def _scale(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales in `dtype` next to `exact` (float64), normal and finite; 1 where `exact` is 0."""
    mantissa, exponent = torch.frexp(exact)
    grain = _grain(dtype) / 2  # of a mantissa from 0.5 to 1
    rounded = torch.ldexp((mantissa / grain).round() * grain, exponent)
    limits = torch.finfo(dtype)
    scale = rounded.clamp(limits.tiny, limits.max * (1 - _grain(dtype)))
    return torch.where(exact > 0, scale, 1.0).to(dtype)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes [rows, columns] (uint8, below `2^bits`) as a stream of bits a row: uint8 [rows, ceil(columns*bits/8)].

    The first code takes the lowest bits of the first byte.
    """
    rows, columns = codes.shape
    together, whole_bytes, word = _period(bits)
    groups = functional.pad(codes, (0, -columns % together)).reshape(rows, -1, together).to(word)
    shifts = torch.arange(together, device=codes.device, dtype=word) * bits
    words = (groups << shifts).sum(dim=-1, keepdim=True, dtype=word)
    places = torch.arange(whole_bytes, device=codes.device, dtype=word) * 8
    packed = ((words >> places) & 0xFF).to(torch.uint8).reshape(rows, -1)
    return packed[:, : packed_columns(columns, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    """The codes [rows, columns] (uint8) that `pack` packed."""
    rows, width = packed.shape
    together, whole_bytes, word = _period(bits)
    groups = functional.pad(packed, (0, -width % whole_bytes)).reshape(rows, -1, whole_bytes).to(word)
    places = torch.arange(whole_bytes, device=packed.device, dtype=word) * 8
    words = (groups << places).sum(dim=-1, dtype=word)
    codes = torch.stack([(words >> bits * at) & (2**bits - 1) for at in range(together)], dim=-1)
    return codes.to(torch.uint8).reshape(rows, -1)[:, :columns].contiguous()


def packed_columns(columns: int, bits: int) -> int:
    """Bytes that `columns` codes take."""
    return -(-columns * bits // 8)


def _period(bits: int) -> tuple[int, int, torch.dtype]:
    """How many codes fill how many whole bytes, and a dtype that holds these."""
    together, whole_bytes = 8 // gcd(bits, 8), bits // gcd(bits, 8)
    word = {1: torch.uint8, 3: torch.int32}.get(whole_bytes, torch.int64)
    return together, whole_bytes, word
