"""A weight matrix that prints itself so that a counter-example can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import torch

WHOLE: Final = 12
"""Sides up to this are printed in full."""
_HEAD, _TAIL = 5, 2
_DIGITS: Final = 4
_OMITTED: Final = "..."

Item = TypeVar("Item")


@dataclass(frozen=True, repr=False)
class Matrix:
    """Weights [out, in] as plain numbers.

    Args:
        rows: the values, one tuple a row; each is one that `dtype` holds.
        dtype: a floating point dtype of torch.
        kind: what was drawn, e.g. `outlier-columns`; empty for a matrix from elsewhere.
    """

    rows: tuple[tuple[float, ...], ...]
    dtype: torch.dtype = torch.float32
    kind: str = ""

    @classmethod
    def of(cls, tensor: torch.Tensor, kind: str = "") -> Matrix:
        """The values of a tensor [out, in]."""
        return cls(tuple(map(tuple, tensor.detach().double().tolist())), tensor.dtype, kind)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (outputs) and columns (inputs)."""
        return len(self.rows), len(self.rows[0])

    @property
    def tensor(self) -> torch.Tensor:
        """A new tensor [out, in] in `dtype`."""
        return torch.tensor(self.rows, dtype=torch.float64).to(self.dtype)

    def __repr__(self) -> str:
        texts = [[f"{value:.{_DIGITS}g}" for value in row] for row in self.rows]
        said = f"Matrix {self.shape[0]} x {self.shape[1]} {str(self.dtype).removeprefix('torch.')}"
        said += f", {self.kind}" if self.kind else ""
        said += "" if self._told(texts) else f", to {_DIGITS} digits"
        return "\n".join([f"{said}:", *_lines(texts)])

    def _told(self, texts: list[list[str]]) -> bool:
        """Whether the texts say all values exactly."""
        numbers = [[float(text) for text in row] for row in texts]
        told = torch.tensor(numbers, dtype=torch.float64).to(self.dtype)
        return torch.equal(told.nan_to_num(), self.tensor.nan_to_num())


def _lines(texts: list[list[str]]) -> list[str]:
    """The rows, aligned; of long ones the corners."""
    rows = _corners([_corners(row, _OMITTED) for row in texts], [])
    rows = [row or [_OMITTED] * len(rows[0]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows
    ]


def _corners(items: list[Item], omitted: Item) -> list[Item]:
    return items if len(items) <= WHOLE else [*items[:_HEAD], omitted, *items[-_TAIL:]]
