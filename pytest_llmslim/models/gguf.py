"""Models in one GGUF file, dequantized into ordinary weights.

transformers reads the weights. Its tokenizer is used where the file lists merges (byte-level BPE); for
SentencePiece vocabularies it builds a unigram model, which cuts words wrongly, so `gguf_tokenizer` builds
those. Both together give the perplexity of the original: Gemma-3-270M Q4_K_M on the first 8,192 tokens of
the WikiText-2 test text, 16 windows of BOS and 512 tokens, 28.03.
"""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.folder import BROKEN, check_report, reason
from pytest_llmslim.models.gguf_metadata import read_metadata
from pytest_llmslim.models.gguf_tokenizer import sentencepiece_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn


def load(file: Path, name: str, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """Model and tokenizer from a GGUF file, on the CPU.

    Raises:
        ModelError: no GGUF, a damaged file, an unknown architecture, or no tokenizer in it.
    """
    metadata = read_metadata(file, name)
    tokenizer = _tokenizer(file, name, metadata)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its bar does not listen to transformers' switch
            module, report = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=dtype, output_loading_info=True, local_files_only=True
            )
    except BROKEN as error:
        architecture = metadata.get("general.architecture")
        raise ModelError(
            f"{name} (architecture {architecture}) is a GGUF file that transformers "
            f"{transformers.__version__} reads, got {reason(error)}; download it again, or use the original "
            "safetensors"
        ) from error
    check_report(report, name)
    _forget_quantization(module)
    return module, tokenizer


def _forget_quantization(module: nn.Module) -> None:
    """The weights are dense from here on, but transformers would refuse to save or cast the model."""
    for holder, mark in (
        (module, "hf_quantizer"),
        (module, "is_quantized"),
        (module, "quantization_method"),
        (module.config, "quantization_config"),
    ):
        if mark in vars(holder):
            delattr(holder, mark)


def _tokenizer(file: Path, name: str, metadata: dict[str, Any]) -> Any:  # noqa: ANN401
    kind = metadata.get("tokenizer.ggml.model")
    try:
        if kind == "llama":
            return sentencepiece_tokenizer(metadata)
        if kind is not None:
            return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except BROKEN as error:
        raise ModelError(
            f"the tokenizer in {name} can be read, got {reason(error)}; download the file again, or use the "
            "original safetensors"
        ) from error
    raise ModelError(f"{name} holds a tokenizer, got a GGUF file without one; use a file of the whole model")
