"""From a name to a model that can be measured: loaded, checked, in eval mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_llmslim.errors import ModelError, SettingError
from pytest_llmslim.models import folder, gguf
from pytest_llmslim.models.card import key_value_groups
from pytest_llmslim.models.conv1d import from_conv1d
from pytest_llmslim.models.head_padding import cut_padding
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.sources import Kind, resolve
from pytest_llmslim.models.storage import stored_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A causal language model, or a classifier made of one, with its tokenizer.

    Args:
        name: as the user named it.
        module: in eval mode, without gradients, on `device`; GPT-2's `Conv1D` are `nn.Linear`.
        tokenizer: of transformers; whether it puts BOS first by itself differs from model to model.
        family: `config.model_type`.
        dtype: name of the floating point type of weights and activations.
        device: e.g. `cpu` or `cuda:0`.
        source: where it came from.
    """

    name: str
    module: nn.Module
    tokenizer: Any
    family: str
    dtype: str
    device: str
    source: Kind


def load_model(
    name: str, *, device: str = "cpu", dtype: str = "float32", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a model by Hugging Face id, folder, `.gguf` file, or `embedded:gpt2` and the like.

    Only safetensors and GGUF are read, never pickled weights. Only a Hugging Face id touches the network.

    Args:
        name: what to load; an existing path wins over an id.
        device: where to put it, as torch spells it.
        dtype: `float32`, `bfloat16` or `float16`; a GGUF file is dequantized into it.
        trust_remote_code: whether Python files that come with the model may run.

    Raises:
        ModelError: nothing there, no causal language model and no classifier, no tokenizer, weights that are pickled,
            damaged, missing or not finite.
        SettingError: an unknown dtype, or a device that this machine lacks.
    """
    place, number = _device(device), _dtype(dtype)
    source = resolve(name, trust_remote_code=trust_remote_code)
    with quiet():
        if source.kind == "gguf":
            module, tokenizer = gguf.load(source.path, name, number)
        else:
            module, tokenizer = folder.load(
                source.path, name, number, device=place, trust_remote_code=trust_remote_code
            )
        module = module.to(place)
    check_finite(module, name)
    from_conv1d(module)
    groups = key_value_groups(source.path, name) if source.kind == "folder" else None
    if groups is not None:
        cut_padding(module, groups)
    check_vocabulary(module, tokenizer, name)
    family = str(module.config.model_type)
    return LoadedModel(
        name, module.eval().requires_grad_(False), tokenizer, family, dtype, str(place), source.kind
    )


def check_finite(module: nn.Module, name: str) -> None:
    """Refuse weights with NaN or infinity: every figure measured on them would be nonsense.

    Raises:
        ModelError: names the first such tensor.
    """
    for label, weight in stored_tensors(module):  # torchao's tensors cannot be added up, what they hold can
        # A sum in double precision cannot overflow, and is one pass without a mask in memory.
        if weight.is_floating_point() and not torch.isfinite(weight.sum(dtype=torch.float64)):
            raise ModelError(
                f"the weights of {name} are finite numbers, got NaN or infinity in {label!r}; "
                "load it in float32, or save the checkpoint again"
            )


def check_vocabulary(module: nn.Module, tokenizer: Any, name: str) -> None:  # noqa: ANN401
    """Refuse a tokenizer of another model.

    Raises:
        ModelError: the tokenizer knows more tokens than the model has embeddings.
    """
    rows = module.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"the tokenizer of {name} has at most one token for each of the model's {rows} embeddings, got "
            f"{tokenizer.vocab_size} tokens; put the model's own tokenizer beside it"
        )


def _dtype(dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise SettingError(f"dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


def _device(device: str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError:
        raise SettingError(f"device is spelled like cpu, cuda or cuda:0, got {device!r}") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise SettingError(
            f"device {device!r} is one of the {torch.cuda.device_count()} CUDA devices seen here; use cpu"
        )
    return place
