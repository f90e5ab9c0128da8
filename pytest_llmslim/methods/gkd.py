"""Generalised knowledge distillation (Agarwal et al. 2023, arXiv 2306.13649): on the student's own text.

With the probability `on_policy` a step learns from continuations that the student has just written, else from the
text. No gradient goes through the writing. Most steps come before and learn by cross entropy on the text
(`distillation.BEFORE`), as the paper's student is fine-tuned first. The loss of every next token, with P the teacher
and Q the student, is the generalised Jensen-Shannon divergence, equation 1 of the paper:

    JSD_b(P, Q) = b * KL(P || M) + (1 - b) * KL(Q || M)   with   M = b * P + (1 - b) * Q

It is 0 at b = 0 and b = 1. As its gradients go to those of b * KL(P || Q) for b -> 0 and of (1 - b) * KL(Q || P)
for b -> 1, beta=0 stands for KL(P || Q) (forward) and beta=1 for KL(Q || P) (reverse), as in trl.

trl's GKDTrainer is experimental and needs messages in a chat template: our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.methods.distillation import (
    check_course,
    course_for,
    learn,
    prompt_and_response,
    steps_before,
    texts,
)
from pytest_llmslim.methods.generation import sample
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.methods.student import AUTO, check_student, pair
from pytest_llmslim.methods.token_loss import Piece, cross_entropy, kl, mean_loss, softened
from pytest_llmslim.methods.training import batch_of

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods import Applied, Context


@dataclass(frozen=True)
class GKD:
    """A student learns the teacher's distribution on text that it writes itself.

    Args:
        student: `auto`, `half`, `same`, a shape like `layers=2`, a folder or an id; see `methods.student`.
        beta: from 0, forward KL, to 1, reverse KL.
        on_policy: probability that a step learns from the student's own text, from 0 to 1, once it can write.
        temperature: of both distributions in the loss, above 0; the student writes at temperature 1.
        steps: optimizer steps.
        batch: windows of text, or prompts, a step.
        rate: highest learning rate; `None`: by the student's width.

    Raises:
        RecipeError: a value out of range.
    """

    student: str = AUTO
    beta: float = 0.5
    on_policy: float = 0.5
    temperature: float = 1.0
    steps: int = 300
    batch: int = 2
    rate: float | None = None

    def __post_init__(self) -> None:
        check_student("gkd", self.student)
        check_number("gkd", "beta", self.beta, "a number from 0 to 1", low=0, high=1)
        check_number("gkd", "on_policy", self.on_policy, "a number from 0 to 1", low=0, high=1)
        check_number("gkd", "temperature", self.temperature, "a number from 0.01 to 100", low=0.01, high=100)
        check_course("gkd", self)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Make the student of `module` and train it.

        Raises:
            CompressionError: no text, no such student, a quantized model, or a loss that is not finite.
        """
        windows = texts(self, context, "gkd")
        pupil = pair(self.student, module, context, "gkd")
        course = course_for(self, pupil.student)
        before = steps_before(course)
        prompt, response = prompt_and_response(windows)

        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            tokens, given = batch_of(windows, course, step, context.seed), 1
            if step < before:
                return mean_loss(cross_entropy, pupil.student, tokens)
            if torch.rand((), generator=generator) < self.on_policy:
                tokens = sample(pupil.student, tokens[:, :prompt], response, generator).tokens
                given = prompt
            return mean_loss(self.cost, pupil.student, tokens, teacher=pupil.teacher, prompt=given)

        return learn("gkd", self, pupil, loss, course, context, before=before)

    def cost(self, piece: Piece) -> torch.Tensor:
        """The loss of each prediction [n], in nats."""
        teacher, student = softened(piece, self.temperature)
        return jsd(teacher, student, self.beta)


def jsd(teacher: torch.Tensor, student: torch.Tensor, beta: float) -> torch.Tensor:
    """Generalised Jensen-Shannon divergence [n] in nats, from logarithms of probabilities [n, vocabulary]."""
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)
