"""Whole runs in which a comparison goes away: each says so, and fails under --llm-strict."""

from __future__ import annotations

import json
import re

import pytest
from sample_records import record

from pytest_llmslim.baselines import update
from pytest_llmslim.records import Key

OK, FAILED = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def stored(pytester):
    """Puts entries into the baselines of the tiny model: test and recipe, in the module test_own."""

    def store(*entries, model="tiny-gpt2", suite="test_own"):
        keys = [Key(suite, test, model, recipe) for test, recipe in entries]
        update(pytester.path / "baselines", [record(key=key) for key in keys])

    return store


def edit_baseline(pytester, change):
    """Change the one stored record."""
    path = pytester.path / "baselines/tiny-gpt2/test_own.json"
    head, line, tail = path.read_text().splitlines()
    entry = json.loads(line)
    del entry["digest"]
    change(entry)
    path.write_text("\n".join([head, json.dumps(entry), tail]) + "\n")


# Entries without a test, tests without a measurement ------------------------------------------------------

QUIET = """
    import pytest

    @pytest.mark.llm(recipe="int8")
    def test_ships(llm):
        pass

    def test_other():
        pass
"""
SKIPS = QUIET.replace("pass", "pytest.skip('no licence here')", 1)
BREAKS = QUIET.replace("pass", "raise OSError('no disk here')", 1)
GONE = (
    "baseline without a test: test_old in test_own (int8 on tiny-gpt2): renamed or removed? *test_own.json."
)
NOT_MEASURED = "int8 on tiny-gpt2 has a baseline for test_ships in test_own and was not measured: "


@pytest.mark.parametrize(
    ("source", "entry", "sentence"),
    [
        (QUIET, ("test_old", "int8"), GONE),
        (QUIET, ("test_ships", "int8"), f"{NOT_MEASURED}its test ended without measuring it."),
        (SKIPS, ("test_ships", "int8"), f"{NOT_MEASURED}no licence here."),
    ],
    ids=["renamed", "not measured", "skipped"],
)
def test_a_comparison_that_went_away_is_listed_and_fails_where_strict(
    pytester, run, stored, source, entry, sentence
):
    """A warning in the summary, exit code 0; under --llm-strict the same and exit code 1."""
    pytester.makepyfile(test_own=source)
    stored(entry)
    for option, code in (("--no-llm-strict", OK), ("--llm-strict", FAILED)):
        result = run(option)
        assert result.ret == code
        result.stdout.fnmatch_lines([sentence])
    summary = json.loads((pytester.path / "llm-results/summary.json").read_text())
    assert len(summary["missing"]) == 1
    assert (pytester.path / "llm-results/results.jsonl").read_text() == ""


def test_a_test_that_failed_before_it_measured_is_listed(pytester, run, stored):
    """Beside its own failure."""
    pytester.makepyfile(test_own=BREAKS)
    stored(("test_ships", "int8"))
    result = run()
    assert result.ret == FAILED
    result.stdout.fnmatch_lines(
        ["not measured: tiny-gpt2-int8: OSError: no disk here", f"{NOT_MEASURED}OSError: no disk here."]
    )


@pytest.mark.parametrize(
    "options",
    [
        ["-k", "other", "test_own.py"],
        ["--deselect", "test_own.py::test_ships", "test_own.py"],
        ["test_own.py::test_other"],
        ["--collect-only"],
        ["--llm-recipe", "int4", "test_own.py"],
        ["test_new.py"],
        ["-x", "test_breaks.py", "test_own.py"],
    ],
    ids=" ".join,
)
def test_partial_runs_are_quiet(pytester, run, stored, options):
    """Who asks for less is not told about the rest, and never fails for it."""
    pytester.makepyfile(test_own=QUIET, test_new=QUIET, test_breaks="def test_breaks(): assert 0")
    stored(("test_ships", "int8"))
    stored(("test_ships", "int8"), model="another")
    stored(("test_ships", "int8"), suite="test_elsewhere")
    result = run("--llm-strict", *options)
    assert result.ret == (FAILED if "-x" in options else OK)
    result.stdout.no_fnmatch_line("*baseline*")


def test_only_what_was_picked_by_name_is_looked_at(pytester, run, stored):
    """With a node id or a recipe, entries of others may well have tests; the one that ran is still looked at."""
    pytester.makepyfile(test_own=QUIET)
    stored(("test_old", "int8"), ("test_ships", "int8"))
    for options in (["test_own.py::test_ships"], ["--llm-recipe", "int8"]):
        result = run("--llm-strict", *options)
        assert result.ret == FAILED
        result.stdout.fnmatch_lines([f"{NOT_MEASURED}its test ended*"])
        result.stdout.no_fnmatch_line("*without a test*")


def test_a_test_of_a_class_has_a_name_of_its_own(pytester, run, stored):
    """Two classes with one test name are two comparisons."""
    pytester.makepyfile(
        test_own="""
        import pytest

        class TestA:
            @pytest.mark.llm(recipe="int8")
            def test_it(self, llm): pass

        class TestB(TestA): pass
    """
    )
    stored(("TestA.test_it", "int8"), ("TestB.test_it", "int8"), ("test_it", "int8"))
    result = run()
    result.stdout.fnmatch_lines(
        [
            "int8 on tiny-gpt2 has a baseline for TestA.test_it *",
            "int8 on tiny-gpt2 has a baseline for TestB.test_it *",
            "baseline without a test: test_it in test_own*",
        ],
        consecutive=True,
    )


# A comparison that cannot be made --------------------------------------------------------------------------

OWN = """
    import pytest

    @pytest.mark.llm(recipe="int8")
    def test_ships(llm):
        llm.measure()
"""


@pytest.fixture
def accepted(pytester, run):
    """A test whose baseline was just written."""
    pytester.makepyfile(test_own=OWN)
    assert run("--llm-update").ret == OK


@pytest.fixture
def same_again(pytester, run, accepted, monkeypatch):
    """Replays the accepted figures of cost, so that only what was edited differs."""
    stored = json.loads((pytester.path / "baselines/tiny-gpt2/test_own.json").read_text())["records"][0]
    from pytest_llmslim.bench import Bench
    from pytest_llmslim.encoding import from_builtins
    from pytest_llmslim.records import Record

    del stored["digest"]
    then = from_builtins(Record, stored)
    monkeypatch.setattr(Bench, "_record", lambda *given, **named: then)


def test_a_baseline_of_another_machine_is_not_comparable(pytester, run, same_again):
    """Quality is compared, cost is not: in words, and red where strict."""
    edit_baseline(pytester, lambda entry: entry["fingerprint"].update(cpu="another"))
    for option, code in (("--no-llm-strict", OK), ("--llm-strict", FAILED)):
        result = run(option)
        assert result.ret == code
        result.stdout.fnmatch_lines(
            ["not comparable: int8 on tiny-gpt2: time is not comparable with the baseline: *another*"]
        )


def test_a_meter_that_is_gone_is_not_comparable(pytester, run, same_again):
    """Energy was measured then and is not now."""

    def measured(entry):
        entry["energy"] = entry["time"] | {"source": "nvml-counter"}
        entry["samples"]["energy"] = entry["samples"]["time"]

    edit_baseline(pytester, measured)
    for option, code in (("--no-llm-strict", OK), ("--llm-strict", FAILED)):
        result = run(option)
        assert result.ret == code
        result.stdout.fnmatch_lines(["not comparable: int8 on tiny-gpt2: energy is not comparable *"])


def test_a_renamed_module_fails_where_strict(pytester, run, accepted):
    """Its entries are of a suite that is not there; but its model has baselines, so new is no excuse."""
    (pytester.path / "test_own.py").rename(pytester.path / "test_renamed.py")
    assert run().ret == OK
    result = run("--llm-strict")
    assert result.ret == FAILED
    result.stdout.fnmatch_lines(["*test_ships in test_renamed has no baseline; write one with --llm-update*"])


def test_a_first_run_passes_also_where_strict(pytester, run):
    """Without any baseline of the model nothing went away."""
    pytester.makepyfile(test_own=OWN.replace("int8", "magnitude"))
    assert run("--llm-strict").ret == OK


def test_the_anchor_sees_what_the_baseline_does_not(pytester, run, same_again):
    """Ten accepted losses: nothing beside the last of them, a failure beside the first."""
    path = pytester.path / "baselines/tiny-gpt2/test_own.json"
    first = path.with_name("test_own.anchor.json")
    first.write_text(path.read_text())

    def better(entry):
        entry["perplexity"]["value"] *= 0.9

    own = path.read_text()
    edit_baseline(pytester, better)
    first.write_text(path.read_text())
    path.write_text(own)
    result = run()
    assert result.ret == FAILED
    result.stdout.fnmatch_lines(["*perplexity ratio * in the anchor: *--llm-update --llm-anchor*"])
    result = run("--llm-update", "--llm-anchor")
    assert result.ret == OK
    result.stdout.fnmatch_lines(["  int8 on tiny-gpt2: anchor replaced, perplexity *"])
    assert not first.exists()
    assert run().ret == OK


SLOW = """
    import pytest
    import torch

    class Tenfold(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            for _ in range(9):
                self.inner(**inputs)
            return self.inner(**inputs)

    @pytest.mark.llm(recipe="int8")
    def test_ships(llm):
        candidate = llm.candidate.module
        llm.measure(lambda model: Tenfold(candidate), label="int8")
"""


@pytest.mark.parametrize(("option", "code"), [("--no-llm-strict", OK), ("--llm-strict", FAILED)])
def test_under_xdist_a_tenfold_slowdown_is_no_silent_pass(
    pytester, run, small, stored, accepted, option, code
):
    """Two workers that nothing keeps apart time nothing: that is said, as is a baseline without a test."""
    pytester.makeconftest(
        "import os, sys\nif 'PYTEST_XDIST_WORKER' in os.environ: sys.modules['fcntl'] = None"
    )
    pytester.makepyfile(test_own=SLOW)
    stored(("test_old", "int8"))
    result = pytester.runpytest_subprocess("-n", "2", "-p", "no:benchmark", option, *small())
    assert result.ret == code
    result.stdout.fnmatch_lines(
        [
            GONE,
            "not comparable: int8 on tiny-gpt2: time is not comparable with the baseline: *2 workers*",
        ]
    )


# Thresholds that nobody checks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "arguments", "outcome"),
    [
        ('max_perplexity_increase="3%"', "llm", "failed"),
        ('recipe="int8", max_opt=0.9', "llm_case", "failed"),
        ("max_opt=0.9", "", "failed"),
        ('recipe="int8"', "llm", "passed"),
    ],
)
def test_thresholds_that_were_never_checked_fail(pytester, run, marks, arguments, outcome):
    """A test that says what it will not ship and measures nothing has shipped it unseen."""
    pytester.makepyfile(test_own=f"import pytest\n@pytest.mark.llm({marks})\ndef test_it({arguments}): pass")
    result = run()
    result.assert_outcomes(**{outcome: 1})
    if outcome == "failed":
        name, value = re.search(r"(max_\w+)=\"?([\d.%]+)", marks).groups()
        result.stdout.fnmatch_lines([f"test_it*: {name}={value} was never checked; call llm.measure()."])


def test_thresholds_of_a_module_bind_only_tests_that_measure(pytester, run):
    """A marker for all tests of a file may well stand over one that only looks at the models."""
    pytester.makepyfile(
        test_own="import pytest\npytestmark = pytest.mark.llm(max_opt=0.9)\ndef test_it(llm_case): pass"
    )
    run().assert_outcomes(passed=1)


# Options that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--llm-anchor"], "*--llm-anchor goes with --llm-update, which writes the baselines; give both.*"),
        (["--llm-resolve=1%"], "*--llm-resolve is above --llm-regression, got 1 % and 2 %*"),
        (["--llm-country=GER"], "*--llm-country*GER*did you mean DEU (Germany)*"),
    ],
)
def test_options_that_do_not_fit_are_a_usage_error(pytester, run, options, message):
    """Before anything runs."""
    pytester.makepyfile(test_own=QUIET)
    result = run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_baselines_that_cannot_be_written_fail_the_run(pytester, run, monkeypatch):
    """An update that was not made is no success."""
    import errno
    import os

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pytester.makepyfile(test_own=OWN)
    monkeypatch.setattr("os.fsync", full)
    result = run("--llm-update")
    assert result.ret == FAILED
    result.stdout.fnmatch_lines(
        [
            "*test_own.json cannot be written (No space left on device); see to *; baselines of other suites may *"
        ]
    )
    result.stdout.no_fnmatch_line("baselines written*")
    assert not list((pytester.path / "baselines/tiny-gpt2").iterdir())
