"""The published tables, as data.

`tables.json` holds tables 4 to 9 of the paper, and of its supplement the rows by data set. The supplement has what the
paper leaves out: all combinations. Tables 4 to 6 are the means of its rows over WikiText-2, C4 and LAMBADA (GPT-2 XL:
without LAMBADA), so the rows of combinations are made the same way here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE: Final = "base"
"""The technique of a reference."""

LEVEL_ONE: Final = ("gpt2", "gpt2-large", "gpt2-xl", "opt-125m", "opt-1.3b")
"""Models on which techniques are tried; of the last nothing was published."""


@dataclass(frozen=True, slots=True)
class Row:
    """One published measurement.

    Args:
        model: the paper's name in our spelling.
        technique: a recipe in our spelling, `base`, or empty at level two, where models are compared.
        reference: the model it is compared with; empty for a reference.
        place: where it was published, e.g. `table 4`.
        perplexity: mean over data sets at level one, else of WikiText-2.
        runtime_s: seconds of one run over the text.
        energy_kwh: of the same run.
        accuracy: of the five logic tasks by name, in [0, 1]; empty at level one.
    """

    model: str
    technique: str
    reference: str
    place: str
    perplexity: float
    runtime_s: float
    energy_kwh: float
    accuracy: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The technique, or the model where none is named."""
        return self.technique or self.model


@cache
def chances() -> Mapping[str, float]:
    """The logic tasks and what guessing reaches in each.

    TruthfulQA MC2 is a share of probability without a level that guessing reaches, so it counts from 0.
    """
    return {name: chance or 0.0 for name, chance in _data()["tasks"].items()}


@cache
def level_one() -> tuple[Row, ...]:
    """Tables 4 to 6 with the combinations of the supplement, models one after another, references first."""
    printed = [
        _row(row, row["technique"], _base(row["model"], row["technique"]), f"table {row['table']}")
        for row in _data()["level_one"]
    ]
    known = {(row.model, row.technique) for row in printed}
    means = [row for row in _means() if (row.model, row.technique) not in known]
    models = list(dict.fromkeys(row.model for row in printed))
    return tuple(row for model in models for row in (*printed, *means) if row.model == model)


@cache
def level_two() -> tuple[Row, ...]:
    """Tables 7 to 9."""
    return tuple(
        _row(row, "", row["reference"] or "", f"table {row['table']}") for row in _data()["level_two"]
    )


@cache
def by_dataset() -> tuple[tuple[str, Row], ...]:
    """Rows of the supplement, each with its data set."""
    return tuple(
        (
            row["dataset"],
            _row(row, row["technique"], _base(row["model"], row["technique"]), "supplement"),
        )
        for row in _data()["by_dataset"]
    )


def reference_of(row: Row) -> Row:
    """The row that `row` is compared with; itself for a reference."""
    if not row.reference:
        return row
    rows = level_one() if row.technique else level_two()
    return next(each for each in rows if each.model == row.reference and not each.reference)


def _means() -> list[Row]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for _, row in by_dataset():
        groups.setdefault((row.model, row.technique), []).append(row)
    return [
        Row(
            model,
            technique,
            _base(model, technique),
            "supplement",
            fmean(row.perplexity for row in rows),
            fmean(row.runtime_s for row in rows),
            fmean(row.energy_kwh for row in rows),
        )
        for (model, technique), rows in groups.items()
    ]


def _base(model: str, technique: str) -> str:
    """The model that a technique is compared with: the same one, uncompressed."""
    return "" if technique == BASE else model


def _row(data: Mapping[str, Any], technique: str, reference: str, place: str) -> Row:
    accuracy = {name: float(data[name]) for name in chances() if name in data}
    perplexity, seconds, energy = (float(data[name]) for name in ("perplexity", "runtime_s", "energy_kwh"))
    return Row(data["model"], technique, reference, place, perplexity, seconds, energy, accuracy)


@cache
def _data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files(__package__) / "tables.json").read_text("utf-8"))
    return found
