"""Figures 2 to 5 of the paper as data: grouped bars of opt, one group a technique or model, one bar a profile.

Figures 2, 3 and 4 are GPT-2 (with the pruned OPT of table 4), GPT-2 Large and GPT-2 XL; figure 5 compares the models of
level two on perplexity and on the logic tasks. What was published stands above what was measured, group above group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_llmslim.paper import tables
from pytest_llmslim.score import PROFILES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llmslim.paper.scores import Scored

TITLES: Final = {"gpt2": "GPT-2", "gpt2-large": "GPT-2 Large", "gpt2-xl": "GPT-2 XL"}
LEVEL_ONE: Final = {2: ("gpt2", "opt-125m"), 3: ("gpt2-large",), 4: ("gpt2-xl",)}
"""Models by figure."""
LEVEL_TWO: Final = 5
SUPPLEMENT: Final = "supplement"
TASKS: Final = "mean over ARC-Challenge, HellaSwag, MMLU, TruthfulQA and WinoGrande"
NOT_ASKED: Final = "not asked: they need --llm-data, or models from the hub"


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Args:
        title: what is shown.
        names: of the groups, from left to right.
        bars: values by profile, one a group; `None`: there is none.
        captions: what has to be known, a line each.
        absent: why a group has no bar, one a group.
    """

    title: str
    names: tuple[str, ...]
    bars: Mapping[str, tuple[float | None, ...]]
    captions: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure: rows of panels, and the name of its files."""

    name: str
    title: str
    rows: tuple[tuple[Panel, ...], ...]


@dataclass(frozen=True, slots=True)
class Groups:
    """What all panels of a figure show, from left to right: pairs of model and name; `model` goes without saying."""

    keys: tuple[tuple[str, str], ...]
    model: str = ""

    @classmethod
    def of(cls, rows: Sequence[Scored], model: str = "") -> Groups:
        """Each pair once, in the order of the tables."""
        return cls(tuple(dict.fromkeys((row.model, row.name) for row in technique_order(rows))), model)

    @property
    def names(self) -> tuple[str, ...]:
        """As shown below the groups."""
        return tuple(
            name.replace("(", "\n(") + ("" if not self.model or model == self.model else f"\non {model}")
            for model, name in self.keys
        )

    def panel(
        self,
        title: str,
        rows: Sequence[Scored],
        missing: str,
        captions: tuple[str, ...] = (),
        *,
        logic: bool = False,
    ) -> Panel:
        """A panel of what `rows` have; `missing` says of a group without a row what it was not."""
        found = {(row.model, row.name): row for row in rows}
        scores = {key: row.logic if logic else row.opt for key, row in found.items()}
        absent = "not asked" if logic else "no cost"
        return Panel(
            title,
            self.names,
            {profile: tuple(scores.get(key, {}).get(profile) for key in self.keys) for profile in PROFILES},
            captions,
            tuple(absent if key in found else missing for key in self.keys),
        )


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
        panel = _measured(rows, Groups.of(rows))
        found.append(Chart(f"figure-{model}", f"opt on {model}", ((panel,),)))
    return [chart for chart in found if chart.rows]


def technique_order(rows: Sequence[Scored]) -> list[Scored]:
    """In the order in which the tables list techniques and models; what they do not have comes last."""
    names = dict.fromkeys(row.name for row in (*tables.level_one(), *tables.level_two()))
    order = {name: i for i, name in enumerate(names)}
    return sorted(rows, key=lambda scored: order.get(scored.name, len(order)))


def _level_one(
    number: int, models: tuple[str, ...], published: Sequence[Scored], measured: Sequence[Scored]
) -> Chart:
    printed = [scored for scored in published if scored.model in models]
    places = {(scored.model, scored.name) for scored in printed}
    here = [
        scored for scored in measured if scored.model == models[0] or (scored.model, scored.name) in places
    ]
    groups = Groups.of([*printed, *here], models[0])
    rows = []
    if printed:
        data = "WikiText-2 and C4" if models == ("gpt2-xl",) else "WikiText-2, C4 and LAMBADA"
        caption = f"means over {data}; combinations from the paper's supplement"
        table = next(scored.place for scored in printed if scored.place != SUPPLEMENT)
        title = f"published, {table} and supplement"
        rows.append((groups.panel(title, printed, "not published", (caption,)),))
    if here:
        rows.append((_measured(here, groups),))
    return Chart(f"figure-{number}", f"Figure {number}: opt on {TITLES[models[0]]}", tuple(rows))


def _level_two(published: Sequence[Scored], measured: Sequence[Scored]) -> Chart:
    printed = [scored for scored in published if scored.logic]
    models = {scored.model for scored in printed}
    here = [scored for scored in measured if scored.model in models]
    groups = Groups.of([*printed, *here])
    rows = []
    if printed:
        title, missing = "published, tables 7 to 9", "not published"
        rows.append(
            (
                groups.panel(f"{title}: perplexity", printed, missing, ("WikiText-2",)),
                groups.panel(f"{title}: logic tasks", printed, missing, (TASKS,), logic=True),
            )
        )
    if here:
        rows.append((_measured(here, groups, ": perplexity"), _measured_logic(here, groups)))
    title = f"Figure {LEVEL_TWO}: opt of models of level two, each against its progenitor"
    return Chart(f"figure-{LEVEL_TWO}", title, tuple(rows))


def _measured(rows: Sequence[Scored], groups: Groups, what: str = "") -> Panel:
    """With how energy was had, and which techniques have no cost."""
    how = {scored.method for scored in rows if scored.opt} - {"measured"}
    captions = [f"energy is {method}, not measured" for method in sorted(how)]
    absent = dict.fromkeys(scored.name for scored in rows if not scored.opt)
    if absent:
        captions.append(f"no cost, so no bar: {', '.join(absent)}")
    return groups.panel(f"measured on {_places(rows)}{what}", rows, "not measured", tuple(captions))


def _measured_logic(rows: Sequence[Scored], groups: Groups) -> Panel:
    """Empty where no task was asked, with the reason."""
    title = f"measured on {_places(rows)}: logic tasks"
    asked = [scored for scored in rows if scored.logic]
    if not asked:
        return Groups(()).panel(title, (), "", (NOT_ASKED,))
    notes = tuple(dict.fromkeys(f"left out: {note}" for scored in asked for note in scored.notes))
    return groups.panel(title, rows, "not measured", notes or (TASKS,), logic=True)


def _places(rows: Sequence[Scored]) -> str:
    return ", ".join(dict.fromkeys(scored.place for scored in rows))
