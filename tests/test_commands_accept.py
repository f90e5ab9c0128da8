"""`llmslim accept`: a run becomes the baselines, deliberately or not at all."""

from __future__ import annotations

import dataclasses
import json

import pytest
from sample_records import KEY, blocks, evaluation, quality, record
from stored_runs import COMMIT, named, origin, store

from pytest_llmslim import runs
from pytest_llmslim.baselines import Store, anchor_path_of, load_all, path_of, told, update
from pytest_llmslim.conditions import BUSY_BASELINE
from pytest_llmslim.gate import Thresholds, decide
from pytest_llmslim.records import Integrity, Sampling, Verdict, no_estimate

REASON = ("--reason", "group size 32")


@pytest.fixture
def results(tmp_path):
    """A run with two recipes."""
    return store(tmp_path / "llm-results", record(), named("int8"))


def test_what_is_accepted_is_what_update_writes(llmslim, tmp_path, results):
    """The same records and the same words, and beside them reason, commit, run and time."""
    update(tmp_path / "baselines", [record(time=blocks(0.9))])
    update(tmp_path / "updated", [record(time=blocks(0.9))])
    found = llmslim("accept", results, *REASON)
    assert found.exit_code == 0
    lines = told(update(tmp_path / "updated", runs.read(results).records))
    assert found.stdout.splitlines() == [
        f"{results}: 2 records of 2026-11-20T10:00:00Z at commit {COMMIT[:12]} on main; EPYC",
        *(f"  {line}" for line in lines),
        f"2 accepted into baselines: {len(lines)} changes",
        "next: commit baselines with what changed it",
    ]
    assert "  int4 on embedded:gpt2: time 0.900 -> 0.800 (-11.1 %)" in found.stdout
    assert "  int8 on embedded:gpt2: new, perplexity 1.020, time 0.800, " in found.stdout
    ours, theirs = load_all(tmp_path / "baselines"), load_all(tmp_path / "updated")
    accepted = ours.rolling[KEY].accepted
    assert (accepted.reason, accepted.commit, accepted.run) == ("group size 32", COMMIT, origin().id)
    assert accepted.when.endswith("Z")
    bare = {key: dataclasses.replace(each, accepted=None) for key, each in ours.rolling.items()}
    assert bare == theirs.rolling
    assert ours.anchors == theirs.anchors
    assert llmslim("check").exit_code == 0


def test_what_was_red_is_green_after_it(llmslim, tmp_path):
    """A loss of 2 % in perplexity fails against the old baseline and passes against the accepted one."""
    update(tmp_path / "baselines", [record(perplexity=quality(1.0))])
    now = record(perplexity=quality(1.02))

    def outcomes():
        kept = Store(tmp_path / "baselines")
        found = decide(now, Thresholds(), kept.get(KEY), anchor=kept.anchor(KEY))
        return {verdict.outcome for verdict in found}

    assert "failed" in outcomes()
    found = llmslim("accept", store(tmp_path / "run", now), *REASON)
    assert found.stderr == ""
    assert outcomes() == {"passed"}


def test_a_loss_too_large_for_one_step_is_announced(llmslim, tmp_path):
    """The anchor fails it all the same, until it is accepted as the anchor too."""
    update(tmp_path / "baselines", [record(perplexity=quality(1.0))])
    run = store(tmp_path / "run", record(perplexity=quality(1.042)))
    found = llmslim("accept", run, *REASON)
    assert found.exit_code == 0
    assert found.stderr.startswith(
        "warning: the next run will fail all the same, unless you accept with --anchor: int4 on embedded:gpt2: "
        "perplexity ratio 1.042 [1.037, 1.047] was 1.000 in the anchor: 4.2 % over, limit 3 %."
    )
    assert anchor_path_of(tmp_path / "baselines", KEY).exists()
    found = llmslim("accept", run, *REASON, "--anchor")
    assert (found.exit_code, found.stderr) == (0, "")
    assert "int4 on embedded:gpt2: anchor replaced, perplexity 1.000 -> 1.042 (+4.2 %)" in found.stdout
    assert not anchor_path_of(tmp_path / "baselines", KEY).exists()


def test_the_limits_of_the_run_decide_what_is_announced(llmslim, tmp_path):
    """A project that allows 2 % an update allows 6 % against the anchor."""
    update(tmp_path / "baselines", [record(perplexity=quality(1.0))])
    settings = {"quality-regression": "0.02"}
    run = store(tmp_path / "run", record(perplexity=quality(1.042)), origin=origin(settings=settings))
    assert llmslim("accept", run, *REASON).stderr == ""


def test_accepting_twice_changes_nothing(llmslim, tmp_path, results):
    """Neither the files nor the anchors: the second time it is the same measurement."""
    llmslim("accept", results, *REASON)
    before = path_of(tmp_path / "baselines", KEY).read_bytes()
    found = llmslim("accept", results, "--reason", "another")
    assert found.exit_code == 0
    assert found.stdout.splitlines()[1:] == [
        "  2 of 2 were these baselines already",
        "nothing to accept into baselines",
    ]
    assert path_of(tmp_path / "baselines", KEY).read_bytes() == before
    assert not anchor_path_of(tmp_path / "baselines", KEY).exists()


def test_a_dry_run_writes_nothing(llmslim, tmp_path, results):
    """It says what would change, and of how many."""
    found = llmslim("accept", results, *REASON, "--dry-run")
    assert found.exit_code == 0
    assert "  int4 on embedded:gpt2: new, perplexity 1.020, " in found.stdout
    assert found.stdout.endswith("nothing was written: 2 would be accepted into baselines\n")
    assert not (tmp_path / "baselines").exists()


@pytest.mark.parametrize("form", ["folder", "results.jsonl", "export"])
def test_every_form_of_a_run_is_accepted(llmslim, tmp_path, results, form):
    """A folder, its records, and the file of --llm-json."""
    (tmp_path / "run.json").write_text(runs.export(runs.read(results)))
    path = {"folder": results, "results.jsonl": results / "results.jsonl", "export": tmp_path / "run.json"}
    assert llmslim("accept", path[form], *REASON).exit_code == 0
    assert len(load_all(tmp_path / "baselines").rolling) == 2


# What is picked, and where to ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "accepted"),
    [
        (["int4"], {"int4"}),
        (["int*"], {"int4", "int8"}),
        (["int4", "int8"], {"int4", "int8"}),
        (["embedded:gpt2"], {"int4", "int8", "kd"}),
        (["test_pt?"], {"int4", "int8", "kd"}),
        (["k[cd]"], {"kd"}),
    ],
)
def test_only_takes_recipes_models_and_tests(llmslim, tmp_path, patterns, accepted):
    """By patterns as of file names; the others keep what they had."""
    run = store(tmp_path / "run", record(), named("int8"), named("kd"))
    words = [word for pattern in patterns for word in ("--only", pattern)]
    assert llmslim("accept", run, *REASON, *words).exit_code == 0
    assert {key.recipe for key in load_all(tmp_path / "baselines").rolling} == accepted


def test_a_pattern_that_names_nothing_is_refused(llmslim, tmp_path, results):
    """With what there is; the other pattern writes nothing either."""
    found = llmslim("accept", results, *REASON, "--only", "int4", "--only", "int2")
    assert found.exit_code == 2
    assert found.stderr == (
        "Error: --only int2 is no recipe, model or test of the run; its recipes are: int4, int8.\n"
    )
    assert not (tmp_path / "baselines").exists()


def test_baselines_are_where_the_run_had_them(llmslim, tmp_path):
    """Unless --baseline says where."""
    run = store(tmp_path / "run", record(), origin=origin(settings={"baseline": "ours"}))
    llmslim("accept", run, *REASON)
    llmslim("accept", run, *REASON, "--baseline", "theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "run", "theirs"]


def test_a_folder_that_is_not_the_projects_gets_no_baselines(llmslim, tmp_path):
    """The run was compared with some, so they are elsewhere; --baseline may say that new ones are meant."""
    run = store(tmp_path / "run", record(), baselines=(record(time=blocks(0.9)),))
    found = llmslim("accept", run, *REASON)
    assert (found.exit_code, found.stderr) == (
        2,
        f"Error: there is no folder baselines here, and {run} was compared with baselines; go to the folder in which "
        "it was measured, or give --baseline.\n",
    )
    assert not (tmp_path / "baselines").exists()
    assert llmslim("accept", run, *REASON, "--baseline", "theirs").exit_code == 0


# What is refused ----------------------------------------------------------------------------------------------

HALF = (
    "Error: RUN did not come to its end (it was interrupted, is still running, or its run.json is missing), and half "
    "of it may not be meant; let a run end, or name the tests that are to be accepted.\n"
)


def refused(llmslim, tmp_path, path, *words):
    """What is said of a run that is not accepted; nothing is written."""
    found = llmslim("accept", path, *(words or REASON))
    assert found.exit_code == 2
    assert found.stdout == ""
    assert not (tmp_path / "baselines").exists()
    return found.stderr.replace(str(path), "RUN")


@pytest.mark.parametrize("reason", [(), ("--reason", ""), ("--reason", "  ")])
def test_a_reason_is_needed(llmslim, tmp_path, results, reason):
    """An empty one is none."""
    said = refused(llmslim, tmp_path, results, *(reason or ["--anchor"]))
    assert (
        said == 'Error: accepting needs --reason, e.g. --reason "group size 32: smaller, and 0.4 % worse".\n'
    )


def test_an_interrupted_run_is_refused(llmslim, tmp_path):
    """As --llm-update refuses it; so is one whose run.json was left behind, which nobody knows the end of."""
    run = store(tmp_path / "run", record(), interrupted=True, origin=origin(finished=""))
    assert refused(llmslim, tmp_path, run) == HALF
    (run / "run.json").unlink()
    assert refused(llmslim, tmp_path, run) == HALF


def test_baselines_are_no_run(llmslim, tmp_path):
    """They were accepted once, and nothing says from where."""
    update(tmp_path / "other", [record()])
    assert refused(llmslim, tmp_path, tmp_path / "other") == (
        "Error: RUN is no run that was measured, so that nothing says where it comes from; give a run.\n"
    )


def test_parts_of_recipes_are_refused(llmslim, tmp_path):
    """They have no baselines, and a record does not say that it is one."""
    run = store(tmp_path / "run", record(), origin=origin(settings={"ablate": "True"}))
    assert refused(llmslim, tmp_path, run) == (
        "Error: RUN was measured with --llm-ablate, whose parts of recipes have no baselines; run without it.\n"
    )


def test_nothing_compressed_is_refused(llmslim, tmp_path):
    """Unless it is left out."""
    nothing = named("int8", integrity=Integrity("nothing", "all parameters are equal."))
    run = store(tmp_path / "run", record(), nothing)
    assert refused(llmslim, tmp_path, run) == (
        "Error: int8 on embedded:gpt2: nothing was compressed, which is no baseline (all parameters are equal); "
        "mend the recipe, or leave it out with --only.\n"
    )
    assert llmslim("accept", run, *REASON, "--only", "int4").exit_code == 0


def test_a_run_without_records_is_refused(llmslim, tmp_path):
    """There is nothing to accept."""
    assert refused(llmslim, tmp_path, store(tmp_path / "run")) == (
        "Error: the run measured nothing, so that there is nothing to accept; measure first, with pytest.\n"
    )


def test_a_broken_baseline_is_refused(llmslim, tmp_path, results):
    """With its file and line."""
    update(tmp_path / "baselines", [record()])
    path = path_of(tmp_path / "baselines", KEY)
    path.write_text(path.read_text()[:-5])
    found = llmslim("accept", results, *REASON)
    assert found.exit_code == 2
    assert (
        f"{path.relative_to(tmp_path)}, line 2, ends in the middle; restore it from version" in found.stderr
    )


# What is warned of --------------------------------------------------------------------------------------------


def test_a_busy_machine_is_warned_of_and_noted(llmslim, tmp_path):
    """As where a run updates: later runs cannot be told from such a baseline."""
    busy = record(sampling=Sampling(per_block=4, wall_over_cpu=1.9))
    found = llmslim("accept", store(tmp_path / "run", busy), *REASON)
    assert found.exit_code == 0
    assert found.stderr == f"warning: int4 on embedded:gpt2: {BUSY_BASELINE}\n"
    assert load_all(tmp_path / "baselines").rolling[KEY].notes == (BUSY_BASELINE,)


def test_cost_that_was_not_measured_is_warned_of(llmslim, tmp_path):
    """A baseline without time lets every time pass; simulated candidates never had one."""
    none = no_estimate("2 workers share the machine")
    simulated = no_estimate("zeros", method="simulated")
    run = store(tmp_path / "run", record(time=(), energy=()), named("rtn"))
    kept = runs.read(run).records
    records = [dataclasses.replace(kept[0], time=none), dataclasses.replace(kept[1], time=simulated)]
    update(tmp_path / "baselines", [record()])
    found = llmslim("accept", store(run, *records), *REASON)
    assert found.stderr == (
        "warning: int4 on embedded:gpt2: time is not measured and will not be compared (2 workers share the machine)\n"
    )
    assert "  int4 on embedded:gpt2: time 0.800 -> -" in found.stdout


def test_limits_of_a_test_are_not_accepted_away(llmslim, tmp_path):
    """A threshold fails the next run as it failed this one."""
    sentence = "int4 on embedded:gpt2: perplexity is 2.0 % over the reference, limit 1 %."
    failed = record(
        verdicts=(Verdict("perplexity", "failed", sentence), Verdict("time", "failed", "x", "baseline"))
    )
    found = llmslim("accept", store(tmp_path / "run", failed), *REASON)
    assert found.exit_code == 0
    assert found.stderr == f"warning: accepting leaves this limit of its test as it is: {sentence}\n"


def test_an_evaluation_that_was_not_asked_is_told(llmslim, tmp_path, results):
    """Accepting a run without it ends its gate."""
    update(tmp_path / "baselines", [record(evaluations=(evaluation(20, 4),))])
    found = llmslim("accept", results, *REASON)
    assert "arc_challenge acc_norm 0.500 -> - (not asked for now, so no longer stored)" in found.stdout


def test_the_reason_stays_on_the_line_of_its_record(llmslim, tmp_path, results):
    """So that `git blame` and reports find it; a later update measures anew and drops it."""
    llmslim("accept", results, "--reason", " two words ")
    lines = path_of(tmp_path / "baselines", KEY).read_text().splitlines()[1:-1]
    assert [json.loads(line.rstrip(","))["accepted"]["reason"] for line in lines] == ["two words"] * 2
    update(tmp_path / "baselines", [record(time=blocks(0.9))])
    assert load_all(tmp_path / "baselines").rolling[KEY].accepted is None
