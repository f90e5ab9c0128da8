"""What changed between stored records and measured ones: for pull requests, and for two runs side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_llmslim.comparability import STORED_TOLERANCE, difference, evaluation_difference, no_number
from pytest_llmslim.gate import Limits, Thresholds, decide
from pytest_llmslim.records import WORST_FIRST, Axis, Estimate, Evaluation, Outcome, Record, Verdict, worst
from pytest_llmslim.run_records import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Key
    from pytest_llmslim.run_records import Run

FIGURES: Final = ("perplexity", "time", "energy", "stored_bytes", "opt")
"""Ratios candidate / reference of a record, and its score."""
_AXES: Final[dict[str, Axis]] = {
    "perplexity": "perplexity",
    "time": "time",
    "energy": "energy",
    "opt": "opt",
}
_NOISY: Final = ("time", "energy", "opt")


@dataclass(frozen=True, slots=True)
class Change:
    """One figure then and now.

    Args:
        figure: one of `FIGURES`, or the name and metric of an evaluation.
        old: `None`: there was no entry.
        new: `None`: it was not measured now.
        change: new / old - 1; `None` where they cannot be compared.
        reason: why they cannot; empty where they can, and where one of the two is not there.
        higher_is_better: of the metric of an evaluation.
    """

    figure: str
    old: Estimate | None
    new: Estimate | None
    change: float | None
    reason: str = ""
    higher_is_better: bool = False

    @property
    def moved(self) -> bool:
        """Whether it is another number, beyond the digits that baselines keep.

        Time, energy and opt are never the same twice: of them the two intervals must not meet either.
        """
        if self.old is None or self.new is None or abs(self.change or 0.0) <= STORED_TOLERANCE:
            return False
        return self.figure not in _NOISY or _apart(self.old, self.new) or _apart(self.new, self.old)

    @property
    def better(self) -> bool:
        """Whether the new number is the better one."""
        return (self.change or 0.0) > 0 if self.higher_is_better else (self.change or 0.0) < 0


@dataclass(frozen=True, slots=True)
class Compared:
    """One key in both runs: its figures, and what the gate says of the new record.

    `old` is `None` for a key that is new, `new` for one that is gone.
    """

    key: Key
    label: str
    device: str
    old: Record | None
    new: Record | None
    changes: tuple[Change, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst of the verdicts."""
        return worst(self.verdicts)

    @property
    def moved(self) -> bool:
        """Whether any of its figures has."""
        return any(change.moved for change in self.changes)


def with_baselines(run: Run) -> tuple[Compared, ...]:
    """A run against the entries that it was compared with; the verdicts are its own. Regressions first."""
    stored = _Stored(run.baselines)
    return _sorted(compared(stored.of(record), record, record.verdicts) for record in run.records)


def two_runs(
    old: Iterable[Record], new: Iterable[Record], limits: Limits | None = None
) -> tuple[Compared, ...]:
    """Two runs, the old one in the place of baselines: regressions first, then what is gone.

    Every noisy figure may fail falsely with a chance of 1 % by itself: a run that is over cannot be asked for the
    further blocks that it takes where all figures share that chance, as they do while tests run.

    Args:
        old: records of the run that stands; of two with one key and device the last.
        new: records of the other.
        limits: how much worse is a regression; the defaults of a test run.
    """
    stored = _Stored(old)
    found = []
    for record in new:
        then = stored.of(record)
        verdicts = decide(record, Thresholds(), then, limits=limits or Limits())
        found.append(compared(then, record, verdicts))
    return (*_sorted(found), *(compared(record, None, ()) for record in stored.left()))


class _Stored:
    """Records to compare with, by key: that of the same device, else the last one."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._by_device = {(record.key, device_of(record.fingerprint)): record for record in records}
        self._by_key = {record.key: record for record in self._by_device.values()}
        self._asked: set[tuple[Key, str]] = set()

    def of(self, record: Record) -> Record | None:
        found = self._by_device.get((record.key, device_of(record.fingerprint)), self._by_key.get(record.key))
        if found is not None:
            self._asked.add((found.key, device_of(found.fingerprint)))
        return found

    def left(self) -> list[Record]:
        """Those that nothing was compared with."""
        return [record for name, record in self._by_device.items() if name not in self._asked]


def compared(old: Record | None, new: Record | None, verdicts: Sequence[Verdict]) -> Compared:
    """One key, then and now.

    Raises:
        ValueError: neither is there.
    """
    some = new or old
    if some is None:
        raise ValueError("a comparison has an old record, a new one, or both")
    return Compared(
        some.key, some.label, device_of(some.fingerprint), old, new, _changes(old, new), tuple(verdicts)
    )


def _changes(old: Record | None, new: Record | None) -> tuple[Change, ...]:
    found = []
    for figure in FIGURES:
        then, now = getattr(old, figure, None), getattr(new, figure, None)
        reason = difference(new, old, _AXES[figure]) if old and new and figure in _AXES else ""
        found.append(_change(figure, then, now, reason))
    before = {each.name: each for each in old.evaluations} if old else {}
    after = {each.name: each for each in new.evaluations} if new else {}
    for name in dict.fromkeys((*after, *before)):
        was, is_ = before.get(name), after.get(name)
        reason = evaluation_difference(new, old, is_, was) if old and new and was and is_ else ""
        found += _evaluation(was, is_, reason)
    return tuple(found)


def _evaluation(then: Evaluation | None, now: Evaluation | None, reason: str) -> list[Change]:
    """The metric of an evaluation; one that has only figures has no change to show."""
    some = now or then
    if some is None or not some.metric:
        return []
    old, new = (side.ratio if side else None for side in (then, now))
    name = f"{some.name} {some.metric}"
    return [_change(name, old, new, reason, higher_is_better=some.higher_is_better)]


def _change(
    figure: str, then: Estimate | None, now: Estimate | None, reason: str, *, higher_is_better: bool = False
) -> Change:
    """One figure; `reason`: what else than its numbers stands against comparing it."""
    change = None
    if then is not None and now is not None:
        reason = reason or _no_change(then, now)
        if not reason:
            change = (now.value or 0.0) / (then.value or 1.0) - 1
    return Change(figure, then, now, change, reason, higher_is_better)


def _no_change(then: Estimate, now: Estimate) -> str:
    """Why two estimates have no ratio; empty when they have one."""
    for when, estimate in (("now", now), ("there", then)):
        if reason := no_number(estimate):
            return f"{when}, {reason}"
        if not math.isfinite(estimate.value or 0.0):
            return f"{when}, it is {estimate.value}"
    return ""


def _apart(low: Estimate, high: Estimate) -> bool:
    """Whether one interval ends before the other begins."""
    return low.high is not None and high.low is not None and low.high < high.low


def _sorted(found: Iterable[Compared]) -> tuple[Compared, ...]:
    return tuple(sorted(found, key=lambda each: WORST_FIRST.index(each.outcome)))
