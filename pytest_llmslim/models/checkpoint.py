"""A model as what a checkpoint of transformers holds: tensors by name, a config, and what is said of both.

transformers' own `save_pretrained` writes the quantized linears of models that it quantized itself, and knows
neither the classes of this package nor GPT-2's `nn.Linear`, layers of unequal heads, or pruned ones.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.blocks import FAMILIES, outermost
from pytest_llmslim.models.head_padding import padded, padding_of
from pytest_llmslim.models.linear_parts import Dense, EightBit, FourBit, TorchAO, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llmslim.models.linear_parts import Parts


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What is written.

    Args:
        tensors: by name; contiguous, no storage twice.
        metadata: of the safetensors files.
        config: of transformers, with `quantization_config` where linears are quantized.
        notes: in which a checkpoint differs from the model in memory, in sentences.
        groups: key/value groups that each layer really has, where the checkpoint has heads of zeros beside them.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    config: Any
    notes: tuple[str, ...]
    groups: tuple[int, ...] | None


def checkpoint_of(module: nn.Module) -> Checkpoint:
    """The checkpoint of a causal language model, which is not changed; float weights are not copied.

    Raises:
        ModelError: it holds what no checkpoint of transformers can.
    """
    dtype = module.get_input_embeddings().weight.dtype
    parts = {name: _kept(parts_of(linear, name), dtype) for name, linear in outermost(module)}
    config, notes, groups = copy.deepcopy(module.config), [], None
    if str(config.model_type) in FAMILIES:
        padding = padding_of(module, parts)
        for name, value in padding.config.items():
            setattr(config, name, value)
        if padding.needed:
            parts, groups = padded(module, parts, padding), padding.groups
            notes.append(
                f"layers with fewer than {padding.told} key/value groups have heads of zeros beside them, which "
                "pytest-llmslim takes out again when it loads the folder"
            )
    _tell(config, module, dtype)
    turned = _conv1d(module, config)
    parts = {name: _unpacked(part, name in turned, name) for name, part in parts.items()}
    _tell_quantization(config, parts, dtype)
    tensors, metadata = _flat(dict(_tensors(module, parts, turned, config)))
    return Checkpoint(tensors, metadata, config, (*notes, *_said(parts)), groups)


def _kept(part: Parts, dtype: torch.dtype) -> Parts:
    """4-bit weights that transformers would load, but some CPUs not multiply, as float."""
    return part.dense(dtype) if isinstance(part, FourBit) and not part.fits else part


def _unpacked(part: Parts, turned: bool, name: str) -> Parts:
    """Tensors of torchao as float where transformers has a `Conv1D`, whose weight it would take for turned."""
    return (
        part.dense(name, "transformers has it transposed") if turned and isinstance(part, TorchAO) else part
    )


def _tell(config: Any, module: nn.Module, dtype: torch.dtype) -> None:  # noqa: ANN401
    """What the config says of the whole model."""
    config.architectures = [type(module).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    head, embeddings = module.get_output_embeddings(), module.get_input_embeddings()
    if head is not None:
        config.tie_word_embeddings = head.weight is embeddings.weight
    if hasattr(config, "quantization_config"):
        del config.quantization_config


def _conv1d(module: nn.Module, config: Any) -> set[str]:  # noqa: ANN401
    """Names of the linears that transformers has as a `Conv1D`, with a weight [in, out]."""
    with torch.device("meta"):
        fresh = type(module)(copy.deepcopy(config))
    return {name for name, part in fresh.named_modules() if isinstance(part, Conv1D)}


def _tell_quantization(config: Any, parts: dict[str, Parts], dtype: torch.dtype) -> None:  # noqa: ANN401
    """How transformers is to make the quantized linears before it fills them.

    Raises:
        ModelError: linears are quantized in more than one way.
    """
    dense = [name for name, part in parts.items() if isinstance(part, Dense)]
    ways = {_way(part, dtype) for part in parts.values() if not isinstance(part, Dense)}
    if len(ways) > 1:
        raise ModelError(
            "the config of a checkpoint tells one way of quantizing for all linears, got "
            f"{' and '.join(sorted(str(way) for way in ways))}; quantize all linears alike"
        )
    for way in ways:
        config.quantization_config = way.config(dense)


@dataclass(frozen=True, slots=True)
class _Way:
    """How linears are quantized, as far as the config tells it."""

    kind: str
    detail: tuple[Any, ...]

    def __str__(self) -> str:
        return " ".join(str(each) for each in (self.kind, *self.detail))

    def config(self, dense: list[str]) -> Any:  # noqa: ANN401
        """For transformers; `dense` names the linears that stay float."""
        if self.kind == "int8":
            return BitsAndBytesConfig(
                load_in_8bit=True, llm_int8_threshold=self.detail[0], llm_int8_skip_modules=dense
            )
        if self.kind == "int4":
            quant_type, nested, compute = self.detail
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=quant_type,
                bnb_4bit_use_double_quant=nested,
                bnb_4bit_compute_dtype=compute,
                llm_int8_skip_modules=dense,
            )
        return _torchao_config(dynamic=self.detail[0], dense=dense)


def _way(part: Parts, dtype: torch.dtype) -> _Way:
    if isinstance(part, EightBit):
        return _Way("int8", (part.threshold,))
    if isinstance(part, FourBit):
        return _Way("int4", (part.state.quant_type, part.nested is not None, part.compute or dtype))
    return _Way("torchao", (isinstance(part, TorchAO) and part.dynamic,))


def _torchao_config(*, dynamic: bool, dense: list[str]) -> Any:  # noqa: ANN401
    from torchao import quantization
    from transformers import TorchAoConfig

    kind = "Int8DynamicActivationInt8WeightConfig" if dynamic else "Int8WeightOnlyConfig"
    return TorchAoConfig(getattr(quantization, kind)(), modules_to_not_convert=dense)


def _tensors(
    module: nn.Module,
    parts: dict[str, Parts],
    turned: set[str],
    config: Any,  # noqa: ANN401
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight and saved buffer under each of its names; the head's only where it is not tied."""
    head = module.get_output_embeddings() if config.tie_word_embeddings else None
    inside = ""
    for path, child in module.named_modules(remove_duplicate=False):
        if inside and path.startswith(inside):
            continue
        if path in parts:
            inside = f"{path}."
            tensors = _of_linear(parts[path], turned=path in turned)
        else:
            kept = {k: v for k, v in child._buffers.items() if k not in child._non_persistent_buffers_set}
            tensors = {**child._parameters, **kept}
        for name, tensor in tensors.items():
            if tensor is not None and not (child is head and name == "weight"):
                yield f"{path}.{name}" if path else name, tensor.detach()


def _of_linear(part: Parts, *, turned: bool) -> dict[str, torch.Tensor | None]:
    tensors = part.tensors()
    if turned and isinstance(part, Dense):
        tensors = {"weight": part.weight.t()}
    return {**tensors, "bias": part.bias}


def _flat(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors as safetensors can write them, each in memory of its own, and the metadata that goes with them."""
    metadata = {}
    if any(hasattr(tensor, "__tensor_flatten__") for tensor in tensors.values()):
        from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

        tensors, metadata = flatten_tensor_state_dict(tensors)
    flat: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.as_subclass(torch.Tensor).contiguous()
        place = plain.untyped_storage().data_ptr()
        flat[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return flat, {**metadata, "format": "pt"}


def _said(parts: dict[str, Parts]) -> list[str]:
    """What was made float, and how many linears of each kind."""
    counts = Counter(part.note for part in parts.values() if isinstance(part, Dense) and part.note)
    return [f"{note} ({count} linears)" for note, count in sorted(counts.items())]
