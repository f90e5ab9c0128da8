"""Stored numbers as Markdown tables: only what records hold, each with how it came to be."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_llmslim import runs, units
from pytest_llmslim.conditions import wall_agrees
from pytest_llmslim.readings import MARK
from pytest_llmslim.run_records import device_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Estimate, Evaluation, Record

ROOT: Final = Path(__file__).parents[1]
MODELS: Final = ("embedded:gpt2", "embedded:llama")
_BUSY: Final = "beside other load"
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@lru_cache
def stored() -> tuple[Record, ...]:
    """The baselines of the repository, then what docs/measure_numbers.py measured beside them."""
    sources = [ROOT / "baselines", *sorted((ROOT / "docs/numbers").glob("*.jsonl"))]
    return tuple(record for path in sources for record in runs.read(path).records)


def row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join([row(head), row(["---"] * len(head)), *map(row, rows)]) + "\n"


# Methods ------------------------------------------------------------------------------------------------------


def of_recipes(records: Sequence[Record]) -> str:
    """The figures of some records, a row each, and how they were measured."""
    head = ("recipe", "model", "perplexity ratio [95 %]", "time", "energy", "bytes", "KL", "opt")
    rows = [_figures(record) for record in records]
    return table(head, rows) + "\n" + "\n".join(f"- {line}" for line in _how(records)) + "\n"


def _figures(record: Record) -> tuple[str, ...]:
    busy = _is_busy(record)
    kl = record.divergence.mean_kl if record.divergence else None
    return (
        f"`{record.key.recipe}`",
        record.key.model.removeprefix("embedded:"),
        units.ratio(record.perplexity.value, record.perplexity.low, record.perplexity.high),
        *(_BUSY if busy else _cost(cost) for cost in (record.time, record.energy)),
        _cost(record.stored_bytes, interval=False),
        units.significant(kl),
        _BUSY if busy else _cost(record.opt),
    )


def _is_busy(record: Record) -> bool:
    ratio = record.sampling.wall_over_cpu
    return bool(ratio) and record.time.known and not wall_agrees(ratio)


def _cost(value: Estimate, *, interval: bool = True) -> str:
    if value.value is None:
        return value.method
    bounds = (value.low, value.high) if interval else (None, None)
    return MARK[value.method] + units.ratio(value.value, *bounds)


def _how(records: Sequence[Record]) -> list[str]:
    """The protocol, the machine and the reasons for what is missing, each once."""
    first = records[0]
    lines = [_text(record) for record in records]
    lines += [_machine(record) for record in records if record.time.known]
    if any(record.energy.method == "estimated" for record in records):
        lines.append("`~`: energy is estimated by codecarbon's model, not measured.")
    for method in ("simulated", "unmeasured"):
        found = [cost for record in records for cost in (record.time, record.energy) if cost.method == method]
        lines += [f"*{method}*: {_reason(cost)}." for cost in found]
    if any(map(_is_busy, records)):
        lines.append(f"*{_BUSY}*: the machine did other work meanwhile, so these figures are left out.")
    lines.append(f"Profile {first.profile.name}; 1 is the uncompressed model, lower is better.")
    return list(dict.fromkeys(lines))


def _reason(cost: Estimate) -> str:
    """Why there is no figure, without the bytes of this one model that it may end with."""
    parts = cost.reason.rstrip(".").split("; ")
    return "; ".join(part for part in parts if " stored" not in part)


def _text(record: Record) -> str:
    protocol = record.protocol
    start = "BOS + " if protocol.bos else ""
    return (
        f"Text `{protocol.text}` (sha256 {protocol.text_sha256[:12]}), {protocol.tokens:,} tokens in "
        f"{protocol.windows} windows of {start}{protocol.window - protocol.bos}, {protocol.dtype}; "
        "intervals over windows."
    )


def _machine(record: Record) -> str:
    found = record.fingerprint
    return (
        f"Time is {record.time.source} on {device_of(found)}, {found['threads']} thread, torch {found['torch']}; "
        "intervals over blocks of pairs."
    )


# Evaluations --------------------------------------------------------------------------------------------------


def of_evaluation(found: Sequence[tuple[Record, Evaluation]]) -> str:
    """The metric of every model and recipe, further figures, and the protocols."""
    scored = [(record, each) for record, each in found if each.metric]
    parts = []
    if scored:
        metrics = sorted({each.metric for _, each in scored})
        head = (
            "recipe",
            "model",
            "evaluation",
            "reference",
            "candidate",
            "ratio [95 %]",
            "n",
            "flips",
            "McNemar p",
        )
        parts.append(f"Metric: {', '.join(metrics)}.\n\n" + table(head, [_metric(*each) for each in scored]))
    figures = [line for record, each in found for line in _further(record, each)]
    if figures:
        parts.append(table(("recipe", "model", "figure", "reference", "candidate", "ratio [95 %]"), figures))
    lines = [_protocol(*each) for each in found if each[1].protocol]
    lines += [_machine(record) for record, each in found if not each.metric and each.figures]
    lines += [f"`{each.name}` on {record.key.model}: {note}" for record, each in found for note in each.notes]
    return "\n".join(parts) + "\n" + "\n".join(f"- {line}" for line in dict.fromkeys(lines)) + "\n"


def _metric(record: Record, each: Evaluation) -> tuple[str, ...]:
    flips = each.flips
    chance = "" if each.chance is None else f" (chance {units.significant(each.chance)})"
    return (
        *_who(record),
        f"`{each.name}`",
        units.significant(each.reference) + chance,
        units.significant(each.candidate),
        units.ratio(each.ratio.value, each.ratio.low, each.ratio.high),
        str(each.n),
        f"{flips.right_to_wrong} lost, {flips.wrong_to_right} won" if flips else units.NONE,
        units.significant(flips.p, 2) if flips else units.NONE,
    )


def _further(record: Record, each: Evaluation) -> list[tuple[str, ...]]:
    busy = _is_busy(record)
    return [
        (
            *_who(record),
            figure.name,
            *(
                _BUSY if timed and busy else _value(value, figure.unit)
                for value in (figure.reference, figure.candidate)
            ),
            _BUSY if timed and busy else _cost(figure.ratio) if figure.ratio else units.NONE,
        )
        for figure in each.figures
        for timed in [figure.unit in ("s", "tokens/s")]
    ]


def _value(value: float | None, unit: str) -> str:
    return units.quantity(value, unit) if unit else units.significant(value)


def _who(record: Record) -> tuple[str, str]:
    return f"`{record.key.recipe}`", record.key.model.removeprefix("embedded:")


def _protocol(record: Record, each: Evaluation) -> str:
    told = ", ".join(f"{name} {_HASH.sub(_short, value)}" for name, value in each.protocol.items() if value)
    return f"`{each.name}` on {record.key.model}: {told}."


def _short(found: re.Match[str]) -> str:
    return found.group()[:12]
