"""Texts that a model reads or goes on with, piece by piece, with the cache that models keep of what they have read.

transformers' `generate` follows settings that come with a checkpoint (sampling, penalties, tokens that are forced),
so that reference and candidate may be asked for different things, and it cannot be timed step by step. The steps
here are the same for every model, and give what `generate` gives without such settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn


class Reader:
    """A model that reads growing texts and keeps what it has read in a cache.

    A model that gives no cache back reads the whole text each time.

    Args:
        model: a causal language model in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cache: object = None
        self._read = 0

    def next(self, tokens: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """What the model expects behind the last `keep` of `tokens`.

        Args:
            tokens: int64 [batch, length]; they begin with those of the call before.
            keep: at most as many as are new.

        Returns:
            Logits [batch, keep, vocabulary].
        """
        fresh = tokens[:, self._read :]
        output = self._model(
            input_ids=fresh, past_key_values=self._cache, use_cache=True, logits_to_keep=keep
        )
        self._cache = getattr(output, "past_key_values", None)
        self._read = 0 if self._cache is None else tokens.shape[1]
        return output.logits[:, -keep:]


def greedy(
    model: nn.Module,
    prompts: torch.Tensor,
    length: int,
    never: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> tuple[torch.Tensor, bool]:
    """Each of `prompts` goes on with the likeliest token, `length` times.

    Args:
        model: a causal language model in eval mode.
        prompts: int64 [batch, prompt] on the model's device, at least one token each.
        length: tokens to write, at least 1.
        never: tokens that are not written, e.g. those that end a text, so that all are equally long.
        progress: told how many tokens of each text are written.

    Returns:
        What was written, int64 [batch, length], and whether the logits of all of it were finite.
    """
    reader, tokens, heights = Reader(model), prompts, []
    with torch.no_grad():
        for step in range(length):
            logits = reader.next(tokens)[:, 0]
            if never:
                logits = logits.index_fill(1, torch.tensor(never, device=logits.device), -torch.inf)
            height, token = logits.max(dim=1, keepdim=True)  # of NaN and a number NaN is the larger
            heights.append(height)
            tokens = torch.cat([tokens, token], dim=1)
            if progress is not None:
                progress(step + 1)
    return tokens[:, prompts.shape[1] :], bool(torch.cat(heights).isfinite().all())


def positions(model: nn.Module) -> int | None:
    """Tokens that a text may have; `None` where the model does not say."""
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return longest if isinstance(longest, int) else None
