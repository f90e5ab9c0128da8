"""Pairs: reference and candidate next to each other on the same window of text, again and again.

The design is that of duet and randomised-block benchmarking: a block starts with both models moved to freshly
allocated memory (layout alone makes two equal copies differ by up to 5 % for a whole process), then adjacent
pairs in balanced random order, each run after an untimed one so that both find equally warm caches. A pair that
was disturbed from outside is measured again. Every pair scores another window with both models, so the same
forward passes give perplexity, divergence, time and memory. Blocks are added until the gates are decided.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmslim.errors import MeasurementError, SlimError
from pytest_llmslim.meters.clock import Stopwatch, Ticks
from pytest_llmslim.meters.disturbance import BACKWARDS, Watch
from pytest_llmslim.meters.memory import PeakMemory
from pytest_llmslim.models.storage import free_bytes, movable, reallocate, stored_bytes
from pytest_llmslim.pairs import Measured, Progress, Tally, energy_pairs, log_ratios, names_of, scores_for
from pytest_llmslim.records import Reading, Sampling
from pytest_llmslim.sequential import LOOKS, looks_up_to
from pytest_llmslim.statistics import block_medians, window_estimate

if TYPE_CHECKING:
    from pytest_llmslim.evals.text import Passage
    from pytest_llmslim.meters import Meter

__all__ = ["Duet", "Measured", "Plan", "Progress", "Tally", "Undecided"]

QUICK_PAIRS, SLOW_PAIRS = 4, 2
"""Pairs in a block; two where a forward pass takes longer than `SLOW_RUN_S`."""
SLOW_RUN_S = 0.5
REPLACED = 1
"""Pairs of a block that are measured again when disturbed: more would only wait on a machine that stays busy."""
CLOCK_FAULTS = 10
"""Pairs whose clock went backwards, after which it is given up: a virtual machine that moves does so once."""
CACHE_BYTES = 64 * 2**20
"""Weights above this size do not stay in a cache between runs, so a short untimed run warms as well as a long one."""
WARM_TOKENS = 16
TOO_LARGE = (
    "{}: too large to be moved in memory between blocks, "
    "so its time may be off by a few percent from layout alone"
)


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Args:
        rounds: exactly so many pairs, rounded up to whole blocks; `None`: blocks until the gates are decided.
        seed: of the order of pairs and of the memory layout.
        device: torch device.
        max_rounds: the most pairs of a sequential measurement; `None`: 40 blocks.
        timed: whether cost is measured at all; quality needs one pass of both models over the text.
    """

    rounds: int | None
    seed: int
    device: str
    max_rounds: int | None = None
    timed: bool = True

    def looks(self, per_block: int) -> tuple[int, ...]:
        """Numbers of blocks at which a decision is tried."""
        if self.rounds is not None:
            return (math.ceil(self.rounds / per_block),)
        return looks_up_to(LOOKS[-1] if self.max_rounds is None else math.ceil(self.max_rounds / per_block))


TOLD_EVERY_S = 0.2
TOLD_SHARE = 0.01
"""Of the time progress may take: its interval takes a fifth of a millisecond at 32 windows of text, 14 at 1000."""
Undecided = Callable[[Measured], Collection[str]]
"""Asked at each look; gives the axes that need more blocks."""


class Duet:
    """Reference and candidate, run side by side over a passage.

    Args:
        reference: module in evaluation mode; its weights are moved in memory but not changed.
        candidate: likewise.
        passage: windows of token ids.
        plan: rounds, seed, device.
        meter: energy meter, or the null meter.
        label: names the candidate in errors, e.g. `int4 on gpt2`.
        progress: called after a pair, at most every `TOLD_EVERY_S` seconds, and when all is measured.
    """

    def __init__(
        self,
        reference: torch.nn.Module,
        candidate: torch.nn.Module,
        passage: Passage,
        plan: Plan,
        meter: Meter,
        label: str,
        progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.models = (reference, candidate)
        self.passage, self.plan, self.meter, self.label = passage, plan, meter, label
        self.progress, self.silent_until = progress, 0.0
        self.random = random.Random(plan.seed)
        self.tallies = (Tally(), Tally())
        self.scores = scores_for(reference)(passage.scored_from, label, self.tallies)
        sizes = [stored_bytes(model) for model in self.models]
        self.movable = max(sizes) < free_bytes(plan.device)
        self.big = [size > CACHE_BYTES for size in sizes]
        self.windows = [window.to(plan.device) for window in passage.windows]
        # A shorter last window is scored, and not timed: its share of overhead is another.
        longest = max(window.shape[1] for window in self.windows)
        self.timed = [i for i, window in enumerate(self.windows) if window.shape[1] == longest]
        self.per_block = QUICK_PAIRS
        self.looks: list[int] = []
        self.pairs = self.replaced = self.disturbed = 0
        self.disturbances: Counter[str] = Counter()
        self.forward_ns = 0
        self.whole_runs = False

    def run(self, undecided: Undecided | None = None) -> Measured:
        """Measure, up to the first look at which nothing is undecided.

        Args:
            undecided: asked at each look; `None`: one look is enough.

        Raises:
            MeasurementError: a model crashes, returns NaN, or logits of another shape than the reference's.
        """
        self.watch = Watch(self.plan.device)
        try:
            with torch.inference_mode():
                return self._run(undecided or (lambda measured: ()))
        finally:
            self.watch.close()

    def _run(self, undecided: Undecided) -> Measured:
        shortest, longest = self._first_runs()
        if not self.plan.timed:
            self._score_rest()
            return self._result(1, 1)
        self.per_block = min(
            SLOW_PAIRS if longest > SLOW_RUN_S else QUICK_PAIRS, self.plan.rounds or QUICK_PAIRS
        )
        # With a margin, since later runs are quicker than the first.
        self.whole_runs = self.meter.method != "unmeasured" and shortest > 1.5 * self.meter.min_window_s
        looks = self.plan.looks(self.per_block)
        # Walked once: kernels have packed their weights by now, and for small models the walk takes as long as a run.
        self.tensors = [movable(model) for model in self.models]
        window_estimate((0.0, 0.0), (1, 1))  # what it imports at its first use is not to disturb the clocks
        whole = Stopwatch("cpu")
        whole_ns = self.forward_ns = 0
        wanted: Collection[str] = ("time", "energy")
        for look in looks:
            whole.start()
            with _frozen_heap():
                self._extend(look, wanted)
            whole_ns += whole.stop().wall_ns
            self.looks.append(look)
            measured = self._result(whole_ns, len(looks))
            wanted = undecided(measured)
            if not wanted:
                break
        self._report(self.pairs, last=True)
        return measured

    def _extend(self, look: int, wanted: Collection[str]) -> None:
        """More blocks for the clocks, and more windows for the meter, as what is undecided rests on them."""
        if self.whole_runs or not {"time", "wall", "opt"}.isdisjoint(wanted):
            while self.pairs < look * self.per_block:
                self._block(look)
        if self.whole_runs and not any(reading.value for reading in self.tallies[0].energy):
            # The first passes were slow by chance, and no other is long enough for the meter.
            self.whole_runs = False
            for tally in self.tallies:
                tally.energy.clear()
        self._score_rest()
        if not {"energy", "opt"}.isdisjoint(wanted):
            self._energy_series(look)

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
        padding = [reallocate(self.tensors[side], self.random) for side in order if self.movable]
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

    def _block(self, look: int) -> None:
        """Pairs on one layout of memory; a disturbed one is measured again, as often as `REPLACED` allows."""
        spare = REPLACED
        with self._fresh_block():
            for order in self._orders(self.per_block):
                disturbed = self._pair(order)
                if disturbed and spare:
                    spare -= 1
                    disturbed = self._again(order)
                while BACKWARDS in disturbed:  # no time at all, so never kept
                    if self.disturbances[BACKWARDS] > CLOCK_FAULTS:
                        raise MeasurementError(
                            f"{self.label}: the clock of this machine went backwards in {CLOCK_FAULTS} pairs, "
                            f"so nothing can be timed; see to its time source."
                        )
                    disturbed = self._again(order)
                self.disturbed += bool(disturbed)
                self._report(look * self.per_block)

    def _pair(self, order: tuple[int, int]) -> tuple[str, ...]:
        """One timed run of each model on the next window; what disturbed them from outside."""
        index = self.timed[self.pairs % len(self.timed)]
        logits: list[Any] = [None, None]
        self.watch.begin()
        for side in order:
            self._warm(side, index)
            if self.whole_runs:
                self.meter.start()
            logits[side], ticks = self._timed(side, self.windows[index])
            if self.whole_runs:
                self.tallies[side].energy.append(self.meter.stop())
            self.watch.lap(ticks)
            self.tallies[side].add(ticks)
        seen = self.watch.end()
        self.disturbances.update(seen)
        self.pairs += 1
        if index not in self.scores:
            self.scores.add(index, self.windows[index], *logits)
        return seen

    def _again(self, order: tuple[int, int]) -> tuple[str, ...]:
        """Forget the pair measured last, and measure it again."""
        self.replaced += 1
        self.pairs -= 1
        for tally in self.tallies:
            tally.drop()
            if self.whole_runs:
                tally.energy.pop()
        return self._pair(order)

    def score_ahead(self) -> None:
        """Score the windows that the first look will not time, before others have to rest for the clocks."""
        first = self.plan.looks(QUICK_PAIRS)[0] * QUICK_PAIRS
        with torch.inference_mode():
            self._score_rest(but=self.timed[:first])

    def _score_rest(self, but: Collection[int] = ()) -> None:
        """Quality on the windows that are not timed."""
        for index in range(len(self.windows)):
            if index not in self.scores and index not in but:
                logits = [self._forward(side, self.windows[index]) for side in (0, 1)]
                self.scores.add(index, self.windows[index], *logits)

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
        except SlimError:
            raise
        except Exception as error:  # a candidate is anybody's code
            raise MeasurementError(
                f"{names_of(self.label)[side]} failed in a forward pass ({type(error).__name__}: {error}); "
                f"run the model by itself to see where."
            ) from error

    def _report(self, planned: int, *, last: bool = False) -> None:
        began = time.monotonic()
        if self.progress and (last or (self.pairs < planned and began > self.silent_until)):
            self.progress(Progress(self.pairs, planned, self.scores.perplexity))
            ended = time.monotonic()
            self.silent_until = ended + max(TOLD_EVERY_S, (ended - began) / TOLD_SHARE)

    # Energy -----------------------------------------------------------------------------------------------

    def _energy_series(self, look: int) -> None:
        """Windows of many runs, for a meter that cannot resolve one; as many pairs as there are blocks."""
        if self.meter.method == "unmeasured" or self.whole_runs:
            return
        for order in self._orders(look - len(self.tallies[0].energy)):
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

    def _result(self, whole_ns: int, planned: int) -> Measured:
        reference, candidate = self.tallies
        on_device = self.plan.device.startswith("cuda")
        times = [tally.device_ns if on_device else tally.cpu_ns for tally in self.tallies]
        energy, method, reason = energy_pairs(reference.energy, candidate.energy)
        if self.whole_runs and len(energy) == self.pairs:
            energy = block_medians(energy, self.per_block)
        median_kl, kl_999 = self.scores.kl_quantiles
        return Measured(
            reference=reference,
            candidate=candidate,
            time=block_medians(log_ratios(times[0], times[1]), self.per_block),
            wall=block_medians(log_ratios(reference.wall_ns, candidate.wall_ns), self.per_block),
            energy=energy,
            energy_method=method,
            energy_reason=reason or self.meter.description,
            clock="cuda events" if on_device else "process cpu time",
            nll_difference=self.scores.nll_difference,
            window_tokens=self.scores.tokens,
            kl=self.scores.kl,
            median_kl=median_kl,
            kl_999=kl_999,
            rms_dp=self.scores.rms_dp,
            kl_by_position=self.scores.kl_by_position,
            top1=self.scores.top1,
            pairs=self.pairs,
            busy=self.forward_ns / whole_ns,
            sampling=self._sampling(planned, on_device),
            notes=() if self.movable else (TOO_LARGE.format(self.label),),
        )

    def _sampling(self, planned: int, on_device: bool) -> Sampling:
        reference = self.tallies[0]
        off = [wall / max(cpu, 1) for wall, cpu in zip(reference.wall_ns, reference.cpu_ns, strict=True)]
        return Sampling(
            per_block=self.per_block if self.pairs else 0,
            looks=tuple(self.looks),
            planned=planned,
            replaced=self.replaced,
            disturbed=self.disturbed,
            disturbances=tuple(f"{name} {count}" for name, count in sorted(self.disturbances.items())),
            movable=self.movable,
            wall_over_cpu=None if on_device or not off else statistics.median(off),
        )


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """What is alive now is left out of garbage collection: walking transformers' objects takes longer than a block."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
