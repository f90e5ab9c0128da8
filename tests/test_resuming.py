"""`--llm-resume`: a run that was killed goes on where it was; what was measured stays as it is, byte for byte."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace

import pytest
from counted import OWN, built, make
from sample_records import KEY, record

from pytest_llmslim.reports import files
from pytest_llmslim.resuming import Book
from pytest_llmslim.runs import line_of

KEYS = [f"counted(part={part})" for part in range(1, 7)]

kills = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")


@pytest.fixture
def project(pytester):
    """Six recipes, each of which writes down that it was built, and dies there when it is told to."""
    make(pytester, OWN)
    return pytester


def lines(project):
    return (project.path / "llm-results/results.jsonl").read_text().splitlines(keepends=True)


def recipes(project):
    return [json.loads(line)["key"]["recipe"] for line in lines(project)]


def stored(project):
    return json.loads((project.path / "llm-results/run.json").read_text())


def stopped(project, count, end=""):
    """Leave the folder of a finished run as a kill after so many records would have."""
    path = project.path / "llm-results"
    kept = "".join(lines(project)[:count])
    (path / "results.jsonl").write_text(kept + end)
    run = stored(project)
    run["interrupted"], run["origin"]["finished"] = True, ""
    (path / "run.json").write_text(json.dumps(run))
    built(project)
    return kept.splitlines(keepends=True)


@pytest.fixture
def half(project, run):
    """A run that was stopped after three of its six records."""
    run().assert_outcomes(passed=6)
    return stopped(project, 3)


# Killed -----------------------------------------------------------------------------------------------------


@kills
def test_a_run_that_was_killed_twice_goes_on(project, small):
    """In three parts it measures what it measures at once, everything once; what was finished stays byte for byte."""
    for part in (3, 5):
        (project.path / f"kill{part}").touch()
    first = project.runpytest_subprocess("-p", "no:benchmark", *small())
    assert first.ret == -signal.SIGKILL
    begun, kept = stored(project), lines(project)
    assert (recipes(project), begun["interrupted"]) == (KEYS[:2], True)
    assert built(project) == KEYS[:3]

    second = project.runpytest_subprocess("-p", "no:benchmark", *small("--llm-resume"))
    assert second.ret == -signal.SIGKILL
    assert built(project) == KEYS[2:5]
    assert lines(project)[:2] == kept
    kept = lines(project)
    assert recipes(project) == KEYS[:4]

    last = project.runpytest_subprocess("-p", "no:benchmark", *small("--llm-resume"))
    last.assert_outcomes(passed=6)
    assert built(project) == KEYS[4:]
    assert lines(project)[:4] == kept
    assert recipes(project) == KEYS
    last.stdout.fnmatch_lines(
        [
            f"llmslim: llm-results has 4 records of the run of {begun['origin']['started']}",
            f"4 of 6 records are taken from the run of {begun['origin']['started']}, which was stopped.",
        ]
    )
    whole = stored(project)
    assert not whole["interrupted"]
    assert whole["origin"] == begun["origin"] | {"finished": whole["origin"]["finished"]}
    assert whole["origin"]["finished"]


@kills
def test_workers_go_on_too(project, small):
    """Under xdist the controller keeps the file, and workers take from it."""
    (project.path / "kill3").touch()
    words = ("-p", "no:benchmark", "-n", "2", "--max-worker-restart=0")
    project.runpytest_subprocess(*words, *small("--llm-rounds=8"))
    before = lines(project)
    again = project.runpytest_subprocess(*words, *small("--llm-rounds=8", "--llm-resume"))
    again.assert_outcomes(passed=6)
    assert sorted(recipes(project)) == KEYS
    assert set(before) < set(lines(project))
    again.stdout.fnmatch_lines(
        [f"{len(before)} of 6 records are taken from the run of *, which was stopped."]
    )
    assert not stored(project)["interrupted"]


# What is taken ----------------------------------------------------------------------------------------------


def test_only_the_rest_is_measured(project, half, run):
    """Nothing is built or loaded for the others, and the run says what it did."""
    result = run("--llm-resume")
    result.assert_outcomes(passed=6)
    assert built(project) == KEYS[3:]
    assert lines(project)[:3] == half
    assert recipes(project) == KEYS
    result.stdout.fnmatch_lines(
        ["?1/6? counted(part=1) on tiny-gpt2: passed, ratio *, taken from the run that was stopped*"]
    )
    result.stdout.no_fnmatch_line("*?4/6?*taken*")


def test_when_all_was_measured_no_model_is_loaded(project, half, run, monkeypatch):
    """A run that was killed just before its end is only told again."""
    run("--llm-resume")
    stopped(project, 6)
    monkeypatch.setattr("pytest_llmslim.session.load_model", None)
    run("--llm-resume").assert_outcomes(passed=6)
    assert built(project) == []
    assert not stored(project)["interrupted"]


def test_a_line_that_was_cut_off_is_measured_again(project, run):
    """A machine that went down in the middle of writing has lost that record only."""
    run()
    cut = lines(project)[3][:200]
    kept = stopped(project, 3, end=cut)
    run("--llm-resume").assert_outcomes(passed=6)
    assert built(project) == KEYS[3:]
    assert lines(project)[:3] == kept


def test_a_verdict_is_the_same_again(project, run):
    """What failed fails with the same sentence, without being measured; what is new has its own verdict."""
    words = ("--llm-max-perplexity-increase=0.01%",)
    first = run(*words)
    failed = [line for line in first.outlines if line.startswith("failed: counted(part=1)")]
    first.assert_outcomes(failed=6)
    stopped(project, 3)
    again = run(*words, "--llm-resume")
    again.assert_outcomes(failed=6)
    assert built(project) == KEYS[3:]
    again.stdout.fnmatch_lines([line.replace("[", "[[]") for line in failed])


def test_a_body_that_fails_fails_again(project, run):
    """The body runs with the record that was taken."""
    project.makepyfile(
        test_own="""
        import pytest

        @pytest.mark.llm(recipes=["counted(part=1)", "counted(part=2)"])
        def test_own(llm):
            assert llm.measure().key.recipe == "counted(part=2)"
    """
    )
    run()
    stopped(project, 2)
    run("--llm-resume").assert_outcomes(passed=1, failed=1)
    assert built(project) == []


def test_candidates_of_a_test_s_own_are_taken_by_their_labels(project, run):
    """Two in one test, of which the second is measured still; its function is called then only."""
    project.makepyfile(
        test_own="""
        from counting import Counted

        def make(part):
            return lambda model: Counted(part).compress(model, None).module

        def test_two(llm):
            llm.measure(make(1), label="one")
            llm.measure(make(2), label="two")

        def test_named(llm):
            def scaled(model):
                return make(3)(model)
            assert llm.measure(scaled).key.recipe == "scaled"
    """
    )
    run().assert_outcomes(passed=2)
    assert recipes(project) == ["one", "two", "scaled"]
    stopped(project, 1)
    run("--llm-resume").assert_outcomes(passed=2)
    assert built(project) == KEYS[1:3]
    stopped(project, 3)
    run("--llm-resume").assert_outcomes(passed=2)
    assert built(project) == []


def test_baselines_are_written_of_all(project, run):
    """Both parts of a run with --llm-update become baselines."""
    run("--llm-update")
    stopped(project, 3)
    for path in (project.path / "baselines").rglob("*.json"):
        path.unlink()
    run("--llm-update", "--llm-resume").assert_outcomes(passed=6)
    assert built(project) == KEYS[3:]
    found = json.loads((project.path / "baselines/tiny-gpt2/test_own.json").read_text())
    assert sorted(entry["key"]["recipe"] for entry in found["records"]) == KEYS


def test_gates_that_were_taken_have_spent_their_share(project, run, monkeypatch):
    """The family of gates hears of a verdict that was taken as of one that was measured."""
    from pytest_llmslim.session import Session

    words, told, close = ("--llm-max-time-increase=900%",), [], Session.close_gates

    def noted(session, **counts):
        told.append(counts["decided"])
        close(session, **counts)

    monkeypatch.setattr(Session, "close_gates", noted)
    run(*words)
    measured = [*told]
    stopped(project, 3)
    told.clear()
    run(*words, "--llm-resume")
    assert told == measured
    assert sum(told) > 0


# What is not ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "here", "option", "was", "now"),
    [
        ([], ["--llm-dtype=bfloat16"], "--llm-dtype", "float32", "bfloat16"),
        (["--llm-seed=3"], [], "--llm-seed", "3", "0"),
        (["--llm-max-opt=2"], [], "--llm-max-opt", "2.0", "not given"),
        ([], ["--llm-strict"], "--llm-strict", "False", "True"),
        ([], ["--llm-recipe=int8"], "--llm-recipe", "not given", "int8"),
    ],
)
def test_other_settings_are_refused(project, run, there, here, option, was, now):
    """Before anything runs, with the first that differs, both values and what to do; nothing is lost."""
    run(*there)
    kept = stopped(project, 3)
    result = run(*here, "--llm-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            f"*--llm-resume: {option} was {was} in the run in *llm-results and is {now} now; "
            "give it as it was, or measure anew without --llm-resume."
        ]
    )
    assert (built(project), lines(project)) == ([], kept)


def test_settings_of_output_may_differ(project, half, run):
    """And a setting that is given with the value that it has anyway."""
    run("--llm-resume", "--llm-csv=all.csv", "--llm-timeout=500", "--llm-seed=0").assert_outcomes(passed=6)
    assert built(project) == KEYS[3:]
    assert len((project.path / "all.csv").read_text().splitlines()) == 7


def test_another_version_is_refused(project, half, run):
    """Its records may mean something else."""
    found = stored(project)
    found["origin"]["version"] = "0.0.1"
    (project.path / "llm-results/run.json").write_text(json.dumps(found))
    result = run("--llm-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "*the run in *llm-results was measured by pytest-llmslim 0.0.1, and this is *; measure anew without *"
        ]
    )
    assert lines(project) == half


def test_another_text_is_refused(project, run, tiny_text, small, pytester):
    """By what it says, not by its name or time."""
    text = pytester.path / "text.txt"
    text.write_text(tiny_text.read_text())
    run(f"--llm-text={text}")
    stopped(project, 3)
    os.utime(text)
    run(f"--llm-text={text}", "--llm-resume").assert_outcomes(passed=6)
    assert built(project) == KEYS[3:]
    stopped(project, 3)
    text.write_text(tiny_text.read_text()[20:])
    result = run(f"--llm-text={text}", "--llm-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*text.txt is another text than the run in *llm-results was measured on; give that*"]
    )


def test_a_test_whose_file_has_changed_is_measured_again(project, run):
    """The tests of other files are taken: a crash that was mended elsewhere costs no hours."""
    project.makepyfile(test_other=OWN.replace("range(1, 7)", "range(7, 9)").replace("test_own", "test_other"))
    run().assert_outcomes(passed=8)
    stopped(project, 8)
    path = project.path / "test_other.py"
    path.write_text(path.read_text() + "\n# mended\n")
    result = run("--llm-resume")
    result.assert_outcomes(passed=8)
    assert built(project) == ["counted(part=7)", "counted(part=8)"]
    result.stdout.fnmatch_lines(
        [
            "test_other.py was changed since the run was stopped: its tests are measured again.",
            "6 of 8 records are taken from the run of *",
        ]
    )
    assert len(lines(project)) == 8


def test_a_changed_conftest_counts_for_what_lies_below(project, half, run):
    """It may have brought the methods."""
    path = project.path / "conftest.py"
    path.write_text(path.read_text() + "\n# another\n")
    result = run("--llm-resume")
    assert built(project) == KEYS
    result.stdout.fnmatch_lines(
        ["conftest.py was changed since the run was stopped: its tests are measured again."]
    )


def test_a_model_that_has_changed_is_measured_again(project, run, tiny_folder, tmp_path):
    """Another checkpoint under the same name."""
    import shutil

    folder = tmp_path / "mine"
    shutil.copytree(tiny_folder, folder)
    run(model=folder)
    stopped(project, 3)
    os.utime(folder / "config.json", (4e9, 4e9))
    result = run("--llm-resume", model=folder)
    assert built(project) == KEYS
    result.stdout.fnmatch_lines(
        ["files of mine were changed since the run began: its candidates are measured again."]
    )


def test_costs_of_another_machine_are_measured_again(project, run):
    """With what differs; quality alone is taken, as of a simulated candidate."""
    project.makepyfile(test_own=OWN.replace("for part in range(1, 7)", "for part in (1,)] + ['rtn']"[:-1]))
    run().assert_outcomes(passed=2)
    changed = [json.loads(line) for line in lines(project)]
    for each in changed:
        each["fingerprint"]["cpu"] = "Z80"
    stopped(project, 2)
    text = "".join(json.dumps(record, sort_keys=True) + "\n" for record in changed)
    (project.path / "llm-results/results.jsonl").write_text(text)
    result = run("--llm-resume")
    result.assert_outcomes(passed=2)
    assert built(project) == KEYS[:1]
    result.stdout.fnmatch_lines(
        ["the run was stopped on another machine (cpu was Z80, and is *): what has a cost is measured again."]
    )


def test_a_commit_in_between_is_said(project, half, run):
    """Files of code other than tests are not watched."""
    found = stored(project)
    found["origin"]["commit"] = "a" * 40
    (project.path / "llm-results/run.json").write_text(json.dumps(found))
    run("--llm-resume").stdout.fnmatch_lines(
        [
            "The project was at aaaaaaaaaaaa then and is at * now; of that, only files of tests and conftest.py "
            "files were looked at."
        ]
    )


# Nothing to go on with --------------------------------------------------------------------------------------


def test_without_a_stopped_run_all_is_measured(project, run):
    """No folder, a finished run, records without a run.json: each is said, in the header and the summary."""
    result = run("--llm-resume")
    said = "--llm-resume: there is nothing to go on with in *llm-results, {}: all is measured."
    missing = said.format("which has no results.jsonl")
    result.stdout.fnmatch_lines([f"llmslim: {missing}", missing])
    assert built(project) == KEYS
    result = run("--llm-resume")
    result.stdout.fnmatch_lines([said.format("whose run of * came to its end")])
    assert built(project) == KEYS
    (project.path / "llm-results/run.json").unlink()
    result = run("--llm-resume")
    result.stdout.fnmatch_lines(
        [said.format("whose results.jsonl has no run.json that says how it was measured")]
    )
    assert built(project) == KEYS


def test_a_folder_that_cannot_be_read_is_refused(project, half, run):
    """With file, line and remedy, before anything runs."""
    path = project.path / "llm-results/results.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    result = run("--llm-resume")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*results.jsonl, line 1, is no record of pytest-llmslim *"])


def test_what_was_not_asked_for_this_time_stays(project, half, run):
    """A narrower selection loses nothing, and the run stays one that can go on."""
    result = run("--llm-resume", "-k", "1 or 5")
    result.assert_outcomes(passed=2, deselected=4)
    assert built(project) == KEYS[4:5]
    assert sorted(recipes(project)) == [KEYS[0], KEYS[1], KEYS[2], KEYS[4]]
    result.stdout.fnmatch_lines(
        [
            "2 of its records were not asked for this time, or their tests failed before, and stay in results.jsonl "
            "for --llm-resume."
        ]
    )
    run("--llm-resume").assert_outcomes(passed=6)
    assert built(project) == [KEYS[3], KEYS[5]]
    assert recipes(project) == KEYS
    assert not stored(project)["interrupted"]


def test_a_record_whose_test_is_gone_does_not_stay(project, half, run):
    """The file of a whole run holds its records and no others."""
    project.makepyfile(test_own=OWN.replace("range(1, 7)", "range(2, 7)"))
    run("--llm-resume").assert_outcomes(passed=5)
    assert recipes(project) == KEYS[1:]


def test_records_of_files_that_were_not_named_stay(project, run):
    """A part of the run goes on by its file, and the others are still there for it."""
    project.makepyfile(test_two=OWN.replace("range(1, 7)", "range(7, 9)"))
    run().assert_outcomes(passed=8)
    stopped(project, 8)
    run("test_two.py", "--llm-resume").assert_outcomes(passed=2)
    assert (len(lines(project)), stored(project)["interrupted"]) == (8, True)
    run("--llm-resume").assert_outcomes(passed=8)
    assert (built(project), stored(project)["interrupted"]) == ([], False)


def test_records_of_tests_that_fail_now_stay(project, half, run):
    """What broke all tests is mended, and the run goes on where it was."""
    project.makepyfile(test_own=OWN.replace("llm.measure()", "raise OSError('no network')"))
    run("--llm-resume").assert_outcomes(failed=6)
    assert (lines(project), stored(project)["interrupted"]) == (half, True)
    project.makepyfile(test_own=OWN)
    run("--llm-resume").assert_outcomes(passed=6)
    assert built(project) == KEYS[3:]


@pytest.mark.parametrize("words", [("--collect-only",), ("-k", "nothing")])
@pytest.mark.parametrize("ended", [True, False], ids=["ended", "stopped"])
def test_a_run_of_no_test_leaves_the_folder_alone(project, run, words, ended):
    """Neither records nor what else is known of the run are touched."""
    run()
    if not ended:
        stopped(project, 3)
    before = lines(project), stored(project)
    run("--llm-resume", *words)
    assert (lines(project), stored(project)) == before


def test_a_verdict_on_another_baseline_is_measured_again(project, run):
    """Somebody accepted something else in between."""
    run("--llm-update").assert_outcomes(passed=6)
    run().assert_outcomes(passed=6)
    stopped(project, 3)
    run("--llm-resume").assert_outcomes(passed=6)
    assert built(project) == KEYS[3:]
    stopped(project, 3)
    (path,) = (project.path / "baselines").rglob("*.json")
    path.write_text(path.read_text() + "\n")
    result = run("--llm-resume")
    assert built(project) == KEYS
    name = path.relative_to(project.path)
    result.stdout.fnmatch_lines(
        [f"{name} was changed since the run was stopped: what is held against it is measured again."]
    )


def test_a_first_baseline_is_seen_in_every_later_part(project, half, run):
    """What was measured without it is measured again, however often the run was stopped in between."""
    run("--llm-update", "--llm-results=others").assert_outcomes(passed=6)
    run("--llm-resume", "-k", "1").assert_outcomes(passed=1)
    built(project)
    run("--llm-resume", "-k", "3").assert_outcomes(passed=1)
    assert built(project) == KEYS[2:3]


def test_the_run_that_ends_last_leaves_its_own_records_only(project, run):
    """Two runs that write to one folder are not told apart by their lines."""
    project.makeconftest(
        (project.path / "conftest.py").read_text()
        + """
def pytest_runtest_logreport(report):
    if "part=3" in report.nodeid and report.when == "teardown":
        from pathlib import Path
        path = Path("llm-results/results.jsonl")
        path.write_text(path.read_text().replace("tiny-gpt2", "another-run"))
"""
    )
    run().assert_outcomes(passed=6)
    assert recipes(project) == KEYS
    assert "another-run" not in "".join(lines(project))


# A full disk ------------------------------------------------------------------------------------------------


def test_a_line_that_could_not_be_written_is_written_with_the_next():
    """Nothing goes behind a line that was cut off, and at the end all records are in the file."""
    texts, works = [""], [True]

    def write(name, text, *, append=False):
        if name == "results.jsonl":
            kept = text if works[0] else text[:9]
            texts.append(texts[-1] + kept if append else kept)
        return works[0]

    book = Book(write, {}, None)
    found = [replace(record(), key=replace(KEY, recipe=f"int{bits}")) for bits in (4, 8, 2)]
    book.add(found[0])
    works[0] = False
    book.add(found[1])
    assert texts[-1] == line_of(found[0]) + line_of(found[1])[:9]
    works[0] = True
    book.add(found[2])
    whole = "".join(map(line_of, found))
    assert texts[-1] == whole
    works[0] = False
    book.end([found[0].key])
    works[0] = True
    book.end([found[0].key])
    assert texts[-1] == line_of(found[0])


def test_records_of_another_run_never_stand_beside_new_settings(project, run, monkeypatch):
    """Also where no record of the new run could be written."""
    run().assert_outcomes(passed=6)

    def write(folder, name, text, **how):
        if name == "results.jsonl" and text:
            raise OSError(28, "No space left on device")
        return whole(folder, name, text, **how)

    whole = files.write
    monkeypatch.setattr(files, "write", write)
    result = run("--llm-seed=1")
    assert (lines(project), stored(project)["origin"]["settings"]["seed"]) == ([], "1")
    result.stdout.fnmatch_lines(
        ["*results.jsonl cannot be written (No space left on device); give another folder*"]
    )


def test_a_run_without_our_tests_leaves_the_folder_alone(project, half, pytester):
    """And is not refused for settings that are none of its own."""
    pytester.makepyfile(test_plain="def test_plain(): pass")
    pytester.runpytest("test_plain.py", "-p", "no:benchmark", "-p", "no:cacheprovider").assert_outcomes(
        passed=1
    )
    assert lines(project) == half
