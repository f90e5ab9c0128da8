"""How far a candidate's next-token distributions are from the reference's, on the same positions.

Kullback-Leibler divergence KL(reference || candidate) = sum p log(p / q), in nats; and the share of positions
on which both have the same likeliest token. Perplexity can stay equal while both change.
"""

from __future__ import annotations

import torch

from pytest_llmslim.evals.perplexity import ROWS


def divergence(reference: torch.Tensor, candidate: torch.Tensor, first: int) -> tuple[float, int]:
    """Sum of KL over the scored positions, and the number of equal likeliest tokens.

    Args:
        reference: logits of shape (1, length, vocabulary).
        candidate: logits of the same shape.
        first: position of the first scored token; row first - 1 predicts it.
    """
    total, same = 0.0, 0
    for i in range(first - 1, reference.shape[1] - 1, ROWS):
        end = min(i + ROWS, reference.shape[1] - 1)
        p = torch.log_softmax(reference[0, i:end].float(), -1)
        q = torch.log_softmax(candidate[0, i:end].float(), -1)
        # What the reference never says adds nothing (0 log 0 = 0); torch's kl_div makes NaN of it.
        parts = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0)
        # Rounding can give -1e-9 for equal rows; a divergence is never below 0.
        total += float(parts.sum(-1).clamp_min(0).double().sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
    return total, same
