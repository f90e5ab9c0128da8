"""How much the channels that enter a linear carry, measured on calibration text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch

    from pytest_llmslim.methods.layerwise import Visit


def input_norms(visit: Visit, names: Collection[str]) -> dict[str, torch.Tensor]:
    """L2 norm over all tokens of each channel that enters the linears `names` of a block.

    Args:
        visit: the block while it is its turn; all its windows run through it.
        names: dotted names from the model's root.

    Returns:
        float64 [in] by name.
    """
    squares: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor) -> None:
        if name in names:
            summed = inputs.double().square().sum(dim=0)
            squares[name] = squares[name] + summed if name in squares else summed

    visit.watch(add)
    return {name: summed.sqrt() for name, summed in squares.items()}


def column_scores(weight: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    """What each input channel gives through `weight` [out, in]: sum over outputs of |weight| times norm; [in].

    Wanda's score of single weights (Sun et al. 2023, arXiv 2306.11695) summed over what goes with a channel, as An
    et al. 2023 (FLAP, arXiv 2312.11983) do in their baseline Wanda-sp.
    """
    return weight.double().abs().sum(dim=0) * norms


def strongest(scores: torch.Tensor, count: int) -> list[int]:
    """Indices of the `count` highest of `scores` [n], ascending; of equal ones the first stay."""
    order = scores.argsort(descending=True, stable=True)[:count]
    return sorted(order.tolist())
