"""Models in the folder layout of transformers: config.json, safetensors, tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.classifiers import auto_class, check_labels, names_classifier, tell_padding
from pytest_llmslim.models.sources import PICKLES, pickled

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
)

# What transformers, tokenizers and safetensors raise on files that are damaged or do not fit together.
BROKEN = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
    SafetensorError,
    StrictDataclassError,
)


def load(
    path: Path, name: str, dtype: torch.dtype, *, device: torch.device, trust_remote_code: bool
) -> tuple[nn.Module, Any]:
    """Model and tokenizer from a folder, without the network.

    Raises:
        ModelError: see `load_model`.
    """
    config = read_config(path, name, trust_remote_code=trust_remote_code)
    check_weights(path, name)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(path, name, **options)
    if getattr(config, "quantization_config", None) is not None:
        options["device_map"] = {"": device}  # packed weights are made where they stay
    try:
        module, report = auto_class(config).from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, so that the error can name them
            **options,
        )
    except BROKEN as error:
        raise ModelError(
            f"the weights of {name} can be read by transformers {transformers.__version__}, got "
            f"{reason(error)}; download or save the checkpoint again"
        ) from error
    check_report(report, name)
    if names_classifier(config):
        tell_padding(module, tokenizer, name)
    return module, tokenizer


def read_config(path: Path, name: str, *, trust_remote_code: bool) -> Any:  # noqa: ANN401
    """The config of a causal language model, or of a classifier made of one.

    Raises:
        ModelError: no or damaged config.json, another kind of model, a regression, or code that would have to run.
    """
    raw = _config_json(path, name)
    remote = "AutoModelForCausalLM" in raw.get("auto_map", {})
    kind = raw.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES and not (remote and trust_remote_code):
        if remote:
            raise ModelError(
                f"{name} is a model that transformers {transformers.__version__} knows, got one with "
                "Python code of its own; read that code, then allow it with --llm-trust-remote-code"
            )
        raise ModelError(
            f"config.json of {name} has a model_type that transformers {transformers.__version__} knows, got "
            f"{kind!r}; update transformers, or name a causal language model"
        )
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=trust_remote_code)
    except BROKEN as error:
        raise ModelError(
            f"config.json of {name} describes a model, got {reason(error)}; save it again"
        ) from error
    if names_classifier(config):
        check_labels(config, name)
    elif not (remote and trust_remote_code):
        check_causal(config, name)
    return config


def check_causal(config: Any, name: str) -> None:  # noqa: ANN401
    """Refuse encoders, encoder-decoders and models with another head.

    Raises:
        ModelError: names what the config says it is.
    """
    named = ", ".join(getattr(config, "architectures", None) or [])
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if (
        config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        or getattr(config, "is_encoder_decoder", False)
        or getattr(config, "is_decoder", True) is False
        or (named and causal.isdisjoint(config.architectures))
    ):
        raise ModelError(
            f"{name} is a causal language model or a classifier made of one, got {named or config.model_type}; "
            "name a model with a next-token head, such as gpt2"
        )


def check_weights(path: Path, name: str) -> None:
    """Refuse folders without safetensors, or with a part of them missing.

    Raises:
        ModelError: pickled, absent or incomplete weights.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        for file in sorted(set(_json(index, name).get("weight_map", {}).values())):
            if not (path / file).is_file():
                raise ModelError(
                    f"the weights of {name} are all the files its index lists, got none called {file}; "
                    "download or copy it again"
                )
        return
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ModelError(pickled(name, pickles[0]))
    raise ModelError(
        f"the weights of {name} are safetensors in {path}, got none; save them with save_pretrained(folder)"
    )


def load_tokenizer(path: Path, name: str, **options: bool) -> Any:  # noqa: ANN401
    """The tokenizer in a folder.

    Raises:
        ModelError: there is none, or it is damaged. transformers would make an empty one for some families.
    """
    wanted = "put the model's tokenizer there, e.g. with tokenizer.save_pretrained(folder)"
    if not any((path / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(f"{name} has a tokenizer in its folder, got none; {wanted}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except BROKEN as error:
        raise ModelError(f"the tokenizer of {name} can be read, got {reason(error)}; {wanted}") from error
    if len(tokenizer("a b", add_special_tokens=False).input_ids) == 0:
        raise ModelError(f"the tokenizer of {name} knows some tokens, got an empty one; {wanted}")
    return tokenizer


def check_report(report: dict[str, Any], name: str) -> None:
    """Refuse a model of which a part was not in the file: transformers fills it with random numbers.

    Raises:
        ModelError: names the first missing or misshapen weight.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"the checkpoint of {name} holds every weight, got none for {len(missing)}, first "
            f"{missing[0]!r}; save the whole model again"
        )
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        key, stored, expected = wrong[0]
        raise ModelError(
            f"weight {key!r} of {name} has the shape {tuple(expected)} by its config.json, got "
            f"{tuple(stored)}; use the config.json that was saved with the weights"
        )


def reason(error: BaseException) -> str:
    """Class and first line of an error of another library."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {first[:200].rstrip('.')}"


def _config_json(path: Path, name: str) -> dict[str, Any]:
    if (path / "config.json").is_file():
        return _json(path / "config.json", name)
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{name} is a whole model, got a LoRA adapter; merge it into its base model and save that"
        )
    raise ModelError(
        f"{name} is a model folder with a config.json, got {path} without one; "
        "save it with save_pretrained(folder)"
    )


def _json(file: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"{file.name} of {name} is JSON, got {reason(error)}; save the model again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{file.name} of {name} is a JSON object, got {type(value).__name__}; save it again")
    return value
