"""The codecarbon meter, for real: what it gives, and what it must not do to its surroundings."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from audited import HOOK

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.meters import carbon
from pytest_llmslim.meters.carbon import CodeCarbon, open_codecarbon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llmslim.records import Reading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def meter() -> Iterator[CodeCarbon]:
    opened = open_codecarbon()
    if opened.method != "estimated":
        pytest.skip(f"codecarbon has a counter on this machine: {opened.description}")
    yield opened
    opened.close()


def window(meter: CodeCarbon, seconds: float = 0.25) -> tuple[Reading, float]:
    """A reading, and the seconds around it."""
    began = time.perf_counter()
    meter.start()
    time.sleep(seconds)
    reading = meter.stop()
    return reading, time.perf_counter() - began


def test_a_window_is_an_estimate(meter: CodeCarbon) -> None:
    """A window gives joules above 0 and below what the model's full load allows, labelled estimated."""
    reading, outer_s = window(meter)
    assert reading.value is not None, reading.reason
    tdp, ram = (
        part._tdp if hasattr(part, "_tdp") else part.total_power().W
        for part in meter._tracker._hardware[::-1]
    )
    assert ram * 0.25 * 0.9 < reading.value <= (tdp + ram) * outer_s
    assert (reading.source, reading.method, reading.unit) == ("codecarbon", "estimated", "J")
    assert meter.min_window_s == pytest.approx(0.2)


def test_windows_are_apart(meter: CodeCarbon) -> None:
    """What happens between windows belongs to none: two equal windows give about equal joules."""
    first, _ = window(meter)
    time.sleep(0.3)
    second, _ = window(meter)
    assert first.value is not None
    assert second.value is not None
    assert 0.4 < first.value / second.value < 2.5


def test_the_description_says_what_it_is(meter: CodeCarbon) -> None:
    """People read the model's watts, and that it is no measurement."""
    assert meter.description.startswith("codecarbon model: ")
    assert " W CPU at full load (" in meter.description
    assert meter.description.endswith("watts from a table times time, not a measurement")


def test_too_short_a_window_is_told(meter: CodeCarbon) -> None:
    """Windows under 200 ms hold too few updates of the CPU load."""
    reading, _ = window(meter, 0.01)
    assert reading.method == "unmeasured"
    assert "20 ticks of codecarbon (10.0 ms): it would have to last 200 ms" in reading.reason


def test_nothing_around_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No network, output or file; signal handlers, threads, folder, variables and logger are as before."""
    calls: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *args: calls.append(args))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: calls.append(args))
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("codecarbon")
    logger.setLevel(logging.INFO)
    monkeypatch.setattr(logger, "disabled", False)
    before = [signal.getsignal(number) for number in SIGNALS], dict(os.environ), logger.disabled
    threads = set(threading.enumerate())
    opened = open_codecarbon()
    window(opened)
    folder = Path(opened._folder.name)
    opened.close()
    assert ([signal.getsignal(number) for number in SIGNALS], dict(os.environ), logger.disabled) == before
    assert logger.level == logging.INFO
    assert calls == []
    assert Path.cwd() == tmp_path
    assert list(tmp_path.iterdir()) == []
    assert not folder.exists()
    assert capfd.readouterr() == ("", "")
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=10)
        assert not thread.is_alive()


SCRIPT = (
    HOOK
    + """
import signal, time
handlers = []

def set_handler(number, handler, real=signal.signal):
    handlers.append((number, handler))
    return real(number, handler)

signal.signal = set_handler
before = {number: signal.getsignal(number) for number in signal.valid_signals()}

from pytest_llmslim.meters.carbon import open_codecarbon

meter = open_codecarbon()
for _ in range(2):
    meter.start()
    time.sleep(0.21)
    assert meter.stop().value > 0
meter.close()
assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
assert not handlers, handlers
foreign = [entry for entry in seen if entry[1][0] != "/dev/null"]
assert not foreign, foreign
"""
)


def test_a_process_of_its_own_leaves_no_trace(tmp_path: Path) -> None:
    """Opening, two windows, closing: no network, handler, output, warning, or file, not even for a moment."""
    root = str(Path(carbon.__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-B", "-W", "error::ResourceWarning", "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


class Paced:
    """A tracker whose calls take their time, on a clock of their own."""

    def __init__(self, *, start_s: float, stop_s: float) -> None:
        self.now_ns, self.start_s, self.stop_s = 0, start_s, stop_s
        self._active_task: str | None = None
        self._tasks: dict[str, object] = {}

    def pass_s(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)

    def start_task(self) -> None:
        self.pass_s(self.start_s)

    def stop_task(self) -> types.SimpleNamespace:
        self.pass_s(self.stop_s)
        return types.SimpleNamespace(cpu_energy=1 / 3.6e6, ram_energy=2 / 3.6e6)


def test_its_own_cost_lies_outside_the_window(meter: CodeCarbon, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long codecarbon takes to start and stop, the window is as long as what was run in it."""
    slow = Paced(start_s=5.0, stop_s=7.0)
    monkeypatch.setattr(meter, "_tracker", slow)
    monkeypatch.setattr(meter, "_clock", lambda: slow.now_ns)
    meter.start()
    slow.pass_s(0.19)
    assert "the window of 190 ms is shorter than 20 ticks" in meter.stop().reason
    meter.start()
    slow.pass_s(0.21)
    assert meter.stop().value == pytest.approx(3.0)


def test_a_window_that_failed_is_not_added_to_the_next(
    meter: CodeCarbon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that codecarbon could not stop would go on; it is forgotten, like all that are over."""

    def fails() -> None:
        raise OSError("no /proc/stat")

    with monkeypatch.context() as patched:
        patched.setattr(meter._tracker, "_do_measurements", fails)
        failed, _ = window(meter)
    assert failed.reason == "codecarbon failed at the end of the window: no /proc/stat"
    time.sleep(0.5)
    after, outer_s = window(meter)
    usual, _ = window(meter)
    assert after.value is not None
    assert usual.value is not None
    assert after.value < 2.5 * usual.value, outer_s
    assert meter._tracker._tasks == {}


def test_configuration_that_lies_around_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meter: CodeCarbon
) -> None:
    """Variables and files that would make joules a thousandfold leave model and reading as they are."""
    monkeypatch.setenv("CODECARBON_FORCE_CPU_POWER", "100000")
    monkeypatch.setenv("codecarbon_force_ram_power", "100000")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".codecarbon.config").write_text("[codecarbon]\npue = 1000\ntracking_mode = process\n")
    monkeypatch.chdir(tmp_path)
    hostile = open_codecarbon()
    reading, outer_s = window(hostile)
    hostile.close()
    assert hostile.description == meter.description
    assert reading.value is not None
    assert reading.value < 1000 * outer_s
    assert os.environ["CODECARBON_FORCE_CPU_POWER"] == "100000"


@pytest.mark.parametrize("text", ["no section here", "[codecarbon]\nforce_cpu_power"])
def test_a_broken_configuration_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A configuration file that cannot be parsed does not stop the meter."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".codecarbon.config").write_text(text)
    opened = open_codecarbon()
    opened.close()
    assert opened.stop().reason == "codecarbon was closed"


def test_a_missing_codecarbon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the meter does not open, and leaves the logger as it was."""
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    monkeypatch.setattr(logging.getLogger("codecarbon"), "disabled", False)
    with pytest.raises(MeasurementError, match="codecarbon does not start: import of codecarbon halted"):
        open_codecarbon()
    assert logging.getLogger("codecarbon").disabled is False


def test_an_interrupt_while_it_opens_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C goes through; logger, folder, variables and working directory are as before."""

    def interrupted(tracker: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(carbon, "_steady", interrupted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("codecarbon"), "disabled", False)
    before = dict(os.environ), Path.cwd()
    with pytest.raises(KeyboardInterrupt):
        open_codecarbon()
    assert logging.getLogger("codecarbon").disabled is False
    assert list(tmp_path.iterdir()) == []
    assert (dict(os.environ), Path.cwd()) == before


def test_a_lost_window_is_told(meter: CodeCarbon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that codecarbon lost, which it answers with None, is no energy of 0."""
    tracker = Paced(start_s=0.0, stop_s=0.0)
    monkeypatch.setattr(tracker, "stop_task", lambda: None)
    monkeypatch.setattr(meter, "_tracker", tracker)
    reading, _ = window(meter)
    assert reading.reason == "codecarbon lost the window; it gives no energy for it."


def test_a_counter_of_codecarbon_is_read_without_its_ram_model() -> None:
    """Where codecarbon has a real counter, it is labelled measured, and no modelled RAM is added."""

    class CPU:
        _mode, _tdp = "windows_emi", 65

    tracker = type("Tracker", (), {"_hardware": [CPU()]})()
    assert carbon._label(tracker) == ("measured", "codecarbon's CPU counter (windows_emi), without RAM")
