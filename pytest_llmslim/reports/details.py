"""What stands behind the figures of a table: cost of building, sampling, metering, carbon."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from pytest_llmslim import units
from pytest_llmslim.breakeven import (
    BreakEven,
    energy_break_even,
    grams_per_million_tokens,
    time_break_even,
    tokens_a_pass,
)
from pytest_llmslim.conditions import WALL_AGREES, wall_agrees
from pytest_llmslim.judging import interval_of
from pytest_llmslim.meters.crosscheck import AGREE, agree
from pytest_llmslim.planning import detectable_by_blocks
from pytest_llmslim.readings import MARK
from pytest_llmslim.reports import evaluations
from pytest_llmslim.score import parts_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Carbon, Divergence, Estimate, Reading, Record, Side


def details(record: Record) -> list[str]:
    """With `-v`: where every number came from."""
    build, side = record.build, record.candidate
    out = list(build.steps)
    out.append(f"built in {units.reading(build.time_s)}, energy {_reading(build.energy_j)}")
    out += _paybacks(record)
    out.append(record.integrity.sentence)
    if record.time.known:
        wall = units.ratio(record.wall.value, record.wall.low, record.wall.high)
        out.append(
            f"time {units.reading(side.time_s)} a window ({side.time_s.source}), wall {wall}, "
            f"energy {_reading(side.energy_j)}"
        )
    out += [*sampling(record), *metering(record)]
    out.append(f"peak memory {_reading(side.peak_memory)}")
    out += [_divergence(record.divergence)] if record.divergence else []
    if side.word_perplexity and side.byte_perplexity:
        word, byte = units.significant(side.word_perplexity, 4), units.significant(side.byte_perplexity, 4)
        out.append(f"perplexity per word {word}, per byte {byte}")
    if record.opt.known:
        out.append(parts_sentence(record))
    out += [line for evaluation in record.evaluations for line in evaluations.worst(evaluation)]
    return out + [f"{verdict.outcome}: {verdict.sentence}" for verdict in record.verdicts]


# Cost of compressing ----------------------------------------------------------------------------------------


def payback(record: Record) -> str:
    """What building cost, and after how many tokens that is paid."""
    return "; ".join(
        f"{name} unmeasured ({cost.reason})" if cost.value is None else _paid(name, cost, found, record)
        for name, cost, found in _costs(record)
    )


def _costs(record: Record) -> tuple[tuple[str, Reading, BreakEven], ...]:
    build = record.build
    return (
        ("time", build.time_s, time_break_even(record)),
        ("energy", build.energy_j, energy_break_even(record)),
    )


def _paybacks(record: Record) -> list[str]:
    """With `-v`: one line a cost that was measured, with what its ratio is of."""
    if record.integrity.status == "simulated":
        return ["nothing pays for building: the compression is only simulated"]
    return [
        f"{_paid(name, cost, found, record)} ({found.source})"
        for name, cost, found in _costs(record)
        if cost.value is not None
    ]


def _paid(name: str, cost: Reading, found: BreakEven, record: Record) -> str:
    """One cost and its break-even; the tokens carry the mark of what they rest on."""
    price, mark = _marked(cost), MARK.get(found.method, "")
    if found.outcome == "after":
        return f"pays for its {price} after {mark}{units.tokens(found.tokens, found.low, found.high)}"
    if found.outcome == "never":
        return f"never pays for its {price}: it saves no {name}"
    if found.outcome == "not sure":
        return (
            f"not sure to pay for its {price}: the {name} ratio {mark}{_ratio_behind(name, found, record)} "
            f"may be no saving, and it takes at least {mark}{units.tokens(found.low)}"
        )
    return f"took {price}, and whether that pays is unknown: {found.reason.rstrip('.')}"


def _ratio_behind(name: str, found: BreakEven, record: Record) -> str:
    ratio: Estimate = record.energy if name == "energy" else record.time
    if name == "time" and found.source != ratio.source:
        ratio = record.wall
    return units.ratio(ratio.value, ratio.low, ratio.high)


def _divergence(found: Divergence) -> str:
    """The mean with its interval over windows of text, which may well begin at 0; then what a mean hides."""
    low, high = (units.significant(bound) for bound in (found.low, found.high))
    interval = "" if found.low is None and found.high is None else f" [{low}, {high}]"
    mean = f"KL {units.significant(found.mean_kl)}{interval} nats a token"
    if found.median_kl is None or found.kl_999 is None or found.rms_dp is None:
        return mean  # stored before they were measured
    return (
        f"{mean}, median {units.significant(found.median_kl)}, 99.9 % {units.significant(found.kl_999)}; "
        f"probability of the true token changed by {units.significant(found.rms_dp)} (RMS)"
    )


# Sampling and metering --------------------------------------------------------------------------------------


def sampling(record: Record) -> list[str]:
    """How the times were had; nothing where nothing was timed."""
    how, blocks = record.sampling, len(record.samples.time)
    if not (blocks and how.per_block):
        return []
    looks = ", ".join(map(str, how.looks))
    out = [
        f"{blocks * how.per_block} pairs in {blocks} blocks, {len(how.looks)} of {how.planned} "
        f"looks (at {looks} blocks), each at a level of {how.level:.2g}"
    ]
    told = detectable_by_blocks(interval_of(record.time), how.level)
    if told is not None and math.isfinite(told):
        out.append(f"so many blocks tell an increase of {units.percent(told, signed=False)} at best")
    if how.replaced or how.disturbed:
        seen = ", ".join(how.disturbances)
        out.append(f"pairs disturbed: {how.replaced} replaced, {how.disturbed} kept ({seen})")
    else:
        out.append("no pair was disturbed")
    out.append(
        "both models were moved to new memory before each block"
        if how.movable
        else "the models stayed where they were in memory, so layout is not averaged out"
    )
    if how.wall_over_cpu is not None:
        quiet = wall_agrees(how.wall_over_cpu)
        then = "they agree" if quiet else f"over {WALL_AGREES:g}, so wall time is not gated"
        out.append(f"wall / CPU time of the reference {how.wall_over_cpu:.2f}: {then}")
    return out


def metering(record: Record) -> list[str]:
    """The policy on idle power, and the second source; nothing where there is no energy."""
    metering = record.metering
    if not record.energy.known:
        return []
    idle = f", less idle power of {units.reading(metering.idle_w)}" if metering.policy == "net" else ""
    second = f"; {_second(record)}" if metering.second_ratio is not None else ""
    return [f"energy is {metering.policy}{idle}{second}"]


def _second(record: Record) -> str:
    ratio = record.metering.second_ratio or 0.0
    text = (
        f"{record.metering.second_source} read {ratio:.2f} times what {record.reference.energy_j.source} did"
    )
    return f"{text}: they disagree" if _apart(record) else text


def _apart(record: Record) -> bool:
    ratio = record.metering.second_ratio
    return ratio is not None and not agree(ratio)


def disagreements(records: Iterable[Record]) -> list[str]:
    """One line a pair of energy sources that disagree anywhere in the run."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record.energy.known and _apart(record):
            sources = (record.metering.second_source, record.reference.energy_j.source)
            found.setdefault(sources, []).append(record.metering.second_ratio or 0.0)
    return [
        f"energy sources disagree: {second} read {_span(ratios)} times what {first} did, further than "
        f"{units.percent_limit(AGREE)} from 1; find out which is right before you rely on the joules"
        for (second, first), ratios in found.items()
    ]


def _span(ratios: Sequence[float]) -> str:
    texts = [f"{ratio:.2f}" for ratio in (min(ratios), max(ratios))]
    return " to ".join(dict.fromkeys(texts))


def disturbed(records: Iterable[Record]) -> list[str]:
    """How many pairs of the run were disturbed from outside, by what, and what became of them."""
    seen: Counter[str] = Counter()
    replaced = kept = pairs = 0
    for record in records:
        sampling = record.sampling
        replaced, kept = replaced + sampling.replaced, kept + sampling.disturbed
        pairs += len(record.samples.time) * sampling.per_block + sampling.replaced
        for words in sampling.disturbances:
            kind, _, count = words.rpartition(" ")
            seen[kind if count.isdigit() else words] += int(count) if count.isdigit() else 1
    if not replaced + kept:
        return []
    words = ", ".join(f"{kind} {count}" for kind, count in seen.most_common())
    return [
        f"{replaced + kept} of {pairs} pairs were disturbed from outside ({words}): "
        f"{replaced} measured again, {kept} kept"
    ]


# Carbon -----------------------------------------------------------------------------------------------------


def carbon_line(records: Sequence[Record], winner: Record | None) -> list[str]:
    """CO2 of a million tokens, of the reference and of the best candidate; nothing without a country."""
    record = winner or next((r for r in records if r.energy.known), records[0])
    carbon = record.carbon
    if carbon is None:
        return []
    about = (
        f"carbon, estimated for {carbon.country} at {units.grams(carbon.g_per_kwh)} a kWh ({carbon.source})"
    )
    if not record.energy.known:
        return [f"{about}: none, since energy is {record.energy.method}"]
    sides = (("reference", record.reference), (record.key.recipe, record.candidate))
    grams = ", ".join(f"{name} {_grams(side, record, carbon)}" for name, side in sides)
    return [f"{about}: {grams} CO2e per million tokens in windows of {tokens_a_pass(record.protocol)}"]


def _grams(side: Side, record: Record, carbon: Carbon) -> str:
    return units.grams(grams_per_million_tokens(side.energy_j, record.protocol, carbon))


# Readings ---------------------------------------------------------------------------------------------------


def _marked(reading: Reading) -> str:
    return MARK.get(reading.method, "") + units.quantity(reading.value, reading.unit)


def _reading(reading: Reading) -> str:
    """A reading with its source, and how it was had unless it was measured."""
    if reading.value is None:
        return f"unmeasured ({reading.reason})"
    how = reading.source if reading.method == "measured" else f"{reading.method} by {reading.source}"
    value = units.size(reading.value) if reading.unit == "B" else units.quantity(reading.value, reading.unit)
    return f"{value} ({how})"
