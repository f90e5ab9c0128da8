"""The noise of a machine as text: figures of each model, and an ini snippet with the limits that hold."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from pytest_llmslim import units
from pytest_llmslim.noise import DEFAULTS, FOUND, GATES, REPLAYS
from pytest_llmslim.readings import MARK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.gate import Limits
    from pytest_llmslim.noise import Calibration, Figures, Proposal, Series
    from pytest_llmslim.records import Sampling
    from pytest_llmslim.reports.terminal import Line

_INDENT = "  "


def model_lines(calibration: Calibration, limits: Limits) -> list[Line]:
    """The figures of one model: spread, what is found, and how equal models end."""
    both = list(zip(calibration.series, calibration.figures, strict=True))
    sampling, seconds = calibration.sampling, calibration.seconds[-1]
    title = (
        f"{calibration.model}: {sampling.looks[-1]} blocks of {sampling.per_block} pairs against a copy of itself "
        f"in {units.seconds(seconds)}"
    )
    out: list[Line] = [(title, ("bold",)), *_plain(_spreads(both))]
    gated = [(series, figures) for series, figures in both if not series.excluded]
    out += [(f"{_INDENT}{_name(series)}: {_OFF_1}", ("yellow",)) for series, f in gated if not _holds_1(f)]
    out += _plain(
        f"{_name(series)}: {series.excluded}; no limit is proposed from it"
        for series, _ in both
        if series.excluded
    )
    out += _plain([f"energy: unmeasured ({calibration.unmeasured})"] if calibration.unmeasured else [])
    out += _plain([_surroundings(sampling), *calibration.notes, ""])
    if gated:
        out += _plain([*_found(calibration, gated, limits), "", *_equal(gated, limits), ""])
    return out


_OFF_1 = (
    "the interval does not hold 1. Chance alone does that to one in 20; where it happens again, something favours "
    "one of two equal models."
)


def _plain(texts: Iterable[str]) -> list[Line]:
    return [(f"{_INDENT}{text}".rstrip(), ()) for text in texts]


def _name(series: Series) -> str:
    names = {"time": series.source, "wall": "wall time"}
    return names.get(series.axis, f"{MARK.get(series.method, '')}energy by {series.source}")


def _holds_1(figures: Figures) -> bool:
    return (figures.ratio.low or 0.0) <= 1 <= (figures.ratio.high or math.inf)


def _spreads(both: Sequence[tuple[Series, Figures]]) -> list[str]:
    rows = [("", "sd of a pair", "sd between blocks", "copy / reference [95 %]")]
    for series, figures in both:
        between = figures.spread.between
        rows.append(
            (
                _name(series),
                units.percent(figures.spread.pair, signed=False),
                units.percent(between, signed=False),
                units.ratio(figures.ratio.value, figures.ratio.low, figures.ratio.high),
            )
        )
    return _table(rows)


def _surroundings(sampling: Sampling) -> str:
    share = sampling.wall_over_cpu
    wall = "" if share is None else f"wall / process CPU time of the reference {units.significant(share)}; "
    pairs = sampling.looks[-1] * sampling.per_block + sampling.replaced
    if not sampling.replaced + sampling.disturbed:
        return f"{wall}none of {pairs} pairs was disturbed from outside"
    return (
        f"{wall}{sampling.replaced + sampling.disturbed} of {pairs} pairs were disturbed from outside "
        f"({', '.join(sampling.disturbances)}): {sampling.replaced} measured again, {sampling.disturbed} kept"
    )


def _found(calibration: Calibration, gated: Sequence[tuple[Series, Figures]], limits: Limits) -> list[str]:
    """What so many blocks find, and how long they take."""
    sampling = calibration.sampling
    names = [f"{_name(series)}, {_gates(gates)}" for series, _ in gated for gates in GATES]
    rows: list[tuple[str, ...]] = [("blocks", "pairs", "takes", *names)]
    for look, seconds in zip(sampling.looks, calibration.seconds, strict=True):
        cells = [_increase(figures, look, i) for _, figures in gated for i in range(len(GATES))]
        rows.append((str(look), str(look * sampling.per_block), units.seconds(seconds), *cells))
    limit = units.percent_limit(limits.limit)
    title = f"smallest increase found, in {100 * FOUND:g} % of replays, with a limit of {limit}"
    few = any(math.isinf(value) for _, figures in gated for row in figures.found for value in row)
    return [title, *_table(rows), *(["-: so few blocks can fail no gate"] if few else [])]


def _increase(figures: Figures, look: int, column: int) -> str:
    """An increase at a number of blocks; a meter that failed at times has fewer of them."""
    found = dict(zip(figures.blocks, figures.found, strict=True)).get(look)
    return "-" if found is None or math.isinf(found[column]) else units.percent(found[column])


def _equal(gated: Sequence[tuple[Series, Figures]], limits: Limits) -> list[str]:
    rows: list[tuple[str, ...]] = [("", "failed", "inconclusive", "passed")]
    for series, figures in gated:
        for gates, shares in zip(GATES, figures.equal, strict=True):
            ended = (shares.failed, shares.inconclusive, shares.passed)
            rows.append(
                (
                    f"{_name(series)}, {_gates(gates)}",
                    *(units.percent(share, signed=False) for share in ended),
                )
            )
    limit, resolve = units.percent_limit(limits.limit), units.percent_limit(limits.resolve)
    return [f"equal models in {REPLAYS} replays, with limits of {limit} and {resolve}", *_table(rows)]


def _gates(count: int) -> str:
    return "1 gate" if count == 1 else f"{count} gates"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


# Limits -----------------------------------------------------------------------------------------------------


def proposal_lines(
    proposal: Proposal | None, calibrations: Sequence[Calibration], threads: int
) -> list[Line]:
    """The ini snippet, and what to do where the machine is too noisy for the defaults."""
    if not any(not series.excluded for c in calibrations for series in c.series):
        return [("Nothing that was measured is gated here, so no limits are proposed.", ("yellow",))]
    if proposal is None:
        text = "No limit up to 100 % holds on this machine."
        return [(text, ("red",)), *_plain(_advice(calibrations, threads))]
    out: list[Line] = []
    if proposal.regression > DEFAULTS.limit or proposal.resolve > DEFAULTS.resolve:
        defaults = f"{units.percent_limit(DEFAULTS.limit)} and {units.percent_limit(DEFAULTS.resolve)}"
        out = [(f"This machine is too noisy for the default limits of {defaults}.", ("yellow",))]
        out += [*_plain(_advice(calibrations, threads)), ("", ())]
    out += [("Limits that hold here, for pytest.ini:", ("bold",)), ("", ())]
    return out + [(text, ()) for text in snippet(proposal, calibrations)]


def snippet(proposal: Proposal, calibrations: Sequence[Calibration]) -> list[str]:
    """Lines of an ini file; comments stand on lines of their own, since pytest takes others for values."""
    longest = units.seconds(max(calibration.seconds[-1] for calibration in calibrations))
    passed, found = (units.percent(share, signed=False) for share in (proposal.passed, proposal.found))
    resolve = units.percent_limit(proposal.resolve)
    return [
        "[pytest]",
        f"# None of {REPLAYS} replays of equal models failed.",
        f"llm_regression = {_ini(proposal.regression)}",
        f"# Equal models passed in {passed} of replays, and {resolve} more was found in {found}.",
        f"llm_resolve = {_ini(proposal.resolve)}",
        f"# So many pairs were measured here, in at most {longest} a model.",
        f"llm_max_rounds = {proposal.max_rounds}",
    ]


def _ini(fraction: float) -> str:
    return units.percent_limit(fraction).replace(" ", "")


def _advice(calibrations: Sequence[Calibration], threads: int) -> list[str]:
    """What disturbed the pairs, and what helps."""
    seen: Counter[str] = Counter()
    for words in (words for calibration in calibrations for words in calibration.sampling.disturbances):
        kind, _, count = words.rpartition(" ")
        seen[kind] += int(count)
    named = ", ".join(f"{kind} {count}" for kind, count in seen.most_common())
    most = max(c.sampling.looks[-1] * c.sampling.per_block for c in calibrations)
    helps = [f"one thread (--llm-threads 1, now {threads})"] if threads > 1 else []
    helps += [
        "fewer neighbours on the machine",
        "longer windows (--llm-window)",
        f"more rounds (--llm-max-rounds {2 * most})",
    ]
    return [
        f"disturbed by: {named}" if named else "no disturbance from outside was noticed",
        f"what helps: {', '.join(helps)}; then calibrate again",
    ]
