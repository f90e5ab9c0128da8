"""MiniLLM (Gu et al. 2023, arXiv 2306.08543): reverse KL on the student's own text, by policy gradient.

What is minimised is KL(q || p) over whole continuations y of a prompt, q the student and p the teacher. With
r_t = log p(y_t | ...) - log q(y_t | ...), the reward of token t, and R_t the sum of r from t to the end, its gradient
is -E_q[sum_t (R_t - 1) grad log q(y_t)]. The paper's three devices, section 2.2:

- single-step decomposition: E[r_t grad log q(y_t)] is the gradient of the KL of token t, which is computed exactly
  over the vocabulary instead of from the one token that was drawn; R_{t+1} is left for the drawn token;
- teacher-mixed sampling: y is drawn from p~ = mix * p + (1 - mix) * q, and each token weighs
  w_t = q(y_t) / p~(y_t), the paper's approximation of the product of these ratios up to t;
- length normalisation: R_{t+1} is divided by the number of its terms (the paper writes one term fewer, which is
  0 for the last but one token).

So the surrogate whose gradient is taken, a mean over tokens, is
w_t * (KL(q_t || p_t) - R_{t+1} * log q(y_t)), with w and R as numbers; plus, as in the paper, the cross entropy of
the text. Most steps come before: they learn by that cross entropy alone (`distillation.BEFORE`), as the paper's
student is fine-tuned first. PPO's clipping, for several updates on one sample, is left out, since each sample is
used for one update; w_t is at most 1 / (1 - mix).

trl has no MiniLLM any more (1.16) and the authors' code is bound to DeepSpeed: our own.
"""

from __future__ import annotations

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
from pytest_llmslim.methods.generation import Sample, sample
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.methods.student import AUTO, check_student, pair
from pytest_llmslim.methods.token_loss import Piece, cross_entropy, kl, mean_loss
from pytest_llmslim.methods.training import batch_of

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods import Applied, Context
    from pytest_llmslim.methods.token_loss import Measure


@dataclass(frozen=True)
class MiniLLM:
    """A student learns by reverse KL on text that it writes itself.

    Args:
        student: `auto`, `half`, `same`, a shape like `layers=2`, a folder or an id; see `methods.student`.
        mix: share of the teacher in what texts are drawn from, from 0 to 0.9.
        steps: optimizer steps.
        batch: windows of text, and prompts, a step.
        rate: highest learning rate; `None`: by the student's width.

    Raises:
        RecipeError: a value out of range.
    """

    student: str = AUTO
    mix: float = 0.2
    steps: int = 200
    batch: int = 2
    rate: float | None = None

    def __post_init__(self) -> None:
        check_student("minillm", self.student)
        check_number("minillm", "mix", self.mix, "a number from 0 to 0.9", low=0, high=0.9)
        check_course("minillm", self)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Make the student of `module` and train it.

        Raises:
            CompressionError: no text, no such student, a quantized model, or a loss that is not finite.
        """
        windows = texts(self, context, "minillm")
        pupil = pair(self.student, module, context, "minillm")
        course = course_for(self, pupil.student)
        before = steps_before(course)
        prompt, response = prompt_and_response(windows)

        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            tokens = batch_of(windows, course, step, context.seed)
            text = mean_loss(cross_entropy, pupil.student, tokens)
            if step < before:
                return text
            written = sample(
                pupil.student, tokens[:, :prompt], response, generator, teacher=pupil.teacher, mix=self.mix
            )
            reverse = mean_loss(
                policy(written), pupil.student, written.tokens, teacher=pupil.teacher, prompt=prompt
            )
            return reverse + text

        return learn("minillm", self, pupil, loss, course, context, before=before)


def policy(written: Sample, *, normalised: bool = True) -> Measure:
    """The surrogate of each drawn token [n], whose gradient is the paper's; see the top of this file.

    Args:
        written: drawn tokens with their probabilities.
        normalised: off for the plain policy gradient, without length normalisation.
    """
    weights = (written.student - written.drawn).exp().flatten()
    rest = later(written.teacher - written.student, normalised=normalised).flatten()

    def cost(piece: Piece) -> torch.Tensor:
        teacher, student = piece.teacher.log_softmax(-1), piece.student.log_softmax(-1)
        drawn = student.gather(1, piece.targets[:, None])[:, 0]
        return weights[piece.rows] * (kl(student, teacher) - rest[piece.rows] * drawn)

    return cost


def later(rewards: torch.Tensor, *, normalised: bool) -> torch.Tensor:
    """Sum, or mean, of the rewards [batch, length] behind each token, itself left out; 0 behind the last."""
    sums = rewards.flip(1).cumsum(1).flip(1) - rewards
    if not normalised:
        return sums
    length = rewards.shape[1]
    return sums / torch.arange(length - 1, -1, -1, device=rewards.device).clamp(min=1)
