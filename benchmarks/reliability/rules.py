"""The rules that are compared: our gate's own code, pytest-benchmark's `mean:5%`, and Mann-Whitney."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pytest_llmslim.gate import Thresholds, decide, undecided_axes
from pytest_llmslim.records import (
    Build,
    Divergence,
    Estimate,
    Integrity,
    Key,
    Outcome,
    Protocol,
    Reading,
    Record,
    Samples,
    Sampling,
    Side,
    no_estimate,
    unmeasured,
    worst,
)
from pytest_llmslim.score import PROFILES, opt_estimate
from pytest_llmslim.sequential import Family, looks_up_to
from pytest_llmslim.statistics import block_estimate, block_medians
from reliability.noise import CPU, MOST_BLOCKS, WALL, Stream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from reliability.noise import Array

RULES: Final = ("mean:5% wall", "mean:5% CPU", "Mann-Whitney wall", "Mann-Whitney CPU")
_NO_METER: Final = "energy is not part of this replay"
_SECOND: Final = Reading(1.0, "s", "replay", "measured")
_SIDE: Final = Side(
    parameters=1,
    stored_bytes=1,
    weights_hash="0" * 64,
    perplexity=10.0,
    word_perplexity=None,
    byte_perplexity=None,
    time_s=_SECOND,
    wall_s=_SECOND,
    energy_j=unmeasured("J", "none", _NO_METER),
    peak_memory=unmeasured("B", "none", "memory is not part of this replay"),
)
_EXACT: Final = Estimate(1.0, 1.0, 1.0, MOST_BLOCKS, "measured", "replay")


@dataclass(frozen=True)
class Decision:
    """What the gate made of a stretch of a stream, and what the other rules make of the same pairs.

    Args:
        outcome: of the test: the worst of its noisy verdicts.
        failed: noisy gates that failed.
        pairs: that it took.
        ratio: the time ratio shown, with its 95 % interval.
        alarms: rule to whether it calls the candidate slower.
        wall: the verdict on wall time, or nothing where there was none.
        load: median wall / CPU time of the reference; nothing where there is one clock.
    """

    outcome: Outcome
    failed: int
    pairs: int
    ratio: Estimate
    alarms: dict[str, bool]
    wall: Outcome | None
    load: float | None = None


def record(time: tuple[float, ...], wall: tuple[float, ...] = (), load: float | None = None) -> Record:
    """The least record that the gate decides on: equal quality, no energy, these block log ratios."""
    return _record(
        block_estimate(time, "measured", "process cpu time"),
        block_estimate(wall, "measured", "perf_counter"),
        Samples(time, wall, nll_difference=(0.0,), window_tokens=(1,)),
        load,
    )


def _record(time: Estimate, wall: Estimate, samples: Samples, load: float | None) -> Record:
    nothing = no_estimate(_NO_METER)
    return Record(
        key=Key("replay", "replay", "replay", "replay"),
        label="replay",
        protocol=Protocol("window", 2, 1, True, 1, 1, "replay", "0" * 64, "float32"),
        reference=_SIDE,
        candidate=_SIDE,
        perplexity=_EXACT,
        divergence=Divergence(0.0, 1.0),
        time=time,
        wall=wall,
        energy=nothing,
        stored_bytes=_EXACT,
        floor=None,
        build=Build(_SECOND, _SIDE.energy_j, ()),
        integrity=Integrity("control", "A replay.", "same"),
        profile=PROFILES["balanced"],
        opt=opt_estimate(_EXACT, time, nothing, PROFILES["balanced"]),
        fingerprint={},
        samples=samples,
        sampling=Sampling(wall_over_cpu=load),
    )


def baseline(load: float | None) -> Record:
    """A stored run whose ratios are 1 exactly, so that the limits stand where they are written."""
    return _record(_EXACT, _EXACT, Samples(), load)


def gates_of(stream: Stream) -> int:
    """Noisy gates of one test: process CPU time, and wall time where it was recorded."""
    return stream.clocks


def decide_at(stream: Stream, start: int, level: float, *, quiet: bool = False) -> Decision:
    """Measure from block `start` on until decided, as the plugin does.

    Args:
        stream: holds all the blocks of the last look from `start` on.
        start: number of a block.
        level: chance of a false alarm that each noisy gate may spend over all looks.
        quiet: the baseline was stored on a quiet machine, instead of beside the load of this stretch.
    """
    looks = looks_up_to(MOST_BLOCKS)
    times = stream.times[start : start + MOST_BLOCKS]
    pairs, per_block = np.log(times[..., 1, :] / times[..., 0, :]), times.shape[1]
    # The last clock is the gated one: process CPU time, or the only one.
    values = [block_medians(pairs[..., clock].ravel().tolist(), per_block) for clock in (-1, 0)]
    load: float | None = None
    for look in looks:
        if stream.clocks == 2:
            load = float(np.median(times[:look, :, 0, WALL] / times[:look, :, 0, CPU]))
        now = record(values[0][:look], values[1][:look] if load else (), load)
        stored = baseline(1.0 if load and quiet else load)
        verdicts = decide(now, Thresholds(), stored, alpha=level / len(looks))
        if not undecided_axes(verdicts):
            break
    noisy = [verdict for verdict in verdicts if verdict.axis in ("time", "wall")]
    other = stream.stored[start : start + look]
    return Decision(
        worst(noisy),
        sum(verdict.outcome == "failed" for verdict in noisy),
        look * per_block,
        now.time,
        _alarms(other, times[:look, :, 1]),
        next((verdict.outcome for verdict in noisy if verdict.axis == "wall"), None),
        load,
    )


def _alarms(stored: Array, now: Array) -> dict[str, bool]:
    clocks = {"wall": WALL, "CPU": CPU} if now.shape[-1] == 2 else {"wall": 0}
    alarms = {}
    for name, clock in clocks.items():
        then, times = stored[..., clock].ravel(), now[..., clock].ravel()
        alarms[f"mean:5% {name}"] = mean_rule(then, times)
        alarms[f"Mann-Whitney {name}"] = mann_whitney(then, times)
    return alarms


def runs(streams: Iterable[Stream], tests: int, *, quiet: bool = False) -> Iterator[list[Decision]]:
    """Runs of `tests` tests whose gates share one error; decisions follow each other and never share a pair.

    A decision starts where the one before it ended, and only where the last look would still fit, so that
    which decisions there are does not depend on how they end. A last run that is not full is left out.
    """
    run: list[Decision] = []
    family = Family(tests)
    for stream in streams:
        start = 0
        while start + MOST_BLOCKS <= len(stream.times):
            if not run:
                family = Family(tests * gates_of(stream))
            decision = decide_at(stream, start, family.level(), quiet=quiet)
            family.close(decided=gates_of(stream), failed=decision.failed)
            start += decision.pairs // stream.times.shape[1]
            run.append(decision)
            if len(run) == tests:
                yield run
                run = []


def mean_rule(stored: Array, now: Array, percent: int = 5) -> bool:
    """pytest-benchmark's `--benchmark-compare-fail=mean:5%`: the mean is more than that over the stored one."""
    return bool(np.mean(now) / np.mean(stored) * 100 - 100 > percent)


def mann_whitney(stored: Array, now: Array, alpha: float = 0.05) -> bool:
    """Mann-Whitney's U, one-sided: the times are larger than the stored ones."""
    from scipy.stats import mannwhitneyu

    return bool(_p(mannwhitneyu(now, stored, alternative="greater")) < alpha)


def _p(result: Any) -> float:  # noqa: ANN401  # scipy has no types
    return float(result.pvalue)
