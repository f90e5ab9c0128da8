"""A lease on a device between processes: many work side by side, or one measures while all others rest.

A readers-writer lock in a folder that the processes share. Who works holds `<device>.work` together with others; who
measures holds it alone, and meanwhile others stand still between two pieces of work. So that somebody who
wants to measure is not passed again and again by those who work, all go through `<device>.turn`: who waits to
measure keeps it, and whoever wants to begin work waits behind.

The locks are POSIX record locks. The system frees them when a process dies, however it dies, also where it leaves
children behind, which a `flock` would outlive in. They are asked for again and again rather than waited for in the
system, so that Ctrl-C, an alarm and the end of patience all interrupt a wait.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EVERY_S = 0.05
"""Between two attempts: the wait costs a few microseconds of another core each, and little is lost at its end."""
PATIENCE_S = 3600.0
"""Who may not measure by then goes on without: two tests may wait for each other, one here and one for a lock of the
user's own."""

CROWDED = (
    f"cost is not measured: other workers did not come to rest within {PATIENCE_S / 60:.0f} minutes; "
    "run without -n, or see what they wait for"
)
FORKED = "cost is not measured in a process that pytest's worker has forked; run without -n, or without forks"


class Lease:
    """This process's share in a device.

    Args:
        folder: of the run, the same for all processes; made if it is not there, for this user only.
        device: any name; those who give the same one share it.

    Raises:
        ImportError: this system has no record locks (Windows).
        OSError: the folder cannot be made, or its file system has no locks.
    """

    def __init__(self, folder: Path, device: str) -> None:
        import fcntl

        self._locks = fcntl
        self._pid = os.getpid()
        self._held: Literal["", "shared", "exclusive"] = ""
        self._waited_s, self._since_s = 0.0, math.nan
        folder.mkdir(mode=0o700, exist_ok=True)
        name = re.sub(r"[^\w-]", "_", device)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        self._work, self._turn = (
            os.open(folder / f"{name}.{what}", flags, 0o600) for what in ("work", "turn")
        )
        self._try(self._turn, fcntl.LOCK_SH)
        self._free(self._turn)

    @property
    def waited_s(self) -> float:
        """Seconds that this process has waited for its lease so far, one that goes on included."""
        now = 0.0 if math.isnan(self._since_s) else time.monotonic() - self._since_s
        return self._waited_s + now

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Work in the body: others work too, and nobody measures.

        Raises:
            RuntimeError: this process holds the lease already.
        """
        if self._held:
            raise RuntimeError(f"the lease is held {self._held} already, and is not taken twice")
        self._take_shared()
        try:
            yield
        finally:
            self._release()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[str]:
        """Measure in the body: all others rest. A share is given up meanwhile, and taken again afterwards.

        Yields:
            Why the others do not rest, as a sentence; empty where they do.

        Raises:
            RuntimeError: this process measures already.
        """
        if self._held == "exclusive":
            raise RuntimeError("the lease is held exclusive already, and is not taken twice")
        if os.getpid() != self._pid:  # the locks stayed with the parent, which waits for this process
            yield FORKED
            return
        worked, ends = self._held == "shared", False
        self._release()  # two who kept their share would wait for each other
        alone = self._take_exclusive()
        if worked and not alone:
            self._take_shared()
        try:
            yield "" if alone else CROWDED
        except (KeyboardInterrupt, SystemExit):
            ends = True
            raise
        finally:
            if alone:
                self._release()
                if worked and not ends:
                    self._take_shared()

    def close(self) -> None:
        """Give up what is held, and the files."""
        self._release()
        for file in (self._work, self._turn):
            with contextlib.suppress(OSError):
                os.close(file)

    def _take_shared(self) -> None:
        def attempt() -> bool:  # never waits with the turn in hand: only who wants to measure does
            try:
                return self._try(self._turn, self._locks.LOCK_EX) and self._try(
                    self._work, self._locks.LOCK_SH
                )
            finally:
                self._free(self._turn)

        self._wait(attempt)
        self._held = "shared"

    def _take_exclusive(self) -> bool:
        until_s = time.monotonic() + PATIENCE_S
        try:
            alone = self._wait(lambda: self._try(self._turn, self._locks.LOCK_EX), until_s) and self._wait(
                lambda: self._try(self._work, self._locks.LOCK_EX), until_s
            )
        finally:
            self._free(self._turn)
        self._held = "exclusive" if alone else ""
        return alone

    def _wait(self, attempt: Callable[[], bool], until_s: float = math.inf) -> bool:
        """Try until it works or time is over; whether it worked."""
        self._since_s = began_s = time.monotonic()
        try:
            while not attempt():
                if time.monotonic() > until_s:
                    return False
                time.sleep(EVERY_S)
            return True
        finally:
            # In this order: an alarm in between finds the wait too long rather than too short.
            self._waited_s += time.monotonic() - began_s
            self._since_s = math.nan

    def _release(self) -> None:
        if os.getpid() == self._pid:
            self._free(self._work)
        self._held = ""

    def _try(self, file: int, how: int) -> bool:
        try:
            self._locks.lockf(file, how | self._locks.LOCK_NB)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as the system likes
            return False
        return True

    def _free(self, file: int) -> None:
        self._locks.lockf(file, self._locks.LOCK_UN)
