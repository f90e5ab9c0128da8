"""The goals that the bench checks by itself, each with the numbers that met it or did not."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from pytest_llmslim.statistics import block_medians, hodges_lehmann
from reliability.noise import CPU, WALL, Stream
from reliability.tables import Cell, Count, pooled, red_runs, truth_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reliability.rules import Decision

DECISIONS: Final = 300
"""A/A decisions in which none may fail: their exact upper bound is then about 1 %."""
SLOWER_DECISIONS: Final = 200
RED: Final = 0.01
FEW: Final = 20
"""Fewer decisions beside load than this tell nothing about a share: by chance alone they may miss a goal."""
FORWARD_S: Final = 0.010
RUNS_A_PAIR: Final = 4
"""Forward passes: both models, each timed once and warmed once."""


class Goal(NamedTuple):
    """One goal: `number` is that of the table of goals in the docs; `met` is `None` where too little is known."""

    number: str
    text: str
    met: bool | None
    numbers: str

    def __str__(self) -> str:
        word = {True: "met", False: "NOT MET", None: "open, too few decisions"}[self.met]
        return f"- {self.number} {word}: {self.text}. Got: {self.numbers}."


def check(
    streams: Sequence[Stream],
    cells: Sequence[Cell],
    loaded: Sequence[Cell],
    families: Mapping[str, Sequence[Sequence[Decision]]],
) -> list[Goal]:
    """All goals of a replay.

    Args:
        streams: the recordings.
        cells: decisions by noise and truth, each test with an error of its own.
        loaded: those beside other load, against a baseline of a quiet machine.
        families: runs of 20 gates in which nothing is slower, by noise.
    """
    memory_bound = frozenset(stream.noise for stream in streams if stream.memory_bound)
    busy = frozenset(stream.noise for stream in streams if stream.busy)
    quiet = [cell for cell in cells if cell.kind != "simulated" and cell.noise not in busy]
    found = [_no_false_alarm(quiet), _simulated(cells), _red_runs(families)]
    everything = pooled(quiet, "all recordings")
    found += [_found_20(cell) for cell in everything if cell.truth == 0.20]
    for kind in ("given", "fresh"):
        those = [cell for cell in quiet if cell.kind == kind]
        for cell in pooled(those, f"{kind} recordings"):
            found += _of_kind(cell, [c for c in those if c.truth == cell.truth], memory_bound)
    found += [goal for cell in loaded if cell.truth != 0.05 for goal in _beside_load(cell)]
    return [*found, *_contention(streams, [cell for cell in cells if cell.noise in busy])]


def _no_false_alarm(cells: Sequence[Cell]) -> Goal:
    count = Count(0, 0)
    for cell in pooled(cells, ""):
        if cell.truth == 0:
            count = cell.outcome("failed")
    text = f"A/A on recordings: none failed in at least {DECISIONS} decisions"
    return Goal("R1", text, count.hits == 0 and count.trials >= DECISIONS, str(count))


def _simulated(cells: Sequence[Cell]) -> Goal:
    those = [cell for cell in cells if cell.kind == "simulated" and cell.truth == 0]
    shares = [cell.outcome("failed") for cell in those]
    met = bool(shares) and all(count.share <= RED for count in shares)
    text = "A/A in every simulated noise: failed in at most 1 % of decisions"
    return Goal("R1", text, met, "; ".join(f"{c.noise} {n}" for c, n in zip(those, shares, strict=True)))


def _red_runs(families: Mapping[str, Sequence[Sequence[Decision]]]) -> Goal:
    counts = {noise: red_runs(runs) for noise, runs in families.items() if runs}
    met = bool(counts) and all(count.share <= RED for count in counts.values())
    text = "nothing slower, 20 gates: at most 1 % of runs red, in every noise"
    return Goal("R1", text, met, "; ".join(f"{noise} {count}" for noise, count in counts.items()))


def _found_20(cell: Cell) -> Goal:
    passed = cell.outcome("passed")
    text = f"a true +20 % on recordings: none passed in at least {SLOWER_DECISIONS} decisions"
    return Goal("R2", text, passed.hits == 0 and passed.trials >= SLOWER_DECISIONS, str(passed))


def _of_kind(cell: Cell, parts: Sequence[Cell], memory_bound: frozenset[str]) -> list[Goal]:
    failed, where = cell.outcome("failed"), f"{cell.noise}, {truth_text(cell.truth)}"
    if cell.truth == 0:
        return [_length(cell)]
    if cell.truth == 0.20:
        return [Goal("R2", f"{where}: failed in at least 99 %", failed.share >= 0.99, str(failed))]
    if cell.truth == 0.05:
        covered = cell.covered()
        text = f"{where}: the interval shown covers the truth in at least 90 %"
        return [Goal("R4", text, covered.share >= 0.90, str(covered))]
    goals = [Goal("R3", f"{where}: failed in at least 85 %", failed.share >= 0.85, str(failed))]
    for part in parts:
        failed, passed = part.outcome("failed"), part.outcome("passed")
        least = 0.75 if part.noise in memory_bound else 0.0
        text = f"{cell.noise}, {part.noise}, +10 %: passed in at most 8 %"
        text += ", failed in at least 75 % (memory bound)" if least else ""
        met = passed.share <= 0.08 and failed.share >= least
        goals.append(Goal("R3", text, met, f"passed {passed}, failed {failed}"))
    return goals


def _length(cell: Cell) -> Goal:
    median = statistics.median(d.pairs for d in cell.decisions) if cell.decisions else float("inf")
    seconds = median * RUNS_A_PAIR * FORWARD_S
    text = f"{cell.noise}, A/A: median at most 40 pairs, so at most 2 s of forward passes of 10 ms"
    return Goal("R7", text, median <= 40 and seconds <= 2, f"{median:.0f} pairs, {seconds:.2f} s")


def _beside_load(cell: Cell) -> list[Goal]:
    """The same goals where load may have raised the ratio: what it decides must not be wrong there either."""
    failed, passed = cell.outcome("failed"), cell.outcome("passed")
    where = f"{cell.noise} beside load, baseline of a quiet machine, {truth_text(cell.truth)}"
    if cell.truth == 0:
        return [Goal("R1", f"{where}: none failed", failed.hits == 0, str(failed))]
    number, least, most = ("R2", 0.99, 0.0) if cell.truth == 0.20 else ("R3", 0.85, 0.08)
    return [
        Goal(
            number,
            f"{where}: failed in at least {100 * least:.0f} %",
            None if failed.trials < FEW and failed.share < least else failed.share >= least,
            str(failed),
        ),
        Goal(number, f"{where}: passed in at most {100 * most:.0f} %", passed.share <= most, str(passed)),
    ]


def _contention(streams: Iterable[Stream], cells: Iterable[Cell]) -> list[Goal]:
    """With busy loops beside, CPU time still reads the truth, and wall time does not pass what is slower."""
    sessions: dict[str, list[Stream]] = {}
    for stream in streams:
        if stream.busy and stream.truth == 0.10:
            sessions.setdefault(stream.noise, []).append(stream)
    verdicts = {cell.noise: cell.decisions for cell in cells if cell.truth == 0.10}
    goals = []
    for noise, found in sessions.items():
        cpu, wall = ([_ratio(stream, clock) for stream in found] for clock in (CPU, WALL))
        passed = Count(sum(d.wall == "passed" for d in verdicts[noise]), len(verdicts[noise]))
        text = f"{noise}, +10 %: CPU time reads 1.08 to 1.12 in every session, and wall time never passes"
        met = all(1.08 <= ratio <= 1.12 for ratio in cpu) and passed.hits == 0
        numbers = f"CPU {_list(cpu)}; wall reads {_list(wall)} and passes {passed}"
        goals.append(Goal("R6", text, met, numbers))
    return goals


def _ratio(stream: Stream, clock: int) -> float:
    pairs = np.log(stream.times[:, :, 1, clock] / stream.times[:, :, 0, clock])
    return hodges_lehmann(block_medians(pairs.ravel().tolist(), pairs.shape[1])).value


def _list(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.3f}" for ratio in ratios)
