"""A time limit for one test, set-up included: what hangs is interrupted, and the next test runs.

The system's alarm (`setitimer`, SIGALRM) interrupts whatever Python code runs: sleep, a loop, a lock that nobody
releases. It cannot interrupt a single call into compiled code that never returns, e.g. a kernel that hangs on a
GPU; Python handles the alarm when such a call is over.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmslim.errors import TimeLimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

AGAIN_S = 10.0
"""When the alarm rings again: code that catches every error has swallowed it, and what cleans up needs a moment."""
SOON_S = 1e-3
LATER_S = 0.1
"""When the alarm rings next while a test waits, which does not count."""

_ACTIVITIES = (
    ("pytest_llmslim.models.loading", "", "loading a model"),
    ("pytest_llmslim.measure", "", "measuring"),
    ("pytest_llmslim.candidates", "_timed", "building the candidate"),
)
"""Module and function (empty: any) that are at work, and what they do, in words."""


def why_not() -> str:
    """Why time cannot be limited here, as the end of a sentence; empty where it can."""
    if not hasattr(signal, "setitimer"):
        return "this system has no alarm that could interrupt a test"
    if threading.current_thread() is not threading.main_thread():
        return "tests do not run in the main thread, and only that can be interrupted"
    return ""


class Deadline:
    """The moment until which one test may run.

    Args:
        subject: names the test in the error, e.g. `int4 on gpt2`.
        seconds: from now.
        paused: gives seconds that do not count, from any beginning on: those that a test waits for other workers.
    """

    def __init__(self, subject: str, seconds: float, paused: Callable[[], float] | None = None) -> None:
        self.subject, self.seconds = subject, seconds
        self._paused = paused or float
        self._began_s = time.monotonic() - self._paused()
        self._error: TimeLimitError | None = None
        self._over = False

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Interrupt the body at the deadline; does nothing where `why_not()` has a reason.

        The handler and timer of someone else are put back, and theirs still rings in time.

        Raises:
            TimeLimitError: it took too long; also when the body has swallowed that, or made another error of it.
        """
        if why_not():
            yield
            return
        self._over = False
        try:
            try:
                self._arm()
                yield
            finally:  # nested, since the alarm may ring in here
                self._over = True
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a skip, too, would hide that the time was over
            if self._error is None or error is self._error:
                raise
        finally:
            self._disarm()
        if self._error is not None:
            raise self._error from None

    @property
    def _due(self) -> float:
        return self._began_s + self.seconds + self._paused()

    def _arm(self) -> None:
        self._others_handler = signal.getsignal(signal.SIGALRM)
        remaining, self._others_interval = signal.setitimer(signal.ITIMER_REAL, 0)
        self._others_due = time.monotonic() + remaining if remaining else None
        self._next = self._due
        signal.signal(signal.SIGALRM, self._ring)
        self._schedule()

    def _disarm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._others_handler or signal.SIG_DFL)
        if self._others_due is not None:
            remaining = max(self._others_due - time.monotonic(), SOON_S)
            signal.setitimer(signal.ITIMER_REAL, remaining, self._others_interval)

    def _schedule(self) -> None:
        due = min(self._next, self._others_due or self._next)
        signal.setitimer(signal.ITIMER_REAL, max(due - time.monotonic(), SOON_S))

    def _ring(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._others_due is not None and now >= self._others_due:
            self._others_due = now + self._others_interval if self._others_interval else None
            self._schedule()
            if callable(self._others_handler):
                self._others_handler(number, frame)
        if self._error is None and self._due > self._next:
            self._next = max(self._due, now + LATER_S)
        if self._over or now < self._next:
            self._schedule()
            return
        self._next = now + AGAIN_S
        self._schedule()
        if self._error is None:
            self._error = TimeLimitError(self._sentence(frame))
        raise self._error

    def _sentence(self, frame: FrameType | None) -> str:
        doing, where = _activity(frame), _where(frame)
        return (
            f"{self.subject} took longer than {self.seconds:g} s (--llm-timeout) and was stopped"
            f"{f' while {doing}' if doing else ''}{f', {where}' if where else ''}; "
            "mend what hangs, or allow more time."
        )


def _activity(frame: FrameType | None) -> str:
    """What was going on, by the innermost function that is known to do something."""
    while frame is not None:
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        for room, name, words in _ACTIVITIES:
            if module == room and name in ("", function):
                return words
        frame = frame.f_back
    return ""


def _where(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    code: Any = frame.f_code
    return f"in {code.co_name} ({Path(code.co_filename).name}, line {frame.f_lineno})"
