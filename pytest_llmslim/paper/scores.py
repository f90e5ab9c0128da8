"""Published rows and measured records under one form: ratios to the reference, and opt under each profile."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_llmslim.errors import ScoreError
from pytest_llmslim.paper import tables
from pytest_llmslim.score import PROFILES, HigherIsBetter, LowerIsBetter, opt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_llmslim.paper.tables import Row
    from pytest_llmslim.records import Method, Profile, Record

LEFT_OUT = "is at chance"


@dataclass(frozen=True, slots=True)
class Scored:
    """One compressed model against its reference.

    Args:
        model: the reference's name.
        name: of the technique or candidate.
        place: where it comes from: a table, or the model that was measured here.
        perplexity: ratio candidate / reference, `time` and `energy` likewise; `None`: not known.
        opt: the score with perplexity as quality, by profile; empty without a cost.
        logic: the score with the logic tasks as quality, likewise; empty where they were not asked.
        method: how the energy was had.
        reason: why there is no score; empty where there is one.
        notes: what a reader of `logic` has to know.
    """

    model: str
    name: str
    place: str
    perplexity: float | None
    time: float | None
    energy: float | None
    opt: Mapping[str, float] = field(default_factory=dict)
    logic: Mapping[str, float] = field(default_factory=dict)
    method: Method = "measured"
    reason: str = ""
    notes: tuple[str, ...] = ()


def published(rows: Iterable[Row], profiles: Iterable[Profile] = ()) -> list[Scored]:
    """Scores of all rows but references, under the three profiles of the paper and those given."""
    weights = _profiles(profiles)
    return [_of_row(row, weights) for row in rows if row.reference]


def measured(record: Record, model: str, name: str, profiles: Iterable[Profile] = ()) -> Scored:
    """Scores of a record under other names, from its ratios; without a cost there is no score, with the reason."""
    weights = _profiles(profiles)
    ratios = (record.perplexity.value, record.time.value, record.energy.value)
    parts = {"perplexity": record.perplexity, "time": record.time, "energy": record.energy}
    reason = next((f"{name}: {part.reason}" for name, part in parts.items() if not part.known), "")
    logic, notes = _logic_parts(record)
    return Scored(
        model,
        name,
        record.key.model,
        *ratios,
        opt={} if reason else _scores([LowerIsBetter(ratios[0] or 0.0, 1.0)], ratios, weights),
        logic={} if reason or not logic else _scores(logic, ratios, weights),
        method=record.energy.method,
        reason=reason,
        notes=notes,
    )


def _of_row(row: Row, weights: Sequence[Profile]) -> Scored:
    base = tables.reference_of(row)
    ratios = (
        row.perplexity / base.perplexity,
        row.runtime_s / base.runtime_s,
        row.energy_kwh / base.energy_kwh,
    )
    logic = [
        HigherIsBetter(row.accuracy[task], base.accuracy[task], chance, task)
        for task, chance in tables.chances().items()
        if task in row.accuracy
    ]
    return Scored(
        base.model,
        row.name,
        row.place,
        *ratios,
        opt=_scores([LowerIsBetter(row.perplexity, base.perplexity)], ratios, weights),
        logic=_scores(logic, ratios, weights) if logic else {},
    )


def _logic_parts(record: Record) -> tuple[list[HigherIsBetter], tuple[str, ...]]:
    """The logic tasks of a record that say something; those at chance in the reference are named."""
    parts, notes = [], []
    for evaluation in record.evaluations:
        task = evaluation.name.partition("(")[0]
        if task not in tables.chances() or evaluation.reference is None or evaluation.candidate is None:
            continue
        chance = tables.chances()[task]
        part = HigherIsBetter(evaluation.candidate, evaluation.reference, chance, task)
        try:
            part.worsening()
        except ScoreError:
            notes.append(f"{task}: {record.key.model} {LEFT_OUT}")
        else:
            parts.append(part)
    return parts, tuple(notes)


def _scores(
    parts: Sequence[LowerIsBetter | HigherIsBetter],
    ratios: tuple[float | None, float | None, float | None],
    weights: Sequence[Profile],
) -> dict[str, float]:
    """Scores by name of the profile; a worthless candidate has no finite one and is left out."""
    found = {profile.name: opt(parts, ratios[1], ratios[2], profile) for profile in weights}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _profiles(more: Iterable[Profile]) -> list[Profile]:
    return list({profile.name: profile for profile in (*PROFILES.values(), *more)}.values())
