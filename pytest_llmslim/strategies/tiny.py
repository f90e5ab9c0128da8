"""Tiny random language models of every known family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from pytest_llmslim.models.conv1d import from_conv1d

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

FAMILIES: Final = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma3")
GROUPED: Final = ("llama", "mistral", "qwen2", "qwen3", "gemma3")
"""Families whose query heads may share keys and values."""

VOCABULARY, POSITIONS = 128, 128

_SPECIAL = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
_GROUPED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.15,
    **_SPECIAL,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "initializer_range": 0.15,
    **_SPECIAL,
}
_OPT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "word_embed_proj_dim": 64,
    "init_std": 0.15,
    **_SPECIAL,
}
_GEMMA3 = {
    **_GROUPED,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"],
}
_CONFIGS: Final[dict[str, tuple[type, dict[str, Any]]]] = {
    "gpt2": (GPT2Config, _GPT2),
    "opt": (OPTConfig, _OPT),
    "llama": (LlamaConfig, _GROUPED),
    "mistral": (MistralConfig, {**_GROUPED, "sliding_window": 32}),
    "qwen2": (Qwen2Config, _GROUPED),
    "qwen3": (Qwen3Config, {**_GROUPED, "head_dim": 32}),
    "gemma3": (Gemma3TextConfig, _GEMMA3),
}


def tiny_model(family: str, *, seed: int = 0, conv1d: bool = False, **overrides: object) -> nn.Module:
    """A random causal language model of `family` in eval mode, float32, without gradients.

    Hidden width 64, 2 layers, 4 heads (2 key/value heads where the family groups them), vocabulary 128, 128
    positions. Every width is a multiple of 64, so that bitsandbytes can pack them. Biases and norms are random
    too, so that a test sees it when one is forgotten.

    Args:
        family: one of `FAMILIES`.
        seed: of the weights.
        conv1d: leave GPT-2's projections as transformers makes them; else they are `nn.Linear`, as after loading.
        overrides: go to the family's configuration class.
    """
    kind, defaults = _CONFIGS[family]
    config = kind(**{**defaults, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    if not conv1d:
        from_conv1d(model)
    return model.eval()


@dataclass(frozen=True)
class Tiny:
    """A tiny model by its shape, which prints short; GPT-2 and OPT have as many key/value heads as heads."""

    family: str
    seed: int = 0
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    inner: int = 128

    def module(self) -> nn.Module:
        """The model, made anew."""
        return tiny_model(self.family, seed=self.seed, **self._overrides())

    def _overrides(self) -> dict[str, Any]:
        hidden = self.heads * self.head_dim
        if self.family == "gpt2":
            return {"n_embd": hidden, "n_layer": self.layers, "n_head": self.heads, "n_inner": self.inner}
        shape: dict[str, Any] = {
            "hidden_size": hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
        }
        if self.family == "opt":
            return {**shape, "ffn_dim": self.inner, "word_embed_proj_dim": hidden}
        shape |= {"num_key_value_heads": self.kv_heads, "head_dim": self.head_dim}
        if self.family == "gemma3":
            kinds = ("sliding_attention", "full_attention")
            shape |= {
                "layer_types": [kinds[i % 2] for i in range(self.layers)],
                "query_pre_attn_scalar": self.head_dim,
            }
        return {**shape, "intermediate_size": self.inner}


@st.composite
def tiny_models(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    families: Sequence[str] = FAMILIES,
    *,
    layers: tuple[int, int] = (1, 3),
) -> Tiny:
    """Tiny models of `families`, with few or many heads, in groups or not, and feed-forward parts of odd widths.

    Args:
        draw: given by Hypothesis.
        families: some of `FAMILIES`.
        layers: the least and the most.
    """
    kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    return Tiny(
        family=draw(st.sampled_from(tuple(families))),
        seed=draw(st.integers(0, 99)),
        layers=draw(st.integers(*layers)),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from((4, 8, 16))),
        inner=draw(st.integers(1, 48)),
    )
