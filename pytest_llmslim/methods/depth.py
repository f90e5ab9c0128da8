"""Depth pruning: whole layers go, or are put together anew.

`Depth` removes layers by one of three choices:

- `influence`: Block Influence of ShortGPT (Men et al. 2024, arXiv 2403.03853): 1 - the mean cosine
  between what enters a layer and what leaves it, over tokens of calibration text; the lowest go, all at once.
- `perplexity`: one layer after another, each time the one without which the loss on calibration text is lowest
  (greedy, as SLEB, Song et al. 2024, arXiv 2402.09025).
- `last`: the deepest ones before the final layer, which stays (the simpler strategy of Gromov et al. 2024,
  arXiv 2403.17887). Needs no text.

`Layers` recombines them by a list: skip, repeat, reorder.

torch-pruning, modelopt and llmcompressor remove no layers of transformers' models together with their config, so
this is our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.errors import CompressionError, NothingCompressedError
from pytest_llmslim.evals.perplexity import token_nll
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_choice, check_number, refuse
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.classifiers import head_of
from pytest_llmslim.models.shapes import keep_layers, with_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

RATIO = 0.25
"""Share of the layers that goes when neither a number nor a share is given."""


@dataclass(frozen=True)
class Depth:
    """Removes whole layers.

    Args:
        layers: how many go.
        ratio: share of the layers that goes instead: round(ratio * n), at least one; 0.25 when neither is given.
        by: how they are chosen: `influence`, `perplexity` or `last`.
        samples: calibration windows at most, for `influence` and `perplexity`.

    Raises:
        RecipeError: both numbers are given, or a value is out of range.
    """

    layers: int | None = None
    ratio: float | None = None
    by: str = "influence"
    samples: int = 8

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_number(
                "depth", "layers", self.layers, "a whole number from 1", low=1, high=10**6, whole=True
            )
            if self.ratio is not None:
                refuse("depth", "ratio", "left out where layers is given", self.ratio)
        elif self.ratio is not None:
            rule = "a number above 0 and below 1"
            check_number("depth", "ratio", self.ratio, rule, low=1e-9, high=1 - 1e-9)
        check_choice("depth", "by", self.by, ("influence", "perplexity", "last"))
        check_number("depth", "samples", self.samples, "a whole number from 1", low=1, high=10**6, whole=True)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Remove layers from `module`, in place.

        Raises:
            CompressionError: no layer would be left, there is no calibration text where it is needed, or the model
                was quantized before or has weights that are not finite.
        """
        float_linears(module, "depth", context)
        depth = len(Blocks(module).layers)
        count = self._count(depth, context)
        gone, why = self._choose(module, depth, count, context)
        keep_layers(module, [index for index in range(depth) if index not in gone])
        check_forward(module, "depth", context)
        which = f"{'layer' if count == 1 else 'layers'} {spelled(sorted(gone))} of 0-{depth - 1}"
        return Applied(module, f"depth(by={self.by}): {which} removed, {why}")

    def _count(self, depth: int, context: Context) -> int:
        ratio = RATIO if self.ratio is None else self.ratio
        count = max(1, round(ratio * depth)) if self.layers is None else self.layers
        if count >= depth:
            raise CompressionError(
                f"depth on {context.label}: at least one of its {depth} layers stays, got {count} to remove; "
                "remove fewer, or use a deeper model"
            )
        return count

    def _choose(self, module: nn.Module, depth: int, count: int, context: Context) -> tuple[list[int], str]:
        """The layers that go, and a few words on why these."""
        if self.by == "last":
            return list(range(depth - 1 - count, depth - 1)), "the deepest before the final one"
        windows = calibration(context, "depth", self.samples)
        if self.by == "perplexity":
            gone, losses = greedy(module, windows, count, context)
            steps = ", then ".join(
                f"{index} ({loss:.3f})" for index, loss in zip(gone, losses[1:], strict=True)
            )
            return gone, f"with the loss growing from {losses[0]:.3f}: {steps}"
        scores = influences(module, windows, context)
        order = sorted(range(depth), key=scores.__getitem__)
        gone, rest = order[:count], order[count:]
        low = ", ".join(f"{scores[index]:.3f}" for index in sorted(gone))
        return gone, f"with block influence {low}; the others have {scores[rest[0]]:.3f} or more"


@dataclass(frozen=True)
class Layers:
    """Puts layers together anew, as Franken-LLaMA: skip, repeat, reorder. A repeated layer is a copy of its own.

    Args:
        map: the new model's layers by the old one's indices from 0, e.g. `0-2,2,5` or `0-2/2/5`.

    Raises:
        RecipeError: a map that names no layers.
    """

    map: str | int = ""

    def __post_init__(self) -> None:
        order_of(self.map)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Recombine the layers of `module`, in place.

        Raises:
            CompressionError: the model lacks a layer that the map names, was quantized before, or has weights that
                are not finite.
            NothingCompressedError: the map is the model as it is.
        """
        float_linears(module, "layers", context)
        order, depth = order_of(self.map), len(Blocks(module).layers)
        if max(order) >= depth:
            raise CompressionError(
                f"layers on {context.label}: the model has the layers 0 to {depth - 1}, got {max(order)} in "
                f"map={self.map!r}; name only layers it has"
            )
        if order == list(range(depth)):
            raise NothingCompressedError(
                f"layers on {context.label}: a map skips, repeats or reorders layers, got all {depth} as they "
                "are; leave one out"
            )
        keep_layers(module, order)
        check_forward(module, "layers", context)
        return Applied(module, f"layers: {spelled(order)} of 0-{depth - 1}, {len(order)} instead of {depth}")


def influences(module: nn.Module, windows: torch.Tensor, context: Context) -> list[float]:
    """Block Influence of every layer, from token ids [windows, window]."""
    return [
        sum(influence(hidden, visit.run(hidden)) for hidden in visit.inputs) / len(visit.inputs)
        for visit in visits(module, windows, context, "depth")
    ]


def influence(before: torch.Tensor, after: torch.Tensor) -> float:
    """1 - the mean over tokens of the cosine between the hidden states [..., hidden] before and after a layer."""
    cosines = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
    return 1 - float(cosines.mean())


def greedy(
    module: nn.Module, windows: torch.Tensor, count: int, context: Context
) -> tuple[list[int], list[float]]:
    """`count` layers in the order in which they go, each the one without which the loss is lowest then.

    Returns:
        The layers, and the loss in nats a token: first with all layers, then after each removal.
    """
    left, gone = list(range(len(Blocks(module).layers))), []
    losses = [loss_without(module, windows, left, None)]
    for turn in range(count):
        trials = {}
        for index in left:
            context.tell(f"depth: removal {turn + 1} of {count}, without layer {index}")
            trials[index] = loss_without(module, windows, left, index)
        worst = min(trials, key=trials.__getitem__)
        left.remove(worst)
        gone.append(worst)
        losses.append(trials[worst])
    return gone, losses


def loss_without(module: nn.Module, windows: torch.Tensor, left: Sequence[int], index: int | None) -> float:
    """Mean negative log likelihood, in nats, of `windows` [windows, window] by the layers `left` but `index`."""
    head_of(module)  # a classifier has none
    device = next(module.parameters()).device
    nats = []
    with torch.no_grad(), with_layers(module, [other for other in left if other != index]):
        for window in windows:
            tokens = window[None].to(device)
            nats.append(token_nll(module(input_ids=tokens, use_cache=False).logits, tokens, 1).mean())
    return float(torch.stack(nats).mean())


def order_of(value: object) -> list[int]:
    """The layers that a map like `0-2,2,5` names, in its order.

    Raises:
        RecipeError: no such list.
    """
    rule = "a list of layers from 0 and ascending ranges of them, as '0-2,2,5' or 0-2/2/5"
    if isinstance(value, bool) or not isinstance(value, str | int):
        refuse("layers", "map", rule, value)
    order: list[int] = []
    for item in re.split(r"[,/]", str(value)):
        found = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", item, re.ASCII)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            refuse("layers", "map", rule, value)
        order += range(int(found[1]), int(found[2] or found[1]) + 1)
    return order


def spelled(order: Sequence[int]) -> str:
    """A list of layers as a map spells it: three or more that follow one another as a range."""
    runs: list[list[int]] = []
    for index in order:
        if runs and runs[-1][-1] + 1 == index:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(parts)
