"""What the HTML report tells of one recipe: every number with where it comes from, as plain rows of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.comparability import STORED_TOLERANCE
from pytest_llmslim.reports.details import metering, payback, sampling
from pytest_llmslim.reports.evaluations import value_of
from pytest_llmslim.reports.html import plots
from pytest_llmslim.score import parts_sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.comparison import Change, Compared
    from pytest_llmslim.records import Estimate, Evaluation, Reading, Record, Verdict
    from pytest_llmslim.reports.html.data import Named


class Number(NamedTuple):
    """A number of both models: `n` is what its interval rests on, `how` the method and source, or why it is not."""

    name: str
    reference: str
    candidate: str
    ratio: str
    n: str
    how: str


class Moved(NamedTuple):
    """A figure in the baseline and now; `reason`: why they cannot be compared."""

    figure: str
    old: str
    new: str
    change: str
    reason: str


class Plot(NamedTuple):
    """A plot: `id` in the page, `title`, what it shows in a sentence, and the figure."""

    id: str
    title: str
    told: str
    figure: plots.Figure


class Asked(NamedTuple):
    """An evaluation: what was asked, both answers as numbers, and the questions that lost most."""

    evaluation: Evaluation
    protocol: str
    numbers: tuple[Number, ...]
    flips: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One recipe in detail.

    Args:
        named: the record with its id and name.
        verdicts: of the gate.
        numbers: all figures.
        moved: against the baseline; empty: there is none.
        accepted: who accepted the baseline and why, a sentence; empty: nobody did.
        build: what was compressed, and what it cost.
        sampling: how times and energies were had.
        asked: evaluations.
        origin: term and text, what else tells where the numbers come from.
        plots: drawn when they are looked at.
    """

    named: Named
    verdicts: tuple[Verdict, ...]
    numbers: tuple[Number, ...]
    moved: tuple[Moved, ...]
    accepted: str
    build: tuple[str, ...]
    sampling: tuple[str, ...]
    asked: tuple[Asked, ...]
    origin: tuple[tuple[str, str], ...]
    plots: tuple[Plot, ...]


def panel(named: Named, compared: Compared | None) -> Panel:
    """Everything about a record, and what changed against its baseline."""
    record = named.record
    return Panel(
        named,
        record.verdicts,
        tuple(numbers(record)),
        tuple(moved(compared)) if compared else (),
        _accepted(compared.old) if compared else "",
        tuple(built(record)),
        (*sampling(record), *metering(record), *record.notes),
        tuple(asked(each) for each in record.evaluations),
        tuple(origin(record)),
        tuple(_plots(named)),
    )


# Numbers ----------------------------------------------------------------------------------------------------


def numbers(record: Record) -> Iterable[Number]:
    """Every figure of a record."""
    old, new = record.reference, record.candidate
    if new.perplexity is not None or record.perplexity.known:
        yield _number("perplexity", _plain(old.perplexity), _plain(new.perplexity), record.perplexity)
        for name, then, now in (
            ("perplexity a word", old.word_perplexity, new.word_perplexity),
            ("perplexity a byte", old.byte_perplexity, new.byte_perplexity),
        ):
            if then and now:
                yield Number(name, _plain(then), _plain(now), "", "", "the same scores, other units")
    yield from _divergence(record)
    if record.quality is not None:
        yield _number(f"quality lost, over {record.quality.source}", "1", "", record.quality)
    yield _measured("time a window", old.time_s, new.time_s, record.time)
    yield _measured("wall time a window", old.wall_s, new.wall_s, record.wall)
    yield _measured("energy a window", old.energy_j, new.energy_j, record.energy)
    yield _number(
        "stored bytes", units.size(old.stored_bytes), units.size(new.stored_bytes), record.stored_bytes
    )
    peak = new.peak_memory
    yield Number("peak memory", units.reading(old.peak_memory), units.reading(peak), "", "", _how(peak))
    yield Number("parameters", f"{old.parameters:,}", f"{new.parameters:,}", "", "", "counted")
    yield _number("opt", "1", "", record.opt, parts_sentence(record))


def _number(name: str, old: str, new: str, found: Estimate, how: str = "") -> Number:
    n = str(found.n) if found.n > 1 else ""
    return Number(name, old, new, units.marked(found, interval=True), n, how or _how(found))


def _measured(name: str, old: Reading, new: Reading, found: Estimate) -> Number:
    return _number(name, units.reading(old), units.reading(new), found)


def _divergence(record: Record) -> Iterable[Number]:
    found = record.divergence
    if found is None:
        return
    low, high = (units.significant(bound) for bound in (found.low, found.high))
    bounds = "" if found.low is None and found.high is None else f" [{low}, {high}]"
    windows = str(record.protocol.windows)
    nats = "nats a token, KL(reference || candidate)"
    yield Number("KL, mean", "0", f"{units.significant(found.mean_kl)}{bounds}", "", windows, nats)
    for name, value in (("KL, median", found.median_kl), ("KL, 99.9 %", found.kl_999)):
        if value is not None:
            yield Number(name, "0", units.significant(value), "", "", "nats a token, quantile over tokens")
    if found.rms_dp is not None:
        change = "of the probability of the true token, RMS"
        yield Number("change of probability", "0", units.significant(found.rms_dp), "", "", change)
    same = units.percent(found.top1, signed=False)
    yield Number("same likeliest token", "100 %", same, "", "", "share of all scored tokens")


def _plain(value: float | None) -> str:
    return units.significant(value, 4)


def _how(found: Estimate | Reading) -> str:
    told = found.method if found.source in ("", "none") else f"{found.method}, {found.source}"
    return told if found.value is not None else f"{found.method}: {found.reason}"


# Against the baseline ---------------------------------------------------------------------------------------


def moved(compared: Compared) -> Iterable[Moved]:
    """Each figure then and now; nothing without a baseline."""
    if compared.old is None:
        return
    for change in compared.changes:
        if change.old is None and change.new is None:
            continue
        old, new = (units.marked(found, interval=True) for found in (change.old, change.new))
        name = "bytes" if change.figure == "stored_bytes" else change.figure
        yield Moved(name, old, new, _change(change), change.reason)


def _change(found: Change) -> str:
    """How far it moved, and which way is better; noise is no change."""
    if found.change is None:
        return units.NONE
    if not found.moved:
        near = units.percent(found.change) if abs(found.change) > STORED_TOLERANCE else ""
        return f"{near}, within its intervals" if near else "none"
    return f"{units.percent(found.change)}, {'better' if found.better else 'worse'}"


def _accepted(old: Record | None) -> str:
    found = old.accepted if old else None
    if found is None:
        return ""
    commit = f", at commit {found.commit[:12]}" if found.commit else ""
    return f"Accepted {found.when}{commit}: {found.reason}"


# The rest ---------------------------------------------------------------------------------------------------


def built(record: Record) -> Iterable[str]:
    """What was compressed, whether the saving is real, what it cost and when that is paid."""
    yield record.integrity.sentence
    yield from record.build.steps
    yield f"built in {units.reading(record.build.time_s)}"
    if record.integrity.status == "simulated":
        yield "nothing pays for building: the compression is only simulated"
    else:
        yield payback(record)


def asked(evaluation: Evaluation) -> Asked:
    """One evaluation as rows."""
    found = [
        Number(
            figure.name,
            value_of(figure, 0),
            value_of(figure, 1),
            units.marked(figure.ratio, interval=True) if figure.ratio else "",
            str(figure.ratio.n) if figure.ratio else "",
            _how(figure.ratio) if figure.ratio else "",
        )
        for figure in evaluation.figures
    ]
    if evaluation.metric:
        sides = [units.significant(value) for value in (evaluation.reference, evaluation.candidate)]
        ratio = evaluation.ratio
        found.insert(0, _number(evaluation.metric, sides[0], sides[1], ratio))
    protocol = "; ".join(f"{key} {value}" for key, value in evaluation.protocol.items() if value)
    flips = evaluation.flips
    told = "" if flips is None else (
        f"{flips.right_to_wrong} answers went from right to wrong, {flips.wrong_to_right} from wrong to right "
        f"(McNemar p = {units.significant(flips.p, 2)})"
    )  # fmt: skip
    return Asked(evaluation, protocol, tuple(found), told)


def origin(record: Record) -> Iterable[tuple[str, str]]:
    """Where the numbers come from, beyond each one's own source."""
    key, protocol = record.key, record.protocol
    yield "test", f"{key.suite}::{key.test}"
    start = f"BOS + {protocol.window - 1}" if protocol.bos else f"{protocol.window} without BOS"
    yield (
        "protocol",
        f"{protocol.name}, {protocol.tokens:,} tokens in {protocol.windows} windows of {start}, stride "
        f"{protocol.stride}, {protocol.dtype}",
    )
    yield "text", f"{protocol.text}, sha256 {protocol.text_sha256}"
    yield "weights of the reference", record.reference.weights_hash
    yield "weights of the candidate", record.candidate.weights_hash


def _plots(named: Named) -> Iterable[Plot]:
    record = named.record
    made = (
        ("blocks", "Pairs over time", "Ratio of each block of pairs, in order.", plots.blocks(record)),
        ("positions", "KL by position", "Divergence by place in a window of text.", plots.positions(record)),
        ("windows", "Text, window by window", "KL and lost log probability of each window.", plots.windows(record)),
    )  # fmt: skip
    for name, title, told, figure in made:
        if figure is not None:
            yield Plot(f"{named.id}-{name}", title, told, figure)


def overview(group: str, named: Sequence[Named]) -> tuple[tuple[Plot, ...], tuple[str, ...]]:
    """The Pareto plots of a group, one a cost, and for each a sentence on what is not in it."""
    found, notes = [], []
    for axis in plots.AXES:
        figure = plots.pareto(named, axis)
        if figure is not None:
            away = plots.left_out(named, axis)
            told = f"Quality against {axis}, lower left is better; the dotted line is the front."
            found.append(Plot(f"{group}-{axis}", f"Quality against {axis}", told, figure))
            notes.append(f"No place for {', '.join(away)}: no {axis} or no quality." if away else "")
    return tuple(found), tuple(notes)
