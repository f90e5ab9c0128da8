"""Pruning the hidden size by activation importance, as Minitron does (Muralidharan et al. 2024, arXiv 2407.14679).

A channel of the hidden state is as important as what the norms give in it, summed over the norms of all layers. Of
the ways to aggregate, the paper settles on a mean over the tokens of a window and an L2 norm over windows:

    score(channel) = sum over norms of  sqrt(sum over windows of (mean over tokens of |norm(x)[channel]|)^2)

The channels of the lowest scores go, everywhere at once. Other than in the paper the scale of the norms is corrected
(`models.hidden_shape`), so that the result computes what the whole model does with these channels zeroed. GPT-2 and
OPT have heads that fill the hidden state: there as many heads go from every layer, chosen as `width` does.

nvidia-modelopt has it for Megatron models only, and torch-pruning leaves the config as it was: our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.errors import CompressionError, NothingCompressedError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.importance import column_scores, input_norms, strongest
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.methods.width import group_scores, rounding
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.hidden_shape import hidden_step, hidden_width, keep_hidden
from pytest_llmslim.models.shapes import keep_kv_groups, states_head_dim

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods.layerwise import Visit

_MOVED = 16
"""Rounding may move the width by a 16th of it for the sake of kernels."""


@dataclass(frozen=True)
class Hidden:
    """Cuts the weakest channels out of the hidden state.

    Args:
        ratio: share of the channels that goes. What stays is rounded to what the family's config can say, and
            to a multiple of 64 (in a small model of a smaller power of two) where that is near.
        samples: calibration windows at most.

    Raises:
        RecipeError: a value is out of range.
    """

    ratio: float = 0.25
    samples: int = 32

    def __post_init__(self) -> None:
        check_number("hidden", "ratio", self.ratio, "a number above 0 and below 1", low=1e-9, high=1 - 1e-9)
        rule = "a whole number from 1"
        check_number("hidden", "samples", self.samples, rule, low=1, high=10**6, whole=True)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Cut channels out of `module`, in place.

        Raises:
            CompressionError: no calibration text, a model that was compressed before, or one whose heads do not
                fill its hidden state although its config can say nothing else.
            ModelError: embeddings of another width than the hidden state (opt-350m).
            NothingCompressedError: the share rounds to nothing.
        """
        float_linears(module, "hidden", context)
        before, after = hidden_width(module), kept_width(module, self.ratio)
        if before == after:
            raise NothingCompressedError(
                f"hidden on {context.label}: removes a share of {before} channels by steps of "
                f"{hidden_step(module)}, got ratio={self.ratio:g}, which rounds to none; raise ratio"
            )
        _check_heads(module, context)
        said = f"hidden: {before - after} of {before} channels of the hidden state removed everywhere"
        heads = Blocks(module).layers[0].attention.heads
        self._cut(module, after, context)
        if not states_head_dim(module):
            gone = heads - Blocks(module).layers[0].attention.heads
            said += f", with {gone} of {heads} heads in each layer"
        check_forward(module, "hidden", context)
        return Applied(module, said)

    def _cut(self, module: nn.Module, count: int, context: Context) -> None:
        windows = calibration(context, "hidden", self.samples)
        scores = torch.zeros(hidden_width(module), dtype=torch.float64)
        kept: dict[int, list[int]] = {}
        for visit in visits(module, windows, context, "hidden"):
            scores += norm_scores(visit).cpu()
            if not states_head_dim(module):
                kept[visit.layer.index] = _heads(visit, count // visit.layer.attention.head_dim)
        if kept:
            keep_kv_groups(module, kept)
        keep_hidden(module, strongest(scores, count))


def kept_width(module: nn.Module, ratio: float) -> int:
    """How many channels stay."""
    width, step = hidden_width(module), hidden_step(module)
    wanted = (1 - ratio) * width
    for multiple in (lcm(step, rounding(width)), step):
        stays = min(width, max(1, round(wanted / multiple)) * multiple)
        if abs(stays - wanted) * _MOVED <= width:
            break
    return stays


def norm_scores(visit: Visit) -> torch.Tensor:
    """Scores [hidden], float64, by the two norms of one block, as they enter attention and feed-forward."""
    readers = (next(iter(visit.layer.linears)), visit.layer.feed_forward.inner[0])
    squares: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor) -> None:  # called once a window
        if name in readers:
            squared = inputs.double().abs().mean(dim=0).square()
            squares[name] = squares[name] + squared if name in squares else squared

    visit.watch(add)
    return torch.stack([squared.sqrt() for squared in squares.values()]).sum(dim=0)


def _heads(visit: Visit, count: int) -> list[int]:
    """The `count` heads of a block that carry most."""
    output = visit.layer.attention.projection_output
    name = next(name for name, linear in visit.layer.linears.items() if linear is output)
    columns = column_scores(output.weight, input_norms(visit, [name])[name])
    return strongest(group_scores(columns, visit), count)


def _check_heads(module: nn.Module, context: Context) -> None:
    if states_head_dim(module):
        return
    for layer in Blocks(module).layers:
        filled = layer.attention.heads * layer.attention.head_dim
        if filled != hidden_width(module):
            raise CompressionError(
                f"hidden on {context.label}: the heads of {context.family} fill its hidden state of "
                f"{hidden_width(module)}, got heads of {filled} in layer {layer.index}; take no heads before"
            )
