"""Whole runs through pytest in other surroundings: xdist, pytest-benchmark, other texts, devices and protocols."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
from own_tests import own_test

from pytest_llmslim.errors import SettingError


def test_under_xdist_quality_is_judged_and_cost_is_measured(pytester, small):
    """Records travel from the workers, which take turns on the clock."""
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
    assert [row["time_ratio"]["method"] for row in rows if row["recipe"] == "int8"] == ["measured"]


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


@pytest.mark.alone  # pytest-benchmark measures nothing in a worker of xdist
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
    from pytest_llmslim import candidates, session

    loads, builds = [], []
    load, copy = session.load_model, candidates.copy_model
    monkeypatch.setattr(
        session, "load_model", lambda *args, **options: loads.append(1) or load(*args, **options)
    )
    monkeypatch.setattr(candidates, "copy_model", lambda module: builds.append(1) or copy(module))
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


def test_calibrating_runs_no_tests(pytester, monkeypatch):
    """The exit code is the calibration's; what is wrong with it is a usage error; --help is still help."""
    calibrate = ModuleType("pytest_llmslim.calibrate")
    calibrate.main = lambda config: 7
    monkeypatch.setitem(sys.modules, "pytest_llmslim.calibrate", calibrate)
    pytester.makepyfile("def test_it(): assert 0")
    result = pytester.runpytest("--llm-calibrate")
    assert (result.ret, result.outlines) == (7, [])
    pytester.runpytest("--llm-calibrate", "--help").stdout.fnmatch_lines(["*--llm-calibrate*"])

    def refuse(config):
        raise SettingError("nothing to calibrate here.")

    calibrate.main = refuse
    result = pytester.runpytest("--llm-calibrate")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: nothing to calibrate here."])
