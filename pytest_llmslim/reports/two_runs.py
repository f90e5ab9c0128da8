"""Two runs side by side, as text: a table a model, and the sentences of what did not pass."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.comparability import STORED_TOLERANCE
from pytest_llmslim.comparison import FIGURES
from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.records import WORST_FIRST
from pytest_llmslim.reports.terminal import COLOUR, cell, sentences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.comparison import Change, Compared
    from pytest_llmslim.reports.terminal import Line
    from pytest_llmslim.run_records import Run

HEAD: Final = ("recipe", *(figure.replace("stored_", "") for figure in FIGURES), "verdict")
APART: Final = "a | b: two numbers that cannot be compared"


class Sorted(NamedTuple):
    """What is in both runs, only in the new one, and only in the old one."""

    both: tuple[Compared, ...]
    new: tuple[Compared, ...]
    gone: tuple[Compared, ...]


def parted(found: Sequence[Compared]) -> Sorted:
    """A comparison by where its keys are."""
    return Sorted(
        tuple(each for each in found if each.old and each.new),
        tuple(each for each in found if not each.old),
        tuple(each for each in found if not each.new),
    )


def lines(found: Sequence[Compared], columns: int) -> list[Line]:
    """The comparison, line by line; on fewer `columns` than the tables need, old values are left out."""
    both, new, gone = parted(found)
    out: list[Line] = []
    for model in dict.fromkeys(each.key.model for each in both):
        out += _model(model, [each for each in both if each.key.model == model], columns)
    reasons = _reasons(both)
    out += [(text, ()) for text in (APART, *reasons)] if reasons else []
    out += sentences([replace(each.new, verdicts=each.verdicts) for each in (*both, *new) if each.new])
    out += [(f"new: {_named(each)}", ()) for each in new]
    out += [(f"gone: {_named(each)}", ("yellow",)) for each in gone]
    return [*out, _counts(both, new, gone)]


def document(old: Run, new: Run, found: Sequence[Compared]) -> dict[str, Any]:
    """The comparison as builtins for JSON; figures are ratios candidate / reference, and scores."""
    both, added, gone = parted(found)
    outcomes = {each.outcome for each in (*both, *_failed(added))}
    return {
        "old": to_builtins(old.origin),
        "new": to_builtins(new.origin),
        "outcome": next((outcome for outcome in WORST_FIRST if outcome in outcomes), "not comparable"),
        "compared": [
            {
                name: to_builtins(getattr(each, name))
                for name in ("key", "label", "device", "outcome", "changes", "verdicts")
            }
            for each in both
        ],
        "only_new": [to_builtins(each.key) for each in added],
        "only_old": [to_builtins(each.key) for each in gone],
    }


def _model(model: str, found: Sequence[Compared], columns: int) -> list[Line]:
    rows = [HEAD, *(_row(each, whole=True) for each in found)]
    if _width(rows) > columns:
        rows = [HEAD, *(_row(each, whole=False) for each in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    out: list[Line] = [(model, ("bold",))]
    for row, each in zip(rows, [None, *found], strict=True):
        text = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        out.append((f"  {text}", COLOUR.get(each.outcome, ()) if each else ()))
        others = [change for change in each.changes if _worth_a_line(change)] if each else []
        out += [(f"      {change.figure} {_cell(change, whole=True)}", ()) for change in others]
    return [*out, ("", ())]


def _worth_a_line(change: Change) -> bool:
    """Of evaluations, those that are another number, or not there any more."""
    same = change.change is not None and abs(change.change) <= STORED_TOLERANCE
    return change.figure not in FIGURES and change.old is not None and not same


def _width(rows: Sequence[tuple[str, ...]]) -> int:
    return sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True))


def _row(each: Compared, *, whole: bool) -> tuple[str, ...]:
    figures = {change.figure: change for change in each.changes}
    # Whatever is new in a record that was there, an evaluation is; all else of it passed.
    outcome = "passed, new" if each.outcome == "new" else each.outcome
    return (each.key.recipe, *(_cell(figures[name], whole=whole) for name in FIGURES), outcome)


def _cell(change: Change, *, whole: bool) -> str:
    """From what to what; one number where both are the same."""
    old, new = cell(change.old), cell(change.new)
    if change.change is None:
        return new if old == new else f"{old} | {new}"
    if abs(change.change) <= STORED_TOLERANCE:
        return new
    arrow = f"{old} -> " if whole else ""
    return f"{arrow}{new} ({units.percent(change.change)})"


def _reasons(both: Sequence[Compared]) -> list[str]:
    """Why numbers stand apart, each reason once, with the figures it is about."""
    found: dict[str, list[str]] = {}
    for each in both:
        for change in each.changes:
            known = change.old and change.new and change.old.known and change.new.known
            name = change.figure.replace("_", " ")
            if change.reason and known and name not in found.setdefault(change.reason, []):
                found[change.reason].append(name)
    return [f"  {', '.join(names)}: {reason}" for reason, names in found.items() if names]


def _failed(new: Sequence[Compared]) -> list[Compared]:
    """Those without a baseline that fail all the same, since nothing was compressed."""
    return [each for each in new if each.outcome == "failed"]


def _named(each: Compared) -> str:
    return f"{each.label} ({each.key.test} in {each.key.suite})"


def _counts(both: Sequence[Compared], new: Sequence[Compared], gone: Sequence[Compared]) -> Line:
    """How many of what, worst first."""
    outcomes = ["passed" if each.outcome == "new" else each.outcome for each in both]
    counts = [f"{outcomes.count(name)} {name}" for name in WORST_FIRST if name in outcomes]
    failed = f" ({len(_failed(new))} failed)" if _failed(new) else ""
    counts += [f"{len(new)} new{failed}"] if new else []
    counts += [f"{len(gone)} gone"] if gone else []
    worst = "failed" if failed else next((name for name in WORST_FIRST if name in outcomes), "inconclusive")
    text = (
        f"{len(both)} compared: {', '.join(counts)}" if both else f"nothing was compared: {', '.join(counts)}"
    )
    return text.removesuffix(": "), COLOUR.get(worst, ("green",))
