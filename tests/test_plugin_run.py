"""Whole runs through pytest, on a tiny real model: outcomes, exit codes, messages, files."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from own_tests import own_test

# May I ship it? -------------------------------------------------------------------------------------------


def test_a_test_of_ten_lines_passes_and_shows_its_row(pytester, run):
    """Exit code 0, a row for the candidate, and files with everything."""
    own_test(pytester, max_perplexity_increase="50%")
    result = run(rounds=28)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["*compressed language models*", "tiny-gpt2: * parameters,*", "1  int8 *passed, new"]
    )
    rows = [
        json.loads(line) for line in (pytester.path / "llm-results/results.jsonl").read_text().splitlines()
    ]
    assert [row["key"] for row in rows] == [
        {"suite": "test_own", "test": "test_ships", "model": "tiny-gpt2", "recipe": "int8"}
    ]
    assert json.loads((pytester.path / "llm-results/summary.json").read_text())["outcomes"] == {"new": 1}
    assert (pytester.path / "llm-results/.gitignore").read_text() == "*\n"


def test_a_threshold_that_is_passed_fails_the_test_with_one_sentence(pytester, run):
    """Red: subject, rule, got, next step; no traceback; JUnit sees a failure."""
    own_test(pytester, max_perplexity_increase="0.1%")
    result = run("--junitxml=out.xml")
    result.assert_outcomes(failed=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*int8 on tiny-gpt2: perplexity * over the reference*limit 0.1 %*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*def test_ships*")
    result.stdout.no_fnmatch_line("*During handling*")
    case = ET.parse(pytester.path / "out.xml").getroot().find(".//testcase")
    assert "limit 0.1 %" in case.find("failure").get("message")
    properties = {p.get("name"): p.get("value") for p in case.iter("property")}
    assert float(properties["llmslim.perplexity_ratio"]) > 1.001
    assert properties["llmslim.outcome"] == "failed"


@pytest.mark.parametrize("option", ["--llm-max-perplexity-increase=0.1%", "--llm-max-opt=0.0001"])
def test_thresholds_of_the_run_hold_for_every_test(pytester, run, option):
    """A limit from the command line; one that cannot be checked is inconclusive and never passes silently."""
    own_test(pytester)
    result = run(option)
    if "opt" in option:
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["inconclusive: *opt*"])
        run(option, "--llm-strict").assert_outcomes(failed=1)
    else:
        result.assert_outcomes(failed=1)


def test_an_expected_failure_is_expected(pytester, run):
    """Xfail sees the verdict, since it is raised in the call phase."""
    pytester.makepyfile(
        test_own="""
        import pytest

        @pytest.mark.xfail(strict=True)
        @pytest.mark.llm(recipe="int8", max_perplexity_increase="0.1%")
        def test_ships(llm):
            llm.measure()
    """
    )
    result = run(rounds=28)
    result.assert_outcomes(xfailed=1)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("not measured*")


def test_a_body_that_fails_keeps_its_record(pytester, run):
    """The user's own assertion is the failure; what was measured is in the files all the same."""
    pytester.makepyfile(
        test_own="""
        import pytest

        @pytest.mark.llm(recipe="int8")
        def test_ships(llm):
            assert llm.measure().candidate.perplexity < 1, "my own rule"
    """
    )
    result = run(rounds=28)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*my own rule*"])
    assert (pytester.path / "llm-results/results.jsonl").read_text().count("\n") == 1


def test_a_teardown_that_fails_leaves_the_measurement_measured(pytester, run):
    """An error of the user's fixture is pytest's to show; the row stands, and nothing is "not measured"."""
    pytester.makepyfile(
        test_own="""
        import pytest

        @pytest.fixture
        def own():
            yield
            raise OSError("cannot clean up")

        @pytest.mark.llm(recipe="int8")
        def test_ships(llm, own):
            llm.measure()
    """
    )
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.no_fnmatch_line("not measured*")


# Baselines ------------------------------------------------------------------------------------------------


def test_a_baseline_is_written_compared_and_goes_red_on_a_regression(pytester, run):
    """--llm-update stores, the next run compares, and a baseline that was better than this run fails it."""
    own_test(pytester)
    result = run("--llm-update")
    result.stdout.fnmatch_lines(["baselines written to *: * changes", "  *int8*"])
    stored = pytester.path / "baselines/tiny-gpt2/test_own.json"
    assert stored.exists()
    run().stdout.fnmatch_lines(["*1 compared, 0 new*"])
    data = json.loads(stored.read_text())
    record = data["records"][0]
    record["perplexity"]["value"] *= 0.9
    lines = stored.read_text().splitlines()
    for i, line in enumerate(lines):
        if '"key"' in line:
            lines[i] = json.dumps(record)
    stored.write_text("\n".join(lines) + "\n")
    result = run(rounds=28)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*int8 on tiny-gpt2: perplexity * baseline*--llm-update*"])


def test_a_missing_baseline_fails_only_where_it_is_required(pytester, run):
    """Locally it is new; CI asks for it."""
    own_test(pytester)
    run(rounds=8).assert_outcomes(passed=1)
    result = run("--llm-require-baseline", rounds=8)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no baseline*--llm-update*"])


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 999, "records": []}'])
def test_a_baseline_that_cannot_be_read_stops_the_run(pytester, run, content):
    """A usage error that names the file, before anything is measured."""
    own_test(pytester)
    folder = pytester.mkdir("baselines") / "tiny-gpt2"
    folder.mkdir()
    (folder / "test_own.json").write_text(content)
    result = run(rounds=28)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_own.json*"])
    assert not (pytester.path / "llm-results").exists()


def test_models_and_meters_go_before_the_session_ends(pytester, run):
    """Then the controller of xdist interrupts its workers, in the middle of whatever they give back."""
    own_test(pytester)
    pytester.makeconftest(
        """
        import pytest
        from pytest_llmslim.state import SESSION

        @pytest.hookimpl(trylast=True)
        def pytest_sessionfinish(session):
            kept = session.config.stash[SESSION]
            assert (kept._reference, kept._meter) == (None, None)
        """
    )
    result = run()
    result.assert_outcomes(passed=1)
    assert result.ret == 0
