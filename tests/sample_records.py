"""Records for tests of the pure rooms: one realistic record, and what varies as keywords."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from pytest_llmslim.proportions import accuracy_ratio
from pytest_llmslim.records import (
    Build,
    Divergence,
    Estimate,
    Evaluation,
    Flips,
    Integrity,
    Key,
    Profile,
    Protocol,
    Reading,
    Record,
    Samples,
    Side,
    no_estimate,
    unmeasured,
)
from pytest_llmslim.score import combined, opt_estimate
from pytest_llmslim.statistics import block_estimate, mcnemar

KEY = Key("suites/test_ptq.py", "test_ptq", "embedded:gpt2", "int4")
PROTOCOL = Protocol("window", 256, 255, True, 6120, 24, "embedded", "ab" * 32, "float32")
BALANCED = Profile("balanced", 0.5, 0.5)


def blocks(ratio: float, spread: float = 0.0, n: int = 12) -> tuple[float, ...]:
    """Log ratios evenly spread by +- `spread`, so that `ratio` is their Hodges-Lehmann estimate."""
    steps = [2 * i / (n - 1) - 1 if n > 1 else 0.0 for i in range(n)]
    return tuple(math.log(ratio) + spread * step for step in steps)


def side(perplexity: float = 34.2, weights: str = "r", stored_bytes: int = 500_000) -> Side:
    return Side(
        parameters=124_000,
        stored_bytes=stored_bytes,
        weights_hash=weights * 64,
        perplexity=perplexity,
        word_perplexity=None,
        byte_perplexity=2.1,
        time_s=Reading(0.0123, "s", "process cpu time", "measured", 1e-9),
        wall_s=Reading(0.0125, "s", "perf_counter", "measured", 1e-9),
        energy_j=Reading(0.345, "J", "rapl", "measured", 0.001),
        peak_memory=unmeasured("B", "rss", "the peak did not move"),
    )


def quality(
    ratio: float = 1.02, low: float | None = None, high: float | None = None, n: int = 24
) -> Estimate:
    return Estimate(
        ratio,
        ratio * 0.995 if low is None else low,
        ratio * 1.005 if high is None else high,
        n,
        "measured",
        "windows of text",
    )


def cost(samples: tuple[float, ...], method: str = "measured", source: str = "rapl") -> Estimate:
    if not samples:
        return no_estimate("no energy meter", source="none")
    return block_estimate(samples, method, source)  # type: ignore[arg-type]


def evaluation(
    both: int = 20,
    lost: int = 0,
    won: int = 0,
    questions: int = 40,
    *,
    name: str = "arc_challenge",
    **fields: Any,
) -> Evaluation:
    """Right and wrong answers as counts (see `proportions.accuracy_ratio`), laid out in that order."""
    neither = questions - both - lost - won
    rights = ["1" * both + "1" * lost + "0" * won, "1" * both + "0" * lost + "1" * won]
    whole = Evaluation(
        name=name,
        metric="acc_norm",
        higher_is_better=True,
        chance=0.25,
        reference=(both + lost) / questions,
        candidate=(both + won) / questions,
        ratio=Estimate(*accuracy_ratio(both, lost, won, questions), "measured", "questions"),
        n=questions,
        protocol={"task": name, "shots": "25"},
        flips=Flips(lost, won, mcnemar(lost, won).differs),
        reference_right=rights[0] + "0" * neither,
        candidate_right=rights[1] + "0" * neither,
    )
    return dataclasses.replace(whole, **fields)


def kind_of_text(ratio: float = 1.02, name: str = "slice(kind=code)", **fields: Any) -> Evaluation:
    """The perplexity of a kind of text, with real scores."""
    whole = Evaluation(
        name=name,
        metric="perplexity",
        higher_is_better=False,
        chance=None,
        reference=20.0,
        candidate=20.0 * ratio,
        ratio=Estimate(ratio, ratio * 0.99, ratio * 1.01, 32, "measured", "questions"),
        n=32,
        protocol={"text": "code.txt", "total": "perplexity"},
    )
    return dataclasses.replace(whole, **fields)


def record(
    *,
    perplexity: Estimate | None = None,
    time: tuple[float, ...] = blocks(0.8),
    energy: tuple[float, ...] = blocks(0.7),
    energy_method: str = "measured",
    energy_source: str = "rapl",
    profile: Profile = BALANCED,
    evaluations: tuple[Evaluation, ...] = (),
    asked: tuple[str, ...] = (),
    **fields: Any,
) -> Record:
    """A record whose estimates and score follow from its samples; other fields replace the record's.

    `asked`: the measures that opt rests on, as `--llm-quality` gives them.
    """
    ratio = quality() if perplexity is None else perplexity
    measures = combined(ratio, evaluations, asked)
    estimates = {
        "time": cost(time, source="process cpu time"),
        "energy": cost(energy, energy_method, energy_source),
    }
    whole = Record(
        key=KEY,
        label="int4 on embedded:gpt2",
        protocol=PROTOCOL,
        reference=side(),
        candidate=side(34.2 * (ratio.value or 1.0), "c", 70_000),
        perplexity=ratio,
        divergence=Divergence(0.012, 0.97),
        time=estimates["time"],
        wall=cost(time, source="perf_counter"),
        energy=estimates["energy"],
        stored_bytes=Estimate(0.14, 0.14, 0.14, 1, "measured", "storage"),
        floor=None,
        build=Build(
            Reading(1.5, "s", "perf_counter", "measured"), unmeasured("J", "none", "no meter"), ("int4",)
        ),
        integrity=Integrity("compressed", "stored bytes fell from 500 kB to 70 kB."),
        profile=profile,
        opt=opt_estimate(measures.worsening or ratio, estimates["time"], estimates["energy"], profile),
        fingerprint={"cpu": "EPYC", "threads": "1"},
        samples=Samples(time, time, energy, (0.01, 0.02), (255, 255)),
        notes=measures.notes,
        evaluations=measures.marked(evaluations),
        quality=measures.worsening,
    )
    return dataclasses.replace(whole, **fields)
