"""How likely a model holds each label of a text: by the likelihood of its words, or by a classifier's logits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from pytest_llmslim.errors import EvaluationError, MissingPackageError
from pytest_llmslim.evals.blame import blaming
from pytest_llmslim.evals.scorer import lm_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from pytest_llmslim.evals import EvalContext

BATCH_TOKENS: Final = 4096
"""Tokens of a batch of a classifier, padding included."""


class Request(NamedTuple):
    """What lm-eval reads of a request: the prompt, and what is to come behind it."""

    args: tuple[str, str]


@dataclass
class Asked:
    """What a model holds of some texts.

    Args:
        shares: logarithm of the share of each label, float64 [texts, labels]; the shares of a text sum to 1.
        tokens: that were processed, without what was cached.
        seconds: that it took, likewise.
        notes: what a reader has to know.
    """

    shares: torch.Tensor
    tokens: int
    seconds: float
    notes: list[str] = field(default_factory=list)


def by_likelihood(
    model: nn.Module, context: EvalContext, prompts: Sequence[str], words: Sequence[str]
) -> Asked:
    """Shares of labels by the likelihood of their words behind a prompt.

    A label's likelihood is the product of its tokens' probabilities, and its share that over the sum of all labels'.
    A prompt that is longer than the model's positions loses its beginning.

    Args:
        model: a causal language model in eval mode.
        context: its tokenizer, its name, and where answers are kept.
        prompts: without a space at the end.
        words: one for each label, put behind a space.

    Raises:
        EvaluationError: a label without tokens, or logits that are no numbers.
        MissingPackageError: lm-eval is not installed.
    """
    try:
        lm: Any = lm_for(model, context)
    except ImportError:
        raise MissingPackageError(
            "labels of a causal language model are scored through the package lm_eval, which is not installed; "
            "run: pip install lm_eval"
        ) from None
    requests = [Request((prompt, f" {word}")) for prompt in prompts for word in words]
    logs = [log for log, _ in lm.loglikelihood(requests)]
    scores = torch.tensor(logs, dtype=torch.float64).reshape(len(prompts), len(words))
    notes = [
        f"the tokenizer does not tell {words[i]} and {words[j]} apart, so the first is always taken"
        for i, j in combinations(range(len(words)), 2)
        if torch.equal(scores[:, i], scores[:, j])
    ]
    notes += _cut(lm.truncated, len(requests), "prompts with a label")
    return Asked(_shares(scores, context), lm.tokens, lm.seconds, notes)


def by_logits(model: nn.Module, context: EvalContext, texts: Sequence[tuple[str, ...]]) -> Asked:
    """Shares of labels by a classifier's logits, in the order of its labels.

    Texts are batched by length and padded on the right. Two texts are joined as its tokenizer joins a pair, as
    classifiers are trained on GLUE by transformers' examples. What is longer than its positions loses its beginning.

    Raises:
        EvaluationError: logits that are no numbers.
    """
    config: Any = model.config
    padding, room = int(config.pad_token_id), int(getattr(config, "max_position_embeddings", None) or 2**31)
    whole = context.tokenizer(*(list(column) for column in zip(*texts, strict=True)), verbose=False)[
        "input_ids"
    ]
    rows = [tuple(ids[-room:]) or (padding,) for ids in whole]
    scores = torch.zeros(len(rows), config.num_labels, dtype=torch.float64)
    started, done = time.perf_counter(), 0
    for batch in _batches([len(row) for row in rows]):
        asked = _padded([rows[i] for i in batch], padding, context.device)
        with blaming(context.label, f"on a batch of {len(batch)} texts"), torch.no_grad():
            scores[batch] = model(**asked, use_cache=False).logits.double().cpu()
        done += len(batch)
        context.tell(f"{done} of {len(rows)} texts" if done < len(rows) else "")
    seconds = time.perf_counter() - started
    notes = _cut(sum(len(ids) > room for ids in whole), len(rows), "texts")
    return Asked(_shares(scores, context), sum(map(len, rows)), seconds, notes)


def _shares(scores: torch.Tensor, context: EvalContext) -> torch.Tensor:
    shares = torch.log_softmax(scores, dim=-1)
    if not shares.isfinite().all():
        raise EvaluationError(
            f"{context.label} gives no finite probabilities (NaN or inf in the logits); check the weights, or use "
            "another --llm-dtype"
        )
    return shares


def _cut(count: int, of: int, what: str) -> list[str]:
    return (
        [f"{count} of {of} {what} are longer than the model's positions and lost their beginning"]
        if count
        else []
    )


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts of like length, longest first, `BATCH_TOKENS` at once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _padded(rows: Sequence[tuple[int, ...]], padding: int, device: str) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` [rows, longest], padded on the right."""
    longest = max(map(len, rows))
    ids = [[*row, *[padding] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
