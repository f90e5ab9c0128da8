"""Pairs: reference and candidate next to each other on the same window of text, again and again.

The design is that of duet and randomised-block benchmarking: a block starts with both models moved to freshly
allocated memory (layout alone makes two equal copies differ by up to 5 % for a whole process), then adjacent
pairs in balanced random order, each run after an untimed one so that both find equally warm caches. Every pair
scores another window with both models, so the same forward passes give perplexity, divergence, time and memory.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import torch

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.evals.divergence import divergence
from pytest_llmslim.evals.perplexity import token_nll
from pytest_llmslim.meters.clock import Stopwatch, Ticks
from pytest_llmslim.meters.memory import PeakMemory
from pytest_llmslim.models.storage import reallocate, stored_bytes
from pytest_llmslim.records import Method, Reading, unmeasured

if TYPE_CHECKING:
    from pytest_llmslim.evals.text import Passage
    from pytest_llmslim.meters import Meter

QUICK_ROUNDS, QUICK_PAIRS = 80, 4
"""Twenty blocks of four pairs: on recorded noise a true +20 % fails in 99 %, +10 % in 91 %, equal models in none."""
SLOW_ROUNDS, SLOW_PAIRS = 16, 2
"""Eight blocks of two pairs, where a forward pass takes longer than `SLOW_RUN_S`."""
SLOW_RUN_S = 0.5
ENERGY_WINDOWS = 8
"""Pairs of energy windows: the fewest with which an opt that also rests on time can be decided at 1 %."""
CACHE_BYTES = 64 * 2**20
"""Weights above this size do not stay in a cache between runs, so a short untimed run warms as well as a long one."""
WARM_TOKENS = 16
TOO_LARGE = (
    "{}: too large to be moved in memory between blocks, "
    "so its time may be off by a few percent from layout alone"
)


@dataclass(frozen=True)
class Plan:
    """How to measure. `rounds` is `None` to choose by the length of a forward pass."""

    rounds: int | None
    seed: int
    device: str


@dataclass
class Tally:
    """One model's sums while measuring; times in nanoseconds a forward pass, energy in joules a forward pass."""

    nll: float = 0.0
    cpu_ns: list[int] = field(default_factory=list)
    wall_ns: list[int] = field(default_factory=list)
    device_ns: list[int] = field(default_factory=list)
    energy: list[Reading] = field(default_factory=list)
    peak_memory: Reading = field(default_factory=lambda: unmeasured("B", "none", "nothing was run"))


@dataclass(frozen=True)
class Measured:
    """What a measurement gave: per model its tally, and the paired values.

    `time`, `wall` and `energy` are log(candidate / reference), one value a block (energy: one a window pair);
    `time` is CUDA time on a GPU and process CPU time elsewhere. `nll_difference` is in nats a token, per window.
    """

    reference: Tally
    candidate: Tally
    time: tuple[float, ...]
    wall: tuple[float, ...]
    energy: tuple[float, ...]
    energy_method: Method
    energy_reason: str
    clock: str
    nll_difference: tuple[float, ...]
    window_tokens: tuple[int, ...]
    mean_kl: float
    top1: float
    pairs: int
    busy: float
    notes: tuple[str, ...] = ()


Progress = Callable[[int, int, float], None]
"""Called after each pair with pairs done, pairs in all, and the log perplexity ratio so far."""


class Duet:
    """Reference and candidate, run side by side over a passage.

    Args:
        reference: module in evaluation mode; its weights are moved in memory but not changed.
        candidate: likewise.
        passage: windows of token ids.
        plan: rounds, seed, device.
        meter: energy meter, or the null meter.
        label: names the candidate in errors, e.g. `int4 on gpt2`.
        progress: called after each pair.
    """

    def __init__(
        self,
        reference: torch.nn.Module,
        candidate: torch.nn.Module,
        passage: Passage,
        plan: Plan,
        meter: Meter,
        label: str,
        progress: Progress | None = None,
    ) -> None:
        self.models = (reference, candidate)
        self.passage, self.plan, self.meter, self.label = passage, plan, meter, label
        self.progress = progress
        self.random = random.Random(plan.seed)
        self.tallies = (Tally(), Tally())
        sizes = [stored_bytes(model) for model in self.models]
        self.movable = max(sizes) < free_bytes(plan.device)
        self.big = [size > CACHE_BYTES for size in sizes]
        self.windows = [window.to(plan.device) for window in passage.windows]
        # A shorter last window is scored, and not timed: its share of overhead is another.
        longest = max(window.shape[1] for window in self.windows)
        self.timed = [i for i, window in enumerate(self.windows) if window.shape[1] == longest]
        self.differences: list[float] = []
        self.tokens: list[int] = []
        self.kl, self.same = 0.0, 0
        self.forward_ns = 0
        self.whole_runs = False

    def run(self) -> Measured:
        """Measure.

        Raises:
            MeasurementError: a model crashes, returns NaN, or logits of another shape than the reference's.
        """
        with torch.inference_mode():
            return self._run()

    def _run(self) -> Measured:
        whole = Stopwatch("cpu")
        shortest, longest = self._first_runs()
        slow = longest > SLOW_RUN_S
        # With a margin, since later runs are quicker than the first.
        self.whole_runs = self.meter.method != "unmeasured" and shortest > 1.5 * self.meter.min_window_s
        per_block = SLOW_PAIRS if slow else QUICK_PAIRS
        rounds = self.plan.rounds or (SLOW_ROUNDS if slow else QUICK_ROUNDS)
        pairs = max(rounds, len(self.timed))
        blocks = [range(i, min(i + per_block, pairs)) for i in range(0, pairs, per_block)]
        self.forward_ns = 0
        whole.start()
        with _frozen_heap():
            for block in blocks:
                with self._fresh_block():
                    for pair, order in zip(block, self._orders(len(block)), strict=True):
                        self._pair(pair, order)
                        self._report(pair + 1, pairs)
            self._score_rest()
            self._energy_series()
        return self._result(blocks, whole.stop().wall_ns)

    def _first_runs(self) -> tuple[float, float]:
        """Seconds of the quicker and the slower model's forward pass.

        Also lets kernels pack their weights, and reads peak memory.
        """
        seconds = []
        for side, tally in enumerate(self.tallies):
            self._forward(side, self.windows[0])
            memory = PeakMemory(self.plan.device)
            memory.start()
            ticks = self._timed(side, self.windows[0])[1]
            tally.peak_memory = memory.stop()
            seconds.append(ticks.wall_ns / 1e9)
        return min(seconds), max(seconds)

    @contextlib.contextmanager
    def _fresh_block(self) -> Iterator[None]:
        """Both models in new memory, in random order, and no garbage collection inside."""
        order = self.random.sample((0, 1), 2)
        padding = [reallocate(self.models[side], self.random) for side in order if self.movable]
        gc.collect()
        gc.disable()
        try:
            yield
        finally:
            gc.enable()
            del padding

    def _orders(self, count: int) -> list[tuple[int, int]]:
        """Which model goes first in each pair: each equally often, in random order."""
        orders = [((0, 1), (1, 0))[i % 2] for i in range(count + count % 2)]
        self.random.shuffle(orders)
        return orders[:count]

    def _pair(self, pair: int, order: tuple[int, int]) -> None:
        index = self.timed[pair % len(self.timed)]
        logits: list[Any] = [None, None]
        for side in order:
            self._warm(side, index)
            if self.whole_runs:
                self.meter.start()
            logits[side], ticks = self._timed(side, self.windows[index])
            if self.whole_runs:
                self.tallies[side].energy.append(self.meter.stop())
            self._note(side, ticks)
        if pair < len(self.timed):
            self._score(index, *logits)

    def _score_rest(self) -> None:
        """Quality on the windows that are not timed."""
        for index in set(range(len(self.windows))) - set(self.timed):
            self._score(index, *(self._forward(side, self.windows[index]) for side in (0, 1)))

    def _warm(self, side: int, index: int) -> None:
        """One untimed run, since caches hold the other model's weights and activations."""
        window = self.windows[index]
        self._timed(side, window[:, :WARM_TOKENS] if self.big[side] else window)

    def _timed(self, side: int, window: torch.Tensor) -> tuple[torch.Tensor, Ticks]:
        stopwatch = Stopwatch(self.plan.device)
        stopwatch.start()
        logits = self._forward(side, window)
        ticks = stopwatch.stop()
        self.forward_ns += ticks.wall_ns
        return logits, ticks

    def _forward(self, side: int, window: torch.Tensor) -> torch.Tensor:
        try:
            return self.models[side](input_ids=window, use_cache=False).logits
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            raise MeasurementError(
                f"{self._name(side)} failed in a forward pass ({type(error).__name__}: {error}); "
                f"run the model by itself to see where."
            ) from error

    def _name(self, side: int) -> str:
        return f"The reference of {self.label}" if side == 0 else self.label

    def _note(self, side: int, ticks: Ticks) -> None:
        tally = self.tallies[side]
        tally.cpu_ns.append(ticks.cpu_ns)
        tally.wall_ns.append(ticks.wall_ns)
        if ticks.device_ns is not None:
            tally.device_ns.append(ticks.device_ns)

    def _score(self, index: int, reference: torch.Tensor, candidate: torch.Tensor) -> None:
        """Quality of both models on one window, from the logits of its timed runs."""
        if reference.shape != candidate.shape:
            raise MeasurementError(
                f"{self.label} returns logits of shape {tuple(candidate.shape)}, "
                f"the reference {tuple(reference.shape)}; a candidate keeps the reference's vocabulary."
            )
        window, first = self.windows[index], self.passage.scored_from[index]
        nll = [token_nll(logits, window, first) for logits in (reference, candidate)]
        for side in (0, 1):
            total = float(nll[side].sum())
            if not math.isfinite(total):
                raise MeasurementError(
                    f"{self._name(side)} gives no finite probabilities on window {index} "
                    f"(NaN or inf in the logits); check the weights, or another --llm-dtype."
                )
            self.tallies[side].nll += total
        count = len(nll[0])
        self.differences.append(float((nll[1] - nll[0]).sum()) / count)
        self.tokens.append(count)
        kl, same = divergence(reference, candidate, first)
        self.kl += kl
        self.same += same

    def _report(self, done: int, pairs: int) -> None:
        if self.progress:
            weighted = sum(d * n for d, n in zip(self.differences, self.tokens, strict=True))
            self.progress(done, pairs, weighted / sum(self.tokens))

    # Energy -----------------------------------------------------------------------------------------------

    def _energy_series(self) -> None:
        """Windows of many runs, for a meter that cannot resolve one."""
        if self.meter.method == "unmeasured" or self.whole_runs:
            return
        for order in self._orders(ENERGY_WINDOWS):
            with self._fresh_block():
                for side in order:
                    self._warm(side, self.timed[0])
                    self.tallies[side].energy.append(self._energy_window(side))

    def _energy_window(self, side: int) -> Reading:
        """Joules a forward pass, over as many as the meter needs."""
        self.meter.start()
        nanoseconds, runs = 0, 0
        while nanoseconds < 1.1e9 * self.meter.min_window_s:
            index = self.timed[runs % len(self.timed)]
            nanoseconds += max(1, self._timed(side, self.windows[index])[1].wall_ns)
            runs += 1
        reading = self.meter.stop()
        if reading.value is None:
            return reading
        return Reading(reading.value / runs, "J", reading.source, reading.method, reading.resolution)

    # Result -----------------------------------------------------------------------------------------------

    def _result(self, blocks: list[range], whole_ns: int) -> Measured:
        reference, candidate = self.tallies
        on_device = bool(reference.device_ns)
        times = [t.device_ns if on_device else t.cpu_ns for t in self.tallies]
        pairs, method, reason = energy_pairs(reference.energy, candidate.energy)
        return Measured(
            reference=reference,
            candidate=candidate,
            time=block_values(times[0], times[1], blocks),
            wall=block_values(reference.wall_ns, candidate.wall_ns, blocks),
            energy=pairs,
            energy_method=method,
            energy_reason=reason or self.meter.description,
            clock="cuda events" if on_device else "process cpu time",
            nll_difference=tuple(self.differences),
            window_tokens=tuple(self.tokens),
            mean_kl=self.kl / sum(self.tokens),
            top1=self.same / sum(self.tokens),
            pairs=len(reference.wall_ns),
            busy=self.forward_ns / whole_ns,
            notes=() if self.movable else (TOO_LARGE.format(self.label),),
        )


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """What is alive now is left out of garbage collection: walking transformers' objects takes longer than a block."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def free_bytes(device: str) -> int:
    """Memory that can still be allocated on a device."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def block_values(reference: list[int], candidate: list[int], blocks: list[range]) -> tuple[float, ...]:
    """The median of log(candidate / reference) over the pairs of each block."""
    logs = [math.log(max(c, 1) / max(r, 1)) for r, c in zip(reference, candidate, strict=True)]
    return tuple(statistics.median(logs[i] for i in block) for block in blocks)


def energy_pairs(reference: list[Reading], candidate: list[Reading]) -> tuple[tuple[float, ...], Method, str]:
    """log(candidate / reference) of adjacent energy windows, how they were had, or why not.

    Readings of different methods or sources never meet: then, and when any reading failed in more than half
    of the pairs, the whole is unmeasured.
    """
    if not reference:
        return (), "unmeasured", ""
    good = [(r, c) for r, c in zip(reference, candidate, strict=True) if r.value and c.value]
    failed = [reading for reading in (*reference, *candidate) if reading.value is None]
    if len(good) * 2 < len(reference):
        return (), "unmeasured", failed[0].reason
    kinds = {(reading.method, reading.source) for pair in good for reading in pair}
    if len(kinds) != 1:
        return (), "unmeasured", "the energy source changed during the measurement"
    logs = tuple(math.log(c.value / r.value) for r, c in good if r.value and c.value)
    return logs, kinds.pop()[0], ""
