"""Attention-head pruning by concentration (arXiv 2502.00046): heads that look at one token go.

As the paper states it: a head in which a single token receives more than the threshold of the attention,
over calibration text, is removed. It leaves open how attention is averaged. The reading taken here:

    concentration(head) = mean over windows of  max over keys j of  mean over queries i of  a[i, j]

with a[i, j] the attention probability of query i for key j in one calibration window. A head that sends
everything to the first token (an attention sink) has a concentration of 1.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmslim.errors import CompressionError, NothingCompressedError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.layerwise import checked
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.models.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pytest_llmslim.models.attention import Attention
    from pytest_llmslim.models.blocks import Layer

SIMULATED = (
    "heads are masked inside key/value groups that other heads still use, so every product is still computed"
)


@dataclass(frozen=True)
class Cut:
    """What goes from one layer: whole key/value groups, and single heads of groups that stay."""

    groups: frozenset[int]
    heads: frozenset[int]


@dataclass(frozen=True)
class AttentionHeads:
    """Removes heads whose concentration is above `threshold`.

    Where query heads share keys and values (GQA), a group is removed when all its heads qualify; qualifying
    heads of other groups are masked. The least concentrated group of a layer always stays whole.

    Args:
        threshold: share of the attention that one token receives, above 0 and below 1.

    Raises:
        RecipeError: a threshold out of range.
    """

    threshold: float = 0.9

    def __post_init__(self) -> None:
        rule = "a number above 0 and below 1"
        check_number("ah", "threshold", self.threshold, rule, low=1e-9, high=1 - 1e-9)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Cut heads out of `module`, in place.

        Raises:
            CompressionError: no calibration text, a model that was compressed before, or one whose attention
                cannot be read.
            NothingCompressedError: no head, or none that may go, is above the threshold.
        """
        float_linears(module, "ah", context)
        scores = concentrations(module, _windows(context), context)
        layers = Blocks(module).layers
        cuts = [
            choose(score, layer.attention, self.threshold)
            for score, layer in zip(scores, layers, strict=True)
        ]
        highest = max(float(score.max()) for score in scores)
        if not any(cut.groups or cut.heads for cut in cuts):
            raise NothingCompressedError(self._nothing(context, highest))
        total = sum(layer.attention.heads for layer in layers)
        removed = sum(_cut(layer.attention, cut) for layer, cut in zip(layers, cuts, strict=True))
        masked = sum(len(cut.heads) for cut in cuts)
        check_forward(module, "ah", context)
        said = f"ah(threshold={self.threshold:g}): {removed} of {total} heads removed, {masked} masked"
        said += f"; the highest concentration was {highest:.3f}"
        return Applied(module, said, "" if removed else SIMULATED)

    def _nothing(self, context: Context, highest: float) -> str:
        said = (
            f"ah on {context.label}: removes heads that give one token more than {self.threshold:g} "
            "of their attention, "
        )
        if highest > self.threshold:
            return said + (
                "and the only such heads are in groups that have to stay, one in every layer; "
                "use a model with more heads"
            )
        return said + f"and no head gives more than {highest:.3f}; lower the threshold"


def _windows(context: Context) -> torch.Tensor:
    rule = f"ah on {context.label}: concentration is measured on calibration windows"
    return checked(context.calibration, rule, "give a calibration text")


def concentrations(module: nn.Module, windows: torch.Tensor, context: Context) -> list[torch.Tensor]:
    """Concentration of every head, one tensor [heads] a layer, from token ids [windows, window].

    Raises:
        CompressionError: a layer's attention returned no probabilities.
    """
    layers = Blocks(module).layers
    sums: dict[int, torch.Tensor] = {}
    device = next(module.parameters()).device
    with torch.no_grad(), _eager(module), _watched(layers, sums):
        for window in windows:
            module(input_ids=window[None].to(device), use_cache=False)
    if len(sums) < len(layers):
        raise CompressionError(
            f"ah on {context.label}: eager attention returns its probabilities, "
            f"got them from {len(sums)} of {len(layers)} layers; this model cannot be pruned by heads"
        )
    return [sums[layer.index] / len(windows) for layer in layers]


def concentration(attention: torch.Tensor) -> torch.Tensor:
    """Concentration [heads], averaged over windows, from probabilities [windows, heads, queries, keys]."""
    return attention.float().mean(dim=2).amax(dim=-1).mean(dim=0)


def choose(score: torch.Tensor, attention: Attention, threshold: float) -> Cut:
    """What to cut from a layer whose heads have the concentrations `score` [heads]."""
    # Query head h reads key/value group h // (heads / groups): [groups, heads a group]
    groups = score.reshape(attention.kv_heads, -1)
    above = groups > threshold
    whole = set(above.all(dim=1).nonzero().flatten().tolist())
    if len(whole) == attention.kv_heads:
        stays = int(groups.mean(dim=1).argmin())
        return Cut(frozenset(whole - {stays}), frozenset())
    size = groups.shape[1]
    single = {group * size + head for group, head in above.nonzero().tolist() if group not in whole}
    return Cut(frozenset(whole), frozenset(single))


def _cut(attention: Attention, cut: Cut) -> int:
    """Carry out `cut`; returns the number of heads removed."""
    before = attention.heads
    if cut.heads:  # first, as removing groups renumbers the heads
        attention.mask_heads(set(cut.heads))
    if cut.groups:
        attention.remove_kv_groups(set(cut.groups))
    return before - attention.heads


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """Attention that computes its probabilities explicitly; the only kind that returns them."""
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        yield
    finally:
        module.set_attn_implementation(before)


@contextmanager
def _watched(layers: list[Layer], sums: dict[int, torch.Tensor]) -> Iterator[None]:
    """Add each window's concentration to `sums` while attention runs, so that no [heads, T, T] piles up."""
    handles = [layer.attention.module.register_forward_hook(_adder(layer.index, sums)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(index: int, sums: dict[int, torch.Tensor]) -> Any:  # noqa: ANN401  # torch hooks are untyped
    def add(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], torch.Tensor):
            score = concentration(output[1])
            sums[index] = sums[index] + score if index in sums else score

    return add
