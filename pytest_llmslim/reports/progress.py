"""What is seen while a run goes on: one moving line on a terminal, plain lines in a log.

pytest captures output during a test, so everything is written while capture is off. A terminal shows the line below
pytest's own line of dots, and wipes it; a log gets whole lines, which stay.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pytest_llmslim import units
from pytest_llmslim.records import worst

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pytest_llmslim.pairs import Progress
    from pytest_llmslim.records import Estimate, Record

DRAWN_EVERY_S = 0.2
LOGGED_EVERY_S = 30.0
"""A test that takes longer than this says in a log where it is."""

_BELOW = "\x1bD\x1b[A\x1b7\r\n\x1b[K"
"""Make room below (at the bottom of the screen all moves up), keep the cursor, and clear the line below."""
_BACK = "\x1b8"


class Screen(Protocol):
    """Where progress is shown. Texts have no line break."""

    def moving(self, text: str, end: str = "", *, now: bool = False) -> None:
        """Show what is going on, in a text and the end of it that is kept where there is little room.

        It may be passed over when the last text is recent, but not with `now`.
        """

    def wipe(self) -> None:
        """Show nothing any more of what was going on."""

    def finished(self, text: str, end: str = "") -> None:
        """Show how a test ended, with a text and its end as in `moving`."""


class Terminal:
    """The line below pytest's own, redrawn at most five times a second and never wider than the terminal.

    Args:
        reporter: pytest's terminal reporter.
        capture: pytest's capture manager, or `None`.
    """

    def __init__(self, reporter: Any, capture: Any) -> None:  # noqa: ANN401
        self._reporter, self._capture = reporter, capture
        self._drawn, self._shown = -math.inf, False

    def moving(self, text: str, end: str = "", *, now: bool = False) -> None:
        """Draw the line anew."""
        if now or time.monotonic() - self._drawn > DRAWN_EVERY_S:
            self._draw(text, end)

    def wipe(self) -> None:
        """Clear the line."""
        if self._shown:
            self._draw("")

    def finished(self, text: str, end: str = "") -> None:
        """Only where tests run elsewhere: here the dot says it, and the line is of the next test."""

    def _draw(self, text: str, end: str = "") -> None:
        with _uncaptured(self._capture):
            writer = self._reporter._tw
            # Asked every time, and while standard output is the terminal's: its user may resize it.
            shown = fitted(text, writer.fullwidth, end)
            line = writer._current_line  # pytest reckons its percentage from it
            writer.write(f"{_BELOW}{shown}{_BACK}", flush=True)
            writer._current_line = line
        self._drawn, self._shown = time.monotonic(), bool(text)


class Elsewhere(Terminal):
    """The same where xdist's workers run the tests: the line tells of the test that ended last."""

    def finished(self, text: str, end: str = "") -> None:
        """Draw it."""
        self._draw(text, end)


class Log:
    """Plain lines of their own among pytest's dots.

    Args:
        reporter: pytest's terminal reporter.
        capture: pytest's capture manager, or `None`.
        verbose: whether pytest writes a line a test.
    """

    def __init__(self, reporter: Any, capture: Any, *, verbose: bool) -> None:  # noqa: ANN401
        self._reporter, self._capture, self._verbose = reporter, capture, verbose
        self._written = time.monotonic()

    def moving(self, text: str, end: str = "", *, now: bool = False) -> None:
        """Write it when nothing was written for `LOGGED_EVERY_S`."""
        if time.monotonic() - self._written >= LOGGED_EVERY_S:
            self._write(text + end)

    def wipe(self) -> None:
        """What is in a log stays there."""

    def finished(self, text: str, end: str = "") -> None:
        """Write it."""
        self._write(text + end)

    def _write(self, text: str) -> None:
        with _uncaptured(self._capture):
            reporter = self._reporter
            if reporter._tw.width_of_current_line:
                reporter.write("\n")
            # pytest begins the line of a test (-v) with a line break; a dot it writes where it stands.
            reporter.write(text if self._verbose else f"{text}\n", flush=True)
            if self._verbose:
                reporter.currentfspath = -2  # pytest's own sign for a line that is not ended yet
        self._written = time.monotonic()


def screen(reporter: Any, capture: Any, verbosity: int, *, workers: bool) -> Screen | None:  # noqa: ANN401
    """Where progress is shown; `None` under `-q` and without a terminal reporter.

    Args:
        reporter: pytest's terminal reporter, or `None`.
        capture: pytest's capture manager, or `None`.
        verbosity: of pytest.
        workers: whether tests run in other processes.
    """
    if reporter is None or verbosity < 0:
        return None
    # With -s, what tests print would run through a moving line.
    shared = capture is None or not capture.is_globally_capturing()
    if not reporter.isatty or shared or os.environ.get("TERM") == "dumb":
        return Log(reporter, capture, verbose=verbosity > 0)
    return (Elsewhere if workers else Terminal)(reporter, capture)


def _uncaptured(capture: Any) -> AbstractContextManager[None]:  # noqa: ANN401
    return contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled()


# Words ------------------------------------------------------------------------------------------------------


def pairs(progress: Progress) -> str:
    """E.g. `pair 12 of 32, perplexity +4.0 % [+3.1, +4.9]`; a classifier has no perplexity."""
    return f"pair {progress.done} of {progress.planned}{_perplexity(progress.perplexity)}"


def _perplexity(ratio: Estimate) -> str:
    if ratio.value is None:
        return ""
    bounds = [
        units.percent(bound - 1).removesuffix(" %")
        for bound in (ratio.low, ratio.high)
        if bound and math.isfinite(bound)
    ]
    return (
        f", perplexity {units.percent(ratio.value - 1)}{f' [{bounds[0]}, {bounds[1]}]' if bounds[1:] else ''}"
    )


class Ended(NamedTuple):
    """How a test of ours ended.

    Args:
        subject: e.g. `int4 on gpt2`.
        outcome: in pytest's words: passed, failed, skipped, error, xfailed, xpassed.
        reason: why, in a line; empty where it passed.
        records: what it measured.
        seconds: that it took.
        taken: whether it was measured by the run that was stopped, and not now.
    """

    subject: str
    outcome: str
    reason: str = ""
    records: tuple[Record, ...] = ()
    seconds: float = 0.0
    taken: bool = False


def ended(test: Ended) -> str:
    """E.g. `int4 on gpt2: passed, ratio 1.040 [1.033, 1.047], opt ~0.897, 5 s`."""
    took = "taken from the run that was stopped" if test.taken else f"{duration(test.seconds)}"
    if not test.records:
        return f"{test.subject}: {test.outcome}{f' ({test.reason})' if test.reason else ''}, {took}"
    several = len(test.records) > 1
    found = [
        f"{record.key.recipe}: {_figures(record)}" if several else _figures(record) for record in test.records
    ]
    return f"{test.subject}: {_outcome(test)}, {'; '.join(part for part in found if part)}, {took}"


def _outcome(test: Ended) -> str:
    """Pytest's word, and the verdict's where that says more."""
    verdict = worst(verdict for record in test.records for verdict in record.verdicts)
    said = verdict in ("inconclusive", "not comparable") and test.outcome == "passed"
    return f"{test.outcome}, {verdict}" if said else test.outcome


def _figures(record: Record) -> str:
    opt = f"opt {units.marked(record.opt)}" if record.opt.known else ""
    ratio = f"ratio {units.estimate(record.perplexity)}" if record.perplexity.known else ""
    return ", ".join(filter(None, (ratio, opt))) or "no perplexity and no opt"


def duration(seconds: float) -> str:
    """Whole seconds up to two minutes, then minutes, from two hours on hours with a half."""
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7170 else f"{round(seconds / 1800) / 2:g} h"


def left(seconds: float | None) -> str:
    """E.g. `, about 3 min left`; nothing where there is no basis for it."""
    if seconds is None:
        return ""
    if seconds < 5:
        return ", a few seconds left"
    return (
        f", about {10 * math.ceil(seconds / 10)} s left"
        if seconds <= 90
        else f", about {duration(max(120, seconds))} left"
    )


def fitted(text: str, columns: int, end: str = "") -> str:
    """As much of a text as fits on a line before its end, control characters left out; `…` is where it was cut.

    The last column stays free: a terminal that has written it may begin a new line. Where not even half of the line
    is left for the text, the end goes too.
    """
    plain, end = units.printable(text), units.printable(end)
    if _width(plain) + _width(end) < columns:
        return plain + end
    if 2 * _width(end) > columns:
        end = ""
    kept, room = "", columns - 2 - _width(end)
    for character in plain:
        room -= _width(character)
        if room < 0:
            break
        kept += character
    return f"{kept}…{end}" if columns > 1 else ""


def _width(text: str) -> int:
    """Columns of a terminal: two for wide characters of East Asia, none for accents."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
