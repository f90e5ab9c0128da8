"""Saving a candidate as a folder that transformers and `load_model` read with equal logits.

Safetensors only, with the tokenizer and `llmslim.json`, which says what the candidate is. What was written is
loaded again and compared before the folder gets its name: a folder that is there is whole and right.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.card import CARD, write_card
from pytest_llmslim.models.checkpoint import checkpoint_of
from pytest_llmslim.models.classifiers import auto_class
from pytest_llmslim.models.folder import BROKEN, load_tokenizer, reason
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

_SHARD: Final = "5GB"
_TOKENS: Final = 16
"""Tokens that the saved model is compared on."""

_TEXT: Final = 'The quick brown fox — 42 of them — jumped over "naïve" dogs,\n  twice.'

_TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference of logits, in shares of the largest logit; merging terms rounds to the weights' dtype."""

_LONGEST: Final = 120
"""Characters of a folder's name; file systems take 255 bytes."""


def save(module: nn.Module, tokenizer: Any, folder: Path, card: Mapping[str, object]) -> tuple[str, ...]:  # noqa: ANN401
    """Write a causal language model as a checkpoint; `module` is not changed.

    A folder that an earlier call wrote is replaced, once the new one is whole.

    Args:
        module: in eval mode, of any compression of this package.
        tokenizer: of transformers.
        folder: where to; its parents are made.
        card: for `llmslim.json`: anything that JSON can hold.

    Returns:
        In which the checkpoint differs from the model in memory, in sentences; they are in `llmslim.json`, too.

    Raises:
        ModelError: it is of a kind that no checkpoint can hold, the folder holds something else or cannot be
            written, or what was written does not load to equal logits. Nothing is left behind then.
    """
    with _writing(folder):
        _check_free(folder)
    part = folder.with_name(f".{folder.name}.part")
    try:
        with _writing(folder):
            notes, cut = _write(module, tokenizer, part, card)
        _verify(module, part, folder, cut=cut)
        _verify_tokenizer(tokenizer, part, folder)
        with _writing(folder):
            _rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return notes


def folder_name(model: str, recipe: str) -> str:
    """A folder's name for a candidate: letters, digits and `-_.=`; what does not fit is cut, with a digest instead.

    Args:
        model: the model's label, e.g. `embedded:llama`.
        recipe: its text, e.g. `kd(steps=200)+int8`.
    """
    plain = re.sub(r"[^A-Za-z0-9._=-]+", "-", f"{model}-{recipe}").strip("-.")
    digest = hashlib.sha256(f"{model}\n{recipe}".encode()).hexdigest()[:8]
    if len(plain) > _LONGEST:
        return f"{plain[: _LONGEST - 9].rstrip('-.')}-{digest}"
    return plain


def _check_free(folder: Path) -> None:
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / CARD).is_file()):
        return
    if folder.exists() or folder.is_symlink():
        raise ModelError(
            f"a candidate is saved to a new folder, an empty one, or one of a candidate saved before, got {folder} "
            "with something else; name another folder"
        )


def _write(
    module: Any,  # noqa: ANN401  # a model of transformers
    tokenizer: Any,  # noqa: ANN401
    folder: Path,
    card: Mapping[str, object],
) -> tuple[tuple[str, ...], bool]:
    """Returns the notes, and whether `load_model` cuts heads of zeros out of what was written."""
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed
    folder.mkdir(parents=True)
    made = checkpoint_of(module)
    made.config.save_pretrained(folder)
    if getattr(module, "generation_config", None) is not None:  # as it is: others may have made it invalid
        module.generation_config.to_json_file(folder / "generation_config.json")
    shards = split_torch_state_dict_into_shards(made.tensors, max_shard_size=_SHARD)
    for file, names in shards.filename_to_tensors.items():
        save_file({name: made.tensors[name] for name in names}, folder / file, metadata=made.metadata)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        text = json.dumps(index, sort_keys=True, indent=2)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    tokenizer.save_pretrained(folder)
    write_card(folder, card, made.notes, made.groups)
    return made.notes, made.groups is not None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say it in a sentence when the disk is full, or the folder cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"a candidate can be written to {folder}, got {reason(error)}; make room there, or name another folder"
        ) from error


def _rename(part: Path, folder: Path) -> None:
    """Give `part` its name; what has that name is deleted only then."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _verify(module: nn.Module, part: Path, folder: Path, *, cut: bool) -> None:
    """Load what was written, by transformers and, where this package makes a difference, by `load_model`.

    Raises:
        ModelError: it cannot be loaded, or has other logits.
    """
    device, dtype = next(module.parameters()).device, module.get_input_embeddings().weight.dtype
    wanted = _logits(module)
    if not torch.isfinite(wanted).all():
        raise ModelError(
            f"a candidate to save has finite logits, got NaN or infinity; {folder} was not written"
        )
    words = str(dtype).removeprefix("torch.")
    loaders = {
        "from_pretrained": lambda: _by_transformers(part, device),
        "load_model": lambda: load_model(str(part), device=str(device), dtype=words).module,
    }
    for loader in loaders if cut else ("from_pretrained",):
        if loader == "load_model":
            gc.collect()  # two models beside the candidate are one too many
        try:
            got = _logits(loaders[loader]())
        except (*BROKEN, AssertionError, ModelError) as error:
            raise ModelError(
                f"a saved candidate loads again, got {reason(error)} from {loader}; {folder} was not written"
            ) from error
        apart = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not apart <= _TOLERANCE[dtype]:
            raise ModelError(
                f"a saved candidate has the logits that it had, got {apart:.2g} of the largest as difference from "
                f"{loader}; {folder} was not written"
            )


def _verify_tokenizer(tokenizer: Any, part: Path, folder: Path) -> None:  # noqa: ANN401
    """Load the tokenizer that was written.

    Raises:
        ModelError: it cannot be loaded, or cuts a text in another way.
    """
    again = load_tokenizer(part, str(folder), local_files_only=True, trust_remote_code=False)
    cut = [each(_TEXT, verbose=False)["input_ids"] for each in (tokenizer, again)]
    if cut[0] != cut[1]:
        raise ModelError(
            f"a saved tokenizer gives the tokens that it gave, got {len(cut[1])} others instead of {len(cut[0])} for "
            f"{_TEXT!r}; {folder} was not written"
        )


def _by_transformers(folder: Path, device: torch.device) -> nn.Module:
    """As a user would load it, in the dtype that the config tells."""
    with quiet():
        quantized = "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
        options = {"device_map": {"": device}} if quantized else {}  # packed weights are made where they stay
        kind = auto_class(AutoConfig.from_pretrained(folder, local_files_only=True))
        made = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
        return made.to(device).eval()


def _logits(module: nn.Module) -> torch.Tensor:
    """Logits [tokens, vocabulary] (a classifier's: [labels]) in float32 of some tokens from the whole vocabulary."""
    rows, device = module.get_input_embeddings().weight.shape[0], next(module.parameters()).device
    tokens = torch.arange(_TOKENS, device=device)[None] * 7919 % rows
    with torch.no_grad():
        return module(input_ids=tokens, use_cache=False).logits[0].float()
