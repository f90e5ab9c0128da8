"""What changed against the baselines, for a pull request: regressions first, under sixty lines.

GitHub takes 65,536 characters in a comment and a MiB in a summary of a step; lines and their lengths are bounded
here so that no run comes near.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.readings import MARK
from pytest_llmslim.records import WORST_FIRST, worst
from pytest_llmslim.reports.escaped import code, plain
from pytest_llmslim.reports.origins import footer, footer_of_two, next_step
from pytest_llmslim.reports.terminal import ranked

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.comparison import Change, Compared
    from pytest_llmslim.records import Estimate, Outcome, Record, Verdict
    from pytest_llmslim.run_records import Run

LINES: Final = 59
"""Of a page, whatever the size of the run."""
NAMES: Final = 20
"""Names in one line."""
SENTENCES: Final = 5
OTHERS: Final = 3
BEST: Final = 5
_SIGN: Final[dict[Outcome, str]] = {
    "failed": "❌ Failed",
    "inconclusive": "⚠️ Inconclusive",
    "not comparable": "⚠️ Not comparable",
    "new": "🆕 New",
    "passed": "✅ Passed",
}
_SAID: Final[dict[Outcome, str]] = {
    "failed": "{n} of {total} failed",
    "inconclusive": "none of {total} failed, and {n} could not be decided",
    "not comparable": "none of {total} failed, and {n} could not be compared in full",
    "new": "none of {total} failed, and {n} have nothing to be compared with, or not for everything",
    "passed": "{n} of {total} passed",
}
_BAD: Final = ("failed", "inconclusive")
_SHOWN: Final = {"stored_bytes": "bytes", "wall": "wall time", "integrity": "compression"}


def page(run: Run, found: Sequence[Compared]) -> str:
    """The Markdown of a run that was compared with its baselines (see `comparison.with_baselines`)."""
    remarks = _remarks(run)
    tail = [
        *_listed("**Measured nothing**", [f"{each.label}: {each.reason}" for each in run.unmeasured]),
        *_listed("**Compared with nothing**", run.missing),
        *_unchanged(found),
        *next_step(run, found),
        footer(run, found),
    ]
    return _page(_headline(found, remarks), found, tail)


def page_of_two(old: Run, new: Run, found: Sequence[Compared]) -> str:
    """The Markdown of two runs (see `comparison.two_runs`), the old one in the place of baselines."""
    gone = [f"{code(each.key.recipe)} on {code(each.key.model)}" for each in found if each.new is None]
    tail = [
        *([f"**Gone** ({len(gone)}): {_joined(gone)}", ""] if gone else []),
        *_unchanged(found),
        footer_of_two(old, new),
    ]
    return _page(_headline(found, _remarks(new)), found, tail)


def _page(headline: str, found: Sequence[Compared], tail: list[str]) -> str:
    after = [*_why(found), *_apart(found), *_new(found), *_legend(found), *tail]
    lines = [headline, "", *_table(found, LINES - 2 - len(after)), *after]
    return "\n".join(lines) + "\n"


# The verdict ------------------------------------------------------------------------------------------------


def _headline(found: Sequence[Compared], remarks: Sequence[str]) -> str:
    """The answer as a sentence; what was not measured is part of it."""
    measured = [each for each in found if each.new is not None]
    outcome = _outcome(measured)
    total = f"{len(measured)} candidate{'s' * (len(measured) != 1)}"
    if not measured:
        sign, text = "⚠️ Nothing was measured", ""
    elif not any(each.verdicts for each in measured):
        sign, text = "⚠️ Not compared", f": {total} without a verdict"
    else:
        n = sum(each.outcome == outcome for each in measured)
        sign, text = _SIGN[outcome], ": " + _SAID[outcome].format(n=n, total=total)
        if remarks and outcome in ("passed", "new"):
            sign = f"⚠️ {sign.partition(' ')[2]}, but not all was measured"
        if outcome == "failed":
            text += _also(measured)
    return f"## {sign}{text}{''.join(f'; {remark}' for remark in remarks)}"


def _outcome(measured: Iterable[Compared]) -> Outcome:
    return worst(verdict for each in measured for verdict in each.verdicts)


def _also(measured: Iterable[Compared]) -> str:
    """How the others ended."""
    counts = Counter(each.outcome for each in measured)
    rest = [f"{counts[outcome]} {outcome}" for outcome in WORST_FIRST[1:] if counts[outcome]]
    return f" ({', '.join(rest)})" if rest else ""


def _remarks(run: Run) -> list[str]:
    """What keeps the answer from being whole."""
    remarks = [f"{len(run.unmeasured)} tests measured nothing"] if run.unmeasured else []
    remarks += [f"{len(run.missing)} tests of the baselines were not compared"] if run.missing else []
    return [*remarks, "the run was interrupted"] if run.interrupted else remarks


# What changed -----------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """One figure of one candidate; `order`: worst first, then the largest change."""

    order: tuple[int, float]
    cells: tuple[str, ...]


def _table(found: Sequence[Compared], most: int) -> list[str]:
    """At most `most` lines."""
    rows = sorted((row for each in found for row in _rows(each)), key=lambda row: row.order)
    if not rows:
        return []
    shown = rows[: max(1, most - 5)] if len(rows) > most - 3 else rows
    head = ("verdict", "candidate", "figure", "then → now [95 %]", "change")
    lines = [_cells(head), _cells(["---"] * len(head)), *(_cells(row.cells) for row in shown), ""]
    left = len(rows) - len(shown)
    return [*lines, f"and {left} more changes, in the files of the run.", ""] if left else lines


def _rows(each: Compared) -> list[_Row]:
    """Figures on which a verdict is not passed, then those that are other than they were."""
    if each.new is None:
        return []
    bad: dict[str, list[Verdict]] = {}
    for verdict in each.verdicts:
        if verdict.outcome in _BAD:
            bad.setdefault(_figure_of(verdict, each), []).append(verdict)
    changes = {change.figure: change for change in each.changes}
    rows = [_row(each, figure, changes.get(figure), verdicts) for figure, verdicts in bad.items()]
    return rows + [
        _row(each, figure, change, ())
        for figure, change in changes.items()
        if change.moved and figure not in bad
    ]


def _figure_of(verdict: Verdict, each: Compared) -> str:
    """The figure that a verdict is about, as changes name it."""
    if verdict.axis != "evaluation":
        return verdict.axis
    names = (change.figure for change in each.changes if change.figure.startswith(f"{verdict.evaluation} "))
    return next(names, verdict.evaluation)


def _row(each: Compared, figure: str, change: Change | None, bad: Sequence[Verdict]) -> _Row:
    """`bad`: what stands against the figure."""
    old = change.old if change else getattr(each.old, figure, None)
    new = change.new if change else getattr(each.new, figure, None)
    by = change.change if change else None
    outcome = worst(bad)
    said = f"**{outcome}**" if bad else _moved(each, figure, better=change is not None and change.better)
    # Past a limit against the reference, a change from the baseline is not what the verdict is about.
    limit = bool(bad) and all(verdict.against == "threshold" for verdict in bad)
    cells = (
        said,
        f"{code(each.key.recipe)} on {code(each.key.model)}",
        plain(_SHOWN.get(figure, figure)),
        "-" if figure == "integrity" else f"{_number(old)} → {_number(new, interval=True)}",
        "against a limit" if limit else units.percent(by),
    )
    return _Row((WORST_FIRST.index(outcome), -abs(by or 0.0)), cells)


def _moved(each: Compared, figure: str, *, better: bool) -> str:
    """The word for a figure that no verdict stands against."""
    gated = any(_figure_of(verdict, each) == figure for verdict in each.verdicts)
    return f"{'passed' if gated else 'not judged'}, {'better' if better else 'worse'}"


def _number(estimate: Estimate | None, *, interval: bool = False) -> str:
    return plain(units.marked(estimate, interval=interval))


def _why(found: Sequence[Compared]) -> list[str]:
    """The sentences of what failed or could not be decided."""
    said = [
        verdict.sentence
        for outcome in _BAD
        for each in found
        for verdict in each.verdicts
        if verdict.outcome == outcome
    ]
    return _listed("**Why**", said, SENTENCES)


def _apart(found: Sequence[Compared]) -> list[str]:
    """What could not be compared, each reason once."""
    reasons: dict[str, list[str]] = {}
    for each in found:
        for verdict in each.verdicts:
            if verdict.outcome == "not comparable":
                reasons.setdefault(verdict.sentence.removeprefix(f"{each.label}: "), []).append(each.label)
    said = [
        f"{labels[0] if len(labels) == 1 else f'{len(labels)} candidates'}: {reason}"
        for reason, labels in reasons.items()
    ]
    return _listed("**Not comparable**", said)


def _listed(title: str, sentences: Sequence[str], most: int = OTHERS) -> list[str]:
    if not sentences:
        return []
    count = f"{most} of {len(sentences)}" if len(sentences) > most else str(len(sentences))
    return [f"{title} ({count}):", *(f"- {plain(sentence)}" for sentence in sentences[:most]), ""]


# What is new, and what stayed -------------------------------------------------------------------------------


def _new(found: Sequence[Compared]) -> list[str]:
    """Candidates without a baseline with their figures, best first; and evaluations that are new."""
    asked = Counter(
        verdict.evaluation
        for each in found
        for verdict in each.verdicts
        if verdict.outcome == "new" and verdict.evaluation
    )
    lines = []
    if asked:
        named = [f"{code(name)} ({count})" for name, count in asked.items()]
        lines = [f"**New evaluations**, with the number of candidates: {_joined(named)}", ""]
    records = ranked(each.new for each in found if each.new is not None and _is_new(each))
    if not records:
        return lines
    best = f", the best {BEST} by opt" if len(records) > BEST else ""
    head = ("new candidate", "perplexity", "time", "energy", "bytes", "opt")
    figures = ("perplexity", "time", "energy", "stored_bytes", "opt")
    rows = [
        (
            f"{code(record.key.recipe)} on {code(record.key.model)}",
            *(_number(getattr(record, figure)) for figure in figures),
        )
        for record in records[:BEST]
    ]
    return [
        *lines,
        f"**New** ({len(records)}{best}), as ratios to the reference:",
        "",
        *map(_cells, (head, ["---"] * len(head), *rows)),
        "",
    ]


def _is_new(each: Compared) -> bool:
    return any(verdict.outcome == "new" and not verdict.evaluation for verdict in each.verdicts)


def _legend(found: Sequence[Compared]) -> list[str]:
    """What the marks mean, and why figures are absent; of candidates that are in the tables."""
    shown = [each.new for each in found if each.new and (_is_new(each) or _rows(each))]
    said = []
    for mark, how in (("~", "estimated by a model"), ("^", "integrated from samples of power")):
        sources = {r.energy.source for r in shown if MARK.get(r.energy.method) == mark}
        said += [f"{mark} energy is {how} ({', '.join(sorted(sources))})"] if sources else []
    said += _absent(shown)
    return [plain("; ".join(said)) + ".", ""] if said else []


def _absent(records: Sequence[Record]) -> list[str]:
    """Why there is no perplexity, time or energy: of each the last reason; one that several share is said once."""
    reasons: dict[tuple[str, str], str] = {}
    for record in records:
        for figure in ("perplexity", "time", "energy"):
            estimate: Estimate = getattr(record, figure)
            if not estimate.known:
                reasons[figure, estimate.method] = estimate.reason.rstrip(".")
    figures: dict[tuple[str, str], list[str]] = {}
    for (figure, method), reason in reasons.items():
        figures.setdefault((method, reason), []).append(figure)
    return [f"{' and '.join(names)} {method}: {reason}" for (method, reason), names in figures.items()]


def _unchanged(found: Sequence[Compared]) -> list[str]:
    """The rest, folded away."""
    names = [
        f"{code(each.key.recipe)} on {code(each.key.model)}"
        for each in found
        if each.new is not None and not _is_new(each) and not _rows(each)
    ]
    if not names:
        return []
    title = f"{len(names)} without a change beyond noise"
    return [f"<details><summary>{title}</summary>", "", _joined(names), "", "</details>", ""]


def _joined(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return ", ".join(names[:NAMES]) + more


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
