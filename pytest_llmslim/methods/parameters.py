"""Checks of a method's parameters, with one wording: method, rule, got."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NoReturn

from pytest_llmslim.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Collection


def check_number(
    method: str, name: str, value: object, rule: str, *, low: float, high: float, whole: bool = False
) -> None:
    """Refuse anything but a finite number from `low` to `high`, both included; `rule` says so in words.

    Raises:
        RecipeError: a value that is no number (no whole one where that is asked), a bool, NaN, or outside.
    """
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        refuse(method, name, rule, value)


def check_choice(method: str, name: str, value: object, choices: Collection[object]) -> None:
    """Refuse anything but one of `choices`.

    Raises:
        RecipeError: another value.
    """
    # 1 == True, and a recipe that says double_quant=1 means something else
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        refuse(method, name, f"one of {', '.join(str(choice).lower() for choice in choices)}", value)


def pattern_of(method: str, value: object) -> tuple[int, int]:
    """(kept, group) of a pattern like `2:4`: at most 2 of every 4 weights stay.

    Raises:
        RecipeError: anything but `N:M` with 1 <= N < M <= 64.
    """
    found = re.fullmatch(r"(\d{1,2}):(\d{1,2})", value, re.ASCII) if isinstance(value, str) else None
    kept, group = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= kept < group <= 64:
        refuse(method, "pattern", "N:M with 1 <= N < M <= 64, e.g. 2:4", value)
    return kept, group


def refuse(method: str, name: str, rule: str, value: object) -> NoReturn:
    """Raise the `RecipeError` for one parameter."""
    raise RecipeError(f"{method}: {name} is {rule}, got {value!r}")
