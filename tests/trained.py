"""A model that has learnt something, with text it did not see: the embedded Llama."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.evals.perplexity import token_nll
from pytest_llmslim.evals.text import Passage, cut, grammar_text
from pytest_llmslim.methods import Context
from pytest_llmslim.models.loading import LoadedModel, load_model
from pytest_llmslim.models.storage import copy_model

if TYPE_CHECKING:
    from torch import nn

WINDOWS = 10


@cache
def _loaded() -> tuple[LoadedModel, Passage]:
    model = load_model("embedded:llama")
    arguments = {"stride": None, "bos": "auto", "dtype": "float32", "longest": None}
    return model, cut(grammar_text(WINDOWS), model.tokenizer, tokens=WINDOWS * 255, window=256, **arguments)


def trained() -> nn.Module:
    """A copy of the model: 4 layers, 8 heads in 4 groups, 256 inner and 128 hidden channels."""
    return copy_model(_loaded()[0].module)


def trained_context(**more: object) -> Context:
    """With text for calibration and training, and the model as reference."""
    model, passage = _loaded()
    arguments = {
        "seed": 0,
        "device": "cpu",
        "family": model.family,
        "label": model.name,
        "draw": passage.rest,
    }
    return Context(calibration=passage.calibration, reference=model.module, **arguments, **more)


def nats(module: nn.Module) -> float:
    """Mean negative log likelihood a token of the scored windows."""
    passage = _loaded()[1]
    with torch.no_grad():
        parts = [
            token_nll(module(input_ids=window, use_cache=False).logits, window, first)
            for window, first in zip(passage.windows, passage.scored_from, strict=True)
        ]
    return float(torch.cat(parts).mean())
