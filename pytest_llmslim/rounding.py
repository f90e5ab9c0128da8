"""Telling rounded weights apart from free ones: fake quantization leaves few values, or a grid."""

from __future__ import annotations

from typing import Final

import torch

_ROWS: Final = 64  # sampled from each weight; rounding touches all rows alike
_LEVELS: Final = 256  # an 8-bit code
_LENGTHS: Final = (16, 32)  # of the pieces in which one scale holds: group sizes are multiples of these
_SHARE: Final = 0.9  # of all pieces; a few agree by chance, a few miss by chance
_WORST: Final = 0.15  # distance from the grid, in steps; at random it is below 0.15 for 3 of 10 values


def is_rounded(weight: torch.Tensor) -> bool:
    """Whether the rows of `weight` [out, in] hold few levels, as after quantizing and dequantizing.

    Looks at all rows together, at each row, and at pieces of 16 and 32 neighbours, so that scales a tensor, a
    row or a group are all seen. Zeros do not count, so that pruning is not taken for rounding. Eight bits a
    group stored in bfloat16, which has eight bits itself, cannot be told from free weights.
    """
    rows = _sample(weight)
    return any(_mostly_coded(pieces) for pieces in (rows.reshape(1, -1), *_pieces(rows)))


def _sample(weight: torch.Tensor) -> torch.Tensor:
    rows = weight.detach().reshape(weight.shape[0], -1)
    chosen = torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).long().to(rows.device)
    return rows[chosen]


def _pieces(rows: torch.Tensor) -> list[torch.Tensor]:
    width = rows.shape[1]
    cut = [rows[:, : width - width % n].reshape(-1, n) for n in _LENGTHS if width >= n]
    return [rows, *cut]


def _mostly_coded(pieces: torch.Tensor) -> bool:
    """Whether nearly all pieces [pieces, n] hold few values, or values on an even grid."""
    if pieces.shape[1] < min(_LENGTHS):
        return False
    eps = torch.finfo(pieces.dtype).eps
    values = pieces.double()
    occupied = (values != 0).sum(dim=1)
    # a piece that pruning left nearly empty says nothing
    speaks = occupied >= max(8, pieces.shape[1] // 8)
    if not speaks.any():
        return False
    values, occupied = values[speaks], occupied[speaks]
    coded = _few(values, occupied) | _on_grid(values, eps)
    return float(coded.double().mean()) >= _SHARE


def _few(values: torch.Tensor, occupied: torch.Tensor) -> torch.Tensor:
    """Per piece: at most half as many different values as there are non-zero ones, and at most 256."""
    ordered = values.sort(dim=1).values
    different = 1 + (ordered.diff(dim=1) != 0).sum(dim=1) - (values == 0).any(dim=1).long()
    return different <= (occupied // 2).clamp(max=_LEVELS)


def _on_grid(values: torch.Tensor, eps: float) -> torch.Tensor:
    """Per piece: all values are whole multiples of a step with at most 256 levels.

    Numbers of steps tried: 127 from zero to the largest magnitude (absmax codes), and from the smallest to
    the largest value as many as the smallest gap goes into that range, or twice and three times as many,
    since a short piece may have no two neighbouring levels (asymmetric codes).
    """
    low = values.amin(dim=1, keepdim=True)
    span = values.amax(dim=1, keepdim=True) - low
    gaps = values.sort(dim=1).values.diff(dim=1)
    smallest = torch.where(gaps > 0, gaps, torch.inf).amin(dim=1, keepdim=True)
    fits = _fits(values / values.abs().amax(dim=1, keepdim=True), torch.full_like(low, 127.0), eps)
    for times in (1, 2, 3):
        fits |= _fits((values - low) / span, (times * span / smallest).round(), eps)
    return fits


def _fits(share: torch.Tensor, steps: torch.Tensor, eps: float) -> torch.Tensor:
    """Per piece: `share` of the range [pieces, n], times `steps` [pieces, 1], is whole, up to rounding."""
    level = share * steps
    allowed = (4 * eps * steps).clamp(min=1e-2, max=_WORST)
    return ((level - level.round()).abs() <= allowed).all(dim=1) & (steps[:, 0] < _LEVELS)
