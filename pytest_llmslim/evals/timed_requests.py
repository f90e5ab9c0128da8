"""Requests to two models side by side: prefill and decode timed apart, over batch and prompt sizes.

A round visits every cell of batch and prompt with both models in freshly allocated memory (where it holds them twice),
next to each other, each as often first, each run behind an untimed one. So a cell has one pair a memory layout, and
what changes slowly on a machine reaches all cells alike.
"""

from __future__ import annotations

import contextlib
import gc
import random
from typing import TYPE_CHECKING, NamedTuple

import torch

from pytest_llmslim.evals.blame import blaming
from pytest_llmslim.measure import CACHE_BYTES, REPLACED, WARM_TOKENS
from pytest_llmslim.meters.clock import Stopwatch, Ticks
from pytest_llmslim.meters.disturbance import BACKWARDS, Watch
from pytest_llmslim.models.decoding import Reader
from pytest_llmslim.models.storage import free_bytes, movable, reallocate, stored_bytes
from pytest_llmslim.pairs import names_of
from pytest_llmslim.readings import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from pytest_llmslim.evals import EvalContext
    from pytest_llmslim.meters import Meter

LEAST, MOST = 6, 20
"""Rounds: six pairs are the fewest with an interval of 95 %. Even numbers, so that each model is as often first."""
BUDGET_S = 8.0
"""Behind it no rounds are added to the least; of energy windows no more are begun than fit in."""
MARGIN = 1.1
"""How much longer than a meter's shortest window its windows are."""


class Cell(NamedTuple):
    """One size of batch and prompt."""

    batch: int
    prompt: int

    def named(self, measure: str) -> str:
        """The name of a figure."""
        return f"{measure} batch {self.batch} prompt {self.prompt}"


class Run(NamedTuple):
    """One request: the prompt up to the first token, and the tokens behind it."""

    first: Ticks
    rest: Ticks

    @property
    def whole(self) -> Ticks:
        """Both."""
        one, other = self
        on_device = (
            None if one.device_ns is None or other.device_ns is None else one.device_ns + other.device_ns
        )
        return Ticks(one.wall_ns + other.wall_ns, one.cpu_ns + other.cpu_ns, on_device)


Pair = tuple[Run, Run]
"""Reference and candidate next to each other."""


class Requests:
    """Both models on every cell, round by round.

    Args:
        models: reference and candidate in eval mode; their weights are moved in memory but not changed.
        cells: batch and prompt sizes that fit into their positions.
        tokens: new ones a text, at least 2.
        context: device, seed, text, and what the candidate is called.
    """

    def __init__(
        self, models: tuple[nn.Module, nn.Module], cells: Sequence[Cell], tokens: int, context: EvalContext
    ) -> None:
        self.models, self.cells, self.tokens, self.context = models, cells, tokens, context
        self.random = random.Random(context.seed)
        self.stopwatch, self.whole = Stopwatch(context.device), Stopwatch("cpu")
        self.prompts = {cell: _prompt(cell, context) for cell in cells}
        sizes = [stored_bytes(model) for model in models]
        self.big = [size > CACHE_BYTES for size in sizes]
        self.layouts = max(sizes) < free_bytes(context.device)
        self.tensors: list[list[torch.Tensor]] = []
        self.pairs: dict[Cell, list[Pair]] = {cell: [] for cell in cells}
        self.rounds = self.spare = 0

    def time(self) -> dict[Cell, list[Pair]]:
        """Rounds in twos, as many as the time allows."""
        self._settle()
        watch, spent_ns = Watch(self.context.device), 0
        try:
            while self.rounds < LEAST or (self.rounds < MOST and spent_ns < BUDGET_S * 1e9):
                self.whole.start()
                for order in self._orders():
                    self.context.tell(f"round {self.rounds + 1}")
                    self._round(order, lambda cell, order: self._compare(cell, order, watch))
                    self.rounds += 1
                spent_ns += self.whole.stop().wall_ns
        finally:
            watch.close()
        return self.pairs

    def joules(self, meter: Meter) -> dict[Cell, list[tuple[Reading, Reading]] | str]:
        """Readings a new token of each cell, or why there are none; nothing where no meter tells more than the time."""
        if meter.method not in ("measured", "sampled"):
            return {}
        window_s = MARGIN * meter.min_window_s
        seconds = 2 * sum(max(window_s, self._slowest_s(cell)) for cell in self.cells)
        rounds = min(self.rounds, int(BUDGET_S / seconds) if seconds else self.rounds)
        if not rounds:
            reason = (
                f"the meter needs windows of {window_s:.3g} s, {seconds:.3g} s over {len(self.cells)} cells, "
                f"and {BUDGET_S:g} s are given to energy; ask for fewer cells"
            )
            return dict.fromkeys(self.cells, reason)
        found: dict[Cell, list[tuple[Reading, Reading]]] = {cell: [] for cell in self.cells}
        orders = [order for _ in range(0, rounds, 2) for order in self._orders()]

        def read(cell: Cell, order: Sequence[int]) -> None:
            readings = {side: self._window(side, cell, meter) for side in order}
            found[cell].append((readings[0], readings[1]))

        for order in orders[:rounds]:
            self.context.tell("energy")
            self._round(order, read)
        return {**found}

    def _settle(self) -> None:
        """Every cell once untimed: kernels pack their weights, and what fails does so before anything is timed."""
        for cell in self.cells:
            for side in (0, 1):
                self._run(side, cell)
        self.tensors = [movable(model) for model in self.models]

    def _orders(self) -> list[tuple[int, int]]:
        """Two rounds: which model goes first."""
        return self.random.sample([(0, 1), (1, 0)], 2)

    def _round(self, order: tuple[int, int], visit: Callable[[Cell, Sequence[int]], None]) -> None:
        """All cells on one memory layout, without garbage collection."""
        self.spare = REPLACED
        gaps = [reallocate(self.tensors[side], self.random) for side in order if self.layouts]
        with _still():
            for cell in self.cells:
                visit(cell, order)
        del gaps

    def _compare(self, cell: Cell, order: Sequence[int], watch: Watch) -> None:
        """One pair, measured again where it was disturbed; none where the clock went backwards."""
        pair, seen = self._pair(cell, order, watch)
        if seen and self.spare:
            self.spare -= 1
            pair, seen = self._pair(cell, order, watch)
        if BACKWARDS not in seen:
            self.pairs[cell].append(pair)

    def _pair(self, cell: Cell, order: Sequence[int], watch: Watch) -> tuple[Pair, tuple[str, ...]]:
        """One timed run of each model, and what disturbed them from outside."""
        watch.begin()
        runs = {}
        for side in order:
            self._warm(side, cell)
            runs[side] = self._run(side, cell)
            for ticks in runs[side]:
                watch.lap(ticks)
        return (runs[0], runs[1]), watch.end()

    def _warm(self, side: int, cell: Cell) -> None:
        """One untimed run, since caches hold the other model's weights; a short one where they hold no whole model."""
        self._run(side, cell, WARM_TOKENS if self.big[side] else cell.prompt, tokens=2)

    def _run(self, side: int, cell: Cell, prompt: int | None = None, *, tokens: int | None = None) -> Run:
        text = self.prompts[cell][:, :prompt]
        with blaming(names_of(self.context.label)[side], f"at batch {cell.batch}, prompt {cell.prompt}"):
            return self._request(self.models[side], text, (tokens or self.tokens) - 1)

    def _request(self, model: nn.Module, tokens: torch.Tensor, steps: int) -> Run:
        reader = Reader(model)
        self.stopwatch.start()
        token = reader.next(tokens)[:, 0].argmax(dim=1, keepdim=True)
        first = self.stopwatch.stop()
        self.stopwatch.start()
        for _ in range(steps):
            tokens = torch.cat([tokens, token], dim=1)
            token = reader.next(tokens)[:, 0].argmax(dim=1, keepdim=True)
        return Run(first, self.stopwatch.stop())

    def _slowest_s(self, cell: Cell) -> float:
        return max((run.whole.wall_ns for pair in self.pairs[cell] for run in pair), default=0) / 1e9

    def _window(self, side: int, cell: Cell, meter: Meter) -> Reading:
        """Joules a new token, over as many requests as the meter needs."""
        self._warm(side, cell)
        nanoseconds, tokens = 0, 0
        meter.start()
        while nanoseconds < MARGIN * meter.min_window_s * 1e9 or not tokens:
            nanoseconds += max(1, self._run(side, cell).whole.wall_ns)
            tokens += cell.batch * self.tokens
        reading = meter.stop()
        if reading.value is None:
            return reading
        return Reading(reading.value / tokens, "J", reading.source, reading.method, reading.resolution)


@contextlib.contextmanager
def _still() -> Iterator[None]:
    """No garbage collection inside; what is alive now is left out of the one before."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _prompt(cell: Cell, context: EvalContext) -> torch.Tensor:
    """Running text [batch, prompt] on the device, from its start again where it ends."""
    text = torch.cat([window[0] for window in context.passage.windows])
    wanted = cell.batch * cell.prompt
    return text.repeat(-(-wanted // len(text)))[:wanted].view(cell).to(context.device)
