"""One line that moves while pairs are measured, on a terminal only.

pytest captures output during a test; the line is written while capture is off, and wiped at the end.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


EVERY_S = 0.2


def progress_of(config: pytest.Config) -> Callable[[str], Line] | None:
    """A maker of progress lines, or `None` where nobody watches: no terminal, `-q`, an xdist worker."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    if reporter is None or capture is None or hasattr(config, "workerinput"):
        return None
    if config.get_verbosity() < 0 or not reporter.isatty:
        return None
    return lambda subject: Line(subject, reporter, capture)


class Line:
    """The moving line of one measurement."""

    def __init__(self, subject: str, reporter: Any, capture: Any) -> None:  # noqa: ANN401
        self.subject, self.reporter, self.capture = subject, reporter, capture
        self.last = 0.0

    def __call__(self, done: int, pairs: int, log_ratio: float) -> None:
        """Show pairs done and the perplexity ratio so far (NaN: there is none); wipe the line after the last pair.

        `pairs` is the number up to the next look: it grows while a gate is undecided, and only a measurement
        that is over has done them all.
        """
        text = f"pair {done} of {pairs}"
        text += "" if math.isnan(log_ratio) else f", perplexity {100 * math.expm1(log_ratio):+.2f} %"
        self._show(f" {self.subject}: {text}" if done < pairs else "")

    def say(self, what: str) -> None:
        """Show what is being done; empty to wipe the line."""
        self._show(f" {what}" if what else "")

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if text and now - self.last < EVERY_S:
            return
        self.last = now
        with self.capture.global_and_fixture_disabled():
            # Save and restore the cursor, so that pytest's own line of dots stays as it was.
            self.reporter._tw.write("\x1b7\x1b[K" + text + "\x1b8")
            self.reporter._tw.flush()
