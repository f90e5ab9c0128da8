"""Summaries: records in, text out."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from sample_records import KEY, blocks, quality, record

from pytest_llmslim.records import Integrity, Key, Verdict, no_estimate
from pytest_llmslim.reports.files import row, summary
from pytest_llmslim.reports.progress import Line, progress_of
from pytest_llmslim.reports.terminal import Shown, details, lines, ranked


def named(recipe, **fields):
    """A record under another recipe's name."""
    return record(key=dataclasses.replace(KEY, recipe=recipe), **fields)


def text(*records, unmeasured=(), changes=(), troubles=(), update=False, verbose=False):
    """The summary as one text."""
    shown = Shown(
        tuple(records),
        tuple(unmeasured),
        tuple(changes),
        tuple(troubles),
        "baselines",
        "llm-results",
        update,
        verbose,
    )
    return "\n".join(line for line, _ in lines(shown))


def verdict(outcome, sentence="int4 on m: a sentence.", against="threshold", axis="perplexity"):
    return Verdict(axis, outcome, sentence, against)


def test_a_row_shows_every_axis():
    """Perplexity, its ratio with interval, time, energy, bytes, divergence, opt and verdict."""
    table = text(record())
    assert "1  int4" in table
    for cell in (
        "1.020 [1.015, 1.025]",
        "0.800 [0.800, 0.800]",
        "0.700 [0.700, 0.700]",
        "0.140",
        "0.0120",
        "97.0 %",
        "0.773",
        "passed",
    ):
        assert cell in table


def test_rows_are_ranked_by_opt_and_failures_come_last():
    """The control without energy has no opt and stands below those that have one."""
    good, better = named("good", time=blocks(0.9)), named("better", time=blocks(0.5))
    bad = named("bad", time=blocks(0.1), verdicts=(verdict("failed"),))
    blank = named("blank", energy=())
    assert [r.key.recipe for r in ranked([blank, bad, good, better])] == ["better", "good", "blank", "bad"]


def test_the_winner_is_named():
    """The lowest opt that did not fail; never the control."""
    control = named("identity", time=blocks(0.1), integrity=Integrity("control", "equal"))
    table = text(control, named("int8", time=blocks(0.9)), named("bad", verdicts=(verdict("failed"),)))
    assert "lowest opt: int8 with 0.824; stored bytes fell" in table


def test_a_reference_that_is_best_is_said_to_be():
    """A ranking alone would recommend the least bad."""
    table = text(named("int8", time=blocks(1.5), energy=blocks(1.4)))
    assert "no recipe scores better than the reference (1); lowest opt: int8 with 1.494" in table


def test_estimated_energy_is_marked_wherever_it_is_shown():
    """The ratio and the opt that rests on it carry the mark, and the legend says what it means."""
    table = text(record(energy_method="estimated", energy_source="codecarbon"))
    assert "~0.700" in table
    assert "~0.773" in table
    assert "~ energy is estimated by a model (rapl), not measured" in table
    assert "~" not in text(record())


def test_unmeasured_energy_gives_a_dash_and_its_reason():
    """Never 0."""
    table = text(record(energy=()))
    assert "- energy unmeasured: no energy meter" in table
    row_line = next(line for line in table.split("\n") if line.startswith("1  int4"))
    assert row_line.split()[-2:] == ["-", "passed"]


def test_simulated_candidates_show_no_cost():
    """Weights that are only rounded have no time, energy or bytes."""
    none = no_estimate("half of the weights are zero but stored", method="simulated")
    table = text(
        dataclasses.replace(
            record(time=(), energy=()),
            time=none,
            energy=none,
            stored_bytes=none,
            integrity=Integrity("simulated", "zeros"),
        )
    )
    assert table.count("simulated") >= 3
    assert "simulated: weights are rounded or zeroed but stored and multiplied in full" in table


def test_the_floor_is_shown_where_it_is_known():
    """Perplexity over the grammar's own."""
    table = text(record(floor=30.0))
    assert "floor 30.00" in table
    assert "34.88 (+16.3 % floor)" in table


def test_models_have_tables_of_their_own():
    """Numbers of two models are never ranked against each other."""
    other = record(key=Key("s", "t", "embedded:llama", "int4"))
    table = text(record(), other)
    assert table.count("1  int4") == 2
    assert "embedded:gpt2: 124,000 parameters, 500 kB in float32" in table
    assert "embedded:llama: 124,000 parameters" in table


def test_the_protocol_is_shown():
    """Text, hash, tokens, windows, BOS and the score's formula."""
    shown = text(record())
    assert "text embedded (sha256 abababababab), 6,120 tokens scored in 24 windows of BOS + 255\n" in shown
    assert "profile balanced: opt = Q (0.5 T + 0.5 E), Q = ratio^1.5, lower is better\n" in shown


def test_what_did_not_pass_is_said_in_its_own_sentence():
    """Failures first, then what is undecided, then what cannot be compared."""
    table = text(
        named("a", verdicts=(verdict("not comparable", "C."),)),
        named("b", verdicts=(verdict("failed", "A."),)),
        named("c", verdicts=(verdict("inconclusive", "B."), verdict("passed", "unsaid"))),
    )
    found = [line for line in table.split("\n") if line.endswith((" A.", " B.", " C."))]
    assert found == ["failed: A.", "inconclusive: B.", "not comparable: int4 on embedded:gpt2: C."]
    assert "unsaid" not in table


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("new", "baselines in baselines: 0 compared, 1 new, 0 not comparable in part"),
        ("passed", "baselines in baselines: 1 compared, 0 new, 0 not comparable in part"),
        ("not comparable", "baselines in baselines: 0 compared, 0 new, 1 not comparable in part"),
    ],
)
def test_what_was_compared_is_always_said(outcome, expected):
    """And the next command where nothing is stored yet."""
    table = text(record(verdicts=(verdict(outcome, against="baseline"),)))
    assert expected in table
    assert ("next: add --llm-update" in table) == (outcome == "new")


def test_an_update_prints_what_it_wrote():
    """One line a change."""
    table = text(record(), changes=["int4 on m: perplexity ratio 1.02 -> 1.01"], update=True)
    assert "baselines written to baselines: 1 changes" in table
    assert "  int4 on m: perplexity ratio 1.02 -> 1.01" in table


def test_what_was_not_measured_and_what_could_not_be_written_is_said():
    """A skip or an error is a line, not a gap."""
    table = text(unmeasured=[("gpt2-ah90", "no head qualifies")], troubles=["disk full"])
    assert table.split("\n") == ["not measured: gpt2-ah90: no head qualifies", "disk full"]


def test_details_give_the_provenance_of_every_number():
    """With -v: steps, build cost, sources, per-word and per-byte perplexity, all verdicts."""
    shown = "\n".join(details(record(verdicts=(verdict("passed", "fine."),))))
    assert "built in 1.50 s, energy unmeasured (no meter)" in shown
    assert "(process cpu time)" in shown
    assert "peak memory unmeasured (the peak did not move)" in shown
    assert "passed: fine." in shown
    assert "      built in" in text(record(), verbose=True)


def test_the_summary_file_is_json_with_every_figure():
    """Infinity is written as a word, absent numbers as null with their reason."""
    endless = record(perplexity=quality(math.inf, math.inf, math.inf))
    data = json.loads(json.dumps(summary([endless, record(energy=())], [("x", "why")]), allow_nan=False))
    assert data["outcomes"] == {"passed": 2}
    assert data["rows"][0]["perplexity_ratio"]["value"] == "inf"
    assert data["rows"][1]["energy_ratio"]["reason"] == "no energy meter"
    assert data["unmeasured"] == [{"label": "x", "reason": "why"}]
    assert row(record())["time_ratio"]["value"] == pytest.approx(0.8)


class Terminal:
    """A reporter that keeps what is written."""

    def __init__(self, isatty=True):
        self.isatty, self.written, self._tw = isatty, "", self

    def write(self, text):
        self.written += text

    def flush(self):
        pass


class Capture:
    """Notes that capture was off while something was written."""

    def __init__(self):
        self.entered = 0

    def global_and_fixture_disabled(self):
        import contextlib

        self.entered += 1
        return contextlib.nullcontext()


def test_the_progress_line_moves_and_is_wiped():
    """Pair n of m with the ratio so far; nothing stays after the last pair."""
    terminal, capture = Terminal(), Capture()
    line = Line("int4 on m", terminal, capture)
    line(1, 3, math.log(1.05))
    line(2, 3, 0.0)  # too soon after the first
    line(3, 3, 0.0)
    assert " int4 on m: pair 1 of 3, perplexity +5.00 %" in terminal.written
    assert "pair 2" not in terminal.written
    assert terminal.written.endswith("\x1b7\x1b[K\x1b8")
    assert capture.entered == 2


@pytest.mark.parametrize(
    ("isatty", "verbosity", "worker", "shown"),
    [
        (True, 0, False, True),
        (True, 1, False, True),
        (False, 0, False, False),
        (True, -1, False, False),
        (True, 0, True, False),
    ],
)
def test_progress_is_shown_only_where_somebody_watches(isatty, verbosity, worker, shown):
    """Not in logs, not under -q, not by workers."""
    plugins = {"terminalreporter": Terminal(isatty), "capturemanager": Capture()}

    class Config:
        class pluginmanager:
            getplugin = staticmethod(plugins.get)

        get_verbosity = staticmethod(lambda: verbosity)

    if worker:
        Config.workerinput = {}
    assert (progress_of(Config()) is not None) == shown


def test_a_narrow_terminal_gets_time_and_energy_without_intervals():
    """The perplexity ratio keeps its interval: it is what is gated first."""
    narrow = "\n".join(
        line for line, _ in lines(Shown((record(),), (), (), (), "b", "r", False, False, columns=80))
    )
    assert "1.020 [1.015, 1.025] 0.800 0.700 0.140" in " ".join(narrow.split())


def test_another_machine_is_said_once():
    """Every cost of a run is incomparable for the same reason: one line, and quality's verdict stays in the row."""
    reason = "time is not comparable with the baseline: fingerprint cpu is A now and B there."
    rows = [
        named(
            name,
            label=f"{name} on m",
            verdicts=(
                verdict("passed", against="baseline"),
                verdict("not comparable", f"{name} on m: {reason}", "baseline", "time"),
            ),
        )
        for name in ("int4", "int8")
    ]
    table = text(*rows)
    assert f"not comparable: 2 candidates: {reason}" in table
    assert table.count(reason) == 1
    assert table.count("passed, cost not comparable") == 2
