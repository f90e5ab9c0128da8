"""What the head and the tables of the HTML report say: a run in, plain rows and sentences out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_llmslim import units
from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.records import WORST_FIRST
from pytest_llmslim.reports.terminal import about, groups, legend, ranked, winner
from pytest_llmslim.run_records import device_of
from pytest_llmslim.score import LowerIsBetter, quality

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Outcome, Record
    from pytest_llmslim.run_records import Run

GLYPHS: Final[dict[Outcome, str]] = {
    "failed": "✕",
    "inconclusive": "?",
    "not comparable": "≠",
    "new": "+",
    "passed": "✓",
}
"""Beside each word of a verdict, since colour alone says nothing to many."""


class Named(NamedTuple):
    """A record, its id in the page, and a name that no other record of its table has."""

    id: str
    name: str
    record: Record


@dataclass(frozen=True, slots=True)
class Answer:
    """The top of the page: whether it may be shipped.

    Args:
        state: which colour it has.
        word: the answer in a word or two.
        sentence: the verdict on the run.
        notes: what else has to be known at once, a sentence each.
    """

    state: Outcome
    word: str
    sentence: str
    notes: tuple[str, ...] = ()


class Column(NamedTuple):
    """A column of the table of recipes: `key` for the script, `title`, and what it is, in words."""

    key: str
    title: str
    told: str


class Cell(NamedTuple):
    """A cell: what it shows, the value by which it is sorted (`None`: last, whatever the order), its interval."""

    text: str
    value: float | str | None
    bounds: str = ""


class Row(NamedTuple):
    """A recipe in the table."""

    named: Named
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Records that share model, protocol and profile: only these stand in one table.

    Args:
        id: in the page.
        model: its name.
        told: the reference, the protocol and the profile, a sentence each.
        best: which recipe to take and why.
        columns: of the table.
        rows: best first.
        legend: what the marks mean, and why numbers are absent.
    """

    id: str
    model: str
    told: tuple[str, ...]
    best: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    legend: tuple[str, ...]

    @property
    def named(self) -> tuple[Named, ...]:
        """The records, best first."""
        return tuple(row.named for row in self.rows)


# Verdict ----------------------------------------------------------------------------------------------------

_WORDS: Final[dict[Outcome, tuple[str, str]]] = {
    "failed": ("No", "failed"),
    "inconclusive": ("Not sure yet", "inconclusive, and nothing failed"),
    "not comparable": ("Not sure", "not comparable with the baseline in part, and nothing failed"),
    "new": ("Nothing failed, and part is new", "new in part, and nothing failed"),
}


def answer(run: Run) -> Answer:
    """The verdict on a run in one sentence; what was interrupted is never a yes."""
    notes = tuple(_reservations(run))
    records = run.records
    if not records:
        return Answer("inconclusive", "Nothing was measured", "No candidate gave a record.", notes)
    if not any(record.verdicts for record in records):
        return Answer("new", "No verdict", "No rule was held against these records.", notes)
    state = run.outcome
    if state == "passed":
        return _passed(run, notes)
    word, told = _WORDS[state]
    if state == "new" and not _compared(records):
        word, told = "Nothing to compare with yet", "new, without a baseline"
    those = [record for record in records if record.outcome == state]
    sentence = next(v.sentence for v in those[0].verdicts if v.outcome == state)
    if len(records) == 1:
        return Answer(state, word, _sentence(sentence), notes)
    who = f"All {len(records)}" if len(those) == len(records) else f"{len(those)} of {len(records)}"
    verb = "" if state == "failed" else " is" if len(those) == 1 else " are"
    first = "First" if len(those) > 1 else "It says"
    return Answer(state, word, f"{who} candidates{verb} {told}. {first}: {_sentence(sentence)}", notes)


def _compared(records: Iterable[Record]) -> bool:
    """Whether any rule was held against anything but whether it was compressed at all."""
    return any(v.against != "integrity" and v.outcome != "new" for record in records for v in record.verdicts)


def _passed(run: Run, notes: tuple[str, ...]) -> Answer:
    records = run.records
    who = f"All {len(records)} candidates" if len(records) > 1 else records[0].label
    if run.interrupted:
        return Answer("inconclusive", "Not sure yet", f"{who} that were measured passed.", notes)
    if run.unmeasured or run.missing:
        return Answer("passed", "Yes, what was measured", f"{who} passed.", notes)
    return Answer("passed", "Yes", f"{who} passed.", notes)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _reservations(run: Run) -> Iterable[str]:
    if run.interrupted:
        yield "The run was interrupted before its end: what follows is what was measured until then."
    if run.unmeasured:
        count = len(run.unmeasured)
        yield f"{count} {'test' if count == 1 else 'tests'} measured nothing; the reasons stand below."
    if run.missing:
        count = len(run.missing)
        yield f"{count} {'baseline was' if count == 1 else 'baselines were'} compared with nothing; see below."


def counts(records: Iterable[Record]) -> tuple[tuple[Outcome, int], ...]:
    """How many records have each outcome, worst first; outcomes that nobody has are left out."""
    found = Counter(record.outcome for record in records)
    return tuple((outcome, found[outcome]) for outcome in WORST_FIRST if found[outcome])


def best_of(records: Sequence[Record]) -> str:
    """The recipe to take and why, of ranked records; or that none is better than the reference."""
    first = winner(records)
    if first is None:
        reasons = dict.fromkeys(r.opt.reason for r in records if r.outcome != "failed" and not r.opt.known)
        told = f": {next(iter(reasons))}" if reasons else " that did not fail"
        return f"No recipe has a score{told}"
    score = f"{first.key.recipe} with opt {units.marked(first.opt)}"
    parts = [
        f"{name} {units.percent(part.value - 1)}{'' if part.method == 'measured' else f' ({part.method})'}"
        for name, part in (
            ("perplexity" if first.quality is None else "quality lost", first.worsening),
            ("time", first.time),
            ("energy", first.energy),
            ("bytes", first.stored_bytes),
        )
        if part.value is not None
    ]
    told = (f"{score}: {', '.join(parts)}" if parts else score).replace(" %", "\N{NO-BREAK SPACE}%")
    sure = "" if first.outcome != "inconclusive" else "; its verdict is inconclusive"
    if (first.opt.value or 0) < 1:
        failed = any(record.outcome == "failed" for record in records)
        return f"{'Best of those that did not fail' if failed else 'Best'}: {told}{sure}"
    return f"No recipe scores better than the reference (1); lowest is {told}{sure}"


# Tables -----------------------------------------------------------------------------------------------------

_COLUMNS: Final = (
    Column("opt", "opt", "score, lower is better, 1 is the reference"),
    Column("ratio", "perplexity ratio", "candidate / reference with its 95 % interval"),
    Column("time", "time", "candidate / reference with its interval"),
    Column("energy", "energy", "candidate / reference with its interval"),
    Column("bytes", "bytes", "stored bytes, candidate / reference"),
    Column("perplexity", "perplexity", "of the candidate"),
    Column("kl", "KL", "mean divergence from the reference, nats a token"),
    Column("top1", "top-1", "share of tokens with the same likeliest successor"),
)


def tables(run: Run) -> list[Group]:
    """All groups of a run in the order in which they were measured, ids counted through."""
    found, first = [], 0
    for number, records in enumerate(groups(run.records)):
        found.append(_group(f"g{number}", first, ranked(records), several=len(run.devices) > 1))
        first += len(records)
    return found


def _group(name: str, first: int, records: Sequence[Record], *, several: bool) -> Group:
    named = [
        Named(f"r{first + i}", text, record)
        for i, (text, record) in enumerate(zip(names(records), records, strict=True))
    ]
    columns = _columns(records, several=several)
    return Group(
        name,
        records[0].key.model,
        tuple(about(records)),
        best_of(records),
        columns,
        tuple(
            Row(each, tuple(_cell(each, i, column) for column in columns)) for i, each in enumerate(named, 1)
        ),
        tuple(text.removeprefix("- ") for text, _ in legend(records)),
    )


def names(records: Sequence[Record]) -> list[str]:
    """The recipe of each record, with its device or test where another record has the same recipe."""
    found = [record.key.recipe for record in records]
    for told in (
        lambda record: device_of(record.fingerprint),
        lambda record: record.key.test,
        lambda record: record.key.suite,
    ):
        alike = Counter(found)
        tellers = {
            name: {told(r) for r, n in zip(records, found, strict=True) if n == name} for name in alike
        }
        found = [
            f"{name}, {told(record)}" if len(tellers[name]) > 1 else name
            for name, record in zip(found, records, strict=True)
        ]
    return found


def _columns(records: Sequence[Record], *, several: bool) -> tuple[Column, ...]:
    start = [Column("rank", "#", "rank by opt, what failed comes last"), Column("recipe", "recipe", "")]
    start += [Column("device", "device", "on what it was measured")] if several else []
    start.append(Column("verdict", "verdict", "worst of all verdicts"))
    asked = {each.name: each for r in records for each in r.evaluations if each.metric}
    rest = [
        Column(f"eval {name}", f"{name} {each.metric}", "of the candidate") for name, each in asked.items()
    ]
    columns = (*start, *_COLUMNS, *rest)
    return tuple(
        column
        for column in columns
        if column.key not in ("perplexity", "ratio", "kl", "top1") or _any(column.key, records)
    )


def _any(key: str, records: Iterable[Record]) -> bool:
    if key in ("kl", "top1"):
        return any(record.divergence for record in records)
    return any(record.candidate.perplexity is not None or record.perplexity.known for record in records)


def _cell(named: Named, rank: int, column: Column) -> Cell:
    record, key = named.record, column.key
    divergence = record.divergence
    if key.startswith("eval "):
        found = next((e for e in record.evaluations if f"eval {e.name}" == key), None)
        return Cell(units.significant(found.candidate), found.candidate) if found else Cell(units.NONE, None)
    estimates = {"ratio": record.perplexity, "time": record.time, "energy": record.energy}
    if key in estimates:
        text, _, bounds = units.marked(estimates[key], interval=True).partition(" ")
        return Cell(text, estimates[key].value, bounds)
    cells = {
        "rank": Cell(str(rank), rank),
        "recipe": Cell(named.name, named.name),
        "device": Cell(device_of(record.fingerprint), device_of(record.fingerprint)),
        "verdict": Cell(record.outcome, WORST_FIRST.index(record.outcome)),
        "opt": Cell(units.marked(record.opt), record.opt.value),
        "bytes": Cell(units.marked(record.stored_bytes), record.stored_bytes.value),
        "perplexity": Cell(units.significant(record.candidate.perplexity, 4), record.candidate.perplexity),
        "kl": Cell(units.significant(divergence.mean_kl), divergence.mean_kl) if divergence else None,
        "top1": Cell(units.percent(divergence.top1, signed=False), divergence.top1) if divergence else None,
    }
    return cells[key] or Cell(units.NONE, None)


# Machines ---------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """A fingerprint, its id in the page, and how it is called there."""

    id: str
    title: str
    fingerprint: dict[str, str]


def machines(run: Run) -> tuple[Machine, ...]:
    """Each fingerprint once; machines of one name are numbered."""
    found = list({tuple(sorted(r.fingerprint.items())): r.fingerprint for r in run.records}.values())
    alike = Counter(device_of(each) for each in found)
    return tuple(
        Machine(f"m{i}", device_of(each) + (f" ({i + 1})" if alike[device_of(each)] > 1 else ""), each)
        for i, each in enumerate(found)
    )


# For the script ---------------------------------------------------------------------------------------------


def parts(found: Sequence[Group]) -> list[dict[str, Any]]:
    """What the script needs to rank again: the parts of each score, `None` where one is missing.

    `q` is `Q` of the score, `t` and `e` are `T` and `E`; each has its method beside it. Infinity is the string `inf`.
    """
    return [_part(group, named) for group in found for named in group.named]


def _part(group: Group, named: Named) -> dict[str, Any]:
    record = named.record
    worsening = record.worsening
    q = None if worsening.value is None else quality([LowerIsBetter(worsening.value, 1.0)])
    part: dict[str, Any] = to_builtins(
        {
            "id": named.id,
            "group": group.id,
            "model": group.model,
            "name": named.name,
            "device": device_of(record.fingerprint),
            "outcome": record.outcome,
            "control": record.integrity.status == "control",
            "alpha": record.profile.alpha,
            "q": q,
            "t": record.time.value,
            "e": record.energy.value,
            "methods": {"q": worsening.method, "t": record.time.method, "e": record.energy.method},
        }
    )
    return part
