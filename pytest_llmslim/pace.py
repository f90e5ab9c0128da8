"""How far a run is: what is going on, how many tests of ours have ended, and how long the rest will take.

The time that is left rests on what tests took: the same test in an earlier run of this folder of results, a test of
the same recipe in this one, any test of this one. Where there is none of them, nothing is said.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llmslim.reports import progress
from pytest_llmslim.reports.progress import Ended
from pytest_llmslim.state import COLLECTED, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pytest

    from pytest_llmslim.pairs import Progress
    from pytest_llmslim.records import Record
    from pytest_llmslim.reports.progress import Screen

DURATIONS = "durations.json"
"""In the folder of results: seconds that each test took when it was last measured."""
LEAST_S = 1e-3


class Pace:
    """What tests took, and so what is left.

    Args:
        planned: keys of the tests of this run (suite, test, model, recipe), in order.
        before: seconds by name (see `name_of`) in an earlier run.
        workers: processes that run tests.
        clock: in seconds.
    """

    def __init__(
        self,
        planned: Sequence[Sequence[str]] = (),
        before: Mapping[str, float] | None = None,
        workers: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._before, self._workers, self._clock = dict(before or {}), workers, clock
        self._took: dict[str, float] = {}
        self._recipes: dict[str, list[float]] = {}
        self._since = clock()
        self.plan(planned)

    def plan(self, keys: Sequence[Sequence[str]]) -> None:
        """What there is to do: known only to the workers where these run the tests."""
        self._left = {name_of(key): key[3] for key in keys}
        self.total = len(keys)
        self.done = 0

    def ended(self, key: Sequence[str], seconds: float, *, counts: bool = True) -> None:
        """Note a test; one that measured nothing anew does not count for what others will take."""
        self.done += 1
        self._since = self._clock()
        self._left.pop(name_of(key), None)
        if counts:
            self._took[name_of(key)] = seconds
            self._recipes.setdefault(key[3], []).append(seconds)

    def left(self) -> float | None:
        """Seconds until all have ended; `None` where nothing is known to go by."""
        each = [self._expected(name, recipe) for name, recipe in self._left.items()]
        known = [seconds for seconds in each if seconds is not None]
        if not known or len(known) < len(each):
            return None
        if self._workers > 1:
            return sum(known) / self._workers
        running = known[0] - (self._clock() - self._since)
        if running > 0:
            return running + sum(known[1:])
        return sum(known[1:]) or None  # it takes longer than was thought, nobody knows how much

    def _expected(self, name: str, recipe: str) -> float | None:
        if name in self._before:
            return self._before[name] * self._speed()
        alike = self._recipes.get(recipe) or [*self._took.values()]
        return statistics.fmean(alike) if alike else None

    def _speed(self) -> float:
        """Of this run against the earlier one: it may measure more, or the machine be slower."""
        ratios = [
            max(seconds, LEAST_S) / max(self._before[name], LEAST_S)
            for name, seconds in self._took.items()
            if name in self._before
        ]
        return statistics.median(ratios) if ratios else 1.0

    def text(self) -> str:
        """The file of durations, those of other tests included."""
        known = {name: round(seconds, 3) for name, seconds in (self._before | self._took).items()}
        return json.dumps(known, indent=1, sort_keys=True) + "\n"


def name_of(key: Sequence[str]) -> str:
    """A test in the file of durations."""
    suite, test, model, recipe = key
    return f"{suite}::{test}[{model}{f'-{recipe}' if recipe else ''}]"


def durations(folder: Path) -> dict[str, float]:
    """What an earlier run left; nothing where it cannot be read: it is only for an estimate."""
    try:
        found = json.loads((folder / DURATIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, float) and 0 <= value < math.inf
    }


class Line:
    """What is going on in one test.

    Args:
        watch: of the run.
        subject: e.g. `int4 on gpt2`.
    """

    def __init__(self, watch: Watch, subject: str) -> None:
        self._watch, self._subject = watch, subject

    def __call__(self, measured: Progress) -> None:
        """Show pairs done and the perplexity ratio so far; wiped when all are."""
        if measured.done == measured.planned:
            self._watch.screen.wipe()
        else:
            self._say(progress.pairs(measured))

    def say(self, what: str) -> None:
        """Show what is being done; empty to show nothing."""
        if what:
            self._say(what)
        else:
            self._watch.screen.wipe()

    def phase(self, what: str) -> None:
        """Show at once what is begun."""
        self._say(what, now=True)

    def _say(self, what: str, *, now: bool = False) -> None:
        text, end = self._watch.counted(f"{self._subject}: {what}", running=True)
        self._watch.screen.moving(text, end, now=now)


@dataclass
class _Phases:
    """What the reports of one test have said so far."""

    key: Sequence[str]
    outcome: str = "passed"
    reason: str = ""
    seconds: float = 0.0
    records: list[Record] = field(default_factory=list)
    taken: bool = False


class Watch:
    """Shows how far a run is.

    Args:
        screen: where.
        pace: of the run.
    """

    def __init__(self, screen: Screen, pace: Pace) -> None:
        self.screen, self.pace = screen, pace
        self._open: dict[str, _Phases] = {}

    def line(self, subject: str) -> Line:
        """What shows the progress of one test."""
        return Line(self, subject)

    def note(self, report: Any, records: Sequence[Record], reason: str) -> None:  # noqa: ANN401  # pytest.TestReport
        """Take what a report of one of our tests says on its set-up, call or teardown.

        Args:
            report: with its attributes `llmslim_key` and `llmslim_taken`.
            records: on it.
            reason: why it did not pass, in a line.
        """
        phases = self._open.setdefault(report.nodeid, _Phases(report.llmslim_key))
        phases.seconds += report.duration
        phases.records += records
        phases.taken |= bool(getattr(report, "llmslim_taken", ()))
        outcome = _outcome(report)
        if outcome != "passed":
            phases.outcome, phases.reason = outcome, reason

    def ended(self, nodeid: str) -> None:
        """Show how a test ended; nothing of tests of others."""
        phases = self._open.pop(nodeid, None)
        if phases is None or len(phases.key) != 4:
            return
        _, test, model, recipe = phases.key
        self.pace.ended(phases.key, phases.seconds, counts=not phases.taken)
        shown = Ended(
            f"{recipe or test} on {model}",
            phases.outcome,
            phases.reason,
            tuple(phases.records),
            phases.seconds,
            phases.taken,
        )
        self.screen.finished(*self.counted(progress.ended(shown)))

    def counted(self, text: str, *, running: bool = False) -> tuple[str, str]:
        """A text with how many of how many before it, and what is left."""
        if not self.pace.total:
            return text, ""
        number = min(self.pace.done + running, self.pace.total)
        over = self.pace.done >= self.pace.total
        return f"[{number}/{self.pace.total}] {text}", "" if over else progress.left(self.pace.left())


def _outcome(report: Any) -> str:  # noqa: ANN401
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    return "error" if report.failed and report.when != "call" else str(report.outcome)


def watch(config: pytest.Config) -> Watch | None:
    """What shows the progress of a run; `None` where nobody watches: under `-q`, without a terminal reporter."""
    plugins = config.pluginmanager
    processes = config.getoption("numprocesses", None) or len(config.getoption("tx", None) or ())
    screen = progress.screen(
        plugins.getplugin("terminalreporter"),
        plugins.getplugin("capturemanager"),
        config.get_verbosity(),
        workers=bool(processes),
    )
    if screen is None:
        return None
    planned = config.stash.get(COLLECTED, {}).get("running", ())
    return Watch(screen, Pace(planned, durations(settings_of(config).results), max(1, processes)))
