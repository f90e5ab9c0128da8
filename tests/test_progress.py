"""What is seen while a run goes on: the moving line of a terminal, the lines of a log, and the time that is left."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
import sys
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
from sample_records import record

from pytest_llmslim.pace import Pace, Watch, durations, name_of
from pytest_llmslim.pairs import NO_PERPLEXITY, Progress
from pytest_llmslim.records import Estimate, Verdict, no_estimate
from pytest_llmslim.reports import progress
from pytest_llmslim.reports.progress import Elsewhere, Ended, Log, Terminal, fitted

CLEARED = "\x1bD\x1b[A\x1b7\r\n\x1b[K"


class Writer:
    """What pytest's terminal writer has."""

    def __init__(self, columns=80):
        self.written, self._current_line, self.fullwidth = "", "", columns

    @property
    def width_of_current_line(self):
        return len(self._current_line)

    def write(self, text, flush=False):
        self.written += text
        self._current_line = (self._current_line + text).rpartition("\n")[2]


class Reporter:
    """A terminal reporter on such a writer."""

    def __init__(self, columns=80, isatty=True):
        self._tw, self.isatty, self.currentfspath = Writer(columns), isatty, "test_own.py"
        self.write = self._tw.write


class Capture:
    """Notes how often capture was off; `-s` leaves nothing to switch off."""

    def __init__(self, capturing=True):
        self.off, self.is_globally_capturing = 0, lambda: capturing

    def global_and_fixture_disabled(self):
        self.off += 1
        return contextlib.nullcontext()


def ratio(value=1.04, low=1.031, high=1.049):
    return Estimate(value, low, high, 8, "measured", "windows of text")


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until it is moved."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    return clock


# The moving line --------------------------------------------------------------------------------------------


def test_the_line_is_drawn_below_and_wiped(now):
    """The cursor is put back, capture is off meanwhile, and pytest reckons with the line as it was."""
    reporter, capture = Reporter(), Capture()
    reporter.write("test_own.py ..")
    screen = Terminal(reporter, capture)
    screen.moving("pair 1 of 8")
    screen.moving("pair 2 of 8")  # too soon
    now.now += 0.3
    screen.moving("pair 3 of 8")
    screen.moving("measuring", now=True)
    screen.wipe()
    screen.wipe()  # there is nothing any more
    texts = ["pair 1 of 8", "pair 3 of 8", "measuring", ""]
    assert reporter._tw.written == "test_own.py .." + "".join(f"{CLEARED}{text}\x1b8" for text in texts)
    assert reporter._tw.width_of_current_line == len("test_own.py ..")
    assert capture.off == 4


def test_the_width_is_asked_every_time(now):
    """A terminal may be resized; what is left stays visible where there is room for it."""
    reporter = Reporter(columns=20)
    screen = Terminal(reporter, None)
    for columns, shown in (
        (20, "[1/3] int4 on…, 5 s"),
        (9, "[1/3] i…"),
        (40, "[1/3] int4 on gpt2: pair 1, 5 s"),
    ):
        reporter._tw.fullwidth = columns
        reporter._tw.written = ""
        screen.moving("[1/3] int4 on gpt2: pair 1", ", 5 s", now=True)
        assert reporter._tw.written == f"{CLEARED}{shown}\x1b8"


@pytest.mark.parametrize(
    ("text", "columns", "end", "shown"),
    [
        ("1234567", 8, "", "1234567"),  # the last column stays free
        ("12345678", 8, "", "123456…"),
        ("1234", 8, "end", "1234end"),
        ("12345", 8, "end", "123…end"),
        ("12345678", 8, "the end", "123456…"),
        ("12345678", 2, "", "…"),
        ("12345678", 1, "", ""),
        ("模型模型", 9, "", "模型模型"),
        ("模型模型", 8, "", "模型模…"),
        ("模型模型", 7, "", "模型…"),  # half of a wide character is none
        ("e\u0301e\u0301e\u0301", 4, "", "e\u0301e\u0301e\u0301"),
        ("a\x1b[31mb\nc\td", 20, "", "a[31mbcd"),
    ],
)
def test_a_text_is_cut_to_the_columns_that_it_takes(text, columns, end, shown):
    """Wide characters count two, accents none, and control characters are left out."""
    assert fitted(text, columns, end) == shown


def test_where_workers_run_the_tests_the_line_tells_of_the_last(now):
    """How many of how many, how it ended, and what is left; here it would hide the next test."""
    shown = {}
    for kind in (Terminal, Elsewhere):
        reporter = Reporter()
        kind(reporter, None).finished("[1/3] int4: passed", ", about 3 min left")
        shown[kind] = reporter._tw.written
    assert shown == {Terminal: "", Elsewhere: f"{CLEARED}[1/3] int4: passed, about 3 min left\x1b8"}


# Logs -------------------------------------------------------------------------------------------------------


def test_a_log_gets_whole_lines_between_the_dots(now):
    """At the end of each test, and in a long one every half minute; nothing is ever taken back."""
    reporter = Reporter()
    log = Log(reporter, Capture(), verbose=False)
    reporter.write("test_own.py .")
    log.moving("pair 1", ", left", now=True)
    log.finished("[1/2] int4: passed", ", about 40 s left")
    reporter.write(".")
    now.now += 29.9
    log.moving("pair 2")
    now.now += 0.1
    log.moving("pair 3", ", left")
    log.moving("pair 4")
    log.wipe()
    log.finished("[2/2] int8: failed")
    assert reporter._tw.written.split("\n") == [
        "test_own.py .",
        "[1/2] int4: passed, about 40 s left",
        ".",
        "pair 3, left",
        "[2/2] int8: failed",
        "",
    ]
    assert reporter.currentfspath == "test_own.py"


def test_under_v_pytest_ends_the_line(now):
    """It begins its own with a line break, so that there is no empty one between."""
    reporter = Reporter()
    reporter.write("test_own.py::test_a PASSED [ 50%]")
    Log(reporter, None, verbose=True).finished("[1/2] int4: passed")
    assert reporter._tw.written == "test_own.py::test_a PASSED [ 50%]\n[1/2] int4: passed"
    assert reporter.currentfspath  # true: the line is not ended


@pytest.mark.parametrize(
    ("isatty", "verbosity", "capturing", "term", "workers", "kind"),
    [
        (True, 0, True, "xterm", False, Terminal),
        (True, 1, True, "xterm", False, Terminal),
        (True, 0, True, "xterm", True, Elsewhere),
        (False, 0, True, "xterm", False, Log),
        (True, 0, False, "xterm", False, Log),
        (True, 0, True, "dumb", False, Log),
        (True, -1, True, "xterm", False, type(None)),
        (False, -1, True, "xterm", False, type(None)),
    ],
)
def test_where_progress_is_shown(monkeypatch, isatty, verbosity, capturing, term, workers, kind):
    """A line moves only on a terminal that can, which nobody else writes to; -q shows nothing."""
    monkeypatch.setenv("TERM", term)
    reporter = Reporter(isatty=isatty)
    assert type(progress.screen(reporter, Capture(capturing), verbosity, workers=workers)) is kind
    assert progress.screen(None, None, 1, workers=False) is None


# Words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (ratio(), "pair 12 of 32, perplexity +4.0 % [+3.1, +4.9]"),
        (ratio(0.9, 0.5, 1.2), "pair 12 of 32, perplexity -10.0 % [-50.0, +20.0]"),
        (ratio(1.0, 1.0, 1.0), "pair 12 of 32, perplexity 0.0 % [0.0, 0.0]"),
        (ratio(1.04, 0.0, math.inf), "pair 12 of 32, perplexity +4.0 %"),  # one window
        (no_estimate(NO_PERPLEXITY), "pair 12 of 32"),
    ],
)
def test_pairs_in_words(estimate, shown):
    """With the interval so far; a classifier has no perplexity."""
    assert progress.pairs(Progress(12, 32, estimate)) == shown


def undecided(outcome):
    return record(verdicts=(Verdict("time", outcome, "sentence"),))


@pytest.mark.parametrize(
    ("test", "shown"),
    [
        (
            {"records": (record(),)},
            "int4 on m: passed, ratio 1.020 [1.015, 1.025], opt 0.773, 5 s",
        ),
        (
            {"records": (record(perplexity=no_estimate("none"), opt=no_estimate("none")),)},
            "int4 on m: passed, no perplexity and no opt, 5 s",
        ),
        (
            {"records": (undecided("inconclusive"),)},
            "int4 on m: passed, inconclusive, ratio 1.020 [1.015, 1.025], opt 0.773, 5 s",
        ),
        (
            {"records": (undecided("failed"),), "outcome": "failed", "reason": "too slow"},
            "int4 on m: failed, ratio 1.020 [1.015, 1.025], opt 0.773, 5 s",
        ),
        (
            {"records": (record(),), "taken": True},
            "int4 on m: passed, ratio 1.020 [1.015, 1.025], opt 0.773, taken from the run that was stopped",
        ),
        ({"outcome": "skipped", "reason": "no head"}, "int4 on m: skipped (no head), 5 s"),
        ({}, "int4 on m: passed, 5 s"),
    ],
)
def test_how_a_test_ended_in_words(test, shown):
    """What pytest says, what was measured and how long it took, or why nothing was."""
    assert progress.ended(Ended("int4 on m", **{"outcome": "passed", "seconds": 5.2, **test})) == shown


def test_of_several_candidates_each_is_told():
    """By its name, in one line."""
    several = [record(), record()]
    names = [each.key.recipe for each in several]
    text = progress.ended(Ended("test_two on m", "passed", records=tuple(several)))
    assert [name for name in names if f"{name}: ratio 1.020" in text] == names
    assert text.count("; ") == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (0.0, ", a few seconds left"),
        (4.9, ", a few seconds left"),
        (5.0, ", about 10 s left"),
        (31.0, ", about 40 s left"),
        (89.0, ", about 90 s left"),
        (90.0, ", about 90 s left"),
        (91.0, ", about 2 min left"),
        (120.0, ", about 2 min left"),
        (190.0, ", about 3 min left"),
        (7100.0, ", about 118 min left"),
        (7200.0, ", about 2 h left"),
        (9100.0, ", about 2.5 h left"),
    ],
)
def test_what_is_left_in_words(seconds, shown):
    """In no unit that is shorter than useful, and nothing without a basis."""
    assert progress.left(seconds) == shown


# The time that is left --------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def key(recipe, model="m"):
    return ["test_own", "test_it", model, recipe]


def test_nothing_is_said_before_there_is_a_basis():
    """Neither a test of this run nor an earlier one."""
    assert Pace([key("a"), key("b")]).left() is None
    assert Pace([key("a"), key("b")], {name_of(key("a")): 5.0}).left() is None
    assert Pace([]).left() is None


def test_the_rest_takes_what_the_others_took():
    """The same recipe on another model first, then the mean of all; what runs already counts."""
    clock = Clock()
    pace = Pace([key("a"), key("b"), key("a", "n"), key("c", "n")], clock=clock)
    pace.ended(key("a"), 10.0)
    pace.ended(key("b"), 2.0)
    assert pace.left() == 10 + 6
    clock.now = 4.0
    assert pace.left() == 6 + 6
    clock.now = 11.0
    assert pace.left() == 6
    pace.ended(key("a", "n"), 11.0)
    clock.now = 30.0
    assert pace.left() is None  # the last one takes longer than was thought


def test_an_earlier_run_is_a_basis_from_the_start():
    """And is scaled by how much slower this one is."""
    before = {name_of(key(recipe)): seconds for recipe, seconds in (("a", 5.0), ("b", 20.0), ("c", 1.0))}
    pace = Pace([key("a"), key("b"), key("c")], before, clock=Clock())
    assert pace.left() == 26
    pace.ended(key("a"), 10.0)
    assert pace.left() == 2 * 21


def test_what_was_taken_from_an_earlier_run_is_no_basis():
    """It took no time, and the next test will."""
    pace = Pace([key("a"), key("b")], clock=Clock())
    pace.ended(key("a"), 0.01, counts=False)
    assert (pace.done, pace.left()) == (1, None)
    assert json.loads(pace.text()) == {}


def test_workers_share_the_rest():
    """Each of two takes half of it."""
    pace = Pace([key("a"), key("b"), key("c")], workers=2, clock=Clock())
    pace.ended(key("a"), 8.0)
    assert pace.left() == 8


def test_durations_are_kept_for_the_next_run(tmp_path):
    """Those of tests that did not run this time too; a file that cannot be read is no basis, and no error."""
    pace = Pace([key("a")], {"other": 3.0})
    pace.ended(key("a"), 1.23456)
    path = tmp_path / "durations.json"
    path.write_text(pace.text())
    assert durations(tmp_path) == {"other": 3.0, "test_own::test_it[m-a]": 1.235}
    for text in ("{", "[1]", '{"a": "b"}', '{"a": Infinity, "b": NaN, "c": -1.0, "d": true}'):
        path.write_text(text)
        assert durations(tmp_path) == {}
    assert durations(tmp_path / "none") == {}


def test_a_watch_counts_and_says_what_is_left(now):
    """On the line of a running test, and at its end; without a plan, as in --llm-calibrate, neither."""
    reporter, clock = Reporter(isatty=False), Clock()
    watch = Watch(
        Log(reporter, None, verbose=False), Pace([key("a"), key("b")], {name_of(key("b")): 300}, clock=clock)
    )
    now.now += 31
    watch.line("a on m").phase("loading")
    report = SimpleNamespace(
        nodeid="x", duration=4.0, when="call", outcome="passed", failed=False, llmslim_key=key("a")
    )
    watch.note(report, [record()], "")
    watch.ended("x")
    watch.ended("another's")
    now.now += 31
    watch.line("b on m")(Progress(3, 8, ratio()))
    assert reporter._tw.written.splitlines() == [
        "[1/2] a on m: loading",
        "[1/2] a on m: passed, ratio 1.020 [1.015, 1.025], opt 0.773, 4 s, about 5 min left",
        "[2/2] b on m: pair 3 of 8, perplexity +4.0 % [+3.1, +4.9], about 5 min left",
    ]
    assert Watch(watch.screen, Pace()).counted("loading", running=True) == ("loading", "")


# Whole runs -------------------------------------------------------------------------------------------------

THREE = """
    import pytest

    @pytest.mark.llm(recipes=["int8", "rtn"])
    def test_it(llm):
        llm.measure()

    def test_missing(llm):
        pytest.skip("not today")
"""


def shown(result):
    """The lines from the first test on to the summary."""
    lines = result.outlines
    begin = next(i for i, line in enumerate(lines) if "collected 3 items" in line) + 1
    end = next(i for i, line in enumerate(lines) if "compressed language models" in line)
    return [line for line in lines[begin:end] if line.strip()]


@pytest.mark.parametrize("words", [(), ("--color=yes",), ("-s",), ("--durations=1",)])
def test_a_log_has_a_line_a_test(pytester, run, words):
    """With pytest's dots and percentage as they were, and without a control character."""
    pytester.makepyfile(test_own=THREE)
    result = run(*words)
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in shown(result)]
    patterns = [
        "test_own.py .",
        "[[]1/3] int8 on tiny-gpt2: passed, ratio 1.0* left",
        "s",
        "[[]2/3] test_missing on tiny-gpt2: skipped (not today), 0 s, *left",
        ".",
        "[[]3/3] rtn on tiny-gpt2: passed, ratio * s",
        *([] if "-s" in words else [" *[[]100%]"]),  # pytest has none then
    ]
    assert len(lines) == len(patterns)
    assert [line for line, pattern in zip(lines, patterns, strict=True) if not fnmatch(line, pattern)] == []
    assert "\x1b7" not in result.stdout.str()
    assert "\r" not in result.stdout.str()


def test_a_log_under_v(pytester, run):
    """Below pytest's line of the test, each once."""
    pytester.makepyfile(test_own=THREE)
    lines = shown(run("-v"))
    assert [line.startswith("test_own.py::") for line in lines] == [True, False] * 3
    assert lines[-2].endswith("[100%]")
    assert lines[-1].startswith("[3/3] rtn on tiny-gpt2: passed, ")


@pytest.mark.parametrize("words", [("-q",), ("-p", "no:terminal")])
def test_nothing_is_shown_where_quiet_was_asked_for(pytester, run, words):
    """No line of ours but the summary."""
    pytester.makepyfile(test_own=THREE)
    result = run(*words)
    assert result.ret == 0
    assert "[1/3]" not in result.stdout.str()


def test_a_long_test_says_in_a_log_where_it_is(pytester, run, monkeypatch):
    """What is loaded, built and measured, between the path and the dot."""
    monkeypatch.setattr(progress, "LOGGED_EVERY_S", 0.0)
    monkeypatch.setattr("pytest_llmslim.measure.TOLD_EVERY_S", 0.0)
    pytester.makepyfile(test_own=THREE)
    result = run("--llm-eval=generation")
    result.stdout.fnmatch_lines(
        [
            "?1/3? tiny-gpt2: loading*",
            "?1/3? int8 on tiny-gpt2: building*",
            "?1/3? int8 on tiny-gpt2: evaluation generation*",
            "?1/3? int8 on tiny-gpt2: measuring*",
            "?1/3? int8 on tiny-gpt2: pair 1 of 8, perplexity *",
            "?1/3? int8 on tiny-gpt2: passed, *",
            "?3/3? rtn on tiny-gpt2: building*",
        ]
    )


def test_the_next_run_knows_from_the_start_how_long_it_takes(pytester, run):
    """From the durations in the folder of results."""
    pytester.makepyfile(test_own=THREE)
    run()
    found = json.loads((pytester.path / "llm-results/durations.json").read_text())
    assert set(found) == {
        "test_own::test_it[tiny-gpt2-int8]",
        "test_own::test_it[tiny-gpt2-rtn]",
        "test_own::test_missing[tiny-gpt2]",
    }
    (pytester.path / "llm-results/durations.json").write_text(json.dumps(dict.fromkeys(found, 3600.0)))
    monkey = run("-k", "int8 or rtn", "--llm-timeout=1000")
    monkey.stdout.fnmatch_lines(["?1/2? int8 on tiny-gpt2: passed, *left"])


def test_tests_of_others_have_no_line(pytester, run):
    """Their dots stand as ever."""
    pytester.makepyfile(
        test_plain="def test_a(): pass\ndef test_b(): pass", test_own="def test_c(llm_case): pass"
    )
    lines = shown_all(run())
    assert "test_plain.py .." in "\n".join(lines)
    assert [line for line in lines if line.startswith("[1/1] test_c on tiny-gpt2: passed")]
    assert not [line for line in lines if "test_a" in line or "test_b" in line]


def shown_all(result):
    return [line for line in result.outlines if line.strip()]


def test_the_controller_of_xdist_shows_tests_as_they_end(pytester, small):
    """And its workers show nothing."""
    pytester.makepyfile(test_own=THREE)
    result = pytester.runpytest_subprocess("-n", "2", "-p", "no:benchmark", *small())
    result.assert_outcomes(passed=2, skipped=1)
    lines = [line for line in result.outlines if re.match(r"\[\d/3\]", line)]
    assert [line[:5] for line in lines] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "left" in lines[1]
    assert "left" not in lines[2]
    assert re.search(r"^ +\[100%\]$", result.stdout.str(), re.MULTILINE)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_on_a_terminal_nothing_stays_of_the_moving_line(pytester, small):
    """What a terminal of 60 columns has got ends in a line that was wiped, and none was wider."""
    import fcntl
    import pty
    import termios

    pytester.makepyfile(test_own=THREE)
    words = [sys.executable, "-m", "pytest", "-p", "no:benchmark", "-p", "no:cacheprovider", *small()]
    process, terminal = pty.fork()
    if not process:
        os.chdir(pytester.path)
        os.environ.update(TERM="xterm")
        os.environ.pop("COLUMNS", None)
        os.execv(words[0], words)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    seen = b""
    with contextlib.suppress(OSError):  # Linux says so when the other side is closed
        while chunk := os.read(terminal, 65536):
            seen += chunk
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    text = seen.decode()
    drawn = re.findall("\x1b7[\r\n]+\x1b\\[K([^\x1b]*)\x1b8", text)
    assert [part for part in drawn if "[1/3] int8 on tiny-gpt2: building" in part]
    assert drawn[-1] == ""
    assert max(map(len, drawn)) < 60
    plain = re.sub("\x1bD\x1b\\[A\x1b7[\r\n]+\x1b\\[K[^\x1b]*\x1b8", "", text)
    plain = re.sub("\x1b\\[[0-9;]*m|\x1b\\]9[^\x1b]*\x1b\\\\", "", plain)
    assert re.search(r"test_own\.py \.s\. +\[100%\]", plain)
