"""Quantization-aware training: weights are rounded in every forward pass while they learn, then rounded for good.

The gradient of the rounded weight is taken for that of the weight (straight-through estimator, Bengio et al. 2013,
arXiv 1308.3432, section 4). What is learnt from is the uncompressed model's own distribution, as in LLM-QAT (Liu et
al. 2023, arXiv 2305.17888, section 2.2), on text of the user's instead of text that the model writes.

torchao has this too (`QATConfig`): Jacob's and LLM-QAT's estimator over grids of its own, whose weights below 8 bits
are then stored a byte each and know no `keep_zeros`. What differs is smaller than what would have to be
converted, so rounding is that of `Grid` here and the loop that of all training.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils import parametrize

from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.grid import Grid, check_grid
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.packed import SIMULATED, PackedLinear, packed_sentence
from pytest_llmslim.methods.student import in_float32
from pytest_llmslim.methods.token_loss import cross_entropy, divergence, mean_loss, reference_for
from pytest_llmslim.methods.training import Course, batch_of, text_for, train

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_llmslim.methods.training import Trained


@dataclass(frozen=True)
class QAT:
    """Trains the weights of the blocks' linears as they are when rounded, then rounds them.

    Takes four times the memory of these weights in float32, and their gradients.

    Args:
        bits: of a weight, 2 to 8.
        group: neighbours along the input that share a scale.
        symmetric: levels lie symmetric about 0; otherwise they cover the range of the weights.
        steps: optimizer steps.
        batch: windows of text a step.
        rate: highest learning rate.

    Raises:
        RecipeError: a value out of range.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    steps: int = 100
    batch: int = 4
    rate: float = 1e-4

    def __post_init__(self) -> None:
        check_grid("qat", self.bits, self.group, self.symmetric)
        self._course.check("qat")

    @property
    def grid(self) -> Grid:
        """Where the weights go."""
        return Grid(self.bits, self.group, self.symmetric)

    @property
    def _course(self) -> Course:
        return Course(self.steps, self.batch, self.rate)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Train and replace the linears of the blocks by `PackedLinear`, in place.

        Raises:
            CompressionError: no text, a model without float linears, weights that are not finite, or a loss that is
                not finite.
        """
        linears = float_linears(module, "qat", context)
        windows = text_for(self._course, context, "qat")
        teacher = reference_for(module, context)
        with in_float32(module):
            trained = self._train(module, linears, windows, teacher, context)
            found = {name: self.grid.fit(linear.weight) for name, linear in linears.items()}
            codes = {name: self.grid.codes(linear.weight, found[name]) for name, linear in linears.items()}
        packed = []
        for name, linear in linears.items():
            packed.append(PackedLinear.of(linear, self.grid, codes[name], found[name]))
            module.set_submodule(name, packed[-1])
        check_forward(module, "qat", context)
        source = "the text" if teacher is None else "the uncompressed model"
        said = f"{packed_sentence('qat', packed)}; learnt from {source}, {trained.sentence}"
        return Applied(module, said, SIMULATED, trained.resumed)

    def _train(
        self,
        module: nn.Module,
        linears: dict[str, nn.Linear],
        windows: torch.Tensor,
        teacher: nn.Module | None,
        context: Context,
    ) -> Trained:
        measure = cross_entropy if teacher is None else divergence

        def loss(step: int, _generator: torch.Generator) -> torch.Tensor:
            batch = batch_of(windows, self._course, step, context.seed)
            return mean_loss(measure, module, batch, teacher=teacher)

        weights = {f"{name}.weight": linear.weight for name, linear in linears.items()}
        with rounding(linears.values(), self.grid):
            return train(
                "qat", module, weights, loss, self._course, context, teacher=teacher, identity=repr(self)
            )


class Rounded(nn.Module):
    """The nearest levels of a grid forwards, nothing backwards.

    Args:
        grid: fitted anew to every weight.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Levels [out, in] for a weight of any float dtype, with the gradient of the weight itself."""
        return weight + (self.grid.round_to(weight.detach()) - weight.detach())


@contextmanager
def rounding(linears: Iterable[nn.Linear], grid: Grid) -> Iterator[None]:
    """These linears multiply by their weights as rounded; afterwards they are plain again, with what was learnt."""
    held = list(linears)
    for linear in held:
        parametrize.register_parametrization(linear, "weight", Rounded(grid), unsafe=True)
    try:
        yield
    finally:
        for linear in held:
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
