"""Shearing to a given shape by learnt masks: Sheared LLaMA (Xia et al. 2023, arXiv 2310.06694), section 2.1.

Layers, key/value groups, feed-forward channels and hidden channels get hard concrete gates, held at the wanted
numbers by Lagrange multipliers, and are trained on next-token cross entropy (`methods.hard_concrete`). Then the
gates with the highest log_alpha stay, exactly as many as wanted, and the rest is cut out.

What differs from the published code (princeton-nlp/LLM-Shearing): the weights are not trained beside the masks, nor
multiplied by them, so that what is left are weights of the model (`sheared` trains them afterwards); one
multiplier pair a row, not one a kind; every window of a batch draws its own gates; log_alpha begins at 2 instead of 5
and the target is reached after a fifth of the steps, as a course is short; no dynamic batch loading. Norms are
those of the whole width, which `models.hidden_shape` makes exact when it cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.errors import CompressionError, NothingCompressedError, RecipeError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.gated import HEADS, HIDDEN, INNER, LAYERS, gated, sizes
from pytest_llmslim.methods.hard_concrete import BOUNDS, constraint, sample
from pytest_llmslim.methods.importance import strongest
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.methods.token_loss import cross_entropy, mean_loss
from pytest_llmslim.methods.training import Course, Trained, batch_of, text_for, train
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.hidden_shape import check_hidden, keep_hidden
from pytest_llmslim.models.shapes import (
    keep_channels,
    keep_kv_groups,
    keep_layers,
    loadable,
    states_head_dim,
)

if TYPE_CHECKING:
    from torch import nn

_KINDS = (LAYERS, HEADS, INNER, HIDDEN)
_WORDS = {LAYERS: "layers", HEADS: "heads", INNER: "feed-forward channels", HIDDEN: "hidden channels"}

_BEGIN = 2.0  # log_alpha of all gates at first: open with a probability of 0.97
_RAMP = 0.2  # share of the steps in which the target falls from everything to what is wanted
_PULL = 2.0  # nats a share by which a multiplier moves where log_alpha moves by 1


@dataclass(frozen=True)
class Shear:
    """Cuts to a shape by masks learnt under constraints. At least one of the first four is given.

    Args:
        layers: how many stay.
        heads: how many query heads stay in every layer, in whole key/value groups.
        inner: how many feed-forward channels stay in every layer.
        hidden: how many hidden channels stay.
        steps: optimizer steps of the masks.
        batch: windows of text a step.
        rate: highest learning rate of log_alpha.

    Raises:
        RecipeError: nothing to cut to, or a value out of range.
    """

    layers: int | None = None
    heads: int | None = None
    inner: int | None = None
    hidden: int | None = None
    steps: int = 60
    batch: int = 4
    rate: float = 0.3

    def __post_init__(self) -> None:
        check_shape("shear", self.wanted)
        self._course.check("shear")

    @property
    def wanted(self) -> dict[str, int | None]:
        """The four numbers by kind."""
        return {LAYERS: self.layers, HEADS: self.heads, INNER: self.inner, HIDDEN: self.hidden}

    @property
    def _course(self) -> Course:
        return Course(self.steps, self.batch, self.rate)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Learn the masks and cut `module`, in place.

        Raises:
            CompressionError: no text, a model that was compressed before, or a shape that the model lacks or
                that no checkpoint of its family can tell.
            ModelError: a hidden state that cannot be cut.
            NothingCompressedError: the model has this shape already.
        """
        float_linears(module, "shear", context)
        _check_even(module, context)
        before = _shape(module)
        targets = self._targets(module, context)
        masks, trained = self._learn(module, targets, context)
        _cut(module, masks, targets)
        check_forward(module, "shear", context)
        after = _shape(module)
        parts = [
            f"{after[kind]} of {before[kind]} {_WORDS[kind]}" for kind in _KINDS if after[kind] < before[kind]
        ]
        said = f"shear: {', '.join(parts)} kept, by masks learnt in {self.steps} steps"
        return Applied(module, said, resumed=trained.resumed)

    def _targets(self, module: nn.Module, context: Context) -> dict[str, int]:
        """How many gates of a row stay, by the kinds that are cut."""
        now = _shape(module)
        wanted = {kind: now[kind] if count is None else count for kind, count in self.wanted.items()}
        for kind, count in wanted.items():
            if count > now[kind]:
                raise CompressionError(
                    f"shear on {context.label}: cuts to a smaller shape, got {kind}={count} for a model of "
                    f"{now[kind]}; ask for fewer"
                )
        if wanted == now:
            raise NothingCompressedError(
                f"shear on {context.label}: cuts to a smaller shape, got the model's own; ask for less"
            )
        _check_loadable(module, wanted, context)
        if wanted[HIDDEN] < now[HIDDEN]:
            check_hidden(module)
        gates = {**wanted, HEADS: wanted[HEADS] // Blocks(module).layers[0].attention.groups}
        return {kind: gates[kind] for kind in _KINDS if wanted[kind] < now[kind]}

    def _learn(
        self, module: nn.Module, targets: dict[str, int], context: Context
    ) -> tuple[dict[str, torch.Tensor], Trained]:
        """log_alpha [rows, gates] of each kind after the course."""
        course, device = self._course, next(module.parameters()).device
        windows = text_for(course, context, "shear").to(device)
        rows = {kind: sizes(module)[kind] for kind in targets}
        masks = {kind: torch.nn.Parameter(torch.full(rows[kind], _BEGIN, device=device)) for kind in targets}
        pulls = {kind: torch.nn.Parameter(torch.zeros(rows[kind][0], 2, device=device)) for kind in targets}

        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            _bound(masks)
            tokens = batch_of(windows, course, step, context.seed)
            drawn = {
                kind: sample(mask.expand(len(tokens), *mask.shape), generator) for kind, mask in masks.items()
            }
            with gated(module, drawn):
                cost = mean_loss(cross_entropy, module, tokens)
            done = min(1.0, (step + 1) / (_RAMP * self.steps))
            for kind, mask in masks.items():
                share = 1 - done * (1 - targets[kind] / mask.shape[1])
                cost = cost + constraint(mask, share, _PULL * pulls[kind])
            return cost

        learnt = masks | {f"multipliers of {kind}": pull for kind, pull in pulls.items()}
        trained = train("shear", module, learnt, loss, course, context, identity=repr(self), keep_zeros=False)
        return {kind: mask.detach() for kind, mask in masks.items()}, trained


def check_shape(method: str, wanted: dict[str, int | None]) -> None:
    """Refuse numbers that no model has, and no number at all.

    Raises:
        RecipeError: method, parameter, rule, got.
    """
    for name, count in wanted.items():
        if count is not None:
            check_number(method, name, count, "a whole number from 1", low=1, high=10**6, whole=True)
    if all(count is None for count in wanted.values()):
        raise RecipeError(
            f"{method}: a shape names one or more of {', '.join(wanted)}, got none; give e.g. inner=128"
        )


def _shape(module: nn.Module) -> dict[str, int]:
    """The four numbers of a model."""
    gates = {kind: count for kind, (_, count) in sizes(module).items()}
    return {**gates, HEADS: Blocks(module).layers[0].attention.heads}


def _check_even(module: nn.Module, context: Context) -> None:
    """Refuse layers of different shapes, as a checkpoint has one for all."""
    shapes = {
        (layer.attention.heads, int(module.get_submodule(layer.feed_forward.outer).in_features))
        for layer in Blocks(module).layers
    }
    if len(shapes) > 1:
        raise CompressionError(
            f"shear on {context.label}: layers have equal numbers of heads and feed-forward channels, got "
            f"{sorted(shapes)}; shear before steps that cut layers unequally"
        )


def _check_loadable(module: nn.Module, wanted: dict[str, int], context: Context) -> None:
    """Refuse heads that do not fit their groups, or that do not fit the hidden width."""
    attention = Blocks(module).layers[0].attention
    heads, hidden = wanted[HEADS], wanted[HIDDEN]
    if heads % attention.groups:
        raise CompressionError(
            f"shear on {context.label}: heads stay in whole groups of {attention.groups}, got heads={heads}; "
            f"ask for {heads - heads % attention.groups or attention.groups}"
        )
    if not states_head_dim(module) and heads * attention.head_dim != hidden:
        raise CompressionError(
            f"shear on {context.label}: the heads of {context.family} fill its hidden state, {attention.head_dim} "
            f"channels each, got heads={heads} and hidden={hidden}; ask for both together"
        )
    told = {"hidden_size": hidden, "num_attention_heads": heads}
    if states_head_dim(module) and not loadable(module.config, **told):
        raise CompressionError(
            f"shear on {context.label}: hidden is a multiple of heads, or the checkpoint would not load, "
            f"got hidden={hidden} and heads={heads}; ask for numbers that divide"
        )


def _bound(masks: dict[str, torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for mask in masks.values():
            mask.clamp_(*BOUNDS)


def _cut(module: nn.Module, masks: dict[str, torch.Tensor], targets: dict[str, int]) -> None:
    """Keep the highest `targets` of each row of `masks`."""
    kept = {kind: [strongest(row, targets[kind]) for row in masks[kind]] for kind in targets}
    layers = kept[LAYERS][0] if LAYERS in kept else range(len(Blocks(module).layers))
    if LAYERS in kept:
        keep_layers(module, layers)
    if HEADS in kept:
        keep_kv_groups(module, {place: kept[HEADS][layer] for place, layer in enumerate(layers)})
    if INNER in kept:
        keep_channels(module, {place: kept[INNER][layer] for place, layer in enumerate(layers)})
    if HIDDEN in kept:
        keep_hidden(module, kept[HIDDEN][0])
