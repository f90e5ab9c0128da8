"""What `llmslim doctor` finds, and how a probe is kept from failing or hanging."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pytest_llmslim import units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

State = Literal["ok", "limited", "missing"]
PROBE_S: Final = 10.0
"""Most probes take milliseconds; opening an energy meter takes up to four seconds."""
IMPORT_S: Final = 60.0
"""A first import of torch from a slow disk takes half a minute, and is no fault."""
REPORT: Final = "tell the authors of pytest-llmslim what it said"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a probe looked at.

    Args:
        name: of the thing, two or three words.
        state: `ok`, `limited` or `missing`.
        sentence: what was found.
        step: what to do about it; empty: nothing.
        needed: no run can be made unless this is `ok`.
    """

    name: str
    state: State
    sentence: str
    step: str = ""
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Something to look at.

    Args:
        name: stands for what it would have found, where it fails.
        look: gives the findings.
        seconds: after which it is left behind.
    """

    name: str
    look: Callable[[], Sequence[Finding]]
    seconds: float = PROBE_S


def answer(probe: Probe) -> tuple[Finding, ...]:
    """What a probe finds; of one that raises or hangs, a finding that says so. Never raises.

    A probe runs in a thread, which is left behind when it is stuck in a driver or on a network.
    """
    found: list[Sequence[Finding]] = []

    def look() -> None:
        try:
            found.append(probe.look())
        except BaseException as error:  # whatever a library does, the next probe is asked
            why = str(error) or type(error).__name__
            found.append([Finding(probe.name, "limited", f"could not be looked at: {why}", REPORT)])

    thread = threading.Thread(target=look, name=f"llmslim-doctor {probe.name}", daemon=True)
    folder = os.getcwd()
    thread.start()
    thread.join(probe.seconds)
    if not found:
        with contextlib.suppress(OSError):  # codecarbon is opened in a folder of its own
            os.chdir(folder)
        sentence = f"gave no answer within {units.seconds(probe.seconds)}"
        found.append(
            [Finding(probe.name, "limited", sentence, "see whether the device or the network hangs")]
        )
    return tuple(found[0])


def told(name: str, state: State, sentence: str, step: str = "", *, needed: bool = False) -> Finding:
    """A finding from a message that ends in its next step behind a semicolon, as messages here do.

    Args:
        name: see `Finding`.
        state: see `Finding`.
        sentence: the message.
        step: for a message without a next step.
        needed: see `Finding`.
    """
    what, _, then = sentence.rstrip(".").partition("; ")
    return Finding(name, state, what, then or step, needed)
