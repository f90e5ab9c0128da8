"""Knowledge distillation: a student learns the teacher's distribution, or text that the teacher writes.

KD (Hinton et al. 2015, arXiv 1503.02531), for every next token of the text, with z the logits, T the temperature
and p = softmax(z_teacher / T), q = softmax(z_student / T):

    alpha * T^2 * KL(p || q)  +  (1 - alpha) * cross entropy of the text

T^2 makes up for the gradient of KL, which falls as 1 / T^2. SeqKD (Kim & Rush 2016, arXiv 1606.07947): the teacher
writes, the student learns that text by cross entropy. The paper takes the teacher's best translation by beam
search; a continuation of running text has no best one, so the teacher's text is sampled here.

trl's trainers for it take chat messages or prompts, modelopt's KD fails on the outputs of transformers, and their
checkpoints are pickles: our own. No dropout: see `methods.training`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.methods.distillation import check_course, course_for, learn, texts
from pytest_llmslim.methods.generation import sample
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.methods.student import AUTO, check_student, pair
from pytest_llmslim.methods.token_loss import Piece, cross_entropy, kl, mean_loss, softened
from pytest_llmslim.methods.training import batch_of

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods import Applied, Context

WRITTEN = 128
"""Texts that the teacher writes, at most."""

GIVEN = 8
"""One token of so many is given to it, at the beginning of a window; the rest it writes."""

AT_ONCE = 32
"""Texts that it writes side by side."""


@dataclass(frozen=True)
class KD:
    """A student learns the teacher's distribution of every next token (forward KL).

    Args:
        student: `auto`, `half`, `same`, a shape like `layers=2`, a folder or an id; see `methods.student`.
        temperature: of both distributions in KL, above 0.
        alpha: share of KL in the loss, from 0 to 1; the rest is cross entropy on the text.
        steps: optimizer steps.
        batch: windows of text a step.
        rate: highest learning rate; `None`: by the student's width.

    Raises:
        RecipeError: a value out of range.
    """

    student: str = AUTO
    temperature: float = 2.0
    alpha: float = 0.5
    steps: int = 240
    batch: int = 2
    rate: float | None = None

    def __post_init__(self) -> None:
        check_student("kd", self.student)
        check_number("kd", "temperature", self.temperature, "a number from 0.01 to 100", low=0.01, high=100)
        check_number("kd", "alpha", self.alpha, "a number from 0 to 1", low=0, high=1)
        check_course("kd", self)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Make the student of `module` and train it.

        Raises:
            CompressionError: no text, no such student, a quantized model, or a loss that is not finite.
        """
        windows = texts(self, context, "kd")
        pupil = pair(self.student, module, context, "kd")
        course = course_for(self, pupil.student)

        def loss(step: int, _generator: torch.Generator) -> torch.Tensor:
            tokens = batch_of(windows, course, step, context.seed)
            return mean_loss(self.cost, pupil.student, tokens, teacher=pupil.teacher)

        return learn("kd", self, pupil, loss, course, context)

    def cost(self, piece: Piece) -> torch.Tensor:
        """The loss of each prediction [n], in nats."""
        teacher, student = softened(piece, self.temperature)
        soft = self.temperature**2 * kl(teacher, student)
        return self.alpha * soft + (1 - self.alpha) * cross_entropy(piece)


@dataclass(frozen=True)
class SeqKD:
    """A student learns text that the teacher writes.

    Args:
        student: `auto`, `half`, `same`, a shape like `layers=2`, a folder or an id; see `methods.student`.
        steps: optimizer steps.
        batch: texts a step.
        rate: highest learning rate; `None`: by the student's width.

    Raises:
        RecipeError: a value out of range.
    """

    student: str = AUTO
    steps: int = 200
    batch: int = 2
    rate: float | None = None

    def __post_init__(self) -> None:
        check_student("seqkd", self.student)
        check_course("seqkd", self)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Let the teacher write, make the student of `module` and train it on that text.

        Raises:
            CompressionError: no text, no such student, a quantized model, or a loss that is not finite.
        """
        windows = texts(self, context, "seqkd", most=WRITTEN)
        pupil = pair(self.student, module, context, "seqkd")
        course = course_for(self, pupil.student)
        prompt = max(1, windows.shape[1] // GIVEN)
        written = write(pupil.teacher, windows, prompt, context)

        def loss(step: int, _generator: torch.Generator) -> torch.Tensor:
            tokens = batch_of(written, course, step, context.seed)
            return mean_loss(cross_entropy, pupil.student, tokens, prompt=prompt)

        return learn("seqkd", self, pupil, loss, course, context)


def write(teacher: nn.Module, windows: torch.Tensor, prompt: int, context: Context) -> torch.Tensor:
    """Windows [n, window] that begin with `prompt` tokens of `windows`; the rest is the teacher's."""
    generator = torch.Generator().manual_seed(context.seed)
    parts = []
    for begin in range(0, len(windows), AT_ONCE):
        context.tell(f"seqkd: the teacher writes text {begin + 1} of {len(windows)}")
        prompts = windows[begin : begin + AT_ONCE, :prompt]
        parts.append(sample(teacher, prompts, windows.shape[1] - prompt, generator).tokens)
    return torch.cat(parts)
