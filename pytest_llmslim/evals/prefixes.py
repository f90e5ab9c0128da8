"""What requests to a language model have in common, so that each token is processed once.

A request is a context and a continuation whose log probability is asked for. The choices of a question share their
context, the questions of an MMLU subject their five examples. No torch here: this plans, `evals.scorer` computes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pytest_llmslim.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SHORTEST = 8
"""Fewer shared tokens are not worth a pass of their own."""

PADDING = 8
"""Of so many tokens in a batch of prefixes one may be padding."""


class Wanted(NamedTuple):
    """The log probability of `tokens` where the first of them is predicted by input token `start` of a row."""

    request: int
    start: int
    tokens: tuple[int, ...]


class Row(NamedTuple):
    """One input of a model and all that is read from it."""

    tokens: tuple[int, ...]
    wanted: tuple[Wanted, ...]

    @property
    def first(self) -> int:
        """The first position whose logits are needed."""
        return min(wanted.start for wanted in self.wanted)


class Group(NamedTuple):
    """Requests that begin with the same `shared` tokens, none of which predicts anything wanted.

    Args:
        shared: tokens from the beginning.
        rows: that go on from there, each by itself.
        groups: that have more in common with each other.
    """

    shared: int
    rows: tuple[Row, ...] = ()
    groups: tuple[Group, ...] = ()

    @property
    def prefix(self) -> tuple[int, ...]:
        """The shared tokens."""
        return self.rows[0].tokens[: self.shared] if self.rows else self.groups[0].prefix[: self.shared]


class End(NamedTuple):
    """What of a row is left behind the `skip` tokens of its group, the `owner`-th of a batch."""

    row: Row
    skip: int = 0
    owner: int = 0

    @property
    def length(self) -> int:
        """Tokens to process."""
        return len(self.row.tokens) - self.skip

    @property
    def first(self) -> int:
        """The first of them whose logits are needed."""
        return self.row.first - self.skip


class Stem(NamedTuple):
    """What of a group's prefix is left behind the `skip` tokens of the group around it, the `owner`-th of a batch."""

    group: Group
    skip: int = 0
    owner: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens to process."""
        return self.group.prefix[self.skip :]


@dataclass
class Limits:
    """What a forward pass may hold.

    Args:
        tokens: of all rows, with padding.
        scored: positions of which logits are kept, [rows, positions, vocabulary].
    """

    tokens: int
    scored: int


class Room(NamedTuple):
    """Of a cache of keys and values that ends follow.

    Args:
        past: positions of a row that are taken.
        slots: positions of all rows that there may be.
    """

    past: int
    slots: int

    def holds(self, rows: int, width: int) -> bool:
        """Whether so many rows of so many tokens more fit in."""
        return rows * (self.past + width) <= self.slots


def rows_of(requests: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int) -> list[Row]:
    """The inputs that answer all requests, in the order of their tokens.

    An input is context and continuation without its last token, of which the last `longest` are kept, as lm-eval
    does it. An input that is the beginning of another is read off the other's pass: choices of one token are one row.

    Args:
        requests: token ids of context and continuation.
        longest: positions of the model.

    Raises:
        EvaluationError: a context or a continuation is empty, or a continuation longer than the model.
    """
    inputs = []
    for index, (context, continuation) in enumerate(requests):
        _check(len(context), len(continuation), longest)
        tokens = (*context, *continuation)[-(longest + 1) : -1]
        inputs.append((tokens, Wanted(index, len(tokens) - len(continuation), tuple(continuation))))
    found: list[tuple[tuple[int, ...], list[Wanted]]] = []
    # Backwards, an input comes right behind the last of those that it begins.
    for tokens, wanted in sorted(inputs, reverse=True):
        if found and found[-1][0][: len(tokens)] == tokens:
            found[-1][1].append(wanted)
        else:
            found.append((tokens, [wanted]))
    return [Row(tokens, tuple(wanted)) for tokens, wanted in reversed(found)]


def _check(context: int, continuation: int, longest: int) -> None:
    if not context or not continuation:
        raise EvaluationError(
            f"A request has {context} tokens of context and {continuation} of continuation; "
            f"both need at least one, so look at the task's prompts and choices."
        )
    if continuation > longest:
        raise EvaluationError(
            f"A continuation of {continuation} tokens does not fit into the model's {longest} positions; "
            f"use a model with more positions, or leave this task out."
        )


@dataclass
class _Branch:
    """Rows that agree in their first `depth` tokens, while their tree is built: a row, or branches."""

    depth: int
    row: Row | None = None
    inner: list[_Branch] = field(default_factory=list)

    def settled(self, above: int, shortest: int) -> Group:
        """With a prefix of its own only where that is so much longer than the one above."""
        if self.row is not None:
            return Group(above, (self.row,))
        own = self.depth if self.depth - above >= shortest else above
        inner = [branch.settled(own, shortest) for branch in self.inner]
        here = [group for group in inner if group.shared == own]
        rows = tuple(row for group in here for row in group.rows)
        deeper = [group for group in inner if group.shared > own]
        return Group(own, rows, (*(each for group in here for each in group.groups), *deeper))


def grouped(rows: Iterable[Row], shortest: int = SHORTEST) -> Group:
    """The tree of what rows have in common, so that nearly no token is processed twice.

    Wherever requests part, what they shared until there is run once, if that is at least `shortest` tokens past
    the place where their group parted from others. A shorter piece is run by each of them.

    Args:
        rows: in any order.
        shortest: shared tokens below which nothing is shared.

    Returns:
        all rows, in a group that shares nothing.
    """
    # What predicts something wanted stays in the row's own part, so that a prefix needs no logits.
    keys = sorted((row.tokens[: row.first], row.tokens, row) for row in rows)
    common = [_common(one[0], other[0]) for one, other in pairwise(keys)]
    opened: list[_Branch] = [_Branch(0)]
    # Each row is a leaf; what it has in common with the next row says which branches end with it.
    for (key, _, row), depth in zip(keys, [*common, 0], strict=False):
        branch = _Branch(len(key), row)
        while opened[-1].depth > depth:
            opened[-1].inner.append(branch)
            branch = opened.pop()
        if opened[-1].depth < depth:
            opened.append(_Branch(depth))
        opened[-1].inner.append(branch)
    return opened[0].settled(0, shortest)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def cost(group: Group, above: int = 0) -> int:
    """Tokens that are processed, without padding."""
    own = sum(len(row.tokens) - group.shared for row in group.rows)
    return group.shared - above + own + sum(cost(each, group.shared) for each in group.groups)


def batches(ends: Iterable[End], limits: Limits, room: Room | None = None) -> Iterator[list[End]]:
    """Ends in batches of like length, the longest first, so that what does not fit shows at once.

    Args:
        ends: in any order.
        limits: of a batch; one end alone may exceed them. May change while this runs.
        room: in the cache, where there is one.
    """
    batch: list[End] = []
    longest = first = 0
    for end in sorted(ends, key=lambda end: (-end.length, end.first, end.row.tokens)):
        rows, low = len(batch) + 1, min(first, end.first) if batch else end.first
        longest = max(longest, end.length) if batch else end.length
        too_many = (
            rows * longest > limits.tokens
            or rows * (longest - low) > limits.scored
            or not (room is None or room.holds(rows, longest))
        )
        if batch and too_many:
            yield batch
            batch, longest, low = [], end.length, end.first
        batch.append(end)
        first = low
    if batch:
        yield batch


def stem_batches(
    stems: Iterable[Stem], limits: Limits, room: Room | None = None, *, pads: bool
) -> Iterator[list[Stem]]:
    """Stems that run together: of equal length, or with little padding where the model bears it.

    Args:
        stems: in any order.
        limits: of a batch; one stem alone may exceed them.
        room: in the cache, where there is one.
        pads: whether shorter ones may be padded.
    """
    batch: list[Stem] = []
    for stem in sorted(stems, key=lambda stem: (-len(stem.tokens), stem.group.prefix)):
        lengths = [*(len(each.tokens) for each in batch), len(stem.tokens)]
        rows, width = len(lengths), lengths[0]
        too_many = rows * width > limits.tokens or not (room is None or room.holds(rows, width))
        uneven = rows * width - sum(lengths) > (rows * width // PADDING if pads else 0)
        if batch and (too_many or uneven):
            yield batch
            batch = []
        batch.append(stem)
    if batch:
        yield batch
