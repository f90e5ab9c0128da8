"""Noise to replay: simulated with a seed, or recorded, as streams of blocks of pairs with a known truth."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from pytest_llmslim.sequential import LOOKS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Array = np.ndarray[Any, np.dtype[np.float64]]

Recorded = Literal["given", "fresh"]
"""Before the gate was written, and with its own measuring code."""
TRUTHS: Final = (0.0, 0.05, 0.10, 0.20)
"""What the candidate takes longer; the first is A/A."""
PER_BLOCK: Final = 4
MOST_BLOCKS: Final = LOOKS[-1]
WALL, CPU = 0, 1
SESSION_SD: Final = 0.05
"""Simulated: how far a stored run's level is from today's, as the sd of its log."""


@dataclass(frozen=True)
class Stream:
    """Blocks of pairs in the order in which they were timed.

    Args:
        kind: simulated, or which recordings.
        noise: a row of the tables.
        truth: by how much the candidate takes longer, a fraction.
        times: seconds, of shape (blocks, pairs, reference or candidate, clock): wall and CPU, or one clock.
        stored: seconds of the reference in another session, of shape (blocks, pairs, clock).
        memory_bound: whether the goal of memory-bound work holds for it.
        busy: loops that ran beside it.
    """

    kind: Literal["simulated"] | Recorded
    noise: str
    truth: float
    times: Array
    stored: Array
    memory_bound: bool = False
    busy: int = 0

    @property
    def clocks(self) -> int:
        """2 where wall and CPU time were recorded, 1 where the noise is simulated."""
        return int(self.times.shape[-1])


def log_normal(sd: float) -> Callable[[np.random.Generator, int], Array]:
    """Every window by itself."""
    return lambda rng, n: np.exp(sd * rng.standard_normal(n))


def spikes(rng: np.random.Generator, n: int) -> Array:
    """3 % log-normal, and 8 % of the windows longer by a factor with a heavy tail (Pareto, exponent 1.5)."""
    hit = rng.random(n) < 0.08
    return np.exp(0.03 * rng.standard_normal(n)) * (1 + hit * 0.5 * rng.pareto(1.5, n))


def drift(rng: np.random.Generator, n: int) -> Array:
    """2 % log-normal around a level that wanders: AR(1) of sd 10 %, 0.98 from window to window."""
    steps = 0.10 * rng.standard_normal(n)
    level = np.empty(n)
    level[0] = steps[0]
    for i in range(1, n):
        level[i] = 0.98 * level[i - 1] + np.sqrt(1 - 0.98**2) * steps[i]
    return np.exp(level + 0.02 * rng.standard_normal(n))


SIMULATED: Final[dict[str, Callable[[np.random.Generator, int], Array]]] = {
    "log-normal 5 %": log_normal(0.05),
    "log-normal 10 %": log_normal(0.10),
    "log-normal 15 %": log_normal(0.15),
    "spikes 8 %": spikes,
    "drift 10 %": drift,
}


def simulate(name: str, truth: float, decisions: int, seed: int) -> Iterator[Stream]:
    """One stream a decision, long enough for the last look; the noise of both arms runs through in time."""
    number = list(SIMULATED).index(name)
    rng = np.random.default_rng([seed, number, round(1000 * truth)])
    shape = (MOST_BLOCKS, PER_BLOCK, 2)
    for _ in range(decisions):
        times = rng.permuted(SIMULATED[name](rng, int(np.prod(shape))).reshape(shape), axis=-1)
        times[..., 1] *= 1 + truth
        level = np.exp(SESSION_SD * rng.standard_normal())
        stored = level * SIMULATED[name](rng, MOST_BLOCKS * PER_BLOCK).reshape(shape[:2])
        yield Stream("simulated", name, truth, times[..., None], stored[..., None])


@dataclass(frozen=True)
class Recording:
    """One file: a process that timed a workload under one or more truths.

    `times` is in seconds a unit of work, of shape (blocks, pairs, truth, reference or candidate, clock).
    """

    workload: str
    busy: int
    truths: tuple[float, ...]
    times: Array


def read(path: Path) -> Recording:
    """A recording `T[block, round, truth, who, wall or CPU]` with its `meta` in JSON.

    Rounds beyond a block of four become blocks of their own at the end, so that no decision meets one layout
    of memory twice.
    """
    with np.load(path, allow_pickle=False) as file:
        times = file["T"].astype(np.float64)
        meta = json.loads(str(file["meta"]))
    whole = times.shape[1] // PER_BLOCK * PER_BLOCK
    blocks = np.concatenate([times[:, i : i + PER_BLOCK] for i in range(0, whole, PER_BLOCK)])
    # One workload may have been recorded with other numbers of inner runs; a stored run is of the same work.
    blocks = blocks * meta.get("tick_s", 1.0) / meta["K"]
    truths = tuple(meta.get("truths", TRUTHS))
    return Recording(meta["wl"].removeprefix("b"), meta.get("busy", 0), truths, blocks)


def recorded(folder: Path, kind: Recorded) -> list[Stream]:
    """The streams of all recordings in a folder, in the order of their names; none where there is no folder.

    The stored run of a session is the reference in the next session of the same workload; with a single one,
    the other half of that.
    """
    groups: dict[tuple[str, int], list[Recording]] = defaultdict(list)
    for path in sorted(folder.glob("*.npz")):
        recording = read(path)
        groups[recording.workload, recording.busy].append(recording)
    return [stream for group in groups.values() for stream in _streams(group, kind)]


def _streams(group: list[Recording], kind: Recorded) -> Iterator[Stream]:
    for number, recording in enumerate(group):
        other = group[(number + 1) % len(group)].times[:, :, 0, 0]
        offset = len(other) // 2 if len(group) == 1 else 0
        stored = other[(np.arange(len(recording.times)) + offset) % len(other)]
        beside = f", {recording.busy} busy loops beside" if recording.busy else ""
        for column, truth in enumerate(recording.truths):
            yield Stream(
                kind,
                f"{recording.workload}{beside}",
                truth,
                recording.times[:, :, column],
                stored,
                recording.workload.startswith("gemv"),
                recording.busy,
            )
