"""Perplexity from logits.

Perplexity is exp(mean of -log p(token | tokens before it in its window)), natural logarithms, over scored tokens.
"""

from __future__ import annotations

import math

import torch

ROWS = 64
"""Positions worked on at once: with a vocabulary of 256k a window's logits alone are half a gigabyte."""


def token_nll(logits: torch.Tensor, tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Negative log likelihood of each scored token, in nats.

    Args:
        logits: shape (1, length, vocabulary); row i predicts token i + 1.
        tokens: shape (1, length).
        first: position of the first scored token, at least 1.

    Returns:
        float64 of shape (length - first,).
    """
    rows, targets = logits[0, first - 1 : -1], tokens[0, first:].to(logits.device)
    parts = [
        torch.nn.functional.cross_entropy(rows[i : i + ROWS].float(), targets[i : i + ROWS], reduction="none")
        for i in range(0, len(targets), ROWS)
    ]
    return torch.cat(parts).double()


def perplexity(nll: float, count: int) -> float:
    """exp(nll / count); infinite where that overflows. `nll` is a sum in nats over `count` tokens, words or bytes."""
    try:
        return math.exp(nll / count)
    except OverflowError:
        return math.inf
