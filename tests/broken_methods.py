"""Methods with one fault each, and one without of every kind, for tests of the invariants that find them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Applied
from pytest_llmslim.methods.eora import EoRA
from pytest_llmslim.methods.grid import Grid
from pytest_llmslim.methods.kd import KD
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.methods.masks import smallest, smallest_of_groups
from pytest_llmslim.methods.packed import PackedLinear
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.shapes import keep_channels, keep_layers
from pytest_llmslim.models.slices import keep_columns, keep_rows

if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = "a number from 2 to 8"


@dataclass(frozen=True)
class Rounds:
    """Rounds every row to a symmetric grid; `fault` is what is wrong with it."""

    bits: int = 3
    fault: str = ""

    def __post_init__(self):
        check_number("Rounds", "bits", self.bits, LEVELS, low=2, high=8, whole=True)
        if self.fault not in ("", *FAULTS):
            check_number("Rounds", "fault", self.fault, "one of the faults", low=1, high=0)

    @property
    def grid(self):
        return Grid(self.bits, granularity="row")

    def compress(self, module, context):
        for linear in float_linears(module, "Rounds", context).values():
            linear.weight.data = FAULTS.get(self.fault, right)(linear.weight.data, self.grid)
        if self.fault != "overflows":
            check_forward(module, "Rounds", context)
        return Applied(module, f"Rounds: to {self.bits} bits")


def right(weight, grid):
    return grid.round_to(weight)


def floors(weight, grid):
    step = grid.step(weight)
    return ((weight.float() / step).floor() * step).to(weight.dtype)


def scale_of_another_row(weight, grid):
    step = grid.step(weight).roll(1, 0)
    return ((weight.float() / step).round().clamp(-grid.steps, grid.steps) * step).to(weight.dtype)


def clips(weight, grid):
    step = 0.9 * grid.step(weight)
    return ((weight.float() / step).round().clamp(-grid.steps, grid.steps) * step).to(weight.dtype)


def one_level_more_below(weight, grid):
    step = grid.step(weight) * grid.steps / (grid.steps + 1)
    return ((weight.float() / step).round().clamp(-grid.steps - 1, grid.steps) * step).to(weight.dtype)


def too_many_levels(weight, grid):
    return Grid(grid.bits + 1, granularity="row").round_to(weight)


def fixed_step(weight, grid):
    return ((weight.float() / 0.125).round() * 0.125).to(weight.dtype)


def no_zero(weight, grid):
    step = grid.step(weight)
    return (((weight.float() / step - 0.5).round() + 0.5) * step).to(weight.dtype)


def fewer_bits_for_more(weight, grid):
    return Grid(10 - grid.bits, granularity="row").round_to(weight)


def overflows(weight, grid):
    return grid.round_to(weight) * 1e30 / 1e30 if weight.abs().max() < 2 else weight * float("inf")


FAULTS: dict[str, Callable[..., torch.Tensor]] = {
    function.__name__: function
    for function in (
        floors, scale_of_another_row, clips, one_level_more_below, too_many_levels, fixed_step, no_zero,
        fewer_bits_for_more, overflows,
    )
}  # fmt: skip


class Mispacked(PackedLinear):
    """Gives codes back in another order."""

    @property
    def codes(self):
        return super().codes.flip(1)


@dataclass(frozen=True)
class Mispacks:
    """Packs weights into linears whose codes come out wrong."""

    bits: int = 4

    def compress(self, module, context):
        for name, linear in float_linears(module, "Mispacks", context).items():
            module.set_submodule(name, Mispacked.rounded(linear, Grid(self.bits, granularity="row")))
        return Applied(module, "Mispacks: packed")


@dataclass(frozen=True)
class Zeroes:
    """Zeroes the smallest weights; `fault` is what is wrong with it."""

    sparsity: float | None = None
    pattern: str | None = None
    fault: str = ""

    def compress(self, module, context):
        for linear in float_linears(module, "Zeroes", context).values():
            weight = linear.weight.data
            goes = self._pattern(weight) if self.pattern else self._share(weight)
            weight.masked_fill_(goes, 0)
            if self.fault == "touches":
                weight.mul_(1.01)
        return Applied(module, "Zeroes: done")

    def _share(self, weight):
        share = 0.5 if self.sparsity is None else self.sparsity
        if self.fault == "again":
            count = int((weight == 0).sum()) + round(share * int((weight != 0).sum()))
        else:
            count = round(share * weight.numel()) + (self.fault == "one_more")
        score = weight if self.fault == "signed" else weight.abs()
        return smallest(score.masked_fill(weight == 0, -torch.inf), min(count, weight.numel()))

    def _pattern(self, weight):
        kept, group = map(int, self.pattern.split(":"))
        goes = smallest_of_groups(weight.abs(), kept, group)
        if self.fault == "last_row":
            goes[-1] = False
        return goes


@dataclass(frozen=True)
class Cuts:
    """Cuts half of the feed-forward channels; `fault` is what is wrong with it."""

    fault: str = ""

    def compress(self, module, context):
        float_linears(module, "Cuts", context)
        layers = Blocks(module).layers
        width = module.get_submodule(layers[0].feed_forward.outer).in_features
        kept = list(range(0, width, 2))
        if self.fault == "nothing":
            return Applied(module, "Cuts: nothing")
        if self.fault == "caches":
            _drop_a_layer(module)
        elif len(kept) == width:
            raise CompressionError(f"Cuts on {context.label}: takes two channels or more, got {width}")
        elif self.fault in ("config", "columns"):
            other = list(range(1, width, 2)) + kept[width // 2 :] if self.fault == "columns" else kept
            _cut_by_hand(module, kept, other)
        else:
            keep_channels(module, {layer.index: kept for layer in layers})
        return Applied(module, "Cuts: done")


def _cut_by_hand(module, rows, columns):
    for layer in Blocks(module).layers:
        for name in layer.feed_forward.inner:
            keep_rows(module.get_submodule(name), torch.tensor(rows))
        keep_columns(module.get_submodule(layer.feed_forward.outer), torch.tensor(columns))
    if rows != columns:
        key = {"gpt2": "n_inner", "opt": "ffn_dim"}.get(module.config.model_type, "intermediate_size")
        setattr(module.config, key, len(rows))


def _drop_a_layer(module):
    """All but the first layer stay, and still look for the cache where they were."""
    places = [_place(layer) for layer in Blocks(module).layers]
    keep_layers(module, range(1, len(places)))
    for layer, place in zip(Blocks(module).layers, places[1:], strict=True):
        for part in layer.module.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place


def _place(layer):
    return next(part.layer_idx for part in layer.module.modules() if hasattr(part, "layer_idx"))


@dataclass(frozen=True)
class Heals:
    """EoRA; `fault` is what is wrong with it."""

    rank: int = 4
    fault: str = ""

    def compress(self, module, context):
        module = EoRA(rank=self.rank).compress(module, context).module
        for linear in Blocks(module).linears().values():
            if self.fault == "worse":
                linear.up.data.neg_()
            if self.fault == "base":
                linear.base.weight = nn.Parameter(_weight(linear.base) * 1.01, requires_grad=False)
        return Applied(module, "Heals: done")


def _weight(linear):
    return linear.dequantized() if hasattr(linear, "dequantized") else linear.weight


@dataclass(frozen=True)
class Teaches:
    """KD; `fault` is what is wrong with it."""

    steps: int = 2
    rate: float = 1e-3
    fault: str = ""

    def compress(self, module, context):
        student = "same" if self.fault == "grows" else "half"
        if self.fault == "grows":
            keep_layers(module, [*range(len(Blocks(module).layers)), 0])
        module = (
            KD(student=student, alpha=1.0, steps=self.steps, rate=self.rate).compress(module, context).module
        )
        if self.fault == "spoils" and self.steps > 1:
            module.get_output_embeddings().weight.data *= -10
        return Applied(module, "Teaches: done")


@dataclass(frozen=True)
class Careless:
    """Magnitude pruning that does one thing besides which a method does not do."""

    fault: str = ""
    share: float = 0.5
    sentence: ClassVar[str] = "Careless: done"

    def __post_init__(self):
        if self.fault == "takes_all" or self.share == 0.5:
            return
        if self.fault == "wrong_error":
            raise ValueError(self.share)
        rule = "a part" if self.fault == "nameless" else "a number above 0 and below 1"
        name = "it" if self.fault == "nameless" else "share"
        check_number("Careless", name, self.share, rule, low=1e-9, high=1 - 1e-9)

    def compress(self, module, context):
        if self.fault == "crashes" and context.family == "qwen3":
            raise KeyError("q_norm")
        if self.fault == "refuses_rudely" and context.family == "opt":
            raise CompressionError("no")
        if self.fault != "nothing":
            self._prune(module, context)
        self._besides(module, context)
        return Applied(module, "done" if self.fault == "sentence" else "Careless: done")

    def _prune(self, module, context):
        if self.fault == "takes_nan":
            for linear in Blocks(module).linears().values():
                linear.weight.data.nan_to_num_().masked_fill_(linear.weight.abs() < 0.01, 0)
        else:
            Magnitude(sparsity=self.share).compress(module, context)

    def _besides(self, module, context):
        linear = next(iter(Blocks(module).linears().values()))
        mine = next(iter(Blocks(context.reference).linears().values()))
        if self.fault == "draws":
            linear.weight.data += 1e-3 * torch.randn_like(linear.weight)
        elif self.fault == "changes_reference":
            mine.weight.data[0, 0] += 1
        elif self.fault == "changes_text":
            context.calibration[0, 0] += 1
        elif self.fault == "changes_config":
            context.reference.config.use_cache = not context.reference.config.use_cache
        elif self.fault == "changes_mode":
            context.reference.train()
        elif self.fault == "narrows":
            module.to(torch.bfloat16)
        elif self.fault == "wants_gradients":
            linear.weight.requires_grad_(True)
        elif self.fault == "trains":
            linear.train()
        elif self.fault == "overflows" and module.config.num_hidden_layers > 2:
            linear.weight.data.fill_(torch.inf)


@dataclass(frozen=True)
class Kept:
    """A frozen method with a field that no recipe sets."""

    share: float = 0.5
    notes: list[str] = field(default_factory=list, init=False)

    def compress(self, module, context):
        return Magnitude(sparsity=self.share).compress(module, context)
