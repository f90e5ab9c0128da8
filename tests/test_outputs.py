"""What a run leaves beside its records: refused before it starts, or written at its end."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from own_tests import own_test
from sample_records import quality, record

from pytest_llmslim import outputs, runs
from pytest_llmslim.errors import MissingExtraError, RunError, SettingError
from pytest_llmslim.records import Verdict
from pytest_llmslim.run_records import Origin, Run

DOCS = Path(__file__).parents[1] / "docs/outputs.md"
RUN = Run(Origin(id="run-2", started="2026-11-22T21:35:33Z"), (record(),))
EARLIER = Run(Origin(id="run-1", started="2026-11-21T21:35:33Z"), (record(),))


def asked(folder, **paths):
    """The settings that outputs read."""
    names = dict.fromkeys(("report", "markdown", "csv", "json"))
    return SimpleNamespace(results=folder / "llm-results", **(names | paths))


def history_of(run):
    return outputs.kept(run)[runs.HISTORY]


# Before anything runs ---------------------------------------------------------------------------------------


def test_reports_with_names_of_their_own_are_fine(tmp_path):
    """Folders that are not there yet are made later; a file that is there is replaced."""
    (tmp_path / "a.md").write_text("old")
    outputs.check(asked(tmp_path, markdown=tmp_path / "a.md", csv=tmp_path / "new/folder/a.csv"))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"csv": "a", "markdown": "a"}, "--llm-csv and --llm-markdown are two files, got {}/a twice."),
        ({"json": "x/../a", "markdown": "a"}, "--llm-json and --llm-markdown are two files, got {}/a twice."),
        ({"markdown": "."}, "--llm-markdown is a file, got the folder {}; add a name."),
        (
            {"json": "llm-results/run.json"},
            "--llm-json: {}/llm-results/run.json is a file of the results themselves; give another name.",
        ),
        (
            {"csv": "taken/a.csv"},
            "--llm-csv: {0}/taken/a.csv cannot be written ({0}/taken is no folder); give another name.",
        ),
    ],
)
def test_names_that_cannot_be_are_refused(tmp_path, paths, message):
    """Before hours of measuring, with the option and what to do."""
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SettingError) as caught:
        outputs.check(asked(tmp_path, **{name: tmp_path / path for name, path in paths.items()}))
    assert str(caught.value) == message.format(tmp_path)


@pytest.mark.parametrize(
    ("name", "why"), [("a.md", "it may not be changed"), ("b.md", "nothing may be written in *")]
)
def test_rights_are_looked_at_first(tmp_path, monkeypatch, name, why):
    """A file or a folder that is somebody else's."""
    (tmp_path / "a.md").write_text("theirs")
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)
    with pytest.raises(SettingError, match=re.escape(why).replace(r"\*", ".*")):
        outputs.check(asked(tmp_path, markdown=tmp_path / name))


def test_a_report_without_its_package_is_refused(tmp_path, monkeypatch):
    """The page needs plotly, and the sentence says how to get it."""
    monkeypatch.setattr(outputs, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"--llm-report: .*pip install 'pytest-llmslim\[report\]'"):
        outputs.check(asked(tmp_path, report=tmp_path / "a.html"))
    outputs.check(asked(tmp_path, markdown=tmp_path / "a.md"))


def test_a_history_that_cannot_be_read_is_refused(tmp_path):
    """Writing it anew would lose the runs that it holds."""
    settings = asked(tmp_path)
    settings.results.mkdir()
    path = settings.results / runs.HISTORY
    path.write_text('{"newer": 1}\n' + history_of(EARLIER))
    with pytest.raises(RunError, match=r"history\.jsonl, line 1, is no point of pytest-llmslim"):
        outputs.check(settings)
    path.write_text(history_of(EARLIER)[:-20])  # its writer was killed
    outputs.check(settings)


# At the end -------------------------------------------------------------------------------------------------


def test_a_finished_run_has_its_end_and_its_past(tmp_path):
    """And is part of the history for the next, once."""
    (tmp_path / runs.HISTORY).write_text(history_of(EARLIER) + history_of(RUN))
    found = outputs.finished(RUN, tmp_path)
    assert found.origin.finished > found.origin.started
    assert found.history == EARLIER.points
    lines = outputs.kept(found)[runs.HISTORY].splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["run-1", "run-2"]
    assert json.loads(outputs.kept(found)[runs.RUN])["records"] == []


def test_an_interrupted_run_is_no_history(tmp_path):
    """It has no end, and the history stays as it was."""
    (tmp_path / runs.HISTORY).write_text(history_of(EARLIER))
    found = outputs.finished(Run(RUN.origin, RUN.records, interrupted=True), tmp_path)
    assert found.origin.finished == ""
    assert outputs.kept(found)[runs.HISTORY] == history_of(EARLIER)


def test_a_history_that_broke_meanwhile_begins_anew(tmp_path):
    """The run is over; its figures are worth more than an error."""
    (tmp_path / runs.HISTORY).write_text("{}\n")
    assert outputs.finished(RUN, tmp_path).history == ()


def test_every_report_is_written_where_it_was_asked_for(tmp_path):
    """Folders are made; line ends of the CSV are its own."""
    paths = {"markdown": tmp_path / "x/a.md", "csv": tmp_path / "a.csv", "json": tmp_path / "a.json"}
    written, troubles = outputs.write(RUN, asked(tmp_path, **paths), environ={})
    assert (written, troubles) == ([str(path) for path in paths.values()], [])
    assert paths["markdown"].read_text().startswith("## ")
    assert paths["csv"].read_bytes().count(b"\r\n") == 2
    assert runs.read(paths["json"]) == RUN


def test_one_report_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    """Each has its sentence."""
    taken = tmp_path / "taken"
    taken.write_text("a file")
    monkeypatch.setattr(outputs, "html", lambda run: (_ for _ in ()).throw(MissingExtraError("no plotly.")))
    paths = {"report": tmp_path / "a.html", "markdown": taken / "a.md", "csv": tmp_path / "a.csv"}
    written, troubles = outputs.write(RUN, asked(tmp_path, **paths), environ={})
    assert written == [str(paths["csv"])]
    assert troubles[0] == f"{paths['report']} was not written: no plotly."
    assert re.fullmatch(r".*/taken/a\.md cannot be written \(.+\); give another name\.", troubles[1])


def test_the_summary_of_a_step_is_appended(tmp_path):
    """Another tool may have written there before; nothing needs to be asked for."""
    summary = tmp_path / "summary.md"
    summary.write_text("of another tool\n")
    bad = record(perplexity=quality(1.2), verdicts=(Verdict("perplexity", "failed", "worse."),))
    environ = {"GITHUB_STEP_SUMMARY": str(summary)}
    assert outputs.write(Run(records=(bad,)), asked(tmp_path), environ) == ([], [])
    assert summary.read_text().startswith("of another tool\n## ❌ Failed: 1 of 1 candidate failed\n")
    _, (trouble,) = outputs.write(RUN, asked(tmp_path), {"GITHUB_STEP_SUMMARY": str(tmp_path)})
    assert trouble == f"{tmp_path} (GITHUB_STEP_SUMMARY) cannot be written (Is a directory)."


# Whole runs -------------------------------------------------------------------------------------------------


def test_a_run_writes_what_was_asked_for(pytester, run, monkeypatch):
    """Markdown, CSV and JSON from the command line, and the summary of a step by itself."""
    own_test(pytester)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "summary.md"))
    for _ in range(2):
        result = run("--llm-markdown=a.md", "--llm-csv=a.csv", "--llm-json=a.json", rounds=8)
        result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["report: a.md", "report: a.csv", "report: a.json"])
    page = (pytester.path / "a.md").read_text()
    assert page.startswith("## 🆕 New: none of 1 candidate failed")
    assert (pytester.path / "summary.md").read_text().count("## 🆕 New") == 2
    found = runs.read(pytester.path / "a.json")
    assert len(found.history) == 1
    assert runs.read(pytester.path / "llm-results") == found


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(pytester, run):
    """A usage error; no test has run."""
    own_test(pytester)
    (pytester.path / "taken").write_text("a file")
    result = run("--llm-markdown=taken/a.md")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llm-markdown: */taken/a.md cannot be written (*taken is no folder)*"])
    assert not (pytester.path / "llm-results").exists()


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_hook_shown_in_the_docs_writes_a_report_of_its_own(pytester, small, workers):
    """Called once, in the process that has all records."""
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    pytester.makeconftest(block + "\n    Path('calls').open('a').write('x')\n")
    own_test(pytester)
    result = pytester.runpytest_subprocess(*workers, *small("-p", "no:benchmark", rounds=8))
    result.assert_outcomes(passed=1)
    assert (pytester.path / "calls").read_text() == "x"
    assert re.fullmatch(r"int8 on tiny-gpt2: 1\.\d+ \(new\)\n", (pytester.path / "worst.txt").read_text())


@pytest.mark.parametrize("what", ["raise ValueError('odd')", "import pytest; pytest.fail('odd')"])
def test_a_hook_that_raises_costs_its_own_report_only(pytester, run, what):
    """Baselines are written, the summary is shown and says which hook it was and where."""
    own_test(pytester)
    pytester.makeconftest(f"def pytest_llmslim_report(config, run):\n    {what}\n")
    result = run("--llm-update", rounds=8)
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    assert [*(pytester.path / "baselines").rglob("*.json")]
    result.stdout.fnmatch_lines(
        [
            "baselines written to baselines: *",
            "The hook pytest_llmslim_report failed (*: odd, *), so its report may be missing; mend it there, the "
            "results are complete.",
        ]
    )


# pytest-benchmark -------------------------------------------------------------------------------------------


@pytest.mark.alone  # pytest-benchmark measures nothing in a worker of xdist
# Not imported here: it brings a finder of packages that pytester takes away again, and with it all packages.
@pytest.mark.skipif(
    find_spec("pygal") is None, reason="needs pygal: pip install 'pytest-benchmark[histogram]'"
)
def test_histograms_of_pytest_benchmark_show_our_timings(pytester, small):
    """It draws the replayed rounds as its own; a file a model, with the recipe's test in it."""
    own_test(pytester)
    result = pytester.runpytest_subprocess("--benchmark-histogram=drawn", *small(rounds=8))
    result.assert_outcomes(passed=1)
    (drawn,) = pytester.path.glob("drawn*.svg")
    assert "test_ships" in drawn.read_text()
    assert os.path.getsize(drawn) > 1000
