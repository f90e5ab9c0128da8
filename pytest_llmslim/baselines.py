"""The store of baselines: what later runs are compared with, made for reading diffs in git.

A key has a rolling entry, which `--llm-update` replaces, and an anchor: the first entry that was accepted. Ten
accepted losses of 1 % are each small beside the rolling entry and large beside the anchor. A rolling entry that
was never replaced is its own anchor, so only others have a line among the anchors; `--llm-anchor` takes that
line away. An evaluation that is asked later joins the anchor when it is first accepted. Writing merges and never
deletes an entry, holds a lock, and replaces each file in one step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.baseline_files import (
    anchor_path_of,
    as_stored,
    edited,
    is_anchor,
    load,
    locked,
    path_of,
    refusal,
    write,
)
from pytest_llmslim.errors import BaselineError
from pytest_llmslim.readings import MARK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pytest_llmslim.records import Key, Record

__all__ = ["Change", "Store", "Stored", "anchor_path_of", "load_all", "path_of", "told", "update"]

_FIGURES: Final = ("perplexity", "time", "energy", "stored_bytes", "opt")


@dataclass(frozen=True, slots=True)
class Change:
    """What an update did to one figure of one record; `None`: there was or is no such number.

    `marks` stand before the old and the new number: `~` for an estimated one (`readings.MARK`).
    """

    label: str
    figure: str
    old: float | None
    new: float | None
    is_new: bool = False
    marks: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        return f"{self.label}: {self.text}"

    @property
    def text(self) -> str:
        """The figure, from what to what."""
        change = f" ({units.percent(self.new / self.old - 1)})" if self.old and self.new else ""
        gone = self.new is None and self.figure not in _FIGURES
        change = " (not asked for now, so no longer stored)" if gone else change
        then, now = self.marks
        return f"{self.name} {then}{units.ratio(self.old)} -> {now}{units.ratio(self.new)}{change}"

    @property
    def name(self) -> str:
        """The figure as it is written in sentences; evaluations keep their names."""
        return self.figure.replace("_", " ") if self.figure in _FIGURES else self.figure


@dataclass(frozen=True, slots=True)
class Anchored:
    """What an update did to the anchor of one record, in words."""

    label: str
    text: str
    is_new: bool = False

    def __str__(self) -> str:
        return f"{self.label}: {self.text}"


def told(changes: Iterable[Change | Anchored]) -> list[str]:
    """The changes as lines: one a figure or anchor, and one for all figures of a record that is new."""
    lines: list[str] = []
    for (label, is_new), group in groupby(changes, key=lambda change: (change.label, change.is_new)):
        if is_new:
            figures = [
                f"{change.name} {change.marks[1]}{units.ratio(change.new)}"
                for change in group
                if isinstance(change, Change)
            ]
            lines.append(f"{label}: new, {', '.join(figures)}")
        else:
            lines += map(str, group)
    return lines


class Stored(NamedTuple):
    """All that is stored below a folder; `anchors` holds those that differ from the rolling entry."""

    rolling: dict[Key, Record]
    anchors: dict[Key, Record]


class Store:
    """The baselines below a folder, read when first asked for.

    Args:
        directory: the folder; it need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def _stored(self) -> Stored:
        return load_all(self.directory)

    def get(self, key: Key) -> Record | None:
        """The rolling entry, or `None`.

        Raises:
            BaselineError: a file is unusable (see `load_all`).
        """
        return self._stored.rolling.get(key)

    def anchor(self, key: Key) -> Record | None:
        """The first accepted entry; `None` where that is the rolling entry itself, or where there is none.

        Raises:
            BaselineError: a file is unusable (see `load_all`).
        """
        anchor = self._stored.anchors.get(key)
        # Equal where a writer was killed between its two files.
        return None if anchor == self.get(key) else anchor

    def keys(self) -> tuple[Key, ...]:
        """The keys of all rolling entries.

        Raises:
            BaselineError: a file is unusable (see `load_all`).
        """
        return tuple(self._stored.rolling)

    def knows(self, model: str) -> bool:
        """Whether any entry is about a model, by its name as shown.

        Raises:
            BaselineError: a file is unusable (see `load_all`).
        """
        return any(key.model == model for key in self.keys())

    def update(
        self, records: Iterable[Record], *, anchor: bool = False, dry_run: bool = False
    ) -> tuple[Change | Anchored, ...]:
        """Write records, each over the rolling entry of its key; all others stay (see `update`).

        Raises:
            BaselineError: a file is unusable or cannot be written.
        """
        self.__dict__.pop("_stored", None)
        return update(self.directory, records, anchor=anchor, dry_run=dry_run)


def load_all(directory: Path) -> Stored:
    """Everything stored; nothing where the folder does not exist.

    Raises:
        BaselineError: a file that is unreadable, truncated, of a newer schema, not ours or in the wrong
            place; the sentence names file, line and remedy.
    """
    if directory.exists() and not directory.is_dir():
        raise BaselineError(
            f"baselines are in a folder, got the file {directory}; give a folder with --llm-baseline"
        )
    stored = Stored({}, {})
    # Anchors last: a writer adds an anchor before it replaces the entry, so none of those read here is missed.
    for path in sorted(directory.glob("*/*.json"), key=lambda path: (is_anchor(path), path)):
        (stored.anchors if is_anchor(path) else stored.rolling).update(load(directory, path))
    return stored


def update(
    directory: Path, records: Iterable[Record], *, anchor: bool = False, dry_run: bool = False
) -> tuple[Change | Anchored, ...]:
    """Merge records into the store, and say what changed. Two writers at once lose nothing.

    Args:
        directory: the store's folder; made where it does not exist.
        records: new rolling entries; of two with one key the last is taken.
        anchor: they become the anchors too. Otherwise an entry that is replaced for the first time becomes one.
        dry_run: only say what would change; nothing is written.

    Raises:
        BaselineError: a file is unusable or cannot be written; files before it may have been written.
        ValueError: a record holds NaN; nothing was written.
    """
    by_path: dict[Path, dict[Key, Record]] = {}
    for record in records:
        by_path.setdefault(path_of(directory, record.key), {})[record.key] = as_stored(record)
    changes: list[Change | Anchored] = []
    for path, new in sorted(by_path.items()):
        if dry_run:
            changes += _merge(directory, new, anchor=anchor, dry_run=True)
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.parent):
                changes += _merge(directory, new, anchor=anchor, dry_run=False)
        except OSError as error:
            raise refusal(path, error) from error
    return tuple(changes)


def _merge(
    directory: Path, new: dict[Key, Record], *, anchor: bool, dry_run: bool
) -> list[Change | Anchored]:
    """Write the entries of one suite of one model.

    An anchor is added before its entry is replaced and taken away after it. So a writer that is killed in between
    leaves an entry that is its own anchor, or an anchor that was to go; the first entry is never lost.
    """
    any_key = next(iter(new))
    path, anchor_path = path_of(directory, any_key), anchor_path_of(directory, any_key)
    rolling, anchors = load(directory, path), load(directory, anchor_path)
    by_hand, anchors_by_hand = edited(directory, path), edited(directory, anchor_path)
    replaced = {key for key, record in new.items() if rolling.get(key, record) != record}
    with_added = anchors | ({} if anchor else {key: rolling[key] for key in replaced - set(anchors)})
    with_added = {key: _completed(record, new.get(key)) for key, record in with_added.items()}
    gone = {key for key in set(new) & set(anchors) if anchor or anchors[key] == new[key]}
    left = {key: record for key, record in with_added.items() if key not in gone}
    if not dry_run:
        # What was edited by hand stays without a digest, as an anchor too.
        suspect = {*anchors_by_hand, *(set(by_hand) - set(anchors))}
        write(anchor_path, with_added, suspect)
        write(path, rolling | new, set(by_hand) - set(new))
        write(anchor_path, left, suspect)
    changes: list[Change | Anchored] = []
    for key, record in new.items():
        changes += _changes(rolling.get(key), record)
        before = anchors.get(key, rolling.get(key))
        # Without a line of its own among the anchors, an entry is its own anchor.
        changes += _anchored(record, before, left.get(key, record), known=key in anchors)
    return changes


def _completed(anchor: Record, new: Record | None) -> Record:
    """The anchor with evaluations that are accepted for the first time: small losses of them add up too."""
    if new is None or new.reference.weights_hash != anchor.reference.weights_hash:
        return anchor
    known = {each.name for each in anchor.evaluations}
    first = [each for each in new.evaluations if each.name not in known]
    return replace(anchor, evaluations=(*anchor.evaluations, *first)) if first else anchor


def _anchored(new: Record, before: Record | None, after: Record, *, known: bool) -> Iterator[Anchored]:
    """What became of the anchor of `new`, from `before` to `after`; `known`: it had a line of its own."""
    if before is None:
        return
    if before != after:
        figures = ", ".join(change.text for change in _changes(before, after))
        completed = replace(after, evaluations=before.evaluations) == before
        what = "completed" if completed else "replaced"
        yield Anchored(new.label, f"anchor {what}, {figures or 'same figures'}")
    if not known and after != new:
        yield Anchored(new.label, "the entry before this one is kept as its anchor")


def _changes(old: Record | None, new: Record) -> Iterator[Change]:
    now, then = _figures(new), _figures(old) if old else {}
    for figure in dict.fromkeys((*now, *then)):
        value, before = now.get(figure), then.get(figure)
        if value != before:
            marks = (_mark(old, figure), _mark(new, figure))
            yield Change(new.label, figure, before, value, is_new=old is None, marks=marks)


def _mark(record: Record | None, figure: str) -> str:
    estimate = getattr(record, figure) if record is not None and figure in _FIGURES else None
    return MARK.get(estimate.method, "") if estimate is not None else ""


def _figures(record: Record) -> dict[str, float | None]:
    """The ratios of a record, and of each evaluation what the candidate reached."""
    ratios = {figure: getattr(record, figure).value for figure in _FIGURES}
    return ratios | {f"{each.name} {each.metric}": each.candidate for each in record.evaluations}
