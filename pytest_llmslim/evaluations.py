"""Which evaluations a test has: names with parameters, written like a step of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import Comparator, Evaluator
from pytest_llmslim.recipe import Step, check_parameters, made, steps_of
from pytest_llmslim.registry import Registry, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_llmslim.settings import Settings

PERPLEXITY = "perplexity"
SLICES = ("code", "mathematics", "languages", "long", "nested", "rare")
"""Kinds of text; the last two are of the embedded language, and `all` on another model passes over them."""
ALL = "all"


def parse(text: str, registry: Registry) -> Step:
    """The evaluation that `text` spells, e.g. `arc_challenge(shots=5)`; imports none.

    A name that nobody registered may be a task of lm-eval's.

    Raises:
        SlimError: text that is no evaluation, an unknown name or parameter.
    """
    if not text.strip():
        raise EvaluationError("an evaluation has a name, e.g. arc_challenge, got an empty text; name one")
    steps = steps_of(text)
    if len(steps) != 1:
        raise EvaluationError(f"an evaluation stands alone, got {text!r}; give --llm-eval once for each")
    (step,) = steps
    check_parameters(step, _spec(step.name, registry), registry)
    return step


def wanted(settings: Settings, marked: Iterable[str], registry: Registry) -> tuple[Step, ...]:
    """The evaluations of one test: those of its marker, then those of the run, each once.

    Raises:
        SlimError: one of them does not parse or is not known.
    """
    texts = [*marked, *settings.evaluations, *_slices(settings.slices)]
    return tuple(dict.fromkeys(parse(text, registry) for text in texts))


def optional(settings: Settings, marked: Iterable[str]) -> frozenset[str]:
    """Slices that only `all` asked for: those that make no sense on a model are left out."""
    named = {*marked, *settings.evaluations, *_slices(kind for kind in settings.slices if kind != ALL)}
    return frozenset(_slices(kind for kind in settings.slices if kind == ALL)) - named


def check_quality(asked: Iterable[str], names: Iterable[str]) -> None:
    """Refuse a measure of quality that is not evaluated in this test.

    Raises:
        EvaluationError: names it and those that are.
    """
    known = [PERPLEXITY, *names]
    for name in asked:
        if name not in known:
            raise EvaluationError(
                f"--llm-quality names what opt rests on, one of {', '.join(known)} here, got {name!r}; "
                f"add --llm-eval {name}"
            )


def instantiate(step: Step, registry: Registry) -> Evaluator | Comparator:
    """The evaluation of `step` with its parameters; imports its module.

    Raises:
        SlimError: a module or package is missing, the target is no evaluation, or a value is refused.
    """
    spec = _spec(step.name, registry)
    found = made(step, Registry([spec], registry.noun))
    if not isinstance(found, Evaluator | Comparator):
        raise EvaluationError(
            f"evaluation {spec.name!r} from {spec.origin} points to {spec.target}, which has neither "
            "answers(model, context) nor compare(reference, candidate, context, meter)"
        )
    return found


def _spec(name: str, registry: Registry) -> Spec:
    if name in registry:
        return registry.get(name)
    from pytest_llmslim.evals.lm_names import is_task, nearest

    if not is_task(name):
        near = [] if registry.nearest(name) else nearest(name)
        if near:
            raise EvaluationError(
                f"there is no evaluation {name!r}, and no such task of lm-eval; did you mean {' or '.join(near)}?"
            )
        registry.get(name)  # raises, with the nearest names
    return Spec(name, "pytest_llmslim.evals.lm_tasks:LMTask", "", ("shots",), preset=(("task", name),))


def _slices(kinds: Iterable[str]) -> list[str]:
    """`all` is each kind; what is no kind is a file."""
    each = [kind for asked in kinds for kind in (SLICES if asked == ALL else (asked,))]
    return [f"slice(kind={kind})" if kind in SLICES else f'slice(file="{kind}")' for kind in each]
