"""Whole runs under pytest-xdist: cost is measured while the others rest, crashes cost one test, models are grouped."""

from __future__ import annotations

import json
import shutil

import pytest
from own_tests import own_test

from pytest_llmslim.session import BUILT_BESIDE

pytest.importorskip("fcntl", reason="this system has no record locks")

LOGGED = """
import json, os, time
from pathlib import Path

LOG = Path(__file__).with_name("log.jsonl")

def log(what, began):
    line = json.dumps([what, os.environ["PYTEST_XDIST_WORKER"], began, time.monotonic_ns()])
    with LOG.open("a") as file:
        file.write(line + "\\n")
"""
TIMED = """
import time
import pytest
from logged import log

@pytest.fixture(autouse=True)
def _timed_blocks_are_logged(monkeypatch):
    from pytest_llmslim.measure import Duet

    block = Duet._block

    def logged(self, look):
        began = time.monotonic_ns()
        block(self, look)
        log("timed", began)

    monkeypatch.setattr(Duet, "_block", logged)
"""
MEASURED = """
import pytest
import torch

@pytest.mark.parametrize("n", range(3))
def test_it(llm, n):
    llm.measure(lambda model: model.to(torch.bfloat16), label=f"half-{n}")
"""
BUSY = """
import time
import pytest
from logged import log

@pytest.mark.parametrize("n", range(100))
def test_it(n):
    began = time.monotonic_ns()
    while time.monotonic_ns() < began + 100_000_000:
        pass
    log("busy", began)
"""


@pytest.fixture
def parallel(pytester, small, monkeypatch):
    """Runs pytest on the tiny model in workers, with a folder for temporary files of its own."""
    monkeypatch.setenv("TMPDIR", str(pytester.mkdir("temporary")))

    def start(*arguments, workers=2):
        return pytester.runpytest_subprocess(f"-n{workers}", "-p", "no:benchmark", *small(*arguments))

    return start


def log_of(pytester):
    return [json.loads(line) for line in (pytester.path / "log.jsonl").read_text().splitlines()]


def results(pytester):
    lines = (pytester.path / "llm-results/results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def leases(pytester):
    return list((pytester.path / "temporary").glob("llmslim-lease-*"))


# The lease -------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(pytester):
    """One file whose tests are measured, and one whose tests burn CPU time; each goes to a worker of its own."""
    pytester.makeconftest(TIMED + "import pytest_llmslim.bench, pytest_llmslim.meters.carbon")
    pytester.makepyfile(logged=LOGGED, test_busy=BUSY, test_own=MEASURED)


def test_nothing_works_while_another_worker_times(pytester, parallel, beside):
    """Blocks of timed pairs and tests that burn CPU time take turns, whatever the tests are."""
    result = parallel("--dist=loadfile")
    result.assert_outcomes(passed=103)
    timed = [entry for entry in log_of(pytester) if entry[0] == "timed"]
    busy = [entry for entry in log_of(pytester) if entry[0] == "busy"]
    assert {worker for _, worker, *_ in timed}.isdisjoint(worker for _, worker, *_ in busy)
    assert len(timed) == 6
    # They ran at the same time as far as they may: work before, between and after what was timed.
    assert any(timed[0][3] < began < timed[-1][2] for _, _, began, _ in busy)
    for _, _, began, ended in busy:
        assert not [block for block in timed if block[2] < ended and began < block[3]]


def test_cost_is_measured_and_that_of_building_is_not(pytester, parallel):
    """Building is work beside others, so its time would be theirs too."""
    own_test(pytester)
    pytester.makepyfile(
        test_busy="import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_it(n): pass"
    )
    parallel("--llm-eval", "latency(prompts=8,tokens=2)").assert_outcomes(passed=10)
    (record,) = results(pytester)
    assert record["time"]["value"] > 0
    assert record["energy"]["method"] == "estimated"
    assert record["build"]["time_s"]["reason"] == record["build"]["energy_j"]["reason"] == BUILT_BESIDE
    assert record["evaluations"][0]["figures"]
    assert BUILT_BESIDE == "it was built beside other workers; run without -n"


def test_where_nothing_keeps_workers_apart_cost_is_not_measured(pytester, parallel):
    """A system without record locks: the reason stands where the figures would."""
    pytester.makeconftest("import sys\nsys.modules['fcntl'] = None")
    own_test(pytester)
    parallel("--llm-eval", "latency").assert_outcomes(passed=1)
    (record,) = results(pytester)
    sentence = (
        "cost is not measured while 2 workers share the machine and nothing keeps them apart; run without -n"
    )
    assert record["time"]["reason"] == record["energy"]["reason"] == sentence
    assert record["evaluations"][0]["notes"] == [sentence]
    assert record["perplexity"]["value"] > 1


def test_a_run_leaves_nothing_behind(pytester, parallel):
    """The folder of the leases is there for tests of ours in several workers, and goes with the run."""
    found = "bool(glob.glob(tempfile.gettempdir() + '/llmslim-lease-*'))"
    look = f"import glob, tempfile\ndef test_look(): assert {found} is {{}}"
    pytester.makepyfile(test_look=look.format(False))
    parallel().assert_outcomes(passed=1)
    own_test(pytester)
    parallel(workers=1).assert_outcomes(passed=2)
    (record,) = results(pytester)
    assert record["build"]["time_s"]["value"] > 0
    pytester.makepyfile(test_look=look.format(True))
    parallel().assert_outcomes(passed=2)
    assert leases(pytester) == []


@pytest.mark.alone  # other tests beside it would take of its time
def test_waiting_for_the_others_is_no_time_of_the_test(pytester, parallel, beside):
    """A test that waits for another to end may wait longer than it may run."""
    pytester.makeconftest(TIMED + "import pytest_llmslim.bench, pytest_llmslim.meters.carbon")
    busy = BUSY.replace("range(100)", "range(2)").replace("100_000_000", "9_000_000_000")
    pytester.makepyfile(test_busy=busy)
    parallel("--dist=loadfile", "--llm-timeout=7").assert_outcomes(passed=5)


# Crashes ---------------------------------------------------------------------------------------------------

CRASHES = """
import os
import pytest
import torch

@pytest.mark.parametrize("n", range(5))
def test_it(llm, n):
    if n == {n}:
        {how}
    llm.measure(lambda model: model.to(torch.bfloat16), label=f"half-{{n}}")
"""


@pytest.mark.parametrize(
    "how",
    [
        "os._exit(9)",
        "llm._session.meter; llm._session._lease.exclusive().__enter__(); os._exit(9)",
    ],
    ids=["working", "measuring"],
)
def test_a_crash_costs_one_test(pytester, parallel, how):
    """The others are measured, the lease is free, the summary names the test, and no folder is left."""
    pytester.makepyfile(test_own=CRASHES.format(n=1, how=how))
    result = parallel()
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["not measured: tiny-gpt2: worker 'gw?' crashed while running *test_it*1*"])
    assert sorted(record["key"]["recipe"] for record in results(pytester)) == [
        f"half-{n}" for n in (0, 2, 3, 4)
    ]
    assert all(record["time"]["value"] for record in results(pytester))
    summary = json.loads((pytester.path / "llm-results/summary.json").read_text())
    assert len(summary["unmeasured"]) == 1
    assert leases(pytester) == []


def test_an_interrupted_run_keeps_what_was_measured(pytester, parallel):
    """Ctrl-C while one worker waits for the other: records that had arrived are there."""
    pytester.makeconftest("import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)")
    interrupt = """
        import signal, time
        log = pathlib.Path("llm-results/results.jsonl")
        while not log.exists():
            time.sleep(0.1)
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    """
    pytester.makepyfile(
        test_own="import pathlib\n"
        + CRASHES.format(n=4, how=interrupt.strip().replace("\n        ", "\n        "))
    )
    result = parallel()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert results(pytester)
    assert json.loads((pytester.path / "llm-results/summary.json").read_text())["interrupted"]
    assert leases(pytester) == []


# Groups ----------------------------------------------------------------------------------------------------

GROUPED = """
import pytest

@pytest.mark.llm(recipe="int8")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_ours(llm_case, n, record_property):
    record_property("ran", 1)

@pytest.mark.llm(recipe="int8")
@pytest.mark.xdist_group("mine")
def test_grouped(llm_case):
    pass
"""


def test_loadgroup_groups_by_model_or_says_that_it_does_not(pytester, parallel, tiny_folder):
    """The pair of pytest 9.2 and pytest-xdist 3.8 ignores groups without a word."""
    second = pytester.path / "second"
    shutil.copytree(tiny_folder, second)
    pytester.makepyfile(test_own=GROUPED)
    result = parallel("--dist=loadgroup", f"--llm-model={second}", "-v")
    result.assert_outcomes(passed=8)
    names = [line.split(" PASSED ")[1].strip() for line in result.outlines if " PASSED " in line]
    workers = {line.split("]")[0] for line in result.outlines if " PASSED " in line}
    if any("@" in name.rpartition("]")[2] for name in names):
        assert {name.rpartition("@")[2] for name in names} == {"tiny-gpt2", "second", "mine"}
        assert len(workers) <= 2
        result.stdout.no_fnmatch_line("*grouped nothing*")
    else:
        result.stdout.fnmatch_lines(
            [
                "--dist loadgroup grouped nothing here (pytest * ignores the groups of pytest-xdist *, its issue "
                "1386), so each worker may load each model; use --dist loadfile, or pytest below 9.2."
            ]
        )


def test_keys_know_nothing_of_groups(pytester, parallel):
    """A baseline written without xdist is that of the same test in a group."""
    own_test(pytester)
    parallel("--dist=loadgroup").assert_outcomes(passed=1)
    (record,) = results(pytester)
    assert record["key"] == {
        "model": "tiny-gpt2",
        "recipe": "int8",
        "suite": "test_own",
        "test": "test_ships",
    }
