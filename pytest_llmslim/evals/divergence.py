"""How far a candidate's next-token distributions are from the reference's, on the same positions.

Kullback-Leibler divergence KL(reference || candidate) = sum p log(p / q), in nats; the share of positions on which
both have the same likeliest token; and how much the probability of the true token changes. Perplexity can stay
equal while all of them change. A token at a time is kept: the mean hides a few positions that went wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PIECE = 2**20
"""Numbers worked on at once, as many rows of a vocabulary as fit (four of 256k words): what fits into a cache is
also worked on faster."""


class Compared(NamedTuple):
    """Two models on the scored tokens of one window.

    Args:
        kl: KL(reference || candidate) of each token, nats, float32 of shape (tokens,).
        change: probability of the true token by the candidate - by the reference, float32 of shape (tokens,).
        same: tokens whose likeliest prediction is the same.
    """

    kl: NDArray[np.float32]
    change: NDArray[np.float32]
    same: int

    @property
    def total(self) -> float:
        """Sum of KL over the tokens."""
        return float(self.kl.sum(dtype=np.float64))


def divergence(
    reference: torch.Tensor, candidate: torch.Tensor, tokens: torch.Tensor, first: int
) -> Compared:
    """Compare two models' predictions of the scored tokens.

    Args:
        reference: logits of shape (1, length, vocabulary); row i predicts token i + 1.
        candidate: logits of the same shape.
        tokens: shape (1, length).
        first: position of the first scored token, at least 1.
    """
    targets = tokens[0, first:, None].to(reference.device)
    rows = max(1, PIECE // reference.shape[2])
    kl, change, same = [], [], []
    for i in range(0, len(targets), rows):
        place = slice(first - 1 + i, first - 1 + min(i + rows, len(targets)))
        p = torch.log_softmax(reference[0, place].float(), -1)
        q = torch.log_softmax(candidate[0, place].float(), -1)
        same.append(p.argmax(-1) == q.argmax(-1))
        true = targets[i : i + rows]
        change.append((q.gather(-1, true).exp() - p.gather(-1, true).exp()).squeeze(-1))
        kl.append(_kl(p, q))
    return Compared(_array(kl), _array(change), int(torch.cat(same).sum()))


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL of each row, shape (rows,), from log probabilities (rows, vocabulary)."""
    # What the reference never says adds nothing (0 log 0 = 0), also where only its exp is 0 and q is -inf; torch's
    # kl_div makes NaN of it.
    shares = p.exp()
    parts = torch.where(shares > 0, shares * (p - q), 0.0)
    # Rounding can give -1e-9 for equal rows; a divergence is never below 0.
    return parts.sum(-1).clamp_min(0)


def _array(parts: list[torch.Tensor]) -> NDArray[np.float32]:
    return np.asarray(torch.cat(parts).cpu().numpy(), dtype=np.float32)


def quantiles(values: NDArray[np.float32], shares: Sequence[float]) -> tuple[float, ...]:
    """Quantiles with linear interpolation between order statistics, numpy's default (Hyndman and Fan's type 7).

    Of n sorted values the quantile of `share` stands at (n - 1) * share. So with up to 1000 values that of 0.999
    lies between the two largest, and of one value it is that value.

    Args:
        values: at least one; infinite ones are allowed, which numpy's own function makes NaN of.
        shares: between 0 and 1.
    """
    ordered = np.sort(values).astype(np.float64)
    found = []
    for share in shares:
        place = (len(ordered) - 1) * share
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        found.append(float(low if low == high else low + (high - low) * (place - math.floor(place))))
    return tuple(found)


def rms(values: NDArray[np.float32]) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
