"""Whole runs through pytest, on a tiny real model: outcomes, exit codes, messages, files."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

OWN_TEST = """
    import pytest

    @pytest.mark.llm(recipe="{recipe}"{more})
    def test_ships(llm):
        llm.measure()
"""


def own_test(pytester, recipe="int8", **marked):
    more = "".join(f", {name}={value!r}" for name, value in marked.items())
    pytester.makepyfile(test_own=OWN_TEST.format(recipe=recipe, more=more))


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


# Candidates that users bring ------------------------------------------------------------------------------

BROUGHT = """
    import pytest
    import torch

    def halve_head(model):
        with torch.no_grad():
            model.transformer.h[0].mlp.c_fc.weight.mul_(0.5)

    def half_precision(model):
        return model.to(torch.bfloat16)

    def nothing(model):
        return model

    def wrong(model):
        return "a model"

    def broken(model):
        raise KeyError("layers")

    def test_function(llm):
        record = llm.measure(halve_head)
        assert record.integrity.status == "changed"
        assert record.key.recipe == "halve_head"

    def test_returned(llm):
        assert llm.measure(half_precision).integrity.status == "compressed"

    def test_nothing(llm):
        llm.measure(nothing)

    def test_wrong(llm):
        llm.measure(wrong)

    def test_broken(llm):
        llm.measure(broken)

    def test_no_recipe(llm):
        llm.measure()

    def test_number(llm):
        llm.measure(7)

    def test_twice(llm):
        llm.measure(half_precision)
        llm.measure(half_precision)

    def test_twice_with_label(llm):
        llm.measure(half_precision)
        llm.measure(half_precision, label="again")

    def test_reference_is_untouched(llm):
        before = llm.reference.module.transformer.h[0].mlp.c_fc.weight.clone()
        llm.measure(halve_head)
        assert torch.equal(before, llm.reference.module.transformer.h[0].mlp.c_fc.weight)
"""


@pytest.mark.parametrize(
    ("name", "outcome", "message"),
    [
        ("function", "passed", "1  halve_head*"),
        ("returned", "passed", "1  half_precision*"),
        ("nothing", "failed", "*nothing on tiny-gpt2: *nothing was compressed*"),
        ("wrong", "failed", "*wrong returns the compressed model or None, got str.*"),
        ("broken", "failed", "*broken failed while compressing (KeyError: 'layers').*"),
        ("no_recipe", "failed", "*llm.measure() needs a candidate: give the test a recipe*"),
        ("number", "failed", "*A candidate is a function, a model or a folder, got int.*"),
        (
            "twice",
            "failed",
            "*half_precision was measured twice in test_twice*; give the second one another label=.*",
        ),
        ("twice_with_label", "passed", "*again*"),
        ("reference_is_untouched", "passed", "1  halve_head*"),
    ],
)
def test_a_candidate_of_ones_own(pytester, run, name, outcome, message):
    """A function that returns or changes the model; what is no candidate is said in one sentence."""
    pytester.makepyfile(test_own=BROUGHT)
    result = run(f"test_own.py::test_{name}", rounds=8)
    result.assert_outcomes(**{outcome: 1})
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*pytest_llmslim/*.py:*")
    result.stdout.no_fnmatch_line("*During handling*")


def test_a_checkpoint_folder_is_a_candidate(pytester, run, tiny_folder, tmp_path):
    """Saved by whatever tool, loaded and measured."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(0.5)
    model.save_pretrained(tmp_path / "mine")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "mine")
    pytester.makepyfile(test_own=f"def test_it(llm):\n    llm.measure({str(tmp_path / 'mine')!r})")
    result = run(rounds=8)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1  mine *"])


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


# Where it runs --------------------------------------------------------------------------------------------


def test_under_xdist_quality_is_judged_and_cost_is_not_measured(pytester, small):
    """Records travel from the workers; two workers disturb each other, so their times are no numbers."""
    pytester.makepyfile(
        test_own="""
        import pytest

        @pytest.mark.llm(recipes=["int8", "magnitude(sparsity=0.9)"], max_perplexity_increase="0.1%")
        def test_ships(llm):
            llm.measure()
    """
    )
    result = pytester.runpytest_subprocess("-n", "2", *small())
    result.stdout.fnmatch_lines(["*int8 *", "failed: int8 on tiny-gpt2*limit 0.1 %*"])
    assert (pytester.path / "llm-results/results.jsonl").read_text().count("\n") == 2
    rows = json.loads((pytester.path / "llm-results/summary.json").read_text())["rows"]
    assert {row["time_ratio"]["reason"] for row in rows if row["recipe"] == "int8"} == {
        "cost is not measured while 2 workers share the machine; run without -n"
    }


def test_without_the_plugin_a_project_still_runs(pytester):
    """`-p no:llmslim` blocks it by its entry point; a conftest with an optional hook does not mind."""
    pytester.makeconftest("""
        import pytest

        @pytest.hookimpl(optionalhook=True)
        def pytest_llmslim_methods(config):
            return []
    """)
    pytester.makepyfile("def test_mine(): pass")
    result = pytester.runpytest("-p", "no:llmslim")
    result.assert_outcomes(passed=1)


def test_figures_reach_pytest_benchmark(pytester, small):
    """Its JSON holds one round a timed pair, and our figures as extra_info."""
    own_test(pytester)
    result = pytester.runpytest_subprocess("--benchmark-json=out.json", *small())
    result.assert_outcomes(passed=1)
    data = json.loads((pytester.path / "out.json").read_text())["benchmarks"][0]
    assert data["stats"]["rounds"] == 8
    assert data["group"] == "tiny-gpt2"
    record = json.loads((pytester.path / "llm-results/results.jsonl").read_text())
    assert data["stats"]["median"] == pytest.approx(record["candidate"]["wall_s"]["value"])
    assert data["extra_info"]["recipe"] == "int8"
    assert data["extra_info"]["energy_method"] == "estimated"


def test_results_that_cannot_be_written_cost_nothing_else(pytester, run):
    """A full or forbidden disk is one line; the verdict stands."""
    own_test(pytester)
    pytester.path.joinpath("taken").write_text("a file")
    result = run("--llm-results", "taken", rounds=8)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*taken* cannot be written (*); give another folder with --llm-results."])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./no/such/model", "*no/such/model*"),
        ("embedded:bert", "*embedded:bert*"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_sentence(pytester, run, model, message):
    """No traceback of a library reaches the user."""
    own_test(pytester)
    result = run(model=model)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_what_a_user_writes_by_mistake_in_a_text_option(pytester, run, tiny_folder):
    """A missing text is one sentence."""
    own_test(pytester)
    result = run("--llm-text", "nowhere.txt")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*--llm-text *nowhere.txt cannot be read (No such file or directory)*"])


@pytest.mark.parametrize(
    ("recipe", "baseline", "message"),
    [
        ("int5", None, "*there is no method 'int5'*"),
        ("int8", "{", "*test_own.json, line 1, ends in the middle*"),
    ],
)
def test_under_xdist_what_cannot_run_fails_each_test_with_its_sentence(pytester, recipe, baseline, message):
    """A usage error in a worker would be an internal error of xdist; the tests fail at once instead."""
    own_test(pytester, recipe, model="embedded:gpt2")
    if baseline:
        folder = pytester.mkdir("baselines") / "embedded__gpt2"
        folder.mkdir()
        (folder / "test_own.json").write_text(baseline)
    result = pytester.runpytest_subprocess("-n", "2")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_the_public_fixtures_give_models_and_text(pytester, run):
    """Reference, candidate and text for tests of one's own, without measuring."""
    pytester.makepyfile(
        test_own="""
        import pytest

        pytestmark = pytest.mark.llm(recipe="int8")

        def test_it(llm, llm_reference, llm_candidate, llm_text):
            assert llm_reference is llm.reference
            assert llm_reference.family == "gpt2"
            assert "int8" in llm_candidate.build.steps[0]
            assert llm_candidate.integrity.status == "compressed"
            assert llm_text.protocol.windows == 9
            assert llm_candidate.module is not llm_reference.module
    """
    )
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*compressed language models*")


def test_each_model_is_loaded_and_each_candidate_built_once(pytester, run, monkeypatch):
    """Two tests of two recipes load one reference and build two candidates."""
    from pytest_llmslim import session

    loads, builds = [], []
    load, copy = session.load_model, session.copy_model
    monkeypatch.setattr(
        session, "load_model", lambda *args, **options: loads.append(1) or load(*args, **options)
    )
    monkeypatch.setattr(session, "copy_model", lambda module: builds.append(1) or copy(module))
    pytester.makepyfile(
        test_own="""
        import pytest

        @pytest.mark.llm(recipes=["int8", "magnitude"])
        @pytest.mark.parametrize("n", [1, 2])
        def test_it(llm, n):
            llm.candidate
    """
    )
    run().assert_outcomes(passed=4)
    assert (len(loads), len(builds)) == (1, 2)


def test_a_device_that_is_not_there_is_said(pytester, run):
    """Asked for CUDA on a machine without it: one sentence with the way out."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    own_test(pytester)
    result = run("--llm-device=cuda")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*--llm-device cuda needs a CUDA device, and torch sees none; use cpu or auto.*"]
    )


def test_details_follow_verbosity(pytester, run):
    """-v shows the provenance of every number."""
    own_test(pytester)
    run("-v").stdout.fnmatch_lines(["*int8: 8 linears by bitsandbytes*", "*built in *", "*peak memory *"])


def test_a_protocol_with_stride_and_without_bos(pytester, run):
    """Overlapping windows, no BOS: shown as such."""
    own_test(pytester)
    result = run("--llm-stride=32", "--llm-bos=never", "--llm-tokens=256")
    result.stdout.fnmatch_lines(
        ["text words.txt *255 tokens scored in 7 windows of 64 without BOS, stride 32"]
    )


def test_a_text_that_is_not_given_is_pythons_manual(pytester, run, tiny_folder):
    """A model that is not ours is measurable with nothing but the wheel."""
    own_test(pytester)
    result = pytester.runpytest(
        "-p",
        "no:benchmark",
        f"--llm-model={tiny_folder}",
        "--llm-tokens=128",
        "--llm-window=64",
        "--llm-rounds=2",
    )
    result.stdout.fnmatch_lines(
        ["text python-reference *", "the text is Python's reference manual; give --llm-text*"]
    )


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
    lines = (pytester.path / "llm-results/results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"]["recipe"] for line in lines] == ["int8"]


SLOW = """
    import pytest
    import torch

    class Twice(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            self.inner(**inputs)
            return self.inner(**inputs)

    def twice(model):
        return Twice(model.to(torch.bfloat16).to(torch.float32))

    @pytest.mark.llm(max_time_increase="20%")
    def test_slow(llm):
        llm.measure(twice)

    @pytest.mark.llm(recipe="identity", max_time_increase="100%")
    def test_control(llm):
        llm.measure()
"""


def test_a_candidate_that_does_its_work_twice_fails_and_the_control_does_not(pytester, run):
    """The cost gate sees a real slowdown, with its interval, and leaves an equal model alone."""
    pytester.makepyfile(test_own=SLOW)
    result = run(rounds=48)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["failed: twice on tiny-gpt2: time is * over the reference, limit 20 %.*"])
