"""What all distillations share: the text, the course of the student, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pytest_llmslim.methods import Applied, Method
from pytest_llmslim.methods.layerwise import checked
from pytest_llmslim.methods.linears import check_forward
from pytest_llmslim.methods.student import in_float32
from pytest_llmslim.methods.training import TEXTS, Course, train

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_llmslim.methods import Context
    from pytest_llmslim.methods.student import Pair
    from pytest_llmslim.methods.training import Loss

BEFORE = 0.7
"""Share of the steps of a method whose student writes that learn from the text first, by cross entropy.

The papers fine-tune their students before; what a truncated model writes is noise, and noise teaches little.
"""

RESPONSE = 32
"""Tokens that a student writes in a row, at most; reading is quick, writing takes a pass of the models a token."""

_RATE = 0.25
"""Learning rate times hidden width: 2e-3 at a width of 128, 3e-4 at GPT-2's 768, 6e-5 at 4096."""


class Distillation(Method, Protocol):
    """The parameters that all of them have."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""

    @property
    def batch(self) -> int:
        """Windows a step."""

    @property
    def rate(self) -> float | None:
        """Highest learning rate."""


def check_course(name: str, method: Distillation) -> None:
    """Refuse steps, batch or rate that cannot be trained with.

    Raises:
        RecipeError: method, parameter, rule, got.
    """
    Course(method.steps, method.batch, 1.0 if method.rate is None else method.rate).check(name)


def course_for(method: Distillation, student: nn.Module) -> Course:
    """The course of a student; without a rate it falls with the width, as it has to with Adam."""
    rate = _RATE / student.config.hidden_size if method.rate is None else method.rate
    return Course(method.steps, method.batch, rate)


def texts(method: Distillation, context: Context, name: str, *, most: int = TEXTS) -> torch.Tensor:
    """Windows to learn from, int64 [n, window], on the device of the run.

    Raises:
        CompressionError: there is no text, or windows of fewer than two tokens.
    """
    windows = context.windows(min(method.steps * method.batch, most))
    rule = f"{name} on {context.label}: a student learns from windows of text"
    return checked(windows, rule, "give a longer text").to(context.device)


def prompt_and_response(windows: torch.Tensor) -> tuple[int, int]:
    """How many tokens of a window a model is given, and how many it writes behind them, at least one each."""
    length = windows.shape[1]
    prompt = max(1, length // 4)
    return prompt, min(RESPONSE, length - prompt)


def learn(
    name: str, method: Method, pair: Pair, loss: Loss, course: Course, context: Context, *, before: int = 0
) -> Applied:
    """Train all weights of the student by `loss`, of which the first `before` steps are another one.

    Raises:
        CompressionError: the loss, or the trained model's logits, are not finite.
    """
    with in_float32(pair.student):
        parameters = dict(pair.student.named_parameters())
        trained = train(
            name, pair.student, parameters, loss, course, context, teacher=pair.teacher, identity=repr(method)
        )
    check_forward(pair.student, name, context)
    said = trained.sentence
    if before:
        said = f"loss {trained.last:.3g} after {course.steps} steps, the first {before} by cross entropy"
    return Applied(pair.student, f"{name}: {pair.sentence}, {said}", resumed=trained.resumed)


def steps_before(course: Course) -> int:
    """How many steps learn from the text alone, where the student writes later; at least one does not."""
    return min(round(BEFORE * course.steps), course.steps - 1)
