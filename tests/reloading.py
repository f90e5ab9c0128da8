"""What a model whose shape was cut has to do besides computing: state its shape, generate, and reload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tiny_models import tiny_tokens
from transformers import AutoModelForCausalLM

from pytest_llmslim.models.conv1d import from_conv1d, to_conv1d
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.storage import copy_model

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = tiny_tokens(2, 40, seed=9)  # longer than the sliding window of 32


def logits(module: torch.nn.Module) -> torch.Tensor:
    """Of the tokens above, without a cache."""
    with torch.no_grad():
        return module(input_ids=TOKENS, use_cache=False).logits


def reloaded(module: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The model as its own checkpoint gives it."""
    with quiet():
        saved = copy_model(module)
        if module.config.model_type == "gpt2":
            to_conv1d(saved)
        saved.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
    from_conv1d(loaded)
    return loaded.eval()


def check_whole(module: torch.nn.Module, folder: Path) -> None:
    """Generation with and without the cache agrees, and the checkpoint computes the same."""
    arguments = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 3}
    with quiet():
        made = [module.generate(TOKENS, use_cache=cached, **arguments) for cached in (True, False)]

    assert torch.equal(*made)
    torch.testing.assert_close(logits(reloaded(module, folder)), logits(module), rtol=0, atol=1e-5)
