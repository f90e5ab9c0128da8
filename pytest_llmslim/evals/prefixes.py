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
    """Rows that begin with the same `shared` tokens, none of which predicts anything wanted."""

    shared: int
    rows: tuple[Row, ...]


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


@dataclass
class Limits:
    """What a forward pass may hold.

    Args:
        tokens: of all rows, with padding.
        scored: positions of which logits are kept, [rows, positions, vocabulary].
        slots: positions in the cache of keys and values, of all rows.
    """

    tokens: int
    scored: int
    slots: int


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
    """Rows that agree in their first `depth` tokens, while their tree is built."""

    depth: int
    groups: list[Group] = field(default_factory=list)
    saved: int = 0

    def take(self, other: _Branch) -> None:
        self.groups += other.groups
        self.saved += other.saved

    def settle(self, shortest: int) -> None:
        """Make one group of all rows if that saves more than the groups among them."""
        rows = tuple(row for group in self.groups for row in group.rows)
        saved = (len(rows) - 1) * self.depth
        if self.depth >= shortest and saved > self.saved:
            self.groups, self.saved = [Group(self.depth, rows)], saved


def grouped(rows: Iterable[Row], shortest: int = SHORTEST) -> list[Group]:
    """Rows in groups that share a prefix, so that as few tokens as possible are processed.

    A group of n rows saves (n - 1) x shared tokens. Groups in groups are weighed against each other: either all rows
    share the short prefix, or some of them each a longer one, whichever saves more in sum. That is the optimum
    for one level of sharing. Rows that share nothing are groups of one, with 0 shared.

    Args:
        rows: in any order.
        shortest: shared tokens below which nothing is shared.
    """
    # What predicts something wanted stays in the row's own part, so that a prefix needs no logits.
    keys = sorted((row.tokens[: row.first], row.tokens, row) for row in rows)
    common = [_common(one[0], other[0]) for one, other in pairwise(keys)]
    open_branches: list[_Branch] = []
    # Each row is a leaf; what it has in common with the next row says which branches end with it.
    for (key, _, row), depth in zip(keys, [*common, -1], strict=True):
        branch = _Branch(len(key), [Group(0, (row,))])
        while open_branches and open_branches[-1].depth > depth:
            open_branches[-1].take(branch)
            branch = open_branches.pop()
            branch.settle(shortest)
        if not open_branches or open_branches[-1].depth < depth:
            open_branches.append(_Branch(depth))
        open_branches[-1].take(branch)
    return open_branches[0].groups if open_branches else []


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


def cost(groups: Iterable[Group]) -> int:
    """Tokens that are processed, without padding."""
    return sum(g.shared + sum(len(row.tokens) - g.shared for row in g.rows) for g in groups)


def batches(ends: Iterable[End], limits: Limits, past: int = 0) -> Iterator[list[End]]:
    """Ends in batches of like length, the longest first, so that what does not fit shows at once.

    Args:
        ends: in any order.
        limits: of a batch; one end alone may exceed them. May change while this runs.
        past: positions in the cache before the ends; 0: there is no cache.
    """
    batch: list[End] = []
    longest = first = 0
    for end in sorted(ends, key=lambda end: (-end.length, end.first, end.row.tokens)):
        rows, low = len(batch) + 1, min(first, end.first) if batch else end.first
        longest = max(longest, end.length) if batch else end.length
        too_many = (
            rows * longest > limits.tokens
            or rows * (longest - low) > limits.scored
            or (past and rows * (past + longest) > limits.slots)
        )
        if batch and too_many:
            yield batch
            batch, longest, low = [], end.length, end.first
        batch.append(end)
        first = low
    if batch:
        yield batch


def prefix_batches(groups: Iterable[Group], limits: Limits, *, pads: bool) -> Iterator[list[Group]]:
    """Groups whose prefixes run together: of equal length, or with little padding where the model bears it."""
    batch: list[Group] = []
    for group in sorted(groups, key=lambda group: (-group.shared, group.rows[0].tokens)):
        everything = [*(each.shared for each in batch), group.shared]
        whole = len(everything) * everything[0]
        padding = whole - sum(everything)
        if batch and (whole > limits.tokens or padding > (whole // PADDING if pads else 0)):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch
