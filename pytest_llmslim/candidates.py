"""Making candidates under clock and meter: by a recipe, or from what the user brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_llmslim.collection import model_label
from pytest_llmslim.errors import CompressionError, ModelError, SlimError
from pytest_llmslim.integrity import check
from pytest_llmslim.meters.clock import Stopwatch
from pytest_llmslim.models.storage import copy_model, weights_hash
from pytest_llmslim.records import Build, Integrity, Reading, unmeasured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.meters import Meter
    from pytest_llmslim.methods import Applied, Context, Method
    from pytest_llmslim.models.loading import LoadedModel
    from pytest_llmslim.recipe import Recipe

Compress = Callable[[torch.nn.Module], torch.nn.Module | None]

WORTH_KEEPING_S = 1.0
"""A first step that took longer is kept for the next recipe that begins with it."""


@dataclass(frozen=True)
class Candidate:
    """A compressed model with what making it cost and whether anything was compressed."""

    name: str
    module: torch.nn.Module
    weights_hash: str
    build: Build
    integrity: Integrity


@dataclass
class Made:
    """A model on its way through the steps of a recipe, and what was said of them."""

    module: torch.nn.Module
    sentences: list[str] = field(default_factory=list)
    simulated: list[str] = field(default_factory=list)
    resumed: str = ""

    def add(self, applied: Applied) -> None:
        """Take what a step returned."""
        self.module = applied.module
        self.sentences.append(applied.sentence)
        self.simulated += [applied.simulated] if applied.simulated else []
        self.resumed = self.resumed or applied.resumed

    def copy(self) -> Made:
        """The same on tensors of its own."""
        return Made(copy_model(self.module), [*self.sentences], [*self.simulated], self.resumed)


class Spent(NamedTuple):
    """What some steps of a recipe took."""

    seconds: Reading
    energy: Reading

    def __add__(self, other: Spent) -> Spent:  # type: ignore[override]  # not of tuples
        """Both, where both are known by the same source; else the reason why one is not."""
        return Spent(_sum(self.seconds, other.seconds), _sum(self.energy, other.energy))


@dataclass
class Begun:
    """The model after the first step of a recipe, so that `kd+int8` and `kd+ah90` train once."""

    step: str
    made: Made
    spent: Spent


class Workshop:
    """Makes the candidates of one reference.

    Args:
        model: the reference as the user named it, and `label` as it is shown.
        device: where candidates lie.
        meter: of energy.
        untimed: why what building costs cannot be told here; empty where it can.
    """

    def __init__(self, model: str, label: str, device: str, meter: Meter, untimed: str = "") -> None:
        self.model, self._label, self._device, self._meter = model, label, device, meter
        self._untimed = untimed
        self._begun: Begun | None = None

    def build(
        self, recipe: Recipe, methods: Sequence[Method], reference: torch.nn.Module, context: Context
    ) -> Candidate:
        """The candidate that `recipe` makes of `reference`.

        A first step that took long is not taken again for the next recipe that begins with it: what it cost was
        measured once, in this run, and is part of the cost of both.

        Raises:
            SlimError: a method refuses the model, fails on it, or changes nothing.
        """
        try:
            begun = self._begin(recipe.steps[0].text, methods[0], reference, context)
            made, spent = begun.made.copy() if begun is self._begun else begun.made, begun.spent
            if len(methods) > 1:
                _, rest = self._timed(lambda: _go_through(made, methods[1:], context))
                spent += rest
        finally:
            context.tell("")
        return self._finish(recipe.text, made, spent, reference, control=recipe.control)

    def _begin(self, step: str, method: Method, reference: torch.nn.Module, context: Context) -> Begun:
        """The model after the first step, as it was kept or made now."""
        if self._begun is not None and self._begun.step == step:
            return self._begun
        self._begun = None
        made, spent = self._timed(lambda: _go_through(Made(copy_model(reference)), [method], context))
        begun = Begun(step, made, spent)
        if spent.seconds.value is not None and spent.seconds.value > WORTH_KEEPING_S:
            self._begun = begun
        return begun

    def take(
        self,
        given: torch.nn.Module | Compress | str | Path,
        label: str | None,
        reference: torch.nn.Module,
        load: Callable[[str], LoadedModel],
    ) -> Candidate:
        """The candidate that the user brings.

        Raises:
            CompressionError: a function raised, or returned something that is no model.
            ModelError: the folder cannot be loaded.
            NothingCompressedError: it equals the reference.
        """

        def build() -> Made:
            if isinstance(given, torch.nn.Module):
                return Made(given, ["brought as a module"])
            if isinstance(given, str | Path):
                return Made(load(str(given)).module, [f"loaded from {model_label(str(given))}"])
            module = _apply(given, copy_model(reference)).to(self._device)
            return Made(module.requires_grad_(False), [f"made by {name_of(given)}"])

        made, spent = self._timed(build)
        return self._finish(label or name_of(given), made, spent, reference, control=False)

    def _timed(self, build: Callable[[], Made]) -> tuple[Made, Spent]:
        stopwatch = Stopwatch(self._device)
        self._meter.start()
        stopwatch.start()
        try:
            made = build()
        finally:
            ticks = stopwatch.stop()
            energy = self._meter.stop()
        seconds = Reading(max(ticks.wall_ns, 1) / 1e9, "s", "perf_counter", "measured", 1e-9)
        return made, Spent(seconds, energy)

    def _finish(
        self, name: str, made: Made, spent: Spent, reference: torch.nn.Module, *, control: bool
    ) -> Candidate:
        """Look whether anything was compressed."""
        module = made.module.eval()
        try:
            integrity = check(reference, module, control=control, simulated=tuple(made.simulated))
        except SlimError as error:
            raise type(error)(f"{name} on {self._label}: {error}") from None
        seconds, energy = spent
        # What was spent before an interruption is not known to this process.
        if unknown := made.resumed or self._untimed:
            seconds = unmeasured("s", "perf_counter", unknown)
            energy = unmeasured("J", energy.source, unknown)
        build = Build(seconds, energy, tuple(made.sentences))
        return Candidate(name, module, weights_hash(module), build, integrity)


def _go_through(made: Made, methods: Sequence[Method], context: Context) -> Made:
    for method in methods:
        made.add(method.compress(made.module, context))
        made.module.eval().requires_grad_(False)
    return made


def _sum(first: Reading, second: Reading) -> Reading:
    if first.value is None or second.value is None:
        return first if first.value is None else second
    if (first.source, first.method) != (second.source, second.method):
        how = [f"{part.method} by {part.source}" for part in (first, second)]
        reason = f"the steps were {how[0]} and {how[1]}"
        return unmeasured(first.unit, first.source, reason)
    return replace(first, value=first.value + second.value)


def _apply(function: Compress, module: torch.nn.Module) -> torch.nn.Module:
    try:
        result = function(module)
    except SlimError:
        raise
    except Exception as error:
        raise CompressionError(
            f"{name_of(function)} failed while compressing ({type(error).__name__}: {error})."
        ) from error
    result = module if result is None else result  # a function that changes its argument in place
    if not isinstance(result, torch.nn.Module):
        raise CompressionError(
            f"{name_of(function)} returns the compressed model or None, got {type(result).__name__}."
        )
    return result


def name_of(given: Any) -> str:  # noqa: ANN401
    """What a candidate that the user brings is called when it has no label.

    Raises:
        ModelError: it is nothing that could be one.
    """
    if isinstance(given, str | Path):
        return model_label(str(given))
    if isinstance(given, torch.nn.Module):
        return type(given).__name__
    if not callable(given):
        raise ModelError(f"A candidate is a function, a model or a folder, got {type(given).__name__}.")
    return str(getattr(given, "__name__", type(given).__name__))
