"""The student of a distillation, and whom it learns from.

`half` truncates as DistilBERT and DistilGPT-2 do (Sanh et al. 2019, arXiv 1910.01108): every other layer of the
teacher, the first one kept, with its weights. trl and transformers have no such function; DistilGPT-2's script is
research code for two families, so this is our own, on `models.shapes`.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods.linears import float_linears
from pytest_llmslim.methods.parameters import refuse
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.classifiers import head_of
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.shapes import keep_channels, keep_layers
from pytest_llmslim.models.storage import copy_model, parameter_count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pytest_llmslim.methods import Context

AUTO, HALF, SAME = "auto", "half", "same"
_SHAPE = re.compile(r"(?:layers=(?P<layers>\d{1,4}))?,?(?:inner=(?P<inner>\d{1,6}))?", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Who learns from whom.

    Args:
        student: to be trained in place; a module of its own.
        teacher: never changed; the uncompressed model.
        sentence: what the student is, in numbers.
    """

    student: nn.Module
    teacher: nn.Module
    sentence: str


def check_student(method: str, value: object) -> None:
    """Refuse what names no student: words, a shape like `layers=2,inner=128`, a folder or an id.

    Raises:
        RecipeError: no text, an empty one, or a shape that is none.
    """
    rule = "auto, half, same, a shape like layers=2 or layers=2,inner=128, a folder or a Hugging Face id"
    if not isinstance(value, str) or not value.strip():
        refuse(method, "student", rule, value)
    if value.startswith(("layers=", "inner=")) and _shape(value) is None:
        refuse(method, "student", rule, value)


def pair(student: str, module: nn.Module, context: Context, method: str) -> Pair:
    """The student that `student` names, made from `module`, and its teacher.

    The teacher is the uncompressed model, `context.reference`; without one a copy of `module` as it came.
    `auto` is `same` (the module itself learns) if an earlier step of the recipe changed it, else `half`.
    `half` and shapes keep layers and channels of `module`, so what earlier steps did to them stays.

    Raises:
        CompressionError: a quantized model, weights that are not finite, a student that equals the teacher, is
            larger than what it is cut out of, or has another vocabulary or too few positions.
        ModelError: a folder or id that cannot be loaded.
    """
    float_linears(module, method, context)
    teacher = copy_model(module) if context.reference is None else context.reference
    if student == AUTO:
        student = HALF if _equal(module, teacher) else SAME
    learner = _made(student, module, context, method)
    if _equal(learner, teacher):
        raise CompressionError(
            f"{method} on {context.label}: a student differs from its teacher, got the unchanged model for both; "
            "prune it in a step before, or choose student=half"
        )
    _check_vocabulary(learner, teacher, context, method)
    layers = "{} of {} layers".format(*(len(Blocks(each).layers) for each in (learner, teacher)))
    sizes = "{} of {} parameters".format(*(parameter_count(each) for each in (learner, teacher)))
    return Pair(learner, teacher, f"student of {layers}, {sizes}")


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """All weights of `module` in float32 while it is trained, then in their own types again; no buffers."""
    types = {parameter: parameter.dtype for parameter in module.parameters()}
    for parameter in types:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in types.items():
            parameter.data = parameter.data.to(dtype)


def _made(student: str, module: nn.Module, context: Context, method: str) -> nn.Module:
    shape = _shape(student)
    if student == SAME:
        return module
    if student == HALF:
        keep_layers(module, range(0, len(Blocks(module).layers), 2))
    elif shape is not None:
        _cut(module, shape, context, method)
    else:
        return _loaded(student, module, context, method)
    return module


def _loaded(name: str, module: nn.Module, context: Context, method: str) -> nn.Module:
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    loaded = load_model(name, device=context.device, dtype=dtype).module
    float_linears(loaded, method, context)
    longest = getattr(loaded.config, "max_position_embeddings", None)
    if longest is not None and context.calibration is not None and longest < context.calibration.shape[1]:
        raise CompressionError(
            f"{method} on {context.label}: a student reads windows of {context.calibration.shape[1]} tokens, got "
            f"{longest} positions in {name}; choose another student or a smaller --llm-window"
        )
    return loaded


def _shape(student: str) -> dict[str, int] | None:
    """The numbers of a shape by name; `None` for what is no shape."""
    found = _SHAPE.fullmatch(student)
    if found is None or not student or student[0] == "," or student[-1] == ",":
        return None
    return {name: int(text) for name, text in found.groupdict().items() if text is not None}


def _cut(module: nn.Module, shape: dict[str, int], context: Context, method: str) -> None:
    """Keep so many layers, evenly spread from the first, and so many feed-forward channels in each."""
    layers = Blocks(module).layers
    widths = {module.get_submodule(layer.feed_forward.outer).in_features for layer in layers}
    for name, largest in (("layers", len(layers)), ("inner", min(widths))):
        if not 1 <= shape.get(name, 1) <= largest:
            raise CompressionError(
                f"{method} on {context.label}: a student has 1 to {largest} {name}, as it is cut out of the model, "
                f"got {shape[name]}; for another shape give the folder of a model"
            )
    count = shape.get("layers", len(layers))
    keep_layers(module, [index * len(layers) // count for index in range(count)])
    if "inner" in shape:
        keep_channels(module, {i: _strongest(module, i, shape["inner"]) for i in range(count)})


def _strongest(module: nn.Module, index: int, count: int) -> list[int]:
    """The channels of a layer whose weights are largest: product of the norms of all that it goes through."""
    names = Blocks(module).layers[index].feed_forward
    norm = module.get_submodule(names.outer).weight.float().norm(dim=0)
    for inner in names.inner:
        norm = norm * module.get_submodule(inner).weight.float().norm(dim=1)
    return sorted(norm.argsort(descending=True, stable=True)[:count].tolist())


def _equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(_same(ours[name], theirs[name]) for name in ours)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def _check_vocabulary(student: nn.Module, teacher: nn.Module, context: Context, method: str) -> None:
    own, theirs = (head_of(each).weight.shape[0] for each in (student, teacher))
    if own != theirs:
        raise CompressionError(
            f"{method} on {context.label}: teacher and student share a vocabulary, got {theirs} and {own} tokens; "
            "choose a student with the teacher's tokenizer"
        )
