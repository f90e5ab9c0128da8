"""The lease of a device: who works does so beside others, who measures is alone, and whoever dies lets go."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest

pytest.importorskip("fcntl", reason="this system has no record locks")

from pytest_llmslim import lease as room
from pytest_llmslim.deadline import Deadline
from pytest_llmslim.errors import TimeLimitError
from pytest_llmslim.lease import CROWDED, FORKED, Lease

OTHER = """
import contextlib, os, sys, time
from pathlib import Path
from pytest_llmslim.lease import Lease

lease, held = Lease(Path(sys.argv[1]), sys.argv[2]), []
for line in sys.stdin:
    word = line.strip()
    if word in ("shared", "exclusive"):
        stack = contextlib.ExitStack()
        stack.enter_context(getattr(lease, word)())
        held.append(stack)
    elif word == "release":
        before = time.monotonic_ns()
        held.pop().close()
        print(before, flush=True)
        continue
    elif word == "leave a child":
        if not os.fork():
            os.close(1)
            time.sleep(60)
            os._exit(0)
    print(time.monotonic_ns(), flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "leases"


@pytest.fixture
def other(folder):
    """Starts processes that take and release the lease as they are told."""
    with contextlib.ExitStack() as stack:

        def start(device="machine"):
            return stack.enter_context(Other(folder, device))

        yield start


class Other:
    """A process with a share in the lease."""

    def __init__(self, folder, device):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def begin(self, word):
        """Ask for something without waiting for it."""
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def answer(self):
        """When it was done, in monotonic nanoseconds."""
        return int(self.process.stdout.readline())

    def do(self, word):
        self.begin(word)
        return self.answer()


def settle():
    """Time enough for a request to be made, so that what must not be granted could have been."""
    time.sleep(4 * room.EVERY_S)


def test_many_work_side_by_side(other):
    """A share is no hindrance to a share."""
    first, second = other(), other()
    first.do("shared")
    second.do("shared")


def test_who_measures_waits_for_those_who_work_and_they_for_it(other):
    """Each in its turn, whoever comes first."""
    worker, meter = other(), other()
    worker.do("shared")
    meter.begin("exclusive")
    settle()
    worked_until = worker.do("release")
    measured_from = meter.answer()
    worker.begin("shared")
    settle()
    measured_until = meter.do("release")
    assert worked_until < measured_from < measured_until < worker.answer()


def test_devices_have_leases_of_their_own(other):
    """Workers on two GPUs measure at the same time."""
    first, second = other("GPU-aaaa"), other("GPU/bbbb")
    first.do("exclusive")
    second.do("exclusive")


def until_one_waits_to_measure(folder):
    """Returns when a process keeps the turn; this one may hold no lease meanwhile."""
    import fcntl

    with (folder / "machine.turn").open("r+b") as turn:
        while True:
            try:
                fcntl.lockf(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            fcntl.lockf(turn, fcntl.LOCK_UN)
            time.sleep(room.EVERY_S)


def test_two_who_work_and_want_to_measure_do_so_in_turn(folder, other):
    """Both give up their shares, else each would wait for the other; and both have them back afterwards."""
    first, second, third = other(), other(), other()
    first.do("shared")
    second.do("shared")
    first.begin("exclusive")
    second.begin("exclusive")
    settle()
    (answered,), _, _ = select.select([first.process.stdout, second.process.stdout], [], [], 60)
    early, late = (first, second) if answered is first.process.stdout else (second, first)
    early_began = early.answer()
    until_one_waits_to_measure(folder)
    early.begin("release")
    late_began = late.answer()
    late.begin("release")
    assert early_began < early.answer() < late_began < late.answer()
    third.begin("exclusive")
    settle()
    released = max(first.do("release"), second.do("release"))  # their shares
    assert released < third.answer()


def test_who_waits_to_measure_is_not_starved_by_those_who_work(folder, other):
    """Three workers whose shares always overlap let it in long before they are through."""
    busy = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from pytest_llmslim.lease import Lease
        lease = Lease(Path(sys.argv[1]), "machine")
        for _ in range(150):
            with lease.shared():
                time.sleep(0.03)
        print(time.monotonic_ns())
    """)
    meter = other()
    started = [
        subprocess.Popen([sys.executable, "-c", busy, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    began = meter.do("exclusive")
    ended = meter.do("release")
    through = [int(process.communicate()[0]) for process in started]
    assert began < ended < min(through)


@pytest.mark.parametrize("before", [[], ["leave a child"]], ids=["alone", "with a child"])
@pytest.mark.parametrize("held", ["shared", "exclusive"])
def test_who_dies_lets_go(other, held, before):
    """Killed as it measures or works, also where a child of it lives on."""
    victim, heir = other(), other()
    victim.do(held)
    for word in before:
        victim.do(word)
    heir.begin("exclusive")
    settle()
    victim.process.kill()
    heir.answer()


def test_who_dies_waiting_lets_the_others_through(other):
    """Its turn is free again."""
    worker, victim, heir = other(), other(), other()
    worker.do("shared")
    victim.begin("exclusive")
    settle()
    victim.process.kill()
    heir.do("shared")


@pytest.mark.parametrize(
    ("outer", "inner"), [("shared", "shared"), ("exclusive", "exclusive"), ("exclusive", "shared")]
)
def test_the_lease_is_not_taken_twice(folder, outer, inner):
    """Only a share can be turned into measuring alone; all else is a mistake of ours."""
    lease = Lease(folder, "machine")
    with getattr(lease, outer)(), pytest.raises(RuntimeError, match=f"held {outer} already"):
        getattr(lease, inner)().__enter__()
    with lease.shared(), lease.exclusive() as reason:
        assert reason == ""
    lease.close()


def test_an_error_while_measuring_gives_the_share_back(folder, other):
    """The test goes on to its teardown, which is work."""
    lease, meter = Lease(folder, "machine"), other()
    with lease.shared():
        with contextlib.suppress(ValueError), lease.exclusive():
            raise ValueError
        meter.begin("exclusive")
        settle()
        ended = time.monotonic_ns()
    assert ended < meter.answer()
    lease.close()


@pytest.mark.parametrize("wanted", ["shared", "exclusive"])
def test_a_wait_can_be_interrupted(folder, other, wanted):
    """Ctrl-C, as a real signal; afterwards the turn is free for others."""
    lease, meter, third = Lease(folder, "machine"), other(), other()
    meter.do("exclusive")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            getattr(lease, wanted)().__enter__()
    finally:
        signal.signal(signal.SIGALRM, before)
    meter.do("release")
    third.do("exclusive")
    lease.close()


def test_ctrl_c_while_measuring_does_not_wait_for_a_share(folder, other):
    """The run ends, and another may hold the lease for an hour."""
    lease, meter = Lease(folder, "machine"), other()
    with contextlib.suppress(KeyboardInterrupt), lease.shared(), lease.exclusive():
        meter.begin("exclusive")
        settle()
        raise KeyboardInterrupt
    meter.answer()
    lease.close()


def test_patience_ends(folder, other, monkeypatch):
    """Where two tests wait for each other, cost is given up with the reason, and work goes on."""
    monkeypatch.setattr(room, "PATIENCE_S", 0.0)
    lease, worker, meter = Lease(folder, "machine"), other(), other()
    worker.do("shared")
    with lease.shared():
        with lease.exclusive() as reason:
            assert reason == CROWDED
        worker.do("release")
        meter.begin("exclusive")
        settle()
        ended = time.monotonic_ns()
    assert ended < meter.answer()
    lease.close()
    assert CROWDED == (
        "cost is not measured: other workers did not come to rest within 60 minutes; "
        "run without -n, or see what they wait for"
    )


def test_a_forked_test_is_not_timed(folder):
    """Its parent holds the share and waits for it: they would wait for each other."""
    code = textwrap.dedent("""
        import json, os, sys
        from pathlib import Path
        from pytest_llmslim.lease import Lease
        lease = Lease(Path(sys.argv[1]), "machine")
        with lease.shared():
            if not os.fork():
                with lease.exclusive() as reason:
                    print(json.dumps(reason), flush=True)
                os._exit(0)
            os.wait()
    """)
    result = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(result.stdout) == FORKED
    assert FORKED.startswith("cost is not measured in a process that pytest's worker has forked")


def test_the_folder_is_this_users_only(folder):
    """It may lie where everybody can write."""
    Lease(folder, "a/b").close()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {"a_b.work", "a_b.turn"}


def test_waiting_does_not_count_against_the_time_limit(folder, other):
    """A test that waits longer than it may run is not stopped; one that runs longer is."""
    lease, meter = Lease(folder, "machine"), other()
    meter.do("exclusive")
    meter.process.stdin.write("release\n")  # read at once, so it is held up by a stopped process
    os.kill(meter.process.pid, signal.SIGSTOP)
    meter.process.stdin.flush()
    resume = subprocess.Popen(
        [sys.executable, "-c", f"import os, time; time.sleep(0.6); os.kill({meter.process.pid}, 18)"]
    )
    with Deadline("int4 on gpt2", 0.2, lambda: lease.waited_s).enforced(), lease.shared():
        pass
    assert lease.waited_s > 0.2
    with pytest.raises(TimeLimitError), Deadline("x", 0.05, lambda: lease.waited_s).enforced():
        time.sleep(60)
    resume.wait()
    lease.close()
