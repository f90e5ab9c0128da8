"""What paired runs leave behind: per model its times and joules, over both their log ratios and quality."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.evals.divergence import Compared, divergence, quantiles, rms
from pytest_llmslim.evals.perplexity import token_nll
from pytest_llmslim.models.classifiers import is_classifier
from pytest_llmslim.records import Estimate, Method, Reading, Sampling, no_estimate, unmeasured
from pytest_llmslim.statistics import window_estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from pytest_llmslim.meters.clock import Ticks

NO_PERPLEXITY = "a classifier has no perplexity; its quality is that of its labels, e.g. --llm-eval sms_spam"

PARTS = 16
"""Into so many parts a window is split to show KL by position."""


@dataclass
class Tally:
    """One model's sums while measuring; times in nanoseconds a forward pass, energy in joules a forward pass."""

    nll: float = 0.0
    cpu_ns: list[int] = field(default_factory=list)
    wall_ns: list[int] = field(default_factory=list)
    device_ns: list[int] = field(default_factory=list)
    energy: list[Reading] = field(default_factory=list)
    peak_memory: Reading = field(default_factory=lambda: unmeasured("B", "none", "nothing was run"))

    def add(self, ticks: Ticks) -> None:
        """Keep the times of one run."""
        self.cpu_ns.append(ticks.cpu_ns)
        self.wall_ns.append(ticks.wall_ns)
        if ticks.device_ns is not None:
            self.device_ns.append(ticks.device_ns)

    def drop(self) -> None:
        """Forget the run kept last."""
        for times in (self.cpu_ns, self.wall_ns, self.device_ns):
            del times[-1:]


class Scores:
    """Quality of both models, window by window.

    Args:
        first: where the scored tokens of each window start.
        label: names the candidate in errors.
        tallies: of reference and candidate, whose `nll` is summed up.
    """

    def __init__(self, first: Sequence[int], label: str, tallies: tuple[Tally, Tally]) -> None:
        self._first, self._label, self._tallies = first, label, tallies
        self._windows: dict[int, tuple[float, int, float]] = {}
        self._compared: dict[int, Compared] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._windows

    def add(self, index: int, window: torch.Tensor, reference: torch.Tensor, candidate: torch.Tensor) -> None:
        """Score one window from the logits of both models.

        Raises:
            MeasurementError: logits of another shape than the reference's, or NaN.
        """
        _check_shapes(self._label, reference, candidate, "vocabulary")
        first = self._first[index]
        losses = [token_nll(logits, window, first) for logits in (reference, candidate)]
        count = len(losses[0])
        totals = [float(loss.sum()) for loss in losses]
        for total, tally, name in zip(totals, self._tallies, names_of(self._label), strict=True):
            if not math.isfinite(total):
                raise MeasurementError(
                    f"{name} gives no finite probabilities on window {index} "
                    f"(NaN or inf in the logits); check the weights, or another --llm-dtype."
                )
            tally.nll += total
        compared = self._compared[index] = divergence(reference, candidate, window, first)
        # The difference of every token, not of the sums: those are large and nearly equal.
        difference = float((losses[1] - losses[0]).sum()) / count
        self._windows[index] = (difference, count, compared.total / count)

    @property
    def nll_difference(self) -> tuple[float, ...]:
        """Candidate - reference in nats a token, one mean a window, in the order of the text."""
        return tuple(self._windows[index][0] for index in sorted(self._windows))

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens scored in each window."""
        return tuple(self._windows[index][1] for index in sorted(self._windows))

    @property
    def kl(self) -> tuple[float, ...]:
        """KL(reference || candidate) in nats a token, one mean a window."""
        return tuple(self._windows[index][2] for index in sorted(self._windows))

    @property
    def perplexity(self) -> Estimate:
        """Perplexity ratio over the windows so far, with its interval."""
        return window_estimate(self.nll_difference, self.tokens)

    @property
    def top1(self) -> float | None:
        """Share of tokens with the same likeliest token."""
        return sum(compared.same for compared in self._compared.values()) / sum(self.tokens)

    @property
    def kl_quantiles(self) -> tuple[float | None, float | None]:
        """KL over all scored tokens: its median and its 0.999 quantile, in nats."""
        median, high = quantiles(np.concatenate([one.kl for one in self._compared.values()]), (0.5, 0.999))
        return median, high

    @property
    def kl_by_position(self) -> tuple[float, ...]:
        """Mean KL in nats of the tokens in each of `PARTS` equal parts of a window (fewer in a short one).

        A window that is shorter than the longest (the last one) is left out: its positions are others.
        """
        longest = max(self.tokens)
        kl = np.stack([one.kl for one in self._compared.values() if len(one.kl) == longest])
        parts = np.array_split(kl.mean(axis=0), min(PARTS, longest))
        return tuple(float(part.mean()) for part in parts)

    @property
    def rms_dp(self) -> float | None:
        """Root of the mean squared change of the true token's probability, over all scored tokens."""
        return rms(np.concatenate([one.change for one in self._compared.values()]))


class NoScores(Scores):
    """For classifiers: the windows are run for their cost, and of the logits [1, labels] nothing is kept."""

    perplexity = no_estimate(NO_PERPLEXITY)
    top1 = rms_dp = None
    kl_quantiles = (None, None)
    kl_by_position = ()

    def __init__(self, first: Sequence[int], label: str, tallies: tuple[Tally, Tally]) -> None:
        super().__init__(first, label, tallies)
        self._seen: set[int] = set()

    def __contains__(self, index: int) -> bool:
        return index in self._seen

    def add(self, index: int, window: torch.Tensor, reference: torch.Tensor, candidate: torch.Tensor) -> None:
        """Check the logits of both models on one window.

        Raises:
            MeasurementError: logits of another shape than the reference's, or NaN.
        """
        _check_shapes(self._label, reference, candidate, "labels")
        for logits, name in zip((reference, candidate), names_of(self._label), strict=True):
            if not logits.isfinite().all():
                raise MeasurementError(
                    f"{name} gives no finite logits on window {index}; check the weights, or another --llm-dtype."
                )
        self._seen.add(index)


def _check_shapes(label: str, reference: torch.Tensor, candidate: torch.Tensor, kept: str) -> None:
    if reference.shape != candidate.shape:
        raise MeasurementError(
            f"{label} returns logits of shape {tuple(candidate.shape)}, "
            f"the reference {tuple(reference.shape)}; a candidate keeps the reference's {kept}."
        )


def scores_for(reference: torch.nn.Module) -> type[Scores]:
    """What is kept of the windows of a model of this kind."""
    return NoScores if is_classifier(reference) else Scores


@dataclass(frozen=True)
class Measured:
    """What a measurement gave: per model its tally, and the paired values.

    `time`, `wall` and `energy` are log(candidate / reference), one value a block (energy: one a window pair
    where the meter needs longer windows than a run);
    `time` is CUDA time on a GPU and process CPU time elsewhere. `nll_difference` and `kl` are in nats a token,
    one mean a window; `median_kl`, `kl_999` and `rms_dp` are over all scored tokens. Of classifiers all these are
    empty or `None`.
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
    kl: tuple[float, ...]
    top1: float | None
    pairs: int
    busy: float
    sampling: Sampling
    notes: tuple[str, ...] = ()
    median_kl: float | None = None
    kl_999: float | None = None
    rms_dp: float | None = None
    kl_by_position: tuple[float, ...] = ()

    @property
    def mean_kl(self) -> float:
        """KL(reference || candidate) in nats, mean over all scored tokens."""
        total = math.fsum(kl * count for kl, count in zip(self.kl, self.window_tokens, strict=True))
        return total / sum(self.window_tokens)


class Progress(NamedTuple):
    """How far a measurement is.

    Args:
        done: pairs that were measured.
        planned: pairs up to the next look; equals `done` only when the measurement is over.
        perplexity: ratio candidate / reference over the windows so far.
    """

    done: int
    planned: int
    perplexity: Estimate


def names_of(label: str) -> tuple[str, str]:
    """How errors call reference and candidate."""
    return f"The reference of {label}", label


def log_ratios(reference: Sequence[int], candidate: Sequence[int]) -> tuple[float, ...]:
    """log(candidate / reference) of adjacent runs, times in nanoseconds."""
    return tuple(math.log(max(c, 1) / max(r, 1)) for r, c in zip(reference, candidate, strict=True))


def energy_pairs(
    reference: Sequence[Reading], candidate: Sequence[Reading]
) -> tuple[tuple[float, ...], Method, str]:
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
