"""Pruning and then training, as two papers do it: Minitron and Sheared LLaMA, put together from the other methods.

- `Minitron` (Muralidharan et al. 2024, arXiv 2407.14679): layers, feed-forward channels, heads and hidden channels
  go by activation importance, then the pruned model learns the distribution of the unpruned one. As the paper finds
  best, the loss is the forward KL of the logits alone, at temperature 1.
- `Sheared` (Xia et al. 2023, arXiv 2310.06694): learnt masks cut to a shape, then the model goes on training on
  text, by next-token cross entropy. The text is the run's own; the paper's dynamic batch loading needs text from
  several domains.

The papers train on billions of tokens; the defaults are for minutes on a CPU. nvidia-modelopt's Minitron needs
Megatron models, and the published code of Sheared LLaMA is for one family.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.depth import Depth
from pytest_llmslim.methods.hidden import Hidden
from pytest_llmslim.methods.kd import KD
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_number, refuse
from pytest_llmslim.methods.shear import Shear, check_shape
from pytest_llmslim.methods.student import in_float32
from pytest_llmslim.methods.token_loss import cross_entropy, mean_loss
from pytest_llmslim.methods.training import Course, batch_of, text_for, train
from pytest_llmslim.methods.width import Width
from pytest_llmslim.models.storage import copy_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from pytest_llmslim.methods import Method


@dataclass(frozen=True)
class Minitron:
    """Prunes by importance, then learns from the unpruned model.

    Args:
        ratio: share of the feed-forward channels that goes; see `Width`.
        heads: share of the attention heads that goes.
        hidden: share of the hidden channels that goes; see `Hidden`.
        layers: how many layers go; see `Depth`.
        steps: optimizer steps of the distillation.
        batch: windows of text a step.
        rate: highest learning rate.

    Raises:
        RecipeError: a value is out of range, or nothing is to go.
    """

    ratio: float = 0.25
    heads: float = 0.0
    hidden: float = 0.0
    layers: int = 0
    steps: int = 100
    batch: int = 4
    rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("ratio", "heads", "hidden"):
            rule = "a number from 0 and below 1"
            check_number("minitron", name, getattr(self, name), rule, low=0, high=1 - 1e-9)
        rule = "a whole number from 0"
        check_number("minitron", "layers", self.layers, rule, low=0, high=10**6, whole=True)
        if not (self.ratio or self.heads or self.hidden or self.layers):
            refuse("minitron", "ratio", "above 0 where heads, hidden and layers are 0", self.ratio)
        Course(self.steps, self.batch, self.rate).check("minitron")

    @property
    def parts(self) -> list[Method]:
        """What is done, in order."""
        parts: list[Method] = [Depth(layers=self.layers)] if self.layers else []
        if self.ratio or self.heads:
            parts.append(Width(ratio=self.ratio, heads=self.heads))
        if self.hidden:
            parts.append(Hidden(ratio=self.hidden))
        course = {"steps": self.steps, "batch": self.batch, "rate": self.rate}
        return [*parts, KD(student="same", temperature=1.0, alpha=1.0, **course)]  # type: ignore[arg-type]

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Prune `module` in place, then train it.

        Raises:
            CompressionError: as the parts do.
        """
        if context.reference is None:
            context = replace(context, reference=copy_model(module))
        return in_turn("minitron", self.parts, module, context)


@dataclass(frozen=True)
class Sheared:
    """Shears to a shape, then trains on text. At least one of the first four is given.

    Args:
        layers: how many stay.
        heads: how many query heads stay in every layer, in whole key/value groups.
        inner: how many feed-forward channels stay in every layer.
        hidden: how many hidden channels stay.
        steps: optimizer steps of the training; the masks have their own course, see `Shear`.
        batch: windows of text a step.
        rate: highest learning rate of the training.

    Raises:
        RecipeError: nothing to cut to, or a value out of range.
    """

    layers: int | None = None
    heads: int | None = None
    inner: int | None = None
    hidden: int | None = None
    steps: int = 80
    batch: int = 4
    rate: float = 1e-3

    def __post_init__(self) -> None:
        shape = {"layers": self.layers, "heads": self.heads, "inner": self.inner, "hidden": self.hidden}
        check_shape("sheared", shape)
        Course(self.steps, self.batch, self.rate).check("sheared")

    @property
    def parts(self) -> list[Method]:
        """What is done, in order."""
        shear = Shear(self.layers, self.heads, self.inner, self.hidden)
        return [shear, OnText(self.steps, self.batch, self.rate)]

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Shear `module` in place, then train it.

        Raises:
            CompressionError: as `Shear`, or a loss that is not finite.
        """
        return in_turn("sheared", self.parts, module, context)


@dataclass(frozen=True)
class OnText:
    """Trains all weights by next-token cross entropy; the second half of `Sheared`."""

    steps: int
    batch: int
    rate: float

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Train `module`, in place.

        Raises:
            CompressionError: no text, quantized weights, or a loss that is not finite.
        """
        float_linears(module, "sheared", context)
        course = Course(self.steps, self.batch, self.rate)
        windows = text_for(course, context, "sheared")

        def loss(step: int, _generator: torch.Generator) -> torch.Tensor:
            return mean_loss(cross_entropy, module, batch_of(windows, course, step, context.seed))

        with in_float32(module):
            trained = train("sheared", module, dict(module.named_parameters()), loss, course, context)
        check_forward(module, "sheared", context)
        return Applied(module, f"training on text: {trained.sentence}", resumed=trained.resumed)


def in_turn(name: str, parts: Sequence[Method], module: nn.Module, context: Context) -> Applied:
    """Apply `parts` one after another, as one method `name`."""
    done: list[Applied] = []
    for part in parts:
        done.append(part.compress(done[-1].module if done else module, context))
    return Applied(
        done[-1].module,
        f"{name}: {'; '.join(applied.sentence for applied in done)}",
        simulated="; ".join(dict.fromkeys(applied.simulated for applied in done if applied.simulated)),
        resumed="; ".join(applied.resumed for applied in done if applied.resumed),
    )
