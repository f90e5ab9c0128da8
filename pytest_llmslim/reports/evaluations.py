"""The tables of evaluations beyond perplexity: one a model and evaluation, a row a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pytest_llmslim import units

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Estimate, Evaluation, Figure, Question, Record

SHOWN: Final = ("task", "shots", "rows", "kind", "version")
"""What of a protocol stands in a table's head; the rest is in results.jsonl."""

_TEXT = 160  # characters of a question or an answer on one line


def lines(records: Sequence[Record]) -> list[str]:
    """One table an evaluation that any of `records`, all of one model, has; empty without any."""
    asked = dict.fromkeys(_asked(evaluation) for record in records for evaluation in record.evaluations)
    return [line for key in asked for line in _table(key, records)]


def worst(evaluation: Evaluation) -> list[str]:
    """With `-v`: the questions that lost most, with both answers."""
    if not evaluation.worst:
        return []
    return [
        f"{evaluation.name}, what got worse, worst first:",
        *(line for question in evaluation.worst for line in _question(question)),
    ]


def _asked(evaluation: Evaluation) -> tuple[object, ...]:
    """What evaluations share that stand in one table."""
    return evaluation.name, tuple(sorted(evaluation.protocol.items())), evaluation.reference


def _table(key: tuple[object, ...], records: Sequence[Record]) -> list[str]:
    rows = [(r, e) for r in records for e in r.evaluations if _asked(e) == key]
    notes = [f"    {note}" for note in _notes(evaluation for _, evaluation in rows)]
    if not any(evaluation.metric or evaluation.figures for _, evaluation in rows):
        return [f"  {rows[0][1].name}", *notes, ""]
    first = next((evaluation for _, evaluation in rows if evaluation.metric), rows[0][1])
    table = _by_recipe(rows) if first.metric else _by_figure(rows)
    return [_head(first), *_aligned(table), *notes, ""]


def _head(evaluation: Evaluation) -> str:
    """What is evaluated and how, once per table."""
    if not evaluation.metric:
        return f"  {evaluation.name}: candidate / reference [95 %]"
    direction = "higher" if evaluation.higher_is_better else "lower"
    chance = "" if evaluation.chance is None else f", chance {units.significant(evaluation.chance)}"
    told = [f"{key} {value}" for key, value in evaluation.protocol.items() if key in SHOWN and value]
    said = f" ({', '.join(told)})" if told else ""
    return (
        f"  {evaluation.name}: {evaluation.metric}, {direction} is better{chance}, n = {evaluation.n:,}{said}"
    )


def _by_recipe(rows: Sequence[tuple[Record, Evaluation]]) -> list[list[str]]:
    """A row a recipe under the reference's own; figures are columns."""
    first = rows[0][1]
    flips = any(evaluation.flips for _, evaluation in rows)
    figures = list(dict.fromkeys(figure.name for _, e in rows for figure in e.figures))
    head = [
        first.metric,
        "ratio [95 %]",
        *(["right -> wrong", "wrong -> right", "McNemar p"] if flips else []),
    ]
    table = [["", *head, *figures]]
    own = {figure.name: figure for figure in first.figures}
    blank = [""] * (len(head) - 1)
    table.append(
        ["reference", units.significant(first.reference), *blank, *(value_of(own.get(n), 0) for n in figures)]
    )
    for record, evaluation in rows:
        own = {figure.name: figure for figure in evaluation.figures}
        cells = [units.significant(evaluation.candidate), _ratio(evaluation.ratio)]
        cells += _flips(evaluation) if flips else []
        table.append([record.key.recipe, *cells, *(value_of(own.get(name), 1) for name in figures)])
    return table


def _by_figure(rows: Sequence[tuple[Record, Evaluation]]) -> list[list[str]]:
    """A row a figure, a column a recipe: there are more figures than recipes."""
    names = list(dict.fromkeys(figure.name for _, e in rows for figure in e.figures))
    table = [["", "reference", *(record.key.recipe for record, _ in rows)]]
    for name in names:
        found = [{figure.name: figure for figure in e.figures}.get(name) for _, e in rows]
        reference = next((figure for figure in found if figure is not None), None)
        table.append([name, value_of(reference, 0), *(_against(figure) for figure in found)])
    return table


def _against(figure: Figure | None) -> str:
    """A figure's ratio; its value where it has none."""
    if figure is None or figure.ratio is None:
        return value_of(figure, 1)
    return _ratio(figure.ratio)


def _ratio(estimate: Estimate) -> str:
    if not estimate.known:
        return "-"
    return units.ratio(estimate.value, estimate.low, estimate.high)


def value_of(figure: Figure | None, side: int) -> str:
    """A further number of the reference (side 0) or the candidate (1) with its unit; `-`: there is none."""
    value = None if figure is None else (figure.reference, figure.candidate)[side]
    if figure is None or value is None:
        return "-"
    if figure.unit in ("s", "J", "B"):
        return units.quantity(value, figure.unit)
    if figure.unit == "%":
        return units.percent(value, signed=False)
    return f"{units.significant(value)} {figure.unit}".rstrip()


def _flips(evaluation: Evaluation) -> list[str]:
    flips = evaluation.flips
    if flips is None:
        return ["-", "-", "-"]
    return [str(flips.right_to_wrong), str(flips.wrong_to_right), units.significant(flips.p, 2)]


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return [
        "    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _notes(evaluations: Iterable[Evaluation]) -> list[str]:
    return list(dict.fromkeys(note for evaluation in evaluations for note in evaluation.notes))


def _question(question: Question) -> list[str]:
    return [
        f"  {question.id}: {_cut(question.text)}",
        f"    expected {_cut(question.expected)!r}, reference {_cut(question.reference)!r}, "
        f"candidate {_cut(question.candidate)!r}",
    ]


def _cut(text: str) -> str:
    """One line of a text, its end where it is long: what was asked stands there."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _TEXT else f"... {flat[-_TEXT:]}"
