"""The one training loop: seeded, showing progress, and going on where it was interrupted.

transformers' Trainer keeps its optimizer in pickles, which are never loaded here; so this loop is our own. What a
step draws depends on the seed and the number of the step alone, so a training that went on after an interruption
gives the same weights as one that did not stop. Modules stay in eval mode, so that no dropout draws from a global
state: a course is short and sees little text twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods.layerwise import calibration
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.models.storage import weights_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from pytest_llmslim.methods import Context

    Loss = Callable[[int, torch.Generator], torch.Tensor]
    """The loss (a scalar) of a step, given its number from 0 and the generator of everything it draws."""

EVERY_S = 30.0
"""Seconds between two checkpoints."""
TEXTS = 1024
"""Windows of text that a course reads at most before it begins again."""
_CLIP = 1.0  # largest norm of the gradient
_WARM = 0.1  # share of the steps in which the rate rises
_LAST = 0.1  # share of the rate that is left at the end
_HALF = ".part"  # ends the name of a checkpoint that is being written
_COUNT = "step"
_STATE = (_COUNT, "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter that ever had a gradient


@dataclass(frozen=True)
class Course:
    """How long and how fast is trained.

    Args:
        steps: optimizer steps.
        batch: windows of text a step.
        rate: highest learning rate of AdamW; rises over the first tenth of the steps, then falls by a cosine.
    """

    steps: int
    batch: int
    rate: float

    def check(self, method: str) -> None:
        """Refuse values that cannot be trained with.

        Raises:
            RecipeError: method, parameter, rule, got.
        """
        whole = "a whole number from 1 to 1000000"
        for name in ("steps", "batch"):
            value = getattr(self, name)
            check_number(method, name, value, whole, low=1, high=10**6, whole=True)
        check_number(method, "rate", self.rate, "a number above 0 and at most 1", low=1e-12, high=1)

    def rate_at(self, step: int) -> float:
        """The learning rate of step `step`, from 0."""
        warm = max(1, round(_WARM * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.rate * (_LAST + (1 - _LAST) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(frozen=True)
class Trained:
    """How a training went: mean loss of the first and the last tenth of its steps, and where it went on."""

    first: float
    last: float
    steps: int
    resumed_at: int = 0

    @property
    def sentence(self) -> str:
        """In numbers, to end a method's sentence."""
        return f"loss {self.first:.3g} to {self.last:.3g} in {self.steps} steps"

    @property
    def resumed(self) -> str:
        """For `Applied.resumed`."""
        if not self.resumed_at:
            return ""
        return f"training went on at step {self.resumed_at} of {self.steps} after an interruption"


def train(
    method: str,
    module: nn.Module,
    parameters: Mapping[str, torch.nn.Parameter],
    loss: Loss,
    course: Course,
    context: Context,
    *,
    teacher: nn.Module | None = None,
    identity: str = "",
    keep_zeros: bool = True,
) -> Trained:
    """Minimise `loss` over `parameters` with AdamW; gradients are off again afterwards, `module` in eval mode.

    Weights that are exactly zero stay so, since an earlier step pruned them.

    Args:
        method: as written in the recipe, for messages.
        module: in eval mode; what holds the parameters; its weights are part of what a checkpoint is known by.
        parameters: what to train, by name; float32.
        loss: see `Loss`. Whatever it draws comes from the generator it is given.
        course: steps, batch and rate.
        context: seed, progress and checkpoints.
        teacher: what `loss` learns from; part of what a checkpoint is known by.
        identity: what else the result depends on (the method's parameters); part of the checkpoint's name.
        keep_zeros: off for parameters that begin at zero.

    Raises:
        CompressionError: the loss or its gradient is not finite.
    """
    masks = {
        name: p.detach() != 0
        for name, p in parameters.items()
        if keep_zeros and p.dim() > 1 and (p == 0).any()
    }
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters.values(), lr=course.rate, weight_decay=0.0, betas=(0.9, 0.95))
    shelf = _Shelf.of(method, [module, teacher], course, context, identity)
    begin, losses = shelf.take(parameters, optimizer) if shelf else (0, [])
    module.eval()
    try:
        for step in range(begin, course.steps):
            generator = torch.Generator().manual_seed(_seed(context.seed, step))
            value = loss(step, generator)
            told = f"{method} on {context.label}", f"at step {step + 1} of {course.steps}; lower rate"
            _check_finite("the loss is a finite number", value, told)
            norm = _gradients(optimizer, value, parameters)
            _check_finite("the norm of the gradient is a finite number", norm, told)
            _step(optimizer, course.rate_at(step), parameters, masks)
            losses.append(float(value.detach()))
            context.tell(f"{method}: step {step + 1} of {course.steps}, loss {losses[-1]:.3g}")
            if shelf and (trouble := shelf.put(parameters, optimizer, losses)):
                context.tell(f"{method}: no checkpoint, {trouble}")
    finally:
        optimizer.zero_grad(set_to_none=True)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        module.eval()
    if shelf:
        shelf.clear()
    tenth = max(1, len(losses) // 10)
    return Trained(sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth, course.steps, resumed_at=begin)


def text_for(course: Course, context: Context, method: str) -> torch.Tensor:
    """The windows [n, window] that a course reads, on the device of the run.

    Raises:
        CompressionError: the run has no text for calibration.
    """
    return calibration(context, method, min(course.steps * course.batch, TEXTS)).to(context.device)


def batch_of(windows: torch.Tensor, course: Course, step: int, seed: int) -> torch.Tensor:
    """Token ids [batch, window] of a step: the windows [n, window] in a random order, anew in each round."""
    n = windows.shape[0]
    positions = range(step * course.batch, (step + 1) * course.batch)
    rows = [int(_order(n, seed, position // n)[position % n]) for position in positions]
    return windows[rows]


def _order(n: int, seed: int, turn: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(_seed(seed, turn)))


def _seed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:7], "big")


def _check_finite(rule: str, value: torch.Tensor, told: tuple[str, str]) -> None:
    if not torch.isfinite(value):
        raise CompressionError(f"{told[0]}: {rule}, got {float(value.detach())} {told[1]}")


def _gradients(
    optimizer: torch.optim.Optimizer, value: torch.Tensor, parameters: Mapping[str, torch.nn.Parameter]
) -> torch.Tensor:
    """Fill the gradients of `value`, clipped; returns their norm before."""
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    return torch.nn.utils.clip_grad_norm_(list(parameters.values()), _CLIP)


def _step(
    optimizer: torch.optim.Optimizer,
    rate: float,
    parameters: Mapping[str, torch.nn.Parameter],
    masks: Mapping[str, torch.Tensor],
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    with torch.no_grad():
        for name, mask in masks.items():
            parameters[name].mul_(mask)


def _text_hash(context: Context) -> str:
    """Of the first windows; more of them begin with these."""
    if context.calibration is None:
        return ""
    return hashlib.sha256(context.calibration.cpu().contiguous().numpy().tobytes()).hexdigest()


@dataclass
class _Shelf:
    """Where the checkpoint of one training lies: one safetensors file, replaced as a whole."""

    file: Path
    last: float

    @classmethod
    def of(
        cls, method: str, models: Sequence[nn.Module | None], course: Course, context: Context, identity: str
    ) -> _Shelf | None:
        if context.checkpoints is None:
            return None
        run = f"{method} {identity} {course} {context.seed} {context.device}"
        weights = " ".join(weights_hash(model) for model in models if model is not None)
        known = f"{run} {_text_hash(context)} {weights}"
        name = "".join(c if c.isalnum() else "-" for c in method)
        digest = hashlib.sha256(known.encode()).hexdigest()[:16]
        return cls(context.checkpoints / f"{name}-{digest}.safetensors", time.monotonic())

    def take(
        self, parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[int, list[float]]:
        """Put back what was saved: the step to go on with and the losses so far. What does not fit is as none."""
        try:
            with safe_open(self.file, framework="pt") as stored:
                notes = stored.metadata()
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # no mapping
            losses = [float(loss) for loss in json.loads(notes["losses"])]
            states = {name: _state(tensors, name) for name in parameters}
            fits = all(tensors[f"weight {name}"].shape == p.shape for name, p in parameters.items())
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return 0, []
        if not fits:
            return 0, []
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"weight {name}"])
            state = {part: kept.to(parameter.device) for part, kept in states[name].items() if part != _COUNT}
            if state:
                optimizer.state[parameter] = {_COUNT: states[name][_COUNT], **state}
        return len(losses), losses

    def put(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        losses: list[float],
    ) -> str:
        """Save, if the last time is long ago; returns why that failed, if it did."""
        if time.monotonic() - self.last < EVERY_S:
            return ""
        self.last = time.monotonic()
        tensors = {f"weight {name}": parameter.detach() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            for part, tensor in optimizer.state.get(parameter, {}).items():
                tensors[f"{part} {name}"] = tensor
        stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        half = self.file.with_suffix(f".{os.getpid()}{_HALF}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            save_file(stored, half, metadata={"losses": json.dumps(losses)})
            os.replace(half, self.file)
        except (OSError, SafetensorError) as error:
            return str(error)
        return ""

    def clear(self) -> None:
        """The training has ended: nothing is left to go on with, nor what a process that was killed began."""
        for file in (self.file, *self.file.parent.glob(f"{self.file.stem}.*{_HALF}")):
            with suppress(OSError):
                file.unlink()


def _state(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """What was kept of AdamW's state for one parameter: all of it, or nothing where it never had a gradient."""
    begun = f"{_COUNT} {name}" in tensors
    return {part: tensors[f"{part} {name}"] for part in _STATE} if begun else {}
