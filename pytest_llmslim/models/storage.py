"""Where the bytes of a model are: counting, hashing, moving and copying them as they are really stored.

Quantized layers hide tensors from `parameters()`: bitsandbytes hangs scales and code books on the weight
(`Params4bit.quant_state`, `Int8Params.CB` and `SCB`) and on the layer (`Linear8bitLt.state`). All functions
here see them, count a storage once however many names it has, and never call `state_dict()`, which makes
bitsandbytes undo the layout that its first forward made.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pytest_llmslim.models.content import packed_parts, weights_hash

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

__all__ = [
    "copy_model",
    "free_bytes",
    "parameter_count",
    "reallocate",
    "stored_bytes",
    "stored_tensors",
    "weights_hash",
]

_PADDING_BYTES = 1 << 16
"""Largest gap between two storages; above a page (4 KiB), so that the place within a page is random too."""

_SCRATCH = ("idx", "subB")
"""What `Linear8bitLt.state` keeps of the last input: no part of the model, and other with every text."""


def stored_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Every tensor object that `module` holds, with a dotted label, each object once; meta tensors left out.

    Two of them may share one storage (tied weights, views).
    """
    seen: dict[int, object] = {}
    found: list[tuple[str, torch.Tensor]] = []
    for path, child in module.named_modules():
        for name, value in _held(child):
            found += _tensors(f"{path}.{name}" if path else name, value, seen)
    return found


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all storages that `module` holds, each once: packed weights, scales and buffers as stored."""
    tensors = [tensor for _, tensor in stored_tensors(module)]
    return sum(storage.nbytes() for storage in _storages(tensors).values())


def parameter_count(module: nn.Module) -> int:
    """Parameters in the usual sense: tied ones once, a packed weight with its original elements.

    A module that keeps weights as codes in buffers says their number as `packed_weights`.
    """
    return sum(_elements(tensor) for tensor in module.parameters()) + sum(
        sum(part.numel() for _, part in packed_parts(child)) + getattr(child, "packed_weights", 0)
        for child in module.modules()
    )


def movable(module: nn.Module) -> list[torch.Tensor]:
    """The tensors that `reallocate` moves.

    All but the quantized tensors that torch.ao's packed objects unpack: those are copies already.
    """
    return [tensor for _, tensor in stored_tensors(module) if not tensor.is_quantized]


def reallocate(tensors: list[torch.Tensor], rng: random.Random) -> object:
    """Move all storages of a model, in place, to fresh memory in random order with random gaps.

    Memory layout alone makes two equal models differ in time by up to 5 % for a whole process, so timing
    draws a new layout for every block. Values, tied weights and views stay as they are. Needs the bytes of
    the model a second time while it runs.

    Returns:
        The gaps; keep them as long as the layout is to last.
    """
    storages = list(_storages(tensors).items())
    rng.shuffle(storages)
    gaps, moved = [], {}
    for key, storage in storages:
        gaps.append(torch.empty(rng.randrange(64, _PADDING_BYTES), dtype=torch.uint8, device=storage.device))
        moved[key] = storage.clone()
    for tensor in tensors:
        tensor.data = _view(tensor, moved[_key(tensor)])
    return gaps


def copy_model(module: nn.Module) -> nn.Module:
    """An independent copy in eval mode without gradients: no storage is shared, ties and views are kept.

    A plain `copy.deepcopy` would store the weights of bitsandbytes' 8-bit layers twice and leave its 4-bit
    weights pointing to the layers they were copied from.
    """
    originals = movable(module)
    copied = {key: storage.clone() for key, storage in _storages(originals).items()}
    memo: dict[int, Any] = {id(tensor): _twin(tensor, copied[_key(tensor)]) for tensor in originals}
    twins = [(tensor, memo[id(tensor)]) for tensor in originals]
    made = copy.deepcopy(module, memo)
    for tensor, twin in twins:
        twin.__dict__.update(copy.deepcopy(tensor.__dict__, memo))
    return made.eval().requires_grad_(False)


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module._parameters.items()
    yield from module._buffers.items()
    for name, value in vars(module).items():
        if name not in ("_parameters", "_buffers", "_modules"):
            yield name, value
    yield from packed_parts(module)


def _tensors(label: str, value: object, seen: dict[int, object]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in `value` and hanging on it; other modules are left to `named_modules`."""
    if id(value) in seen:
        return
    seen[id(value)] = value  # held, so that no other object gets this id
    if isinstance(value, torch.Tensor):
        if is_traceable_wrapper_subclass(value):
            inner = {name: getattr(value, name) for name in value.__tensor_flatten__()[0]}
            yield from _tensors(label, inner, seen)
        elif not value.is_meta:
            yield label, value
        yield from _tensors(label, vars(value), seen)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _tensors(f"{label}.{name}", item, seen)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensors(f"{label}.{index}", item, seen)
    elif type(value).__module__.startswith("bitsandbytes.") and not isinstance(value, nn.Module):
        kept = {name: item for name, item in vars(value).items() if name not in _SCRATCH}
        yield from _tensors(label, kept, seen)


Key = tuple[torch.device, int]


def _key(tensor: torch.Tensor) -> Key:
    storage = tensor.untyped_storage()
    return storage.device, storage.data_ptr()


def _storages(tensors: Iterable[torch.Tensor]) -> dict[Key, torch.UntypedStorage]:
    return {_key(tensor): tensor.untyped_storage() for tensor in tensors}


def _view(tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    """The same place, shape and strides as `tensor`, on another storage."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _twin(tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    view = _view(tensor, storage)
    return view if type(tensor) is torch.Tensor else torch.Tensor._make_subclass(type(tensor), view, False)


def _elements(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def free_bytes(device: str) -> int:
    """Memory that can still be allocated on a device."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
