"""How an embedded model answers to plain compressions: the proof that it stands for real models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from pytest_llmslim.methods.attention_heads import concentration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

    Change = Callable[[torch.Tensor], torch.Tensor]

WINDOWS_A_PASS = 16


class Answer(NamedTuple):
    """One compression and what it does to held-out perplexity, in percent of the model's own."""

    compression: str
    percent: float


def surprise(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Mean negative log probability, nats a token, of windows of shape (windows, tokens)."""
    with torch.no_grad():
        parts = [_surprises(model, part) for part in ids.split(WINDOWS_A_PASS)]
    return torch.cat(parts).mean().item()


def _surprises(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids[:, :-1]).logits.float().flatten(0, 1)
    return functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Symmetric round-to-nearest with one scale an output row; weight of shape (out, in)."""
    highest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / highest
    return (weight / scale).round().clamp(-highest, highest) * scale


def magnitude_pruned(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Zero the smallest `share` of a weight matrix."""
    smallest = weight.abs().flatten().kthvalue(int(weight.numel() * share)).values
    return torch.where(weight.abs() > smallest, weight, 0.0)


COMPRESSIONS: dict[str, Change] = {
    "8-bit": lambda weight: rounded(weight, 8),
    "4-bit": lambda weight: rounded(weight, 4),
    "3-bit": lambda weight: rounded(weight, 3),
    "2-bit": lambda weight: rounded(weight, 2),
    "30 % by magnitude": lambda weight: magnitude_pruned(weight, 0.3),
    "50 % by magnitude": lambda weight: magnitude_pruned(weight, 0.5),
}


def compression_answers(model: PreTrainedModel, ids: torch.Tensor) -> Iterator[Answer]:
    """Apply each compression to all linear layers inside the blocks, measure, and undo it.

    Args:
        model: an embedded model; GPT-2 may hold its weights transposed.
        ids: held-out windows, shape (windows, tokens).

    Yields:
        The rise of perplexity in percent, one compression at a time.
    """
    own = surprise(model, ids)
    for compression, change in COMPRESSIONS.items():
        kept = _replace_block_weights(model, change)
        yield Answer(compression, 100 * math.expm1(surprise(model, ids) - own))
        for parameter, original in kept:
            parameter.data = original


def _replace_block_weights(
    model: PreTrainedModel, change: Change
) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    kept = []
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or not (".h." in name or ".layers." in name):
            continue
        kept.append((parameter, parameter.data))
        parameter.data = change(parameter.data.T).T if _is_transposed(model, name) else change(parameter.data)
    return kept


def _is_transposed(model: PreTrainedModel, name: str) -> bool:
    """GPT-2's Conv1D stores (in, out)."""
    return type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"


def head_concentration(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The concentration of every head (see `methods.attention_heads`), shape (layers, heads).

    The model must have been loaded with `attn_implementation="eager"`.
    """
    with torch.no_grad():
        attentions = model(ids[:, :-1], output_attentions=True).attentions
    return torch.stack([concentration(layer) for layer in attentions])
