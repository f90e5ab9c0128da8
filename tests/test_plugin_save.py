"""`--llm-save`: what a recipe builds becomes a folder that loads as a model."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import tiny_tokens

from pytest_llmslim.models.loading import load_model

TOKENS = tiny_tokens(2, 32)

SUITE = """
    import pytest

    @pytest.mark.llm(recipes={recipes})
    def test_any(llm):
        llm.measure()
        import torch
        logits = llm.candidate.module(torch.tensor({tokens})).logits.detach()
        torch.save(logits, llm.candidate.name + ".logits")
"""


@pytest.fixture
def suite(pytester):
    def make(*recipes):
        pytester.makepyfile(test_suite=SUITE.format(recipes=recipes, tokens=TOKENS.tolist()))

    return make


def test_a_saved_candidate_is_the_one_that_was_measured(pytester, run, suite):
    """The folder loads to equal logits, and `llmslim.json` says what it is and how it was made."""
    suite("magnitude(sparsity=0.5)+int8")
    result = run("--llm-save=made")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["candidates: made, a folder each that loads as a model; llmslim.json says what it is"]
    )
    (folder,) = (pytester.path / "made").iterdir()
    assert "tiny-gpt2-magnitude-sparsity=0.5-int8" == folder.name
    card = json.loads((folder / "llmslim.json").read_text())
    assert "magnitude(sparsity=0.5)+int8" == card["recipe"]
    assert ["magnitude", "int8"] == [step.partition(":")[0] for step in card["steps"]]
    assert {"pytest-llmslim", "torch", "transformers", "bitsandbytes", "python"} == set(card["versions"])
    with torch.no_grad():
        logits = load_model(str(folder)).module(TOKENS).logits
    measured = torch.load(pytester.path / "magnitude(sparsity=0.5)+int8.logits", weights_only=True)
    torch.testing.assert_close(measured, logits, rtol=1e-4, atol=1e-4)


def test_a_saved_candidate_can_be_brought(pytester, run, suite):
    """As a folder in a test of one's own, where it is the same candidate again."""
    suite("magnitude(sparsity=0.5)")
    run("--llm-save=made").assert_outcomes(passed=1)
    pytester.makepyfile(
        test_suite="""
        def test_checkpoint(llm):
            record = llm.measure("made/tiny-gpt2-magnitude-sparsity=0.5", label="checkpoint")
            assert record.integrity.status == "simulated"
            assert "50" in record.integrity.sentence
        """
    )
    run().assert_outcomes(passed=1)


def test_controls_and_parts_are_not_saved(pytester, run, suite):
    """Only what one might ship: not the identity, and not what `--llm-ablate` measures beside a recipe."""
    suite("identity", "magnitude+int8")
    run("--llm-save=made", "--llm-ablate").assert_outcomes(passed=4)

    assert ["tiny-gpt2-magnitude-int8"] == [folder.name for folder in (pytester.path / "made").iterdir()]


def test_what_cannot_be_saved_fails_with_a_sentence(run, suite):
    """Terms beside packed weights are in no checkpoint of transformers; nothing is measured for nothing."""
    suite("nf4+eora(rank=2)")
    result = run("--llm-save=made")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "--llm-save of nf4+eora(rank=2) on tiny-gpt2: a checkpoint holds * not both, got terms over Linear4bit*"
        ]
    )


def test_a_place_that_cannot_be_written_is_named(pytester, run, suite):
    """A file where the folder should be."""
    (pytester.path / "made").write_text("mine")
    suite("magnitude")
    result = run("--llm-save=made")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*made*"])
    assert "mine" == (pytester.path / "made").read_text()
