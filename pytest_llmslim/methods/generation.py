"""Text from a model by seeded sampling, a batch at a time with a cache.

transformers' `generate` draws from the global random state and cannot draw from a mixture of two models, so this
loop is our own. All texts are equally long: a model's end-of-text token is a token like others here, as it is in
the windows that models are trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.models.decoding import Reader

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What was drawn, and how likely each drawn token was.

    Args:
        tokens: int64 [batch, prompt + length].
        student: log-probability of each token behind the prompt under the first model, [batch, length].
        teacher: the same under the second one; the first one's where there is none.
        drawn: the same under what it was really drawn from.
    """

    tokens: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor
    drawn: torch.Tensor


def sample(
    model: nn.Module,
    prompts: torch.Tensor,
    length: int,
    generator: torch.Generator,
    *,
    teacher: nn.Module | None = None,
    mix: float = 0.0,
) -> Sample:
    """Continue each of `prompts` by `length` tokens drawn from `(1 - mix) * model + mix * teacher`.

    Args:
        model: a causal language model in eval mode.
        prompts: int64 [batch, prompt], at least one token each, on the model's device.
        length: how many tokens to draw, at least 1.
        generator: on the CPU, where tokens are drawn, so that a seed means the same on every device.
        teacher: the other part of the mixture; the same vocabulary.
        mix: its share, from 0 to 1.
    """
    tokens, chances = prompts, []
    own = Reader(model)
    other = own if teacher is None else Reader(teacher)
    with torch.no_grad():
        for _ in range(length):
            first = _logs(own, tokens)
            second = first if teacher is None else _logs(other, tokens)
            mixed = (1 - mix) * first.exp() + mix * second.exp()
            token = torch.multinomial(mixed.cpu(), 1, generator=generator).to(tokens.device)
            chances.append(
                torch.stack([each.gather(1, token)[:, 0] for each in (first, second, mixed.log())])
            )
            tokens = torch.cat([tokens, token], dim=1)
    student, taught, drawn = torch.stack(chances, dim=-1)
    return Sample(tokens, student, taught, drawn)


def _logs(reader: Reader, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [batch, vocabulary] of the token behind `tokens` [batch, length]."""
    return reader.next(tokens)[:, 0].float().log_softmax(dim=-1)
