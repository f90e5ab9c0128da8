"""Whole runs through pytest with candidates that users bring."""

from __future__ import annotations

import pytest

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
