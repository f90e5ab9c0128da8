"""AWQ: channels that see large activations are scaled up before rounding, so that less of what counts is lost.

Lin et al. 2023, arXiv 2306.00978, section 3.2: the factors are s = mean|x|^a, with the a of a grid from 0 to 1 whose
rounded weights change the output least (equation 4). Our own, since llmcompressor's needs an accelerator for
its cache, knows no OPT and GPT-2 and a wrong norm for Gemma 3, and the authors' own code runs on CUDA.

It differs from theirs in three ways. The output whose error counts is that of the whole block with all its linears
rounded, so that the error never exceeds plain rounding's (a = 0) and falls from one search to the next. A block is
calibrated on what the rounded blocks before it give. Weights are not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.grid import Grid, check_grid
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.packed import SIMULATED, PackedLinear, packed_sentence
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.methods.smoothing import fold, linear_links, norm_links

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods.layerwise import Visit
    from pytest_llmslim.methods.smoothing import Link

STEPS: Final = 20
"""Exponents that are tried: 0, 1/20, ... 19/20."""
TOKENS: Final = 512
"""About so many tokens decide on the exponents; the means are over all."""
_FAINTEST: Final = 1e-4  # share of the largest channel below which a channel is scaled down no further


@dataclass(frozen=True)
class AWQ:
    """Rounds the linears of all blocks to an integer grid, after scaling their channels.

    Args:
        bits: of a weight, 2 to 8.
        group: neighbours along the input that share a scale.
        symmetric: levels lie symmetric about 0; otherwise they cover the range of the weights.
        samples: calibration windows.

    Raises:
        RecipeError: a value that is none of these.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    samples: int = 32

    def __post_init__(self) -> None:
        check_grid("awq", self.bits, self.group, self.symmetric)
        rule = "a whole number from 1 to 65536"
        check_number("awq", "samples", self.samples, rule, low=1, high=65536, whole=True)

    @property
    def grid(self) -> Grid:
        """Where the weights go."""
        return Grid(self.bits, self.group, self.symmetric)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Scale channels and replace the linears of the blocks by `PackedLinear`, in place.

        Raises:
            CompressionError: no text for calibration, a model without float linears, or with weights that are not
                finite.
        """
        float_linears(module, "awq", context)
        windows = calibration(context, "awq", self.samples)
        packed, left, scaled, links = [], [], 0, 0
        for visit in visits(module, windows, context, "awq"):
            search = Search(module, visit, self.grid)
            links += len(search.links)
            scaled += search.scale()
            left.append(search.left)
            for name, linear in visit.layer.linears.items():
                packed.append(PackedLinear.rounded(linear, self.grid))
                module.set_submodule(name, packed[-1])
        check_forward(module, "awq", context)
        said = (
            f"{packed_sentence('awq', packed)}; {scaled} of {links} sets of channels scaled, which leaves "
            f"{sum(left) / len(left):.1%} of the blocks' error"
        )
        return Applied(module, said, SIMULATED)


class Search:
    """The factors of one block.

    Args:
        module: the whole model, its linears from this block on plain and float.
        visit: the block's.
        grid: where the weights are rounded to.
    """

    def __init__(self, module: nn.Module, visit: Visit, grid: Grid) -> None:
        self.module = module
        self.visit = visit
        self.grid = grid
        self.links = [*norm_links(module, visit.layer), *linear_links(visit.layer)]
        """What can be scaled."""
        self.left = 1.0
        """Share of plain rounding's error of the block's output that is left, at most 1."""
        self._weights = {name: linear.weight.data for name, linear in visit.layer.linears.items()}
        self._floats = {name: weight.clone() for name, weight in self._weights.items()}
        self._means = means(visit, [link.readers[0] for link in self.links])
        self._sample = visit.inputs[:: -(-len(visit.inputs) * visit.inputs[0].shape[1] // TOKENS)]

    def scale(self) -> int:
        """Fold the best factors into the block, whose weights stay floats; returns how many links were scaled."""
        wanted = [self.visit.run(states) for states in self._sample]
        for name in self._floats:
            self._round(name, None)
        plain = least = self._error(wanted)
        found = []
        for link in self.links:
            factor, least = self._best(link, wanted, least)
            found.append((link, factor))
        for name, weight in self._floats.items():
            self._weights[name].copy_(weight)
        for link, factor in found:
            if factor is not None:
                fold(self.module, link, factor)
        self.left = least / plain if plain else 1.0
        return sum(factor is not None for _, factor in found)

    def _best(
        self, link: Link, wanted: list[torch.Tensor], least: float
    ) -> tuple[torch.Tensor | None, float]:
        """Factors that leave less than the error `least`, or `None`, and what they leave; its readers so rounded."""
        mean, best = self._means[link.readers[0]], None
        for step in range(1, STEPS):
            tried = factors(mean, step / STEPS)
            for name in link.readers:
                self._round(name, tried)
            error = self._error(wanted)
            if error < least:
                best, least = tried, error
        for name in link.readers:
            self._round(name, best)
        return best, least

    def _round(self, name: str, factor: torch.Tensor | None) -> None:
        """Let a linear multiply by its weight as it is when it is rounded with its columns times `factor`."""
        weight = self._floats[name]
        rounded = (
            self.grid.round_to(weight)
            if factor is None
            else self.grid.round_to(weight.float() * factor) / factor
        )
        self._weights[name].copy_(rounded)

    def _error(self, wanted: list[torch.Tensor]) -> float:
        """Sum of squares by which the block's outputs miss the `wanted` ones."""
        pairs = zip(self._sample, wanted, strict=True)
        return sum(
            float((self.visit.run(states) - output).float().square().sum()) for states, output in pairs
        )


def means(visit: Visit, names: list[str]) -> dict[str, torch.Tensor]:
    """Mean |x| of every channel that enters these linears, float32 [in] each, over all windows of a visit."""
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, states: torch.Tensor) -> None:
        if name in names:
            total = states.abs().sum(dim=0, dtype=torch.float64)
            sums[name] = sums[name] + total if name in sums else total

    visit.watch(add)
    tokens = sum(states.shape[1] for states in visit.inputs)
    return {name: (total / tokens).float() for name, total in sums.items()}


def factors(mean: torch.Tensor, exponent: float) -> torch.Tensor:
    """mean|x|^exponent [in], scaled so that the largest and the smallest multiply to 1."""
    largest = mean.max()
    if largest == 0:
        return torch.ones_like(mean)
    scaled = (mean / largest).clamp(min=_FAINTEST) ** exponent
    return scaled / scaled.min().sqrt()
