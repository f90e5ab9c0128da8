"""The two embedded architectures and their tokenizer: what is known about a model before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from pytest_llmslim.embedded.grammar import WORD_OFFSET

if TYPE_CHECKING:
    from collections.abc import Sequence

BOS, UNKNOWN = "<bos>", "<unk>"
POSITIONS = 512
WIDTH, LAYERS, HEADS = 128, 4, 8
KEY_VALUE_HEADS, INNER_WIDTH = 4, 256


def make_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, split at white space; every text begins with `<bos>`."""
    tokens = (BOS, UNKNOWN, *words)
    backend = Tokenizer(WordLevel({token: index for index, token in enumerate(tokens)}, UNKNOWN))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        unk_token=UNKNOWN,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def make_model(name: str, words: int, seed: int) -> PreTrainedModel:
    """An untrained model with tied embeddings for so many words: `gpt2` or `llama`."""
    torch.manual_seed(seed)
    return MAKERS[name](words + WORD_OFFSET)


def _gpt2(tokens: int) -> PreTrainedModel:
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokens,
            n_positions=POSITIONS,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=INNER_WIDTH,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=None,
        )
    )
    # Neighbouring positions begin alike, so that what is learnt at one helps the next.
    model.transformer.wpe.weight.data = _waves(POSITIONS, WIDTH) * model.config.initializer_range * 2**0.5
    return model


def _waves(positions: int, width: int) -> torch.Tensor:
    """Sines and cosines of falling frequency, shape (positions, width) (Vaswani et al. 2017, 3.5)."""
    angles = torch.arange(positions)[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _llama(tokens: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokens,
            hidden_size=WIDTH,
            intermediate_size=INNER_WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_VALUE_HEADS,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=None,
        )
    )


MAKERS = {"gpt2": _gpt2, "llama": _llama}
