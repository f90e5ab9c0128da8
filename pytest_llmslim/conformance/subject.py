"""A method under test: how it is made, applied to tiny models, and what it says it does not keep."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
import sys
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from pytest_llmslim.conformance import hosts
from pytest_llmslim.conformance.broken import BrokenInvariantError
from pytest_llmslim.errors import MeasurementError, NothingCompressedError, SettingError, SlimError
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.recipe import Step, instantiate, parse
from pytest_llmslim.registry import RECOVER, Registry, Spec
from pytest_llmslim.strategies.tiny import Tiny, tiny_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from hypothesis.strategies import SearchStrategy
    from torch import nn

    from pytest_llmslim.methods import Applied, Context, Method
    from pytest_llmslim.strategies.matrix import Matrix

QUICK: Final[Mapping[str, object]] = {"steps": 2, "batch": 2, "samples": 2}
"""What is set for every method that declares such a parameter, unless the recipe gives it."""

EXAMPLES: Final[Mapping[str, Mapping[str, object]]] = {
    "layers": {"map": "1"},
    "shear": {"inner": 64},
    "sheared": {"inner": 64},
}
"""For methods of ours that do nothing without a parameter."""

_MULTIPLES: Final = (1, 8, 16, 32, 64, 128)


class Compressed(NamedTuple):
    """A model before and after a method."""

    reference: nn.Module
    module: nn.Module
    applied: Applied


class Seen(NamedTuple):
    """What a method made of one matrix [out, in]; `linear` stands in its place now."""

    before: torch.Tensor
    after: torch.Tensor
    linear: nn.Module


@dataclass(frozen=True)
class Subject:
    """A method with everything that the invariants need to know of it.

    Args:
        title: as it is called in ids and messages.
        make: from parameters to the method.
        given: the parameters that are set, unless an invariant sets them.
        parameters: names of all that may be set.
        stage: of the registry, or `None`.
        names: with which its sentences may begin; empty: any.
        waives: names of invariants with the reasons for which they are not kept.
        missing: why it cannot be made here, e.g. a package that is not installed; empty when it can.
    """

    title: str
    make: Callable[[Mapping[str, Any]], Method]
    given: Mapping[str, object] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    stage: int | None = None
    names: tuple[str, ...] = ()
    waives: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""

    @classmethod
    def of_step(cls, step: Step, registry: Registry) -> Subject:
        """What one step of a recipe names."""
        spec = registry.get(step.name)
        given = {**_quick(spec.parameters), **EXAMPLES.get(spec.name, {}), **dict(step.parameters)}
        alike = [registry.get(name) for name in registry.names()]

        def make(parameters: Mapping[str, Any]) -> Method:
            made = Step(spec.name, tuple(sorted(parameters.items())))
            if not parameters.keys() <= set(spec.parameters):
                parse(made.text, registry)  # refuses it
            return instantiate(made, registry)

        return cls(
            title=step.text,
            make=make,
            given=given,
            parameters=tuple(name for name in spec.parameters if name not in dict(spec.preset)),
            stage=spec.stage,
            names=tuple(other.name for other in alike if other.target == spec.target),
            waives=dict(spec.waives),
            missing=_missing(spec),
        )

    @classmethod
    def of_method(cls, method: Method) -> Subject:
        """An instance, of which the registry need not know; its parameters are its fields."""
        known: Any = method
        fields = dataclasses.fields(known) if dataclasses.is_dataclass(known) else ()
        return cls(
            title=type(method).__name__,
            make=lambda parameters: dataclasses.replace(known, **parameters) if parameters else method,
            parameters=tuple(each.name for each in fields if each.init),
        )

    def method(self, **changes: object) -> Method:
        """The method, with other parameters than those that are given; `None` leaves one out."""
        chosen = {**self.given, **changes}
        return self.make({name: value for name, value in chosen.items() if value is not None})

    # Whole models -------------------------------------------------------------------------------------------

    def prepared(self, reference: nn.Module, earlier: Method | None = None) -> nn.Module:
        """A copy of `reference`; for methods that make up for earlier steps, after such a step."""
        module = copy_model(reference)
        if self.stage == RECOVER:
            step = Magnitude() if earlier is None else earlier
            return step.compress(module, hosts.context(reference)).module
        return module

    def apply(
        self,
        module: nn.Module,
        reference: nn.Module,
        *,
        method: Method | None = None,
        context: Context | None = None,
    ) -> Applied:
        """Compress `module`, which is changed."""
        chosen = method or self.method()
        try:
            with quiet():
                return chosen.compress(module, context or hosts.context(reference))
        except SlimError:
            raise
        except Exception as error:
            where = _place(error, chosen)
            raise BrokenInvariantError(
                f"a method compresses a model or refuses it with an error of pytest_llmslim.errors, got "
                f"{type(error).__name__}{where}: {error}"
            ) from error

    def compressed(self, reference: nn.Module, **changes: object) -> Compressed:
        """What the method, with these parameters, makes of a copy of `reference`."""
        method = self.method(**changes)
        applied = self.apply(self.prepared(reference), reference, method=method)
        return Compressed(reference, applied.module, applied)

    def example(self, dtype: torch.dtype = torch.float32, **changes: object) -> Compressed:
        """The method on a tiny Llama in which it finds something to do.

        Raises:
            SlimError: it refuses it.
        """
        return self.compressed(self.tiny.module().to(dtype), **changes)

    @property
    def tiny(self) -> Tiny:
        """A tiny Llama in which the method finds something to do."""
        return hosts.Sinks() if self.needs_sinks else Tiny("llama")

    def tinies(self, layers: tuple[int, int] = (1, 3)) -> SearchStrategy[Tiny]:
        """Models of any family and shape, or such as `tiny` where the method does nothing to random ones."""
        if self.needs_sinks:
            return st.builds(hosts.Sinks, layers=st.integers(*layers), seed=st.integers(0, 99))
        return tiny_models(layers=layers)

    @cached_property
    def needs_sinks(self) -> bool:
        """Whether it does nothing to a random model, as if no head attended to a single token."""
        try:
            self.compressed(Tiny("llama").module())
        except NothingCompressedError:
            return True
        except SlimError:
            return False
        return False

    # Single matrices ----------------------------------------------------------------------------------------

    def see(self, matrix: Matrix, **changes: object) -> Seen:
        """The method on a model that holds `matrix`.

        Raises:
            SlimError: it refuses it, or the uncompressed model cannot be run.
        """
        host = hosts.host(matrix)
        if not torch.isfinite(hosts.logits(host)).all():
            raise MeasurementError("the uncompressed model gives logits that are not finite")
        linear = self.compressed(host, **changes).module.get_submodule(hosts.PLACE)
        return Seen(matrix.tensor, hosts.weight_of(linear), linear)

    @cached_property
    def multiple(self) -> int:
        """The least width of weights that the method compresses, of which others are multiples."""
        for multiple in _MULTIPLES:
            matrix = hosts.gaussian(8, multiple)
            try:
                module = self.compressed(hosts.host(matrix)).module
            except SlimError:
                continue
            linear = module.get_submodule(hosts.PLACE)
            if not torch.equal(hosts.weight_of(linear), matrix.tensor):
                return multiple
        return _MULTIPLES[-1]


def resolve(name: str, registry: Registry) -> Subject:
    """The subject that a method's name, or a recipe of one step, stands for.

    Raises:
        SlimError: no such method, several steps, or an unknown parameter.
    """
    spec = registry.get(name.partition("(")[0].strip())
    # recovery does not stand at the beginning of a recipe, so it is read behind a step
    before = f"{_ANY}+" if spec.stage == RECOVER else ""
    steps = parse(before + name, registry).steps[bool(before) :]
    if len(steps) != 1:
        raise SettingError(f"--llm-conformance takes one method at a time, got {name}; give it once a method")
    return Subject.of_step(steps[0], registry)


_ANY: Final = "int8"


def check_waives(subject: Subject, known: Sequence[str]) -> None:
    """Refuse a waived invariant that does not exist, and a waiver without a reason.

    Raises:
        SettingError: see above.
    """
    for name, reason in subject.waives.items():
        if name not in known:
            raise SettingError(
                f"{subject.title} waives the invariant {name!r}, which does not exist; known are {', '.join(known)}"
            )
        if not reason.strip():
            raise SettingError(f"{subject.title} waives {name} and says no reason; give one")


def shake() -> None:
    """Leave every global random generator in another state, which a method must not look at."""
    for seed_all in (torch.manual_seed, np.random.seed, random.seed):
        seed_all(int.from_bytes(random.randbytes(3), "big"))


def _place(error: Exception, method: Method) -> str:
    """The line of the method's own file from which `error` came."""
    file = sys.modules[type(method).__module__].__file__
    lines = [
        f":{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == file
    ]
    return f" at {file}{lines[-1]}" if lines else ""


def _quick(parameters: Iterable[str]) -> dict[str, object]:
    return {name: QUICK[name] for name in parameters if name in QUICK}


def _missing(spec: Spec) -> str:
    if spec.extra and importlib.util.find_spec(spec.extra) is None:
        return f"{spec.name} needs the package {spec.extra}; run: pip install 'pytest-llmslim[{spec.extra}]'"
    return ""
