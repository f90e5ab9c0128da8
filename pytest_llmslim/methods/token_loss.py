"""Losses a token of a student, alone or against a teacher, with logits of a few tokens at a time.

The logits of a batch of 4 windows of 1024 tokens are 4 GB for a vocabulary of 262144 (Gemma's), and a divergence
needs them several times over. So the models give hidden states, the head is applied to pieces of them, and the
backward pass computes each piece's logits anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pytest_llmslim.models.classifiers import head_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from pytest_llmslim.methods import Context

    Measure = Callable[["Piece"], torch.Tensor]
    """From a piece of n predictions to their losses [n]."""

LOGITS = 1 << 23
"""Logits of one model at a time, or a little more: 32 MiB in float32; a divergence and its gradient take 10 to 15
times that.

Not less: glibc takes blocks of 32 MiB from the system and gives them back, while blocks of 16 MiB, cut from its heap,
left gigabytes of holes behind.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some predictions of a batch.

    Args:
        student: logits [n, vocabulary], float32.
        teacher: the teacher's, without gradient; the student's own where there is no teacher.
        targets: the tokens [n] that really come next.
        rows: which of all predictions of the batch these are, flattened window by window.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    targets: torch.Tensor
    rows: slice


def mean_loss(
    measure: Measure,
    student: nn.Module,
    tokens: torch.Tensor,
    *,
    teacher: nn.Module | None = None,
    prompt: int = 1,
    at_once: int = LOGITS,
) -> torch.Tensor:
    """Mean of `measure` over the predictions of tokens [batch, window], of all tokens behind the `prompt` first.

    Args:
        measure: what a prediction costs.
        student: gets gradients, where its parameters want them.
        tokens: int64, on the models' device.
        teacher: runs without gradients; the same vocabulary.
        prompt: tokens at the beginning of a window whose prediction does not count, at least 1.
        at_once: logits of one model that are computed at a time, rounded up to whole predictions.
    """
    hidden = _hidden(student, tokens, prompt)
    with torch.no_grad():
        taught = None if teacher is None else _hidden(teacher, tokens, prompt)
    targets = tokens[:, prompt:].reshape(-1)
    count = targets.numel()

    def piece_sum(states: torch.Tensor, rows: slice) -> torch.Tensor:
        own = logits_of(student, states)
        with torch.no_grad():
            theirs = own.detach() if teacher is None or taught is None else logits_of(teacher, taught[rows])
        return measure(Piece(own, theirs, targets[rows], rows)).sum()

    size = -(-at_once // head_of(student).weight.shape[0])
    if size >= count:
        return piece_sum(hidden, slice(0, count)) / count
    total = hidden.new_zeros(())
    for begin in range(0, count, size):
        rows = slice(begin, min(begin + size, count))
        total = total + checkpoint(
            piece_sum, hidden[rows], rows, use_reentrant=False, preserve_rng_state=False
        )
    return total / count


def logits_of(model: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [..., vocabulary] in float32 from a model's last hidden states [..., width]."""
    logits = head_of(model)(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)  # a choice of Gemma's config
    return logits if cap is None else torch.tanh(logits / cap) * cap


def cross_entropy(piece: Piece) -> torch.Tensor:
    """-log of the student's probability of each token [n], in nats."""
    return functional.cross_entropy(piece.student, piece.targets, reduction="none")


def kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first || second) [n] in nats, from logarithms of probabilities [n, vocabulary]."""
    return (first.exp() * (first - second)).sum(dim=-1)


def softened(piece: Piece, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of probabilities [n, vocabulary] at a temperature: the teacher's, the student's."""
    return (piece.teacher / temperature).log_softmax(-1), (piece.student / temperature).log_softmax(-1)


def divergence(piece: Piece) -> torch.Tensor:
    """KL(teacher || student) of each prediction [n], in nats."""
    return kl(*softened(piece))


def reference_for(module: nn.Module, context: Context) -> nn.Module | None:
    """The uncompressed model, if there is one and `module` still has its vocabulary."""
    if context.reference is None:
        return None
    sizes = [head_of(each).weight.shape[0] for each in (module, context.reference)]
    return context.reference if sizes[0] == sizes[1] else None


def _hidden(model: nn.Module, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
    """What the head reads [batch * predictions, width]."""
    states = model.base_model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    return states[:, prompt - 1 :].flatten(0, 1)
