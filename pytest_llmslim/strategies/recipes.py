"""Recipes that parse, as people may write them."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from pytest_llmslim.recipe import CONTROL, parse
from pytest_llmslim.registry import QUANTIZE, RECOVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmslim.registry import Registry, Spec

    Draw = Callable[[st.SearchStrategy[Any]], Any]

_WORDS: Final = st.text(string.ascii_letters + string.digits + "_.:/-", min_size=1, max_size=6)
_TEXTS: Final = st.text(string.printable, max_size=6)
_SPACES: Final = st.sampled_from(("", "", " ", "\t", " \n"))


@st.composite
def recipes(draw: Draw, registry: Registry, *, most: int = 4) -> str:
    """Recipes of methods that `registry` knows, with any values for their parameters, in an order that parses.

    The text is not canonical: spaces, quotes and the order of parameters are drawn. `recipe.parse` reads it;
    the methods may refuse the values.

    Args:
        draw: given by Hypothesis.
        registry: as in `recipe.parse`.
        most: steps at most.
    """
    names = st.sampled_from([name for name in registry.names() if name != CONTROL])
    chosen = draw(st.lists(names, max_size=most))
    specs = _ordered([registry.get(name) for name in chosen])
    text = "+".join(draw(_steps(spec)) for spec in specs) or CONTROL
    parse(text, registry)  # a recipe of this strategy parses, or this fails
    return text


def _ordered(specs: list[Spec]) -> list[Spec]:
    """An order that works: by stage, one quantizer, and recovery only where something was lost."""
    ordered: list[Spec] = []
    for spec in sorted(specs, key=lambda spec: spec.stage or 0):
        second = spec.stage == QUANTIZE and any(each.stage == QUANTIZE for each in ordered)
        early = spec.stage == RECOVER and not any(each.stage is not None for each in ordered)
        if not second and not early:
            ordered.append(spec)
    return ordered


@st.composite
def _steps(draw: Draw, spec: Spec) -> str:
    free = [name for name in spec.parameters if name not in dict(spec.preset)]
    names = draw(st.lists(st.sampled_from(free), unique=True)) if free else []
    space = draw(_SPACES)
    inner = f"{space},{space}".join(f"{name}{space}={space}{draw(_values())}" for name in names)
    return f"{space}{spec.name}{space}({inner}){space}" if names else f"{space}{spec.name}{space}"


def _values() -> st.SearchStrategy[str]:
    """Numbers, words and quoted strings, as they are written."""
    return st.one_of(
        st.integers(-(10**6), 10**6).map(str),
        st.floats(-1e6, 1e6).map(repr),
        st.sampled_from(("true", "False")),
        _WORDS,
        _TEXTS.map(_quoted),
    )


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
