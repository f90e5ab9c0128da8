"""The paper's tables as text: what was published, scored, and what was measured beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim import units
from pytest_llmslim.readings import MARK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llmslim.paper.scores import Scored
    from pytest_llmslim.records import Profile
    from pytest_llmslim.reports.terminal import Line

ENERGY = 2
"""The first column that carries the mark of how energy was had; the scores after it rest on it."""
HEADLINE = "arXiv 2502.00046: opt = Q (alpha T + beta E), ratios to the reference, lower is better, 1 is the reference"


def published_lines(scored: Sequence[Scored], profiles: Mapping[str, Profile]) -> list[Line]:
    """Every published row with its ratios and its opt under each profile; one table a reference."""
    out: list[Line] = [(HEADLINE, ("bold",)), (_weights(profiles), ()), ("", ())]
    for model, rows in _groups(scored):
        logic = any(row.logic for row in rows)
        head = ["", "from", "perplexity", "time", "energy", *(f"opt {name}" for name in profiles)]
        head += [f"logic {name}" for name in profiles] if logic else []
        body = [_published(row, profiles, logic=logic) for row in rows]
        out += [(f"{model}, as published", ("bold",)), *_table([head, *body]), ("", ())]
    return out


def compared_lines(published: Sequence[Scored], measured: Sequence[Scored], profile: Profile) -> list[Line]:
    """What was measured beside what was published, one table a model of which something was."""
    printed = {(row.model, row.name): row for row in published}
    known = {row.model for row in published}
    out: list[Line] = []
    for model, rows in _groups([row for row in measured if row.model in known]):
        axes = ["perplexity", "time", "energy", f"opt {profile.name}"]
        axes += [f"logic {profile.name}"] if any(row.logic for row in rows) else []
        head = [
            ["", *(text for axis in axes for text in (axis, ""))],
            ["", *(["published", "here"] * len(axes))],
        ]
        body = [_compared(row, printed.get((row.model, row.name)), profile, len(axes)) for row in rows]
        here = ", ".join(dict.fromkeys(row.place for row in rows))
        out.append((f"{model} as published, and {here} as measured here", ("bold",)))
        out += [*_table([*head, *body]), ("", ())]
    notes = dict.fromkeys(note for row in measured for note in row.notes)
    return [*out, *((f"left out of the logic tasks: {note}", ()) for note in notes)]


def figure_lines(folder: str, names: Sequence[str]) -> list[Line]:
    """Where the pictures are."""
    return [(f"figures in {folder}, each as .png and .svg: {', '.join(dict.fromkeys(names))}", ())]


def _published(row: Scored, profiles: Mapping[str, Profile], *, logic: bool) -> list[str]:
    cells = [row.name, row.place, *(units.ratio(value) for value in (row.perplexity, row.time, row.energy))]
    cells += [units.ratio(row.opt.get(name)) for name in profiles]
    return cells + ([units.ratio(row.logic.get(name)) for name in profiles] if logic else [])


def _compared(row: Scored, printed: Scored | None, profile: Profile, axes: int) -> list[str]:
    mark = MARK.get(row.method, "")
    before = _values(printed, profile) if printed else [None] * axes
    here = [
        ("" if value is None or i < ENERGY else mark) + units.ratio(value)
        for i, value in enumerate(_values(row, profile))
    ]
    pairs = zip(before[:axes], here[:axes], strict=True)
    return [row.name, *(cell for value, shown in pairs for cell in (units.ratio(value), shown))]


def _values(row: Scored, profile: Profile) -> list[float | None]:
    """In the order of the columns."""
    scores = (row.opt.get(profile.name), row.logic.get(profile.name))
    return [row.perplexity, row.time, row.energy, *scores]


def _groups(scored: Sequence[Scored]) -> list[tuple[str, list[Scored]]]:
    groups: dict[str, list[Scored]] = {}
    for row in scored:
        groups.setdefault(row.model, []).append(row)
    return list(groups.items())


def _weights(profiles: Mapping[str, Profile]) -> str:
    return "profiles: " + ", ".join(f"{name} ({p.alpha:g} T, {p.beta:g} E)" for name, p in profiles.items())


def _table(rows: Sequence[Sequence[str]]) -> list[Line]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), ())
        for row in rows
    ]
