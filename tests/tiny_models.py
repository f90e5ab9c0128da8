"""Tiny random language models of every known family, with tokenizers and text, for tests of all rooms.

The models are those of `pytest_llmslim.strategies`: hidden width 64, 2 layers, 4 heads, vocabulary 128.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.strategies.tiny import FAMILIES, GROUPED, POSITIONS, VOCABULARY, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FAMILIES", "GROUPED", "POSITIONS", "VOCABULARY", "WORDS", "tiny_model"]

WORDS = (
    "the of and to in a is was for on as by with he that at from his it an were are which this be had "
    "has first one their its new after but who not they have her she two been other when during there "
    "into all year time more can also season film game song would no only over some city born team life "
    "world three work may album north south war state house book music band series school century part "
    "known group king day area line river church record long major small age level force rain tree man "
    ". , ; : ! ? ( ) - ' \" 0 1 2 3 4 5 6 7 8 9"
).split()


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
