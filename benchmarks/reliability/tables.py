"""Counts with exact intervals, as Markdown tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from reliability.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reliability.rules import Decision

ABSENT: Final = "-"
GATE_COLUMNS: Final = ("noise", "truth", "failed", "passed", "inconclusive", "mean pairs", "interval covers")
SUMMARY_COLUMNS: Final = (
    "noise",
    "truth",
    "failed",
    "passed",
    "inconclusive",
    "mean pairs",
    "`mean:5%`",
    "Mann-Whitney",
)
RULE_COLUMNS: Final = ("noise", "truth", "this gate", *RULES)
FAMILY_COLUMNS: Final = ("noise", "this gate", *RULES)


class Count(NamedTuple):
    """How often something happened."""

    hits: int
    trials: int

    @property
    def share(self) -> float:
        """Of the trials; NaN without one."""
        return self.hits / self.trials if self.trials else float("nan")

    def interval(self) -> tuple[float, float]:
        """The exact 95 % interval of Clopper and Pearson."""
        from scipy.stats import binomtest

        if not self.trials:
            return 0.0, 1.0
        found = binomtest(self.hits, self.trials).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        if not self.trials:
            return "0/0"
        low, high = (_percent(bound) for bound in self.interval())
        return f"{self.hits}/{self.trials} = {_percent(self.share)} % [{low}, {high}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def truth_text(truth: float) -> str:
    """`A/A`, or by how much the candidate takes longer."""
    return f"+{100 * truth:.0f} %" if truth else "A/A"


class Cell:
    """The decisions under one noise and truth."""

    def __init__(self, kind: str, noise: str, truth: float, decisions: Sequence[Decision]) -> None:
        self.kind, self.noise, self.truth, self.decisions = kind, noise, truth, decisions

    def outcome(self, outcome: str) -> Count:
        """How many ended so."""
        return Count(sum(d.outcome == outcome for d in self.decisions), len(self.decisions))

    def alarms(self, rule: str) -> Count | str:
        """How often another rule called the candidate slower; `-` where it has no such clock."""
        found = [d.alarms[rule] for d in self.decisions if rule in d.alarms]
        return Count(sum(found), len(found)) if found or not self.decisions else ABSENT

    def covered(self) -> Count:
        """How often the 95 % interval that is shown holds the truth."""
        hits = sum((d.ratio.low or 0) <= 1 + self.truth <= (d.ratio.high or 0) for d in self.decisions)
        return Count(hits, len(self.decisions))

    def mean_pairs(self) -> float:
        """Pairs a decision."""
        return sum(d.pairs for d in self.decisions) / max(1, len(self.decisions))


def pooled(cells: Iterable[Cell], noise: str) -> list[Cell]:
    """One cell a truth, over all noises."""
    truths: dict[float, list[Decision]] = {}
    kind = ""
    for cell in cells:
        kind = cell.kind
        truths.setdefault(cell.truth, []).extend(cell.decisions)
    return [Cell(kind, noise, truth, found) for truth, found in sorted(truths.items())]


def _decided(cell: Cell) -> tuple[str, ...]:
    """Noise, truth, how the gate decided, and with how many pairs."""
    outcomes = (str(cell.outcome(outcome)) for outcome in ("failed", "passed", "inconclusive"))
    return (cell.noise, truth_text(cell.truth), *outcomes, f"{cell.mean_pairs():.0f}")


def gate_table(cells: Iterable[Cell]) -> str:
    """What the gate makes of each noise and truth."""
    rows = [
        (
            *_decided(cell),
            str(cell.covered()),
        )
        for cell in cells
    ]
    return markdown(GATE_COLUMNS, rows)


def summary_table(cells: Iterable[Cell]) -> str:
    """What the gate makes of each noise and truth, and the alarms of the other rules on their usual clock."""
    rows = [
        (
            *_decided(cell),
            *(str(cell.alarms(f"{rule} wall")) for rule in ("mean:5%", "Mann-Whitney")),
        )
        for cell in cells
    ]
    return markdown(SUMMARY_COLUMNS, rows)


def rule_table(cells: Iterable[Cell]) -> str:
    """How often each rule calls the candidate slower, on the same pairs."""
    rows = [
        (
            cell.noise,
            truth_text(cell.truth),
            str(cell.outcome("failed")),
            *(str(cell.alarms(rule)) for rule in RULES),
        )
        for cell in cells
    ]
    return markdown(RULE_COLUMNS, rows)


def red_runs(runs: Sequence[Sequence[Decision]]) -> Count:
    """Runs in which the gate failed anything."""
    return Count(sum(any(d.outcome == "failed" for d in run) for run in runs), len(runs))


def family_row(noise: str, runs: Sequence[Sequence[Decision]]) -> tuple[str, ...]:
    """Runs with any alarm, by rule."""
    cells = []
    for rule in RULES:
        found = [[d.alarms[rule] for d in run] for run in runs if rule in run[0].alarms]
        cells.append(str(Count(sum(map(any, found)), len(found))) if found else ABSENT)
    return noise, str(red_runs(runs)), *cells


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def parse(table: str) -> list[dict[str, str]]:
    """The rows of a Markdown table by their column."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
