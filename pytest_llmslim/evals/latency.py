"""Time to the first token and per output token of both models, over batch and prompt sizes.

A prompt is read at once (prefill), which is bound by arithmetic; each further token needs all weights for one
position a text (decode), which is bound by memory. Compression moves the two apart, and the batch moves the balance:
4-bit weights of bitsandbytes 0.45 take 0.70 of the time at batch 1 and 1.78 at batch 8 on one RTX 4090 (its
benchmarking/README.md). One number hides that, so each cell of batch and prompt is timed by itself.

- *ttft*, time to first token: the prompt is read, the likeliest token chosen.
- *tpot*, time per output token: the mean of those behind the first one, each read with the cache.
- *throughput*: new tokens of all texts of the batch in a second of both phases.
- *energy*: joules a new token of both phases, where a meter can tell; an estimated one only knows the time.

Seconds are wall time, medians over rounds. Ratios are of process CPU time on a CPU and of time between CUDA events on
a GPU, which other load hardly moves. How runs are paired says `evals.timed_requests`.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch

from pytest_llmslim.errors import EvaluationError, NotApplicableError
from pytest_llmslim.evals.timed_requests import Cell, Requests
from pytest_llmslim.models.decoding import positions
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.pairs import energy_pairs, log_ratios
from pytest_llmslim.readings import Estimate, no_estimate
from pytest_llmslim.records import Figure
from pytest_llmslim.statistics import CONFIDENCE, hodges_lehmann

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn

    from pytest_llmslim.evals import EvalContext
    from pytest_llmslim.evals.timed_requests import Pair
    from pytest_llmslim.meters import Meter
    from pytest_llmslim.meters.clock import Ticks
    from pytest_llmslim.readings import Method, Reading

TTFT: Final = "ttft"
TPOT: Final = "tpot"
THROUGHPUT: Final = "throughput"
ENERGY: Final = "energy"
UNITS: Final = {TTFT: "s", TPOT: "s", THROUGHPUT: "tokens/s", ENERGY: "J"}
WORDS: Final = {TTFT: "time to first token", TPOT: "time per output token"}
"""What sentences are made of; a request's throughput holds nothing that these two do not."""


@dataclass(frozen=True)
class Latency:
    """Times prefill and decode of both models apart.

    Args:
        batches: texts at once, as `1/4` or `"1,4"`.
        prompts: tokens of a prompt, likewise.
        tokens: new ones a text, at least 2.

    Raises:
        EvaluationError: what is no such list, or a number that is no count.
    """

    batches: str | int = "1/4"
    prompts: str | int = "32/128"
    tokens: int = 16

    def __post_init__(self) -> None:
        _counts("batches", self.batches)
        _counts("prompts", self.prompts)
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 2:
            raise EvaluationError(f"tokens is a whole number of at least 2, got {self.tokens!r}")

    def compare(
        self, reference: nn.Module, candidate: nn.Module, context: EvalContext, meter: Meter
    ) -> tuple[Figure, ...]:
        """Times and, where a meter can tell, joules of every cell.

        Raises:
            NotApplicableError: the models have too few positions for any cell.
            EvaluationError: one of them fails.
        """
        cells = [
            Cell(batch, prompt)
            for batch in _counts("batches", self.batches)
            for prompt in _counts("prompts", self.prompts)
        ]
        known = [longest for longest in map(positions, (reference, candidate)) if longest is not None]
        fitting = [cell for cell in cells if not known or cell.prompt + self.tokens <= min(known)]
        if not fitting:
            raise NotApplicableError(
                f"{context.label}: {self.tokens} tokens behind a prompt fit into the model's {min(known)} positions, "
                f"got prompts={self.prompts}; give shorter ones"
            )
        requests = Requests((reference, candidate), fitting, self.tokens, context)
        with torch.inference_mode(), quiet():  # of padding tokens: no text is padded
            pairs = requests.time()
            joules = requests.joules(meter)
        context.tell("")
        figures: list[Figure] = []
        for cell in cells:
            if cell not in pairs:
                wanted = cell.prompt + self.tokens
                figures += _absent(cell, f"it takes {wanted} positions, and the model has {min(known)}")
                continue
            figures += _timed(cell, self.tokens, pairs[cell], context.device)
            figures += [_spent(cell, joules[cell])] if cell in joules else []
        return tuple(figures)


def _counts(name: str, value: object) -> tuple[int, ...]:
    """The numbers of a list like `1/4`, each once."""
    text = "" if isinstance(value, bool) else str(value)
    if not re.fullmatch(r"\s*[1-9]\d{0,5}\s*([,/]\s*[1-9]\d{0,5}\s*)*", text, re.ASCII):
        raise EvaluationError(f'{name} is a list of numbers from 1 on, as 1/4 or "1,4", got {value!r}')
    return tuple(dict.fromkeys(int(number) for number in re.split("[,/]", text)))


# What comes of it -------------------------------------------------------------------------------------------


def _timed(cell: Cell, tokens: int, pairs: Sequence[Pair], device: str) -> list[Figure]:
    """The figures of one cell's times."""
    if not pairs:
        return _absent(cell, "the clock of this machine went backwards in every pair")
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    clock = Clock(device.startswith("cuda"))
    return [
        clock.figure(cell, TTFT, [[run.first for run in runs] for runs in sides], lambda seconds: seconds),
        clock.figure(
            cell, TPOT, [[run.rest for run in runs] for runs in sides], lambda seconds: seconds / (tokens - 1)
        ),
        clock.figure(
            cell,
            THROUGHPUT,
            [[run.whole for run in runs] for runs in sides],
            lambda seconds: cell.batch * tokens / seconds,
            sign=-1,
        ),
    ]


class Clock(NamedTuple):
    """Makes figures of times: wall time is shown, and the clock that other load hardly moves gives the ratio."""

    cuda: bool

    def figure(
        self,
        cell: Cell,
        measure: str,
        sides: Sequence[Sequence[Ticks]],
        value: Callable[[float], float],
        *,
        sign: Literal[1, -1] = 1,
    ) -> Figure:
        """Medians of `value` of the wall time, and the ratio of the times or, with `sign` -1, of their inverse."""
        middles = [statistics.median(value(max(ticks.wall_ns, 1) / 1e9) for ticks in side) for side in sides]
        logs = log_ratios(*([self._ns(ticks) for ticks in side] for side in sides))
        source = "cuda events" if self.cuda else "process cpu time"
        ratio = _estimate([sign * log for log in logs], "measured", source)
        return Figure(cell.named(measure), UNITS[measure], middles[0], middles[1], ratio)

    def _ns(self, ticks: Ticks) -> int:
        return ticks.cpu_ns if not self.cuda or ticks.device_ns is None else ticks.device_ns


def _spent(cell: Cell, read: Sequence[tuple[Reading, Reading]] | str) -> Figure:
    """Joules a new token, or why there are none."""
    if isinstance(read, str):
        return _none(cell, ENERGY, read)
    sides = [[pair[side] for pair in read] for side in (0, 1)]
    logs, method, reason = energy_pairs(*sides)
    if not logs:
        return _none(cell, ENERGY, reason)
    middles = [statistics.median(r.value for r in side if r.value is not None) for side in sides]
    ratio = _estimate(logs, method, sides[0][0].source)
    return Figure(cell.named(ENERGY), UNITS[ENERGY], middles[0], middles[1], ratio)


def _estimate(logs: Sequence[float], method: Method, source: str) -> Estimate:
    """The ratio with its 95 % interval from pairs that are looked at once."""
    miss = (1 - CONFIDENCE) / 2
    return Estimate(*hodges_lehmann(logs, miss_low=miss, miss_high=miss), method, source)


def _absent(cell: Cell, reason: str) -> list[Figure]:
    return [_none(cell, measure, reason) for measure in (TTFT, TPOT, THROUGHPUT)]


def _none(cell: Cell, measure: str, reason: str) -> Figure:
    return Figure(cell.named(measure), UNITS[measure], None, None, no_estimate(reason))


# What to say of it ------------------------------------------------------------------------------------------


def sign_flips(figures: Iterable[Figure], candidate: str) -> tuple[str, ...]:
    """A sentence for each of the two times that a method shortens in some cells and lengthens in others.

    Only cells whose interval leaves out 1 are counted; each sentence names all of them.

    Args:
        figures: of any evaluation; those that are no such time are passed over.
        candidate: what it is called in tables.
    """
    found: dict[str, tuple[list[str], list[str]]] = {measure: ([], []) for measure in WORDS}
    for figure in figures:
        name = re.fullmatch(r"(\w+) (batch \d+) (prompt \d+)", figure.name)
        ratio = figure.ratio
        if name is None or name[1] not in found or ratio is None:
            continue
        faster, slower = found[name[1]]
        shown = f"{name[2]}, {name[3]} ({ratio.value:.2f})" if ratio.value is not None else ""
        if ratio.high is not None and ratio.high < 1:
            faster.append(shown)
        if ratio.low is not None and ratio.low > 1:
            slower.append(shown)
    return tuple(
        f"{WORDS[measure]} of {candidate}: faster at {'; '.join(faster)}, and slower at {'; '.join(slower)}"
        for measure, (faster, slower) in found.items()
        if faster and slower
    )
