"""Candidates that break, hang or are interrupted: what was finished is kept, and the next test runs."""

from __future__ import annotations

import json
import signal
import sys
import time
from types import ModuleType

import pytest

INTERRUPTED = pytest.ExitCode.INTERRUPTED

BREAKING = """
    import os
    import signal

    import pytest
    import torch
    from pytest_llmslim import deadline

    class Strange(Exception):
        pass

    def hang():
        deadline.time.skip()  # the alarm of the time limit rings now
        while True:
            pass

    def interrupt():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass

    def fail():
        raise {error}

    def build(model):
        {in_build}()
        return model

    class Broken(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            if len(inputs["input_ids"][0]) > 2:
                {in_forward}()
            return self.inner(**inputs)

    def wrap(model):
        return Broken(model.to(torch.bfloat16).to(torch.float32))

    @pytest.mark.llm(recipe="int8")
    def test_before(llm):
        llm.measure()

    def test_broken(llm, request):
        llm.measure(build if "{where}" == "build" else wrap)

    def test_behind(llm):
        llm.measure(lambda model: model.to(torch.bfloat16), label="half")
"""


def breaking(pytester, what, where, error="Strange('no idea')"):
    """Three tests, the middle one with a candidate that breaks while it is built or run."""
    pytester.makepyfile(
        test_own=BREAKING.format(
            where=where,
            error=error,
            in_build=what if where == "build" else "str",
            in_forward=what if where == "forward" else "str",
        )
    )


def measured(pytester):
    lines = (pytester.path / "llm-results/results.jsonl").read_text().splitlines()
    return [json.loads(line)["key"]["recipe"] for line in lines]


def summary(pytester):
    return json.loads((pytester.path / "llm-results/summary.json").read_text())


# Broken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["build", "forward"])
@pytest.mark.parametrize("error", ["Strange('no idea')", "SystemExit(3)"])
def test_a_candidate_that_raises_anything_fails_its_own_test_only(pytester, run, where, error):
    """Tests before and behind it are measured and accepted; its own is in the summary with the reason."""
    breaking(pytester, "fail", where, error)
    result = run("--llm-update")
    result.assert_outcomes(passed=2, failed=1)
    assert measured(pytester) == ["int8", "half"]
    assert [row["label"] for row in summary(pytester)["unmeasured"]] == ["tiny-gpt2"]
    assert not summary(pytester)["interrupted"]
    stored = json.loads((pytester.path / "baselines/tiny-gpt2/test_own.json").read_text())
    assert [entry["key"]["recipe"] for entry in stored["records"]] == ["int8", "half"]


# Hanging --------------------------------------------------------------------------------------------------


class Clock(ModuleType):
    """The clock of time limits, which can be moved past every one of them."""

    skipped = 0.0

    def monotonic(self):
        return time.monotonic() + self.skipped

    def skip(self):
        self.skipped += 1e6
        signal.setitimer(signal.ITIMER_REAL, 0.001)


@pytest.fixture
def clock(monkeypatch):
    from pytest_llmslim import deadline

    clock = Clock("time")
    monkeypatch.setattr(deadline, "time", clock)
    return clock


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no alarm")
@pytest.mark.parametrize(("where", "doing"), [("build", "building the candidate"), ("forward", "measuring")])
def test_a_candidate_that_hangs_ends_at_its_time_limit(pytester, run, clock, where, doing):
    """Its test fails with a sentence that says where; the next one loads the model anew and measures."""
    breaking(pytester, "hang", where)
    result = run("--llm-timeout=1000")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "test_broken on tiny-gpt2 took longer than 1000 s (--llm-timeout) and was stopped "
            f"while {doing}, in * (test_own.py, line *); mend what hangs, or allow more time."
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*def hang*")
    assert measured(pytester) == ["int8", "half"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no alarm")
@pytest.mark.parametrize("phase", ["setup", "call"])
def test_the_limit_holds_for_set_up_and_call(pytester, run, phase):
    """A real alarm: a fixture that sleeps is an error, a body that does a failure."""
    pytester.makepyfile(
        test_own="""
        import time
        import pytest

        @pytest.fixture
        def slow(request):
            time.sleep(60 if "setup" in request.config.args[-1] else 0)

        @pytest.mark.parametrize("phase", ["setup", "call"])
        def test_it(llm_case, slow, phase):
            time.sleep(60)
    """
    )
    result = run("--llm-timeout=0.1", f"test_own.py::test_it[tiny-gpt2-{phase}]")
    result.assert_outcomes(**{"errors" if phase == "setup" else "failed": 1})
    result.stdout.fnmatch_lines([f"test_it?{phase}? on tiny-gpt2 took longer than 0.1 s *"])
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_without_an_alarm_the_limit_is_said_to_hold_nothing(pytester, run, monkeypatch):
    """Once in the summary, as on Windows; the tests run."""
    from pytest_llmslim import deadline

    monkeypatch.setattr(deadline, "why_not", lambda: "no alarm")
    pytester.makepyfile(test_own="def test_a(llm_case): pass\ndef test_b(llm_case): pass")
    result = run("--llm-timeout=0.001", "--llm-strict")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    assert result.stdout.str().count("--llm-timeout is not enforced: no alarm.") == 1


def test_tests_of_others_have_no_limit(pytester, run):
    """It is about models that hang."""
    pytester.makepyfile("import time\ndef test_slow(): time.sleep(0.05)")
    run("--llm-timeout=0.001").assert_outcomes(passed=1)


# Interrupted ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT that a process could send itself")
@pytest.mark.parametrize("where", ["build", "forward"])
def test_ctrl_c_keeps_what_was_finished_and_accepts_nothing(pytester, run, small, capsys, where):
    """Exit code 2, finished records in the files, and no baseline, since accepting is deliberate."""
    breaking(pytester, "interrupt", where)
    ended = pytester.inline_run(
        "-p", "no:benchmark", *small("--llm-update", "--llm-strict"), no_reraise_ctrlc=True
    )
    assert ended.ret == INTERRUPTED
    assert measured(pytester) == ["int8"]
    assert summary(pytester)["interrupted"]
    assert summary(pytester)["missing"] == []
    assert not (pytester.path / "baselines").exists()
    out = capsys.readouterr().out
    assert (
        "--llm-update wrote no baseline, since the run was interrupted: let it end, or name the tests that are to "
        "be accepted; what was measured is in llm-results/results.jsonl." in out
    )
    assert "baselines written" not in out


def test_what_the_interrupted_test_had_measured_is_kept_too(pytester, run, small):
    """The first of two candidates of one test is on disk though the test has no report."""
    pytester.makepyfile(
        test_own="""
        import torch

        def test_two(llm):
            llm.measure(lambda model: model.to(torch.bfloat16), label="half")
            raise KeyboardInterrupt
    """
    )
    ended = pytester.inline_run("-p", "no:benchmark", *small(), no_reraise_ctrlc=True)
    assert ended.ret == INTERRUPTED
    assert measured(pytester) == ["half"]


def test_a_run_that_is_killed_keeps_what_was_finished(pytester, small):
    """Every record is on disk as soon as its test has ended."""
    pytester.makepyfile(
        test_own="""
        import os
        import pytest

        @pytest.mark.llm(recipes=["int8", "magnitude"])
        def test_it(llm):
            if llm.candidate.name == "magnitude":
                os._exit(9)
            llm.measure()
    """
    )
    result = pytester.runpytest_subprocess(*small())
    assert result.ret == 9
    assert measured(pytester) == ["int8"]


def test_a_worker_that_is_killed_fails_the_run(pytester, small):
    """The test that ran there fails, its baseline is listed as not measured, and what others measured is kept."""
    from sample_records import record

    from pytest_llmslim.baselines import update
    from pytest_llmslim.records import Key

    update(
        pytester.path / "baselines",
        [record(key=Key("test_own", "test_dies", "tiny-gpt2", "mine"))],
    )
    pytester.makepyfile(
        test_own="""
        import os
        import torch

        def test_lives(llm):
            llm.measure(lambda model: model.to(torch.bfloat16), label="half")

        def test_dies(llm_case):
            os._exit(9)
    """
    )
    result = pytester.runpytest_subprocess("-n", "2", "-p", "no:benchmark", *small())
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["mine on tiny-gpt2 has a baseline for test_dies in test_own and was not measured: *"]
    )
    assert measured(pytester) == ["half"]
