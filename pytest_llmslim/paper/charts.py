"""Figures 2 to 5 of the paper as data: grouped bars of opt, one group a technique or model, one bar a profile.

Figures 2, 3 and 4 are GPT-2 (with the pruned OPT of table 4), GPT-2 Large and GPT-2 XL; figure 5 compares the models of
level two on perplexity and on the logic tasks. What was published stands above what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_llmslim.paper import tables
from pytest_llmslim.score import PROFILES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_llmslim.paper.scores import Scored

TITLES: Final = {"gpt2": "GPT-2", "gpt2-large": "GPT-2 Large", "gpt2-xl": "GPT-2 XL"}
LEVEL_ONE: Final = {2: ("gpt2", "opt-125m"), 3: ("gpt2-large",), 4: ("gpt2-xl",)}
"""Models by figure."""
LEVEL_TWO: Final = 5


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Args:
        title: what is shown.
        names: of the groups, from left to right.
        bars: values by profile, one a group; `None`: there is none.
        captions: what has to be known, a line each.
    """

    title: str
    names: tuple[str, ...]
    bars: Mapping[str, tuple[float | None, ...]]
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure: rows of panels, and the name of its files."""

    name: str
    title: str
    rows: tuple[tuple[Panel, ...], ...]


def charts(published: Sequence[Scored], measured: Sequence[Scored] = ()) -> list[Chart]:
    """All figures that there is something for; measured models that the paper does not have get one each.

    Args:
        published: scores of the tables.
        measured: scores of records, under the paper's names where they have one.
    """
    found = [_level_one(number, models, published, measured) for number, models in LEVEL_ONE.items()]
    found.append(_level_two(published, measured))
    two = {scored.model for scored in published if scored.logic}
    known = {*(models[0] for models in LEVEL_ONE.values()), *two}
    for model in dict.fromkeys(scored.model for scored in measured if scored.model not in known):
        rows = [scored for scored in measured if scored.model == model]
        found.append(Chart(f"figure-{model}", f"opt on {model}", ((_measured_panel(rows),),)))
    return [chart for chart in found if chart.rows]


def _level_one(
    number: int, models: tuple[str, ...], published: Sequence[Scored], measured: Sequence[Scored]
) -> Chart:
    rows = []
    printed = [scored for scored in published if scored.model in models]
    if printed:
        alone = [scored for scored in printed if scored.place != "supplement"]
        data = "WikiText-2 and C4" if models == ("gpt2-xl",) else "WikiText-2, C4 and LAMBADA"
        caption = f"means over {data}; combinations from the paper's supplement"
        title = f"published, {alone[0].place} and supplement"
        rows.append((_panel(title, printed, models[0], captions=(caption,)),))
    places = {(scored.model, scored.name) for scored in printed}
    here = [
        scored for scored in measured if scored.model == models[0] or (scored.model, scored.name) in places
    ]
    if here:
        rows.append((_measured_panel(here, models[0]),))
    return Chart(f"figure-{number}", f"Figure {number}: opt on {TITLES[models[0]]}", tuple(rows))


def _level_two(published: Sequence[Scored], measured: Sequence[Scored]) -> Chart:
    models = {scored.model for scored in published if scored.logic}
    rows = []
    for what, found in (("published", published), ("measured", measured)):
        scored = [each for each in found if each.model in models]
        if scored:
            rows.append(_both(what, scored))
    title = f"Figure {LEVEL_TWO}: opt of models of level two, each against its progenitor"
    return Chart(f"figure-{LEVEL_TWO}", title, tuple(rows))


def _both(what: str, scored: Sequence[Scored]) -> tuple[Panel, ...]:
    """Perplexity, and beside it the logic tasks, empty where they were not asked."""
    measured = what == "measured"
    where = f"measured on {_places(scored)}" if measured else "published, tables 7 to 9"
    captions = _captions(scored) if measured else ("WikiText-2",)
    panels = [_panel(f"{where}: perplexity", scored, captions=captions)]
    asked = [each for each in scored if each.logic]
    tasks = ("mean over ARC-Challenge, HellaSwag, MMLU, TruthfulQA and WinoGrande",)
    notes = tuple(dict.fromkeys(note for each in asked for note in each.notes))
    captions = (notes or tasks) if asked else ("not asked: they need --llm-data, or models from the hub",)
    panels.append(_panel(f"{where}: logic tasks", asked, of=lambda s: s.logic, captions=captions))
    return tuple(panels)


def _measured_panel(rows: Sequence[Scored], model: str = "") -> Panel:
    return _panel(f"measured on {_places(rows)}", rows, model, captions=_captions(rows))


def _panel(
    title: str,
    rows: Sequence[Scored],
    model: str = "",
    *,
    of: Callable[[Scored], Mapping[str, float]] = lambda scored: scored.opt,
    captions: tuple[str, ...] = (),
) -> Panel:
    """The rows as groups; those of another model than `model` carry its name."""
    names = tuple(
        scored.name.replace("(", "\n(")
        + ("" if not model or scored.model == model else f"\non {scored.model}")
        for scored in rows
    )
    bars = {profile: tuple(of(scored).get(profile) for scored in rows) for profile in PROFILES}
    return Panel(title, names, bars, captions)


def _places(rows: Sequence[Scored]) -> str:
    return ", ".join(dict.fromkeys(scored.place for scored in rows))


def _captions(rows: Sequence[Scored]) -> tuple[str, ...]:
    """How energy was had, and why bars are absent."""
    how = {scored.method for scored in rows if scored.opt} - {"measured"}
    out = [f"energy is {method}, not measured" for method in sorted(how)]
    absent = [scored.name for scored in rows if not scored.opt]
    if absent:
        out.append(f"no cost, so no bar: {', '.join(dict.fromkeys(absent))}")
    return tuple(out)


def technique_order(rows: Sequence[Scored]) -> list[Scored]:
    """In the order in which the tables list techniques; what they do not have comes last."""
    names = dict.fromkeys(row.name for row in (*tables.level_one(), *tables.level_two()))
    order = {name: i for i, name in enumerate(names)}
    return sorted(rows, key=lambda scored: order.get(scored.name, len(order)))
