"""Tiny random language models of every known family, for tests of all rooms.

Hidden width 64, 2 layers, 4 heads (2 key/value heads where the family groups them), vocabulary 128,
128 positions. Every width is a multiple of 64, so that bitsandbytes can pack them. Biases and norms are
random too, so that a test sees it when one is forgotten.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from pytest_llmslim.models.conv1d import from_conv1d
from pytest_llmslim.models.quiet import quiet

if TYPE_CHECKING:
    from pathlib import Path

FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma3")
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma3")

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
_CONFIGS = {
    "gpt2": (
        GPT2Config,
        {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": POSITIONS,
            "initializer_range": 0.15,
            **_SPECIAL,
        },
    ),
    "opt": (
        OPTConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": 64,
            "init_std": 0.15,
            **_SPECIAL,
        },
    ),
    "llama": (LlamaConfig, {**_GROUPED}),
    "mistral": (MistralConfig, {**_GROUPED, "sliding_window": 32}),
    "qwen2": (Qwen2Config, {**_GROUPED}),
    "qwen3": (Qwen3Config, {**_GROUPED, "head_dim": 32}),
    "gemma3": (
        Gemma3TextConfig,
        {
            **_GROUPED,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}

WORDS = (
    "the of and to in a is was for on as by with he that at from his it an were are which this be had "
    "has first one their its new after but who not they have her she two been other when during there "
    "into all year time more can also season film game song would no only over some city born team life "
    "world three work may album north south war state house book music band series school century part "
    "known group king day area line river church record long major small age level force rain tree man "
    ". , ; : ! ? ( ) - ' \" 0 1 2 3 4 5 6 7 8 9"
).split()


def tiny_model(family: str, *, seed: int = 0, conv1d: bool = False, **overrides: object) -> nn.Module:
    """A random causal language model of `family` in eval mode, float32, without gradients.

    `overrides` go to the configuration class. GPT-2 has `nn.Linear` as after `load_model`, unless `conv1d`.
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


def tiny_tokenizer(*, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Words of `WORDS` and nothing else; `<s>` is 0, `<unk>` 1, `</s>` 2, `<pad>` 3."""
    vocabulary = ["<s>", "<unk>", "</s>", "<pad>", *WORDS]
    vocabulary += [f"<{i}>" for i in range(len(vocabulary), VOCABULARY)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )


def tiny_text(words: int, *, seed: int = 0) -> str:
    """So many known words, separated by spaces."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def tiny_tokens(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Random token ids [batch, length], none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (batch, length), generator=generator)


def save_tiny(family: str, folder: Path, *, adds_bos: bool = True, **overrides: object) -> Path:
    """A whole model folder, as `save_pretrained` writes it: config, safetensors and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        tiny_model(family, conv1d=True, **overrides).save_pretrained(folder)
        tiny_tokenizer(adds_bos=adds_bos).save_pretrained(folder)
    return folder
