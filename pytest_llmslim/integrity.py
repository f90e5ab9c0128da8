"""Was anything compressed, and is the saving real? Asked of every candidate before it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from pytest_llmslim.errors import CompressionError, NothingCompressedError
from pytest_llmslim.models.content import packed_parts
from pytest_llmslim.models.storage import parameter_count, stored_bytes, stored_tensors
from pytest_llmslim.records import Integrity
from pytest_llmslim.rounding import is_rounded
from pytest_llmslim.units import significant, size

Status = Literal["compressed", "simulated", "changed"]
_Replaced = dict[str, list[nn.Module]]


@dataclass(frozen=True)
class _Weight:
    """One weight of two or more dimensions under the same name, shape and a float dtype in both models."""

    reference: torch.Tensor
    candidate: torch.Tensor

    @property
    def zeroed(self) -> int:
        """How many more of the candidate's values are zero."""
        return int((self.candidate == 0).sum()) - int((self.reference == 0).sum())

    @property
    def rounded(self) -> bool:
        """Whether only the candidate's values are on few levels."""
        return is_rounded(self.candidate) and not is_rounded(self.reference)


@dataclass(frozen=True)
class _Sizes:
    reference_bytes: int
    candidate_bytes: int
    reference_parameters: int
    candidate_parameters: int

    @property
    def smaller(self) -> bool:
        return (
            self.candidate_bytes < self.reference_bytes
            or self.candidate_parameters < self.reference_parameters
        )

    @property
    def sentence(self) -> str:
        said = f"{size(self.candidate_bytes)} of {size(self.reference_bytes)} stored"
        if self.candidate_parameters != self.reference_parameters:
            parameters = (significant(n, 4) for n in (self.candidate_parameters, self.reference_parameters))
            said += ", {} of {} parameters".format(*parameters)
        return said


def check(
    reference: nn.Module, candidate: nn.Module, *, control: bool, simulated: tuple[str, ...]
) -> Integrity:
    """Compare what both models store, and how their modules are made.

    Weights that were rounded, or zeroed without getting fewer, are `simulated`: their quality counts, their
    time, energy and bytes do not. Rounding is recognised from the values (see `rounding`), in float weights
    only, so that also a checkpoint or function of the user is seen through.

    Args:
        reference: the original; it has to be another object than `candidate`.
        candidate: the compressed model, of any architecture.
        control: the recipe is the identity, so the models have to be equal.
        simulated: why the cost is not real, as the methods themselves said; empty when it is.

    Raises:
        NothingCompressedError: nothing differs.
        CompressionError: something differs in a control.
    """
    if candidate is reference:
        raise NothingCompressedError(
            "nothing was compressed: the candidate is the very object of the reference; compress a copy"
        )
    replaced = _replaced(reference, candidate)
    different = bool(replaced) or _differ(reference, candidate)
    if control:
        return _control(reference, different)
    if not different:
        raise NothingCompressedError(
            f"nothing was compressed: all {len(stored_tensors(candidate))} tensors and all modules equal the "
            "reference's; check that the method knows this kind of model"
        )
    return _judge(reference, candidate, replaced, simulated)


def _control(reference: nn.Module, different: bool) -> Integrity:
    if different:
        raise CompressionError("identity is a control and has to equal its reference, got another model")
    said = f"control: all {len(stored_tensors(reference))} tensors equal the reference's"
    return Integrity("control", said, "same")


def _judge(
    reference: nn.Module, candidate: nn.Module, replaced: _Replaced, simulated: tuple[str, ...]
) -> Integrity:
    sizes = _Sizes(
        stored_bytes(reference),
        stored_bytes(candidate),
        parameter_count(reference),
        parameter_count(candidate),
    )
    if simulated:
        return Integrity("simulated", "; ".join((*simulated, sizes.sentence)))
    status, seen = _seen(_changed_weights(reference, candidate), sizes, replaced)
    same = _kinds(candidate) <= _kinds(reference)
    return Integrity(status, f"{seen}: {sizes.sentence}", "same" if same else "other")


def _kinds(model: nn.Module) -> set[tuple[type, type, torch.dtype]]:
    """Classes of the modules that hold tensors, with the tensors' classes and dtypes: what decides on the kernels."""
    return {
        (type(module), type(tensor), tensor.dtype)
        for module in model.modules()
        for tensor in (
            *module.parameters(recurse=False),
            *module.buffers(recurse=False),
            *(part for _, part in packed_parts(module)),
        )
    }


def _seen(weights: list[_Weight], sizes: _Sizes, replaced: _Replaced) -> tuple[Status, str]:
    """The status and what it rests on, without the sizes."""
    rounded = sum(weight.rounded for weight in weights)
    if rounded:
        return "simulated", f"{rounded} weights are rounded to few levels but stored in full"
    if sizes.smaller:
        return "compressed", _modules(replaced) if replaced else _storage(weights, sizes)
    zeroed = sum(max(weight.zeroed, 0) for weight in weights)
    if zeroed:
        total = sum(weight.candidate.numel() for weight in weights)
        share = f"{zeroed / total:.1%} of the values in {len(weights)} weights"
        return "simulated", f"{share} are zeroed but stored and multiplied in full"
    if replaced and sizes.candidate_bytes == sizes.reference_bytes:
        return "compressed", _modules(replaced)
    if sizes.candidate_parameters > sizes.reference_parameters:
        return "changed", "the model got larger"
    return "changed", f"{len(weights)} weights have other values and none is smaller"


def _modules(replaced: _Replaced) -> str:
    return " and ".join(_kind(name, modules) for name, modules in list(replaced.items())[:3])


def _kind(name: str, modules: list[nn.Module]) -> str:
    said = f"{len(modules)} modules are now {name}"
    elements = sum(parameter_count(module) for module in modules)
    if not elements or any(module._modules for module in modules):
        return said
    return f"{said} of {8 * sum(stored_bytes(module) for module in modules) / elements:.1f} bits a weight"


def _storage(weights: list[_Weight], sizes: _Sizes) -> str:
    dtypes = {str(w.candidate.dtype).removeprefix("torch.") for w in weights if _narrower(w)}
    if dtypes and sizes.candidate_parameters == sizes.reference_parameters:
        return f"weights stored in {', '.join(sorted(dtypes))}"
    return "the same kinds of modules, fewer or smaller"


def _narrower(weight: _Weight) -> bool:
    return weight.candidate.element_size() < weight.reference.element_size()


def _replaced(reference: nn.Module, candidate: nn.Module) -> _Replaced:
    """The candidate's modules where the reference has one of another class, or with other classes of weights."""
    before = {name: _classes(module) for name, module in reference.named_modules()}
    found: _Replaced = {}
    for name, module in candidate.named_modules():
        classes = _classes(module)
        if before.get(name, classes) != classes:
            same = before[name][0] is type(module)
            weights = " and ".join(sorted(each.__name__ for each in classes[1:]))
            label = module._get_name() + (f" with {weights}" if same and weights else "")
            found.setdefault(label, []).append(module)
    return found


def _classes(module: nn.Module) -> tuple[type, ...]:
    """The module's, and those of its weights that are no plain parameters, as torchao's quantized tensors."""
    own = {type(parameter) for parameter in module.parameters(recurse=False)} - {nn.Parameter}
    return type(module), *sorted(own, key=lambda each: each.__name__)


def _differ(reference: nn.Module, candidate: nn.Module) -> bool:
    """Whether any stored tensor has another name, shape, dtype or value; their order means nothing."""
    ours, theirs = dict(stored_tensors(reference)), dict(stored_tensors(candidate))
    return ours.keys() != theirs.keys() or any(not _equal(ours[label], theirs[label]) for label in ours)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.to(a.device))


def _changed_weights(reference: nn.Module, candidate: nn.Module) -> list[_Weight]:
    before = dict(stored_tensors(reference))
    pairs = ((before.get(label), tensor) for label, tensor in stored_tensors(candidate))
    return [_Weight(a, b) for a, b in pairs if a is not None and _comparable(a, b) and not _equal(a, b)]


def _comparable(a: torch.Tensor, b: torch.Tensor) -> bool:
    floats = a.is_floating_point() and b.is_floating_point() and min(a.element_size(), b.element_size()) > 1
    return floats and a.shape == b.shape and a.dim() > 1
