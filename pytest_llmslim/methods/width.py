"""Width pruning: feed-forward channels and attention heads that carry little are cut out.

A channel's score is the sum over outputs of |weight| times the L2 norm of its activations, at the linear that
narrows again: Wanda's score (Sun et al. 2023, arXiv 2306.11695) for a whole channel, as in the baseline Wanda-sp of
An et al. 2023 (FLAP, arXiv 2312.11983). The activations behind the gate already hold what the widening linears do
to them. A key/value group has the summed score of the columns that its query heads have in the output projection.

FLAP itself differs: it scores by the variance of activations, gives each layer a share of its own, and puts the mean
of what it cut into a bias. A checkpoint of these families has one width for all layers, and mostly no such bias.

Layers are judged in order, each on what the pruned ones before it give; every layer loses the same number. Our own:
torch-pruning hangs on grouped heads and passes over GPT-2 in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.errors import CompressionError, NothingCompressedError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.importance import column_scores, input_norms, strongest
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_number, refuse
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.shapes import keep_channels, keep_kv_groups, statable_groups

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods.layerwise import Visit

_STEP = 64
"""Kept widths are multiples of this: bitsandbytes' 4-bit kernels on a CPU with AVX512-BF16 fail on others."""
_MOVED = 16
"""A step is at most 1/16 of the width, so that rounding moves it by at most 1/32."""


@dataclass(frozen=True)
class Width:
    """Cuts the weakest feed-forward channels and key/value groups out of every layer.

    Args:
        ratio: share of the feed-forward channels that goes. What stays is rounded to a multiple of 64, in a
            model less than 1024 wide of a smaller power of two.
        heads: share of the attention heads that goes, as whole key/value groups: round(heads * groups), at
            least one and never all.
        samples: calibration windows at most.

    Raises:
        RecipeError: a value is out of range, or both shares are 0.
    """

    ratio: float = 0.25
    heads: float = 0.0
    samples: int = 32

    def __post_init__(self) -> None:
        rule = "a number from 0 and below 1"
        check_number("width", "ratio", self.ratio, rule, low=0, high=1 - 1e-9)
        check_number("width", "heads", self.heads, rule, low=0, high=1 - 1e-9)
        check_number("width", "samples", self.samples, "a whole number from 1", low=1, high=10**6, whole=True)
        if not self.ratio and not self.heads:
            refuse("width", "ratio", "above 0 where heads is 0", self.ratio)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Cut channels and heads out of `module`, in place.

        Raises:
            CompressionError: no calibration text, a model that was compressed before, or heads that cannot be
                removed by such a share.
            NothingCompressedError: the share rounds to nothing.
        """
        float_linears(module, "width", context)
        width = _width(module)
        channels, groups = kept_channels(width, self.ratio), self._groups(module, context)
        if channels == width and groups == Blocks(module).layers[0].attention.kv_heads:
            raise NothingCompressedError(
                f"width on {context.label}: removes a share of {width} feed-forward channels, got "
                f"ratio={self.ratio:g}, which rounds to none; raise ratio"
            )
        heads = Blocks(module).layers[0].attention.heads
        self._cut(module, channels, groups, context)
        check_forward(module, "width", context)
        return Applied(module, _sentence(module, width, heads))

    def _groups(self, module: nn.Module, context: Context) -> int:
        """How many key/value groups each layer keeps."""
        attention = Blocks(module).layers[0].attention
        if not self.heads:
            return attention.kv_heads
        wanted = attention.kv_heads - max(1, round(self.heads * attention.kv_heads))
        possible = [count for count in statable_groups(module) if count < attention.kv_heads]
        if not possible:
            raise CompressionError(
                f"width on {context.label}: heads go by whole key/value groups, got {attention.kv_heads} a layer "
                "and none that its checkpoint could do without; leave heads out"
            )
        if max(1, wanted) in possible:
            return max(1, wanted)
        shares = ", ".join(f"{1 - count / attention.kv_heads:.3g}" for count in reversed(possible))
        raise CompressionError(
            f"width on {context.label}: the number of heads that stay divides the hidden width, or the checkpoint "
            f"would not load, got heads={self.heads:g}; choose of {shares}"
        )

    def _cut(self, module: nn.Module, channels: int, groups: int, context: Context) -> None:
        windows = calibration(context, "width", self.samples)
        kept: dict[int, list[int]] = {}
        kept_groups: dict[int, list[int]] = {}
        for visit in visits(module, windows, context, "width"):
            outer, output = visit.layer.feed_forward.outer, _output(visit)
            # the feed-forward part is judged with all heads there: one pass over the text for both
            norms = input_norms(visit, (outer, output))
            linears = visit.layer.linears
            kept[visit.layer.index] = strongest(column_scores(linears[outer].weight, norms[outer]), channels)
            scores = group_scores(column_scores(linears[output].weight, norms[output]), visit)
            kept_groups[visit.layer.index] = strongest(scores, groups)
            _silence(visit, kept[visit.layer.index], kept_groups[visit.layer.index])
        if channels < _width(module):
            keep_channels(module, kept)
        if groups < Blocks(module).layers[0].attention.kv_heads:
            keep_kv_groups(module, kept_groups)


def rounding(width: int) -> int:
    """What the kept width is a multiple of: the largest power of two up to 64 that is at most a 16th of `width`."""
    step = _STEP
    while step > 1 and step * _MOVED > width:
        step //= 2
    return step


def kept_channels(width: int, ratio: float) -> int:
    """How many of `width` channels stay: round((1 - ratio) * width), to the next multiple of the step."""
    step = rounding(width)
    stays = round((1 - ratio) * width / step) * step
    return min(width, max(step, stays)) if ratio else width


def group_scores(columns: torch.Tensor, visit: Visit) -> torch.Tensor:
    """Scores [groups] from those of the output projection's columns [heads * head_dim]."""
    # query head h belongs to group h // (heads / groups), so the columns of a group follow one another
    return columns.reshape(visit.layer.attention.kv_heads, -1).sum(dim=1)


def _sentence(module: nn.Module, width: int, heads: int) -> str:
    """What was cut from `module`, which had `width` channels and `heads` heads a layer."""
    layers = Blocks(module).layers
    left, left_heads, parts = _width(module), layers[0].attention.heads, []
    if left < width:
        step = f", {left} stay (a multiple of {rounding(width)})" if rounding(width) > 1 else ""
        parts.append(f"{width - left} of {width} feed-forward channels{step}")
    if left_heads < heads:
        parts.append(f"{heads - left_heads} of {heads} attention heads")
    return f"width: removed in each of {len(layers)} layers: {' and '.join(parts)}"


def _silence(visit: Visit, channels: list[int], groups: list[int]) -> None:
    """Zero the columns of what will be cut, so that the next layers are judged on what they will get."""
    attention = visit.layer.attention
    silent = {head for head in range(attention.heads) if head // attention.groups not in groups}
    attention.mask_heads(silent)
    weight = visit.layer.linears[visit.layer.feed_forward.outer].weight
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[channels] = False
    with torch.no_grad():
        weight[:, gone] = 0


def _output(visit: Visit) -> str:
    """Dotted name of the output projection of the block's heads."""
    wanted = visit.layer.attention.projection_output
    return next(name for name, linear in visit.layer.linears.items() if linear is wanted)


def _width(module: nn.Module) -> int:
    return int(module.get_submodule(Blocks(module).layers[0].feed_forward.outer).in_features)
