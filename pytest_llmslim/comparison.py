"""What changed between stored records and measured ones: for pull requests, and for two runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_llmslim.comparability import STORED_TOLERANCE, difference
from pytest_llmslim.gate import Limits, Thresholds, decide
from pytest_llmslim.records import WORST_FIRST, Axis, Estimate, Outcome, Record, Verdict, worst
from pytest_llmslim.run_records import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Key
    from pytest_llmslim.run_records import Run

FIGURES: Final = ("perplexity", "time", "energy", "stored_bytes", "opt")
"""Ratios candidate / reference of a record, and its score."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure then and now.

    Args:
        figure: one of `FIGURES`, or the name and metric of an evaluation.
        old: `None`: there was no entry.
        new: `None`: it was not measured now.
        change: new / old - 1; `None` where they cannot be compared.
        reason: why they cannot, empty where they can.
    """

    figure: str
    old: Estimate | None
    new: Estimate | None
    change: float | None
    reason: str = ""


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
        """Whether a figure that can be compared is another one, beyond the digits that baselines keep."""
        return any(abs(change.change or 0.0) > STORED_TOLERANCE for change in self.changes)


def with_baselines(run: Run) -> tuple[Compared, ...]:
    """A run against the entries that it was compared with; the verdicts are its own. Regressions first."""
    stored = {record.key: record for record in run.baselines}
    found = [compared(stored.get(record.key), record, record.verdicts) for record in run.records]
    return _sorted(found)


def two_runs(
    old: Iterable[Record], new: Iterable[Record], limits: Limits | None = None
) -> tuple[Compared, ...]:
    """Two runs, the old one in the place of baselines: regressions first, then what is new or gone.

    Args:
        old: records of the run that stands; of two with one key and device the last.
        new: records of the other.
        limits: how much worse is a regression; the defaults of a test run.
    """
    by_key = {(record.key, device_of(record.fingerprint)): record for record in old}
    by_name = {record.key: record for record in by_key.values()}
    found, seen = [], set()
    for record in new:
        seen.add(record.key)
        then = by_key.get((record.key, device_of(record.fingerprint)), by_name.get(record.key))
        verdicts = decide(record, Thresholds(), then, limits=limits or Limits())
        found.append(compared(then, record, verdicts))
    gone = [compared(record, None, ()) for key, record in by_name.items() if key not in seen]
    return (*_sorted(found), *gone)


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
    found = [
        _change(figure, getattr(old, figure, None), getattr(new, figure, None), old, new)
        for figure in FIGURES
    ]
    then = {each.name: each for each in old.evaluations} if old else {}
    now = {each.name: each for each in new.evaluations} if new else {}
    for name in dict.fromkeys((*now, *then)):
        sides = [each.get(name) for each in (then, now)]
        metric = next(side.metric for side in reversed(sides) if side)
        if metric:
            ratios = [side.ratio if side else None for side in sides]
            found.append(_change(f"{name} {metric}", ratios[0], ratios[1], old, new))
    return tuple(found)


def _change(
    figure: str, then: Estimate | None, now: Estimate | None, old: Record | None, new: Record | None
) -> Change:
    if then is None or now is None or old is None or new is None:
        return Change(figure, then, now, None)
    if not (then.value and now.value):
        return Change(figure, then, now, None, (now if then.known else then).reason)
    reason = _apart(figure, old, new)
    return Change(figure, then, now, None if reason else now.value / then.value - 1, reason)


def _apart(figure: str, old: Record, new: Record) -> str:
    """Why a figure of two records cannot be compared; bytes always can."""
    axes: dict[str, Axis] = {"perplexity": "perplexity", "time": "time", "energy": "energy", "opt": "opt"}
    return difference(new, old, axes[figure]) if figure in axes else ""


def _sorted(found: Iterable[Compared]) -> tuple[Compared, ...]:
    return tuple(sorted(found, key=lambda each: WORST_FIRST.index(each.outcome)))
