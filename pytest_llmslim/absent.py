"""Baselines with which nothing was compared: of a test that is gone, or of one that measured nothing.

A renamed test has no baseline and its old entry no test; each by itself looks harmless, and together they are a
comparison that went away silently. Only entries whose suite and model took part in a run are looked at, so that
a partial run is quiet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_llmslim.records import Key


@dataclass(frozen=True, slots=True)
class Run:
    """What a run had to do and did. In `collected`, `running`, `passed` and `reasons` a key stands for a test.

    Args:
        collected: every test, deselected ones included; its recipe is empty where it brings its own candidates.
        running: those that were left after deselection.
        measured: keys of the records.
        passed: tests that passed.
        reasons: why the others did not, in a line.
        narrowed: whether tests or recipes were picked by name, so that others were not even collected.
    """

    collected: tuple[Key, ...]
    running: frozenset[Key]
    measured: frozenset[Key] = frozenset()
    passed: frozenset[Key] = frozenset()
    reasons: Mapping[Key, str] = field(default_factory=dict)
    narrowed: bool = False


class Place(NamedTuple):
    """A test of a baseline, and why nothing was compared with it; an empty reason: there is no such test."""

    suite: str
    test: str
    model: str
    reason: str


def absent(stored: Iterable[Key], run: Run, file_of: Callable[[Key], str]) -> tuple[str, ...]:
    """A sentence for each test of the baselines with which nothing was compared though it seems that it should be.

    Args:
        stored: keys of the baselines.
        run: what was done.
        file_of: where the entry of a key is, as the user would write it.
    """
    here = {(key.suite, key.model) for key in run.collected}
    found: dict[Place, list[Key]] = {}
    for key in stored:
        reason = _reason(key, run) if (key.suite, key.model) in here else None
        if reason is not None:
            found.setdefault(Place(key.suite, key.test, key.model, reason), []).append(key)
    return tuple(_sentence(place, keys, file_of(keys[0])) for place, keys in found.items())


def _reason(stored: Key, run: Run) -> str | None:
    """Why nothing was compared with an entry; empty: no test could have; `None`: all is well."""
    if stored in run.measured:
        return None
    tests = [
        key
        for key in run.collected
        if (key.test, key.suite, key.model) == (stored.test, stored.suite, stored.model)
    ]
    own = [key for key in tests if key.recipe in ("", stored.recipe)]
    if own:
        return next((_why(key, run) for key in own if key in run.running), None)
    # No test of it is left, or one that takes other recipes: then the entry may be of a second candidate in it.
    if run.narrowed or any(key not in run.running for key in tests):
        return None
    return next((f"{key.recipe}: {_why(key, run)}" for key in tests if key not in run.passed), "")


def _why(test: Key, run: Run) -> str:
    if test in run.passed:
        return "its test ended without measuring it"
    return run.reasons.get(test, "its test did not end")


def _sentence(place: Place, keys: list[Key], file: str) -> str:
    recipes = ", ".join(key.recipe for key in keys)
    if not place.reason:
        return (
            f"baseline without a test: {place.test} in {place.suite} ({recipes} on {place.model}): renamed or removed? "
            f"Give it its name back, or write a new one with --llm-update and delete the old from {file}."
        )
    return (
        f"{recipes} on {place.model} has a baseline for {place.test} in {place.suite} and was not measured: "
        f"{place.reason.rstrip('.')}."
    )
