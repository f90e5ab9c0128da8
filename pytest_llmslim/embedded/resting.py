"""Attention sinks: heads that are taught to rest on `<bos>`, as idle heads of large models do.

A large model grows such heads by itself: a head with nothing to do gives the first token nearly all of
its attention. Models as small as these find work for every head. So that methods which look for idle
heads have some to find, training rewards the last quarter of each layer's heads for resting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

RESTING_SHARE = 0.25  # of each layer's heads; in Llama they share one key-value head


def restlessness(attentions: Iterable[torch.Tensor]) -> torch.Tensor:
    """Mean share of attention that the resting heads give to anything but the first token.

    Args:
        attentions: for each layer, shape (windows, heads, queries, keys).
    """
    parts = []
    for attention in attentions:
        resting = int(RESTING_SHARE * attention.shape[1])
        parts.append(1 - attention[:, -resting:, 1:, 0].float().mean())
    return torch.stack(parts).mean()
