"""The time limit of a test: what hangs is interrupted, others' alarms stay theirs, and the next test runs."""

from __future__ import annotations

import re
import signal
import threading
import time

import pytest

from pytest_llmslim import deadline
from pytest_llmslim.deadline import Deadline
from pytest_llmslim.errors import TimeLimitError

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarm")


@pytest.fixture(autouse=True)
def _quick_second_alarm(monkeypatch):
    """Swallowed alarms ring again at once, and every test leaves the alarm as it was."""
    monkeypatch.setattr(deadline, "AGAIN_S", 0.05)
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def sleep():
    time.sleep(60)


def loop():
    while True:
        pass


def deadlock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def swallow_once():
    try:
        sleep()
    except Exception:
        return


def rename():
    try:
        sleep()
    except Exception as error:
        raise ValueError("something failed") from error


def skip():
    try:
        sleep()
    except Exception:
        pytest.skip("does not work here")


@pytest.mark.parametrize(
    ("body", "inside"),
    [
        (sleep, "sleep"),
        (loop, "loop"),
        (deadlock, "deadlock"),
        (swallow_once, "sleep"),
        (rename, "sleep"),
        (skip, "sleep"),
    ],
)
def test_what_hangs_is_interrupted(body, inside):
    """Sleep, loop, deadlock; one who swallows, renames or skips the error does not hide it."""
    with pytest.raises(TimeLimitError) as caught, Deadline("int4 on gpt2", 0.05).enforced():
        body()
    assert re.fullmatch(
        r"int4 on gpt2 took longer than 0\.05 s \(--llm-timeout\) and was stopped, "
        rf"in {inside} \(test_deadline\.py, line \d+\); mend what hangs, or allow more time\.",
        str(caught.value),
    )


def test_the_alarm_rings_until_it_is_heard():
    """Code that catches the error and goes on is interrupted where it does not."""
    rung = []

    def hard_of_hearing():
        while len(rung) < 3:
            try:
                sleep()
            except TimeLimitError:
                rung.append(1)
        sleep()

    with pytest.raises(TimeLimitError), Deadline("x", 0.05).enforced():
        hard_of_hearing()
    assert len(rung) == 3


def test_who_is_in_time_notices_nothing():
    """The body's value and error pass, and nothing rings afterwards."""
    limit = Deadline("x", 0.5)
    with limit.enforced():
        pass
    with pytest.raises(KeyError, match="mine"), limit.enforced():
        raise KeyError("mine")
    time.sleep(0.55)


def test_set_up_and_call_share_one_limit():
    """The deadline is a moment: what the first part used is gone for the second."""
    limit = Deadline("x", 0.5)
    with limit.enforced():
        time.sleep(0.05)
    with pytest.raises(TimeLimitError), limit.enforced():
        sleep()
    with pytest.raises(TimeLimitError), limit.enforced():  # and it stays over
        sleep()


def test_interrupting_by_hand_stays_that():
    """Ctrl-C after the alarm was swallowed is no time limit."""

    def interrupted():
        swallow_once()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Deadline("x", 0.05).enforced():
        interrupted()


@pytest.fixture
def others_alarm():
    """Someone else's handler, as of pytest-timeout; counts how often it rang."""
    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(time.monotonic()))
    yield rung
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_another_alarm_is_put_back(others_alarm):
    """One that is due later still rings, for the time that is left of it."""
    signal.setitimer(signal.ITIMER_REAL, 30, 7)
    with Deadline("x", 20).enforced():
        time.sleep(0.02)
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    assert remaining == pytest.approx(30, abs=10)
    assert remaining < 30
    assert interval == 7
    assert not others_alarm


def test_another_alarm_rings_inside(others_alarm):
    """One that is due earlier, or again and again, rings in time, and ours as well."""
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    with pytest.raises(TimeLimitError), Deadline("x", 0.3).enforced():
        loop()
    assert len(others_alarm) > 1
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    with Deadline("x", 20).enforced():
        time.sleep(0.05)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_another_alarm_that_raises_wins(others_alarm):
    """An outer limit that is tighter than ours ends the test in its own words."""

    def outer(number, frame):
        raise RuntimeError("the outer limit")

    signal.signal(signal.SIGALRM, outer)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    with pytest.raises(RuntimeError, match="the outer limit"), Deadline("x", 20).enforced():
        sleep()
    assert signal.getsignal(signal.SIGALRM) is outer


def test_off_the_main_thread_nothing_is_enforced():
    """The body runs to its end, and there is a reason to tell."""
    told = []

    def run():
        with Deadline("x", 0.01).enforced():
            time.sleep(0.05)
        told.append(deadline.why_not())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert told == ["tests do not run in the main thread, and only that can be interrupted"]


def test_where_there_is_no_alarm(monkeypatch):
    """As on Windows: a reason, and the body runs."""
    assert deadline.why_not() == ""
    monkeypatch.delattr(signal, "setitimer")
    with Deadline("x", 0.001).enforced():
        time.sleep(0.005)
    assert deadline.why_not() == "this system has no alarm that could interrupt a test"
    monkeypatch.undo()
