"""Texts that a model reads or goes on with, piece by piece, with the cache that models keep of what they have read.

transformers' `generate` follows settings that come with a checkpoint (sampling, penalties, tokens that are forced),
so that reference and candidate may be asked for different things, and it cannot be timed step by step. The steps
here are the same for every model, and give what `generate` gives without such settings.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

OPTIONS: Final = frozenset({"past_key_values", "use_cache", "logits_to_keep"})


class Reader:
    """A model that reads growing texts and keeps what it has read in a cache.

    A model that takes no cache, or gives none back, reads the whole text each time.

    Args:
        model: a causal language model in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._takes = _takes(type(model).forward)
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
        wanted = {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": keep}
        known = {name: value for name, value in wanted.items() if name in self._takes}
        output = self._model(input_ids=fresh, **known)
        self._cache = getattr(output, "past_key_values", None) if "past_key_values" in known else None
        self._read = 0 if self._cache is None else tokens.shape[1]
        return output.logits[:, -keep:]


@lru_cache  # reading is timed
def _takes(forward: Callable[..., object]) -> frozenset[str]:
    """Which of a reader's arguments a forward pass takes."""
    parameters = inspect.signature(forward).parameters
    everything = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return frozenset(OPTIONS if everything else OPTIONS & parameters.keys())


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
    reader, tokens, heights, barred = Reader(model), prompts, [], None
    with torch.no_grad():
        for step in range(length):
            logits = reader.next(tokens)[:, 0]
            if barred is None:  # a tokenizer may have more tokens than the model
                barred = torch.tensor([token for token in never if token < logits.shape[1]], dtype=torch.long)
            logits = logits.index_fill(1, barred.to(logits.device), -torch.inf)
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
