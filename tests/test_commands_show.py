"""`llmslim show`: a stored run as pytest printed it."""

from __future__ import annotations

import csv
import io
import re
import unicodedata

import pytest
from click.testing import CliRunner
from sample_records import record
from stored_runs import COMMIT, named, origin, store

from pytest_llmslim import outputs, runs
from pytest_llmslim.baselines import update
from pytest_llmslim.commands import main
from pytest_llmslim.records import Verdict
from pytest_llmslim.reports.terminal import Shown, lines
from pytest_llmslim.run_records import Missed

FAILED = Verdict("perplexity", "failed", "int4 on embedded:gpt2: perplexity is too high.", "baseline")


@pytest.fixture
def results(tmp_path):
    """A run with a failed recipe, one that passed, a test that measured nothing, and a baseline nobody met."""
    records = [record(verdicts=(FAILED,)), named("int8", verdicts=(Verdict("time", "passed", "fine."),))]
    return store(
        tmp_path / "llm-results",
        *records,
        unmeasured=(Missed("gptq on embedded:gpt2", "needs a GPU"),),
        missing=("kd on embedded:gpt2 has a baseline and was not measured.",),
    )


@pytest.mark.parametrize("verbose", [False, True])
def test_the_summary_is_that_of_the_run(llmslim, results, verbose):
    """Below one line that says where the run comes from; -v gives where every number came from."""
    found = llmslim("show", results, *(["-v"] if verbose else []))
    assert found.exit_code == 0
    run = runs.read(results)
    missed = tuple((each.label, each.reason) for each in run.unmeasured)
    shown = Shown(
        run.records, missed, (), (), "baselines", str(results), False, verbose, 250, missing=run.missing
    )
    assert found.stdout.splitlines() == [
        f"{results}: 2 records of 2026-11-20T10:00:00Z at commit {COMMIT[:12]} on main; EPYC",
        *(text for text, _ in lines(shown)),
    ]
    assert "failed: int4 on embedded:gpt2: perplexity is too high." in found.stdout
    assert "not measured: gptq on embedded:gpt2: needs a GPU" in found.stdout
    assert "kd on embedded:gpt2 has a baseline and was not measured." in found.stdout
    assert ("      built in 1.50 s" in found.stdout) == verbose


def test_forms_for_programs(llmslim, results):
    """Markdown and CSV as the run's reports, and JSON that is a run again."""
    run = runs.read(results)
    assert llmslim("show", results, "--format", "markdown").stdout.strip() == outputs.markdown(run).strip()
    rows = list(csv.DictReader(io.StringIO(llmslim("show", results, "--format", "csv").stdout)))
    assert [row["recipe"] for row in rows][:2] == ["int4", "int8"]
    again = results.parent / "again.json"
    again.write_text(llmslim("show", results, "--format", "json").stdout)
    assert runs.read(again) == run


def test_an_unknown_form_is_refused(llmslim, results):
    """With those that there are."""
    found = llmslim("show", results, "--format", "xml")
    assert found.exit_code == 2
    assert "'xml' is not one of 'table', 'markdown', 'csv', 'json'" in found.stderr


def test_an_interrupted_run_is_said_to_be_one(llmslim, tmp_path):
    """So is one whose run.json is missing; changed files of the commit are said, too."""
    run = store(tmp_path / "run", record(), interrupted=True, origin=origin(changed=True, branch=""))
    head = f"{run}: 1 record of 2026-11-20T10:00:00Z at commit {COMMIT[:12]}, with changes; EPYC; interrupted"
    assert llmslim("show", run).stdout.splitlines()[0] == head
    (run / "run.json").unlink()
    assert llmslim("show", run / "results.jsonl").stdout.splitlines()[0] == (
        f"{run}/results.jsonl: 1 record; EPYC; interrupted"
    )


def test_files_are_named_where_they_are(llmslim, tmp_path, results):
    """An export and baselines have no results.jsonl beside them."""
    update(tmp_path / "kept", [record()])
    (tmp_path / "run.json").write_text(runs.export(runs.read(results)))
    assert f"results: {results}/results.jsonl, run.json, summary.json" in llmslim("show", results).stdout
    for path in (tmp_path / "kept", tmp_path / "run.json"):
        found = llmslim("show", path)
        assert "lowest opt: int" in found.stdout
        assert "results.jsonl" not in found.stdout


def test_the_parts_of_recipes_are_shown_where_they_were_measured(llmslim, tmp_path):
    """As --llm-ablate prints them."""
    records = [named("kd"), named("int8"), named("kd+int8")]
    plain, asked = (
        store(tmp_path / name, *records, origin=origin(settings=settings))
        for name, settings in (("plain", {}), ("asked", {"ablate": "True"}))
    )
    assert "left out" in llmslim("show", asked).stdout
    assert "left out" not in llmslim("show", plain).stdout


def test_colours_are_for_terminals(results, monkeypatch):
    """What failed is red; NO_COLOR is honoured, and a pipe has none."""
    red = "\x1b[31m"

    def shown(**options):
        return CliRunner().invoke(main, ["show", str(results)], **options).stdout

    assert red in shown(color=True)
    assert "\x1b" not in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(color=True)


STEERS = "int4\x1b]0;title\x07\r\x1b[2J\x9b31m\u202e"


@pytest.mark.parametrize("words", [("show",), ("show", "-v"), ("compare",), ("accept", "--reason", "x")])
def test_a_name_steers_no_terminal(tmp_path, monkeypatch, words):
    """Results may come from anybody: escape sequences in their names are left out, also where colours are written."""
    monkeypatch.chdir(tmp_path)
    other = store(tmp_path / "other", record(label=STEERS), origin=origin(branch=STEERS))
    path = store(tmp_path / "run", named(STEERS), record(label=STEERS), origin=origin(branch=STEERS))
    paths = [other, path] if words[0] == "compare" else [path]
    command = [words[0], *map(str, paths), *words[1:]]
    found = CliRunner().invoke(main, command, color=True)
    assert found.exit_code == 0
    assert "int4]0;title[2J31m" in found.output
    bare = re.sub(r"\x1b\[\d*m", "", found.output)
    assert not [each for each in bare if each != "\n" and unicodedata.category(each)[0] == "C"]


def test_a_refusal_steers_no_terminal(llmslim, tmp_path):
    """Names of recipes stand in its sentence."""
    path = store(tmp_path / "run", named(STEERS))
    found = llmslim("accept", path, "--reason", "x", "--only", "none")
    assert found.exit_code == 2
    assert found.stderr.count("\x1b") == 0
    assert "its recipes are: int4]0;title[2J31m." in found.stderr
