"""What each step of a recipe contributes: measured alone, in order, and left out.

Ratios of a candidate to its reference multiply along a recipe, so a step's part is a ratio too:

    alone      r(step)
    in order   r(steps up to this one) / r(steps before it)
    left out   r(whole recipe) / r(recipe without the step)

Where the three agree, the step acts by itself; where they differ, steps help or hurt each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llmslim.errors import RecipeError
from pytest_llmslim.recipe import Recipe, parse, steps_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_llmslim.recipe import Step
    from pytest_llmslim.records import Key, Record
    from pytest_llmslim.registry import Registry

AXES = ("perplexity", "time", "energy", "stored_bytes")
"""Attributes of a record that are ratios."""

Ratios = tuple[float | None, ...]
"""One ratio an axis; `None` where it was not measured."""


@dataclass(frozen=True)
class Contribution:
    """One step's part of a recipe, as ratios of candidate to reference in the order of `AXES`."""

    step: str
    alone: Ratios
    in_order: Ratios
    left_out: Ratios


@dataclass(frozen=True)
class Attribution:
    """The parts of all steps of one recipe on one model, and the whole.

    `estimated` says whether energy was estimated by a model instead of measured.
    """

    recipe: str
    model: str
    whole: Ratios
    estimated: bool
    steps: tuple[Contribution, ...]


def parts(recipe: Recipe, registry: Registry) -> list[Recipe]:
    """What has to be measured beside `recipe`: its steps alone, its beginnings, and it without each step.

    Parts that are no recipes are left out: what makes up for an earlier step cannot stand alone.
    """
    if len(recipe.steps) < 2:
        return []
    steps = recipe.steps
    wanted: list[tuple[Step, ...]] = [(step,) for step in steps]
    wanted += [steps[:end] for end in range(2, len(steps))]
    wanted += [steps[:place] + steps[place + 1 :] for place in range(len(steps))]
    found: dict[str, Recipe] = {}
    for part in wanted:
        try:
            parsed = parse(_text(part), registry)
        except RecipeError:
            continue
        found.setdefault(parsed.text, parsed)
    return list(found.values())


def attributions(records: Iterable[Record]) -> list[Attribution]:
    """The parts of every recipe of several steps of which a part was measured too, by the same test."""
    tests: dict[Key, dict[str, Record]] = {}
    for record in records:
        tests.setdefault(replace(record.key, recipe=""), {})[record.key.recipe] = record
    found = []
    for key, measured in tests.items():
        for text, record in measured.items():
            steps = _steps(text)
            contributions = tuple(_contribution(steps, place, measured) for place in range(len(steps)))
            if len(steps) > 1 and any(_known(each) for each in contributions):
                estimated = record.energy.method == "estimated"
                found.append(Attribution(text, key.model, _ratios(record), estimated, contributions))
    return found


def _contribution(steps: Sequence[Step], place: int, measured: Mapping[str, Record]) -> Contribution:
    def ratios(part: Sequence[Step]) -> Ratios:
        if not part:
            return (1.0,) * len(AXES)
        record = measured.get(_text(part))
        return _ratios(record) if record else (None,) * len(AXES)

    return Contribution(
        steps[place].text,
        alone=ratios(steps[place : place + 1]),
        in_order=_over(ratios(steps[: place + 1]), ratios(steps[:place])),
        left_out=_over(ratios(steps), ratios((*steps[:place], *steps[place + 1 :]))),
    )


def _known(contribution: Contribution) -> bool:
    return contribution.alone[0] is not None or contribution.left_out[0] is not None


def _ratios(record: Record) -> Ratios:
    return tuple(getattr(record, axis).value for axis in AXES)


def _over(top: Ratios, bottom: Ratios) -> Ratios:
    return tuple(None if a is None or b is None else a / b for a, b in zip(top, bottom, strict=True))


def _text(steps: Sequence[Step]) -> str:
    return "+".join(step.text for step in steps)


def _steps(text: str) -> tuple[Step, ...]:
    """The steps of a recipe; none of the label of a candidate that a test brought."""
    try:
        return steps_of(text)
    except RecipeError:
        return ()
