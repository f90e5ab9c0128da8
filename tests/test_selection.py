"""Picking and stopping tests with pytest's own options: each does with our tests what it does with others."""

from __future__ import annotations

import json

import pytest
from counted import built, make

FOUR = """
    import pytest

    @pytest.mark.llm(recipes=[f"counted(part={part})" for part in range(1, 5)])
    def test_own(llm):
        llm.measure()
"""
KEYS = [f"counted(part={part})" for part in range(1, 5)]
LIMIT = "--llm-max-perplexity-increase=5%"
"""Of the ratios 1.03, 1.07, 1.11 and 1.15 only the first is within."""


@pytest.fixture
def project(pytester):
    """Four recipes, each worse than the one before, whose time no test here is about."""
    make(pytester, FOUR)
    (pytester.path / "untimed").touch()
    return pytester


def node(part):
    return f"test_own.py::test_own[tiny-gpt2-counted(part={part})]"


def measured(project):
    lines = (project.path / "llm-results/results.jsonl").read_text().splitlines()
    return [json.loads(line)["key"]["recipe"] for line in lines]


def interrupted(project):
    """What the reports and `--llm-resume` are told."""
    return json.loads((project.path / "llm-results/run.json").read_text())["interrupted"]


# Stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "ended"), [("-x", 2), ("--maxfail=1", 2), ("--maxfail=2", 3), ("--stepwise", 2)]
)
def test_a_failed_verdict_stops_the_run(project, run, word, ended):
    """Measured until there, kept and reported; baselines of the rest are not said to miss their tests."""
    run("--llm-update")
    built(project)
    result = run(word, LIMIT, "--llm-strict")
    assert result.ret == (
        pytest.ExitCode.INTERRUPTED if word == "--stepwise" else pytest.ExitCode.TESTS_FAILED
    )
    assert built(project) == measured(project) == KEYS[:ended]
    assert interrupted(project)
    result.stdout.fnmatch_lines(
        [
            f"{ended} of 4 tests ended before the run was stopped; with --llm-resume the same command goes on there.",
            "failed: counted(part=2) on tiny-gpt2: *",
        ]
    )
    result.stdout.no_fnmatch_line("*was not measured*")


def test_the_rest_of_a_stopped_run_can_follow(project, run):
    """Without -x, the failure is told again and the rest is measured."""
    run("-x", LIMIT)
    built(project)
    result = run(LIMIT, "--llm-resume")
    result.assert_outcomes(passed=1, failed=3)
    assert built(project) == KEYS[2:]
    assert not interrupted(project)


def test_a_run_that_stops_at_its_last_test_has_come_to_its_end(project, run):
    """Nothing is left for --llm-resume, so nothing is said of it."""
    result = run("-x", LIMIT, node(1), node(2))
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.no_fnmatch_line("*--llm-resume*")


def test_stepwise_goes_on_at_the_failure(project, run):
    """What passed before is deselected, which is no missing test."""
    run("--llm-update")
    run("--stepwise", LIMIT)
    built(project)
    result = run("--stepwise", "--llm-max-perplexity-increase=9%")
    assert built(project) == KEYS[1:3]
    result.stdout.no_fnmatch_line("*was not measured*")


# What failed last -------------------------------------------------------------------------------------------


def test_only_what_failed_is_run_again(project, run):
    """A failed gate is a failed test; with equal results it fails again, and others' baselines stay quiet."""
    run("--llm-update")
    words = ("--llm-max-perplexity-increase=13%",)
    first = run(*words)
    first.assert_outcomes(passed=3, failed=1)
    failures = [line for line in first.outlines if line.startswith("failed: ")]
    built(project)
    again = run("--lf", *words)
    again.assert_outcomes(failed=1)
    assert again.ret == pytest.ExitCode.TESTS_FAILED
    assert built(project) == KEYS[3:]
    assert [line for line in again.outlines if line.startswith("failed: ")] == failures
    again.stdout.no_fnmatch_line("*was not measured*")
    mended = run("--lf", "--llm-max-perplexity-increase=30%")
    mended.assert_outcomes(passed=1)
    assert mended.ret == pytest.ExitCode.OK


def test_what_failed_can_go_first(project, run):
    """Before tests of others and of other recipes, which else come in the order that loads each model once."""
    project.makepyfile(test_plain="def test_plain(): pass")
    run("--llm-max-perplexity-increase=13%")
    built(project)
    result = run("--ff", "-v", "--llm-max-perplexity-increase=13%")
    assert built(project) == [KEYS[3], *KEYS[:3]]
    names = [line.split()[0] for line in result.outlines if line.startswith("test_") and "::" in line]
    assert names == [node(4), "test_plain.py::test_plain", *map(node, (1, 2, 3))]


def test_without_the_cache_all_runs(project, run):
    """And its options are not looked for."""
    run("-p", "no:cacheprovider", "-x", LIMIT).assert_outcomes(passed=1, failed=1)
    run("-p", "no:cacheprovider").assert_outcomes(passed=4)
    assert not (project.path / ".pytest_cache").exists()


# Picking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "keys", "deselected"),
    [
        (["-k", "3"], KEYS[2:3], 3),
        (["-k", "not 3"], [*KEYS[:2], KEYS[3]], 1),
        (["--deselect", node(1)], KEYS[1:], 1),
        (["--deselect", "test_own.py::test_own", "-k", "x"], [], 4),
        ([node(3)], KEYS[2:3], 0),
        ([node(4), node(1)], [KEYS[3], KEYS[0]], 0),
        (["--llm-recipe=counted(part=2)"], KEYS[1:2], 0),
    ],
)
def test_tests_are_picked(project, run, words, keys, deselected):
    """By name, node id or recipe: the rest is neither built nor missed, and pytest says what it left out."""
    run("--llm-update")
    before = measured(project)
    built(project)
    result = run(*words, "--llm-strict")
    result.assert_outcomes(passed=len(keys), deselected=deselected)
    assert result.ret == (pytest.ExitCode.OK if keys else pytest.ExitCode.NO_TESTS_COLLECTED)
    assert built(project) == keys
    assert measured(project) == (keys or before)
    assert not interrupted(project)
    result.stdout.no_fnmatch_line("*was not measured*")
    result.stdout.no_fnmatch_line("*baseline without a test*")


def test_a_node_id_that_is_not_there_is_a_usage_error(project, run):
    """Nothing is built, and the results of the last run stay."""
    run(node(1))
    built(project)
    assert run("test_own.py::test_own[tiny-gpt2-counted(part=9)]").ret == pytest.ExitCode.USAGE_ERROR
    assert (built(project), measured(project)) == ([], KEYS[:1])


def test_collecting_only_measures_and_writes_nothing(project, run):
    """It lists what would run, in the order in which it would."""
    result = run("--co", "-q", "--llm-strict", "--llm-update")
    assert result.ret == pytest.ExitCode.OK
    assert result.outlines[:4] == [node(part) for part in (1, 2, 3, 4)]
    assert built(project) == []
    assert not (project.path / "llm-results").exists()
    assert not (project.path / "baselines").exists()
    result.stdout.no_fnmatch_line("*compressed language models*")


# Showing ----------------------------------------------------------------------------------------------------


def test_quiet_and_verbose_change_what_is_shown_only(project, run):
    """Dots and the table, a line a test, a line of ours after each: the same verdicts and exit code."""
    shown = {}
    for word in ("-q", "--tb=short", "-v"):
        result = run(word, LIMIT, "-k", "1 or 3")
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            ["*compressed language models*", "failed: counted(part=3) on tiny-gpt2: *"]
        )
        shown[word] = result.stdout.str()
    assert [f"{node(1)} PASSED" in shown[word] for word in shown] == [False, False, True]
    assert ["[1/2] counted(part=1) on" in shown[word] for word in shown] == [False, True, True]


def test_durations_are_those_of_the_measurements(project, run):
    """Loading, building and measuring belong to the call of the test that asked for them."""
    result = run("--durations=1", "-k", "1")
    result.stdout.fnmatch_lines(["*slowest 1 durations*", f"*s call*{node(1).replace('[', '[[]')}"])
