"""The summary on the terminal: per model one row a recipe, ranked by opt among those that pass."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.reports import evaluations
from pytest_llmslim.reports.details import carbon_line, details, disagreements, disturbed, payback

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Estimate, Record

Line = tuple[str, tuple[str, ...]]
"""Text, and the names of pytest's terminal markup."""

HEAD = (
    "",
    "recipe",
    "perplexity",
    "ratio [95 %]",
    "time",
    "energy",
    "bytes",
    "KL",
    "top-1",
    "opt",
    "verdict",
)
COLOUR = {"failed": ("red",), "inconclusive": ("yellow",), "not comparable": ("yellow",)}


class Shown(NamedTuple):
    """What the summary is made of.

    `changes` are lines about the baselines that were written, `missing` sentences on baselines that no test of this
    run met, `attributions` the tables of `--llm-ablate`, `saved` is the folder of `--llm-save`, and `written` are the
    reports. On a terminal of
    fewer `columns` than the table needs, time and energy stand without their intervals.
    """

    records: tuple[Record, ...]
    unmeasured: tuple[tuple[str, str], ...]
    changes: tuple[str, ...]
    troubles: tuple[str, ...]
    baseline: str
    results: str
    update: bool
    verbose: bool
    columns: int = 200
    missing: tuple[str, ...] = ()
    attributions: tuple[str, ...] = ()
    saved: str = ""
    written: tuple[str, ...] = ()


def lines(shown: Shown) -> list[Line]:
    """The summary, line by line."""
    out: list[Line] = []
    for group in groups(shown.records):
        out += _model(group, shown.verbose, shown.columns)
    out += [(line, ()) for line in shown.attributions]
    out += [(f"not measured: {label}: {reason}", ("yellow",)) for label, reason in shown.unmeasured]
    out += [(sentence, ("yellow",)) for sentence in shown.missing]
    if shown.records:
        out += legend(shown.records)
        out += sentences(shown.records)
        out += _compared(shown)
    out += [(trouble, ("red",)) for trouble in shown.troubles]
    return out


def ranked(records: Iterable[Record]) -> list[Record]:
    """Best first: those that did not fail by opt, then those without opt, then what failed."""

    def order(record: Record) -> tuple[bool, bool, float]:
        return record.outcome == "failed", record.opt.value is None, record.opt.value or math.inf

    return sorted(records, key=order)


def winner(best: Sequence[Record]) -> Record | None:
    """Of ranked records the one to take: it did not fail, it has a score, and it is no control."""
    return next(
        (r for r in best if r.outcome != "failed" and r.opt.known and r.integrity.status != "control"), None
    )


def groups(records: Sequence[Record]) -> list[list[Record]]:
    """Records that share model and protocol: only these stand in one table."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record.key.model, record.protocol, record.profile), []).append(record)
    return list(groups.values())


def _model(records: Sequence[Record], verbose: bool, columns: int) -> list[Line]:
    best = ranked(records)
    rows = [HEAD, *(_row(i, record, compact=False) for i, record in enumerate(best, 1))]
    if _width(rows) > columns:
        rows = [HEAD, *(_row(i, record, compact=True) for i, record in enumerate(best, 1))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    out: list[Line] = [(text, ("bold",)) for text in about(best)]
    for row, record in zip(rows, [None, *best], strict=True):
        text = "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        out.append((text, COLOUR.get(record.outcome, ()) if record else ()))
        if verbose and record:
            out += [(f"      {detail}", ()) for detail in details(record)]
    first = winner(best)
    if first:
        out += [_best(first), (f"  building {first.key.recipe}: {payback(first)}", ())]
    out += [(line, ()) for line in carbon_line(best, first)]
    return [*out, ("", ()), *((line, ()) for line in evaluations.lines(best))]


def _best(record: Record) -> Line:
    """The recipe to take, and why; or that the reference is better than all."""
    found = f"{record.key.recipe} with {_score(record.opt)}; {record.integrity.sentence}"
    if record.opt.value is not None and record.opt.value < 1:
        return f"lowest opt: {found}", ("green",)
    return f"no recipe scores better than the reference (1); lowest opt: {found}", ("yellow",)


def about(records: Sequence[Record]) -> list[str]:
    """The reference, the protocol and the profile, once per table."""
    record = records[0]
    side, protocol, profile = record.reference, record.protocol, record.profile
    floor = f", floor {units.significant(record.floor, 4)}" if record.floor else ""
    start = f"BOS + {protocol.window - 1}" if protocol.bos else f"{protocol.window} without BOS"
    step = "" if protocol.name == "window" else f", stride {protocol.stride}"
    return [
        f"{record.key.model}: {side.parameters:,} parameters, {units.size(side.stored_bytes)} in {protocol.dtype}, "
        f"{_perplexity(side.perplexity)}{floor}{_pace(records)}",
        f"text {protocol.text} (sha256 {protocol.text_sha256[:12]}), {protocol.tokens:,} tokens scored in "
        f"{protocol.windows} windows of {start}{step}",
        f"profile {profile.name}: opt = Q ({profile.alpha:g} T + {profile.beta:g} E), Q = {_quality(records)}, "
        "lower is better",
    ]


def _perplexity(value: float | None) -> str:
    return "no perplexity" if value is None else f"perplexity {units.significant(value, 4)}"


def _quality(records: Sequence[Record]) -> str:
    """What Q is made of: perplexity alone, or several measures."""
    several = next((record.quality for record in records if record.quality is not None), None)
    return "ratio^1.5" if several is None else f"mean of P^1.5 over {several.source}"


def _pace(records: Sequence[Record]) -> str:
    """The reference's time, from a record that has one: beside a simulated candidate it is not timed."""
    time = next((r.reference.time_s for r in records if r.reference.time_s.value is not None), None)
    return f", {units.reading(time)} a window ({time.source})" if time else ""


def _row(rank: int, record: Record, *, compact: bool) -> tuple[str, ...]:
    perplexity, divergence = record.candidate.perplexity, record.divergence
    over = f" ({units.percent(perplexity / record.floor - 1)} floor)" if record.floor and perplexity else ""
    return (
        str(rank),
        record.key.recipe,
        units.significant(perplexity, 4) + over,
        units.ratio(record.perplexity.value, record.perplexity.low, record.perplexity.high),
        cell(record.time, interval=not compact),
        cell(record.energy, interval=not compact),
        cell(record.stored_bytes),
        units.significant(divergence.mean_kl if divergence else None),
        units.percent(divergence.top1 if divergence else None, signed=False),
        _score(record.opt),
        _outcome(record),
    )


def _width(rows: Sequence[tuple[str, ...]]) -> int:
    return sum(max(len(row[i]) for row in rows) + 2 for i in range(len(HEAD)))


def cell(estimate: Estimate | None, *, interval: bool = False) -> str:
    """A figure in a table; what is unmeasured is `-`, and its reason stands below the table."""
    unmeasured = estimate is not None and estimate.method == "unmeasured"
    return units.NONE if unmeasured else units.marked(estimate, interval=interval)


def _score(estimate: Estimate) -> str:
    return units.marked(estimate) if estimate.known else units.NONE


def legend(records: Sequence[Record]) -> list[Line]:
    """What the marks mean, and why numbers are absent; each said once."""
    energies = {
        record.energy.method: record.reference.energy_j.source for record in records if record.energy.known
    }
    out = []
    if "estimated" in energies:
        out.append(
            f"~ energy is estimated by a model ({energies['estimated']}), not measured; it is shown and ranked, "
            "and gated only with --llm-gate-estimated or max_opt"
        )
    if "sampled" in energies:
        out.append(f"^ energy is integrated from power samples ({energies['sampled']})")
    if any(record.integrity.status == "simulated" for record in records):
        out.append(
            "simulated: weights are rounded or zeroed, and no kernel here is faster for it, so there is no cost to "
            "show; bytes are shown where they are really fewer"
        )
    out += [*_net(records), *disagreements(records), *disturbed(records)]
    out += [
        f"- {figure} unmeasured: {reason}"
        for figure in ("time", "energy")
        for reason in _reasons(records, figure)
    ]
    out += [
        f"- {why}" for why in dict.fromkeys(r.perplexity.reason for r in records if not r.perplexity.known)
    ]
    notes = dict.fromkeys(note for record in records for note in record.notes)
    return [(line, ()) for line in [*out, *notes]]


def _reasons(records: Sequence[Record], figure: str) -> list[str]:
    """Why time or energy is unmeasured; of reasons that differ only in their numbers, the first stands for all."""
    alike: dict[str, str] = {}
    for record in records:
        found = getattr(record, figure)
        if found.method == "unmeasured":
            alike.setdefault(re.sub(r"[\d.]+", "0", found.reason), found.reason)
    return sorted(alike.values())


def _net(records: Sequence[Record]) -> list[str]:
    """That idle power is left out of the joules, and how much it is."""
    idle = dict.fromkeys(
        units.reading(record.metering.idle_w)
        for record in records
        if record.energy.known and record.metering.policy == "net"
    )
    return [f"energy is net: idle power of {watts}, measured before, is subtracted" for watts in idle]


def sentences(records: Sequence[Record]) -> list[Line]:
    """The sentence of everything that did not simply pass, worst first; `new` is counted elsewhere."""
    out: list[Line] = []
    for outcome in ("failed", "inconclusive"):
        out += [
            (f"{outcome}: {verdict.sentence}", COLOUR[outcome])
            for record in records
            for verdict in record.verdicts
            if verdict.outcome == outcome
        ]
    return out + _not_comparable(records)


def _not_comparable(records: Sequence[Record]) -> list[Line]:
    """One line a reason: another machine makes every cost of a run incomparable, for one and the same reason."""
    reasons: dict[str, list[str]] = {}
    for record in records:
        for verdict in record.verdicts:
            if verdict.outcome == "not comparable":
                reason = verdict.sentence.removeprefix(f"{record.label}: ")
                reasons.setdefault(reason, []).append(record.label)
    return [
        (
            f"not comparable: {labels[0] if len(labels) == 1 else f'{len(labels)} candidates'}: {reason}",
            ("yellow",),
        )
        for reason, labels in reasons.items()
    ]


def _outcome(record: Record) -> str:
    """The verdict's word in the table; what quality says stands first where only costs cannot be compared."""
    if record.outcome == "new":
        return "passed, new"
    quality = [verdict.outcome for verdict in record.verdicts if verdict.axis == "perplexity"]
    if record.outcome == "not comparable" and quality and set(quality) == {"passed"}:
        return "passed, cost not comparable"
    return record.outcome


def _compared(shown: Shown) -> list[Line]:
    """What was compared with which baseline, and the next command."""
    against = [
        {v.outcome for v in record.verdicts if v.against in ("baseline", "anchor")}
        for record in shown.records
    ]
    new = sum("new" in outcomes for outcomes in against)
    apart = sum("not comparable" in outcomes for outcomes in against)
    compared = sum(bool(outcomes - {"new", "not comparable"}) for outcomes in against)
    if shown.update:
        out: list[Line] = [
            (f"baselines written to {shown.baseline}: {len(shown.changes)} changes", ("bold",))
        ]
        out += [(f"  {change}", ()) for change in shown.changes]
    else:
        out = [
            (
                f"baselines in {shown.baseline}: {compared} compared, {new} new, {apart} not comparable in part",
                (),
            )
        ]
        if new:
            out.append(("next: add --llm-update to store what was measured as the baseline", ()))
    if shown.saved:
        out.append(
            (
                f"candidates: {shown.saved}, a folder each that loads as a model; llmslim.json says what it is",
                (),
            )
        )
    if shown.results:
        out.append((f"results: {shown.results}/results.jsonl, run.json, summary.json", ()))
    return [*out, *((f"report: {path}", ()) for path in shown.written)]
