"""Whole runs through pytest on a classifier: cost as of any model, quality from its labels alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from classifying import save_classifier, taught_classifier, toy_rows
from own_tests import own_test

from pytest_llmslim.records import Estimate, Evaluation, no_estimate
from pytest_llmslim.score import combined


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A classifier that knows its rule, and rows of the task."""
    root = tmp_path_factory.mktemp("classifier")
    data = root / "data"
    (data / "sms_spam").mkdir(parents=True)
    rows = "".join(f"{('ham', 'spam')[label]}\t{text}\n" for text, label in toy_rows(120, seed=5))
    (data / "sms_spam" / "SMSSpamCollection").write_text(rows)
    return save_classifier(taught_classifier(), root / "tiny-spam"), data


@pytest.fixture
def classify(run, folders):
    """Runs pytest on it, with the evaluation unless told otherwise."""
    model, data = folders

    def classified(*args, evaluate=True):
        asked = (f"--llm-data={data}", "--llm-eval=sms_spam") if evaluate else ()
        return run(*asked, *args, model=model)

    return classified


def rows_of(pytester):
    return json.loads((pytester.path / "llm-results/summary.json").read_text())["rows"]


def test_a_classifier_is_measured(pytester, classify):
    """Its row has time, bytes and opt, and no perplexity; the labels' F1 is part of opt; the reason is said once."""
    own_test(pytester)
    result = classify("-v", "--llm-profile=runtime")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "tiny-spam: * parameters, *, no perplexity, *",
            "1  int8 *passed, new",
            "- a classifier has no perplexity; its quality is that of its labels, e.g. --llm-eval sms_spam",
        ]
    )
    (row,) = rows_of(pytester)
    assert row["perplexity"] is row["reference_perplexity"] is row["mean_kl"] is row["top1"] is None
    assert row["perplexity_ratio"]["method"] == "unmeasured"
    assert row["time_ratio"]["value"] > 0
    assert row["stored_bytes_ratio"]["value"] < 1
    (found,) = row["evaluations"]
    assert (found["name"], found["metric"], found["n"], found["scored"]) == (
        "sms_spam",
        "weighted_f1",
        120,
        True,
    )
    assert found["reference"] > 0.98


def test_a_pruned_classifier_is_red(pytester, classify):
    """A limit on accuracy holds for its labels."""
    own_test(pytester, recipe="magnitude(sparsity=0.95)", max_accuracy_drop="5%")
    result = classify()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*magnitude(sparsity=0.95) on tiny-spam: sms_spam weighted_f1 *limit 5 %*"])


def test_a_limit_on_perplexity_cannot_be_checked(pytester, classify):
    """It is inconclusive, with the reason, and red under --llm-strict."""
    own_test(pytester, max_perplexity_increase="5%")
    result = classify()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "inconclusive: *max_perplexity_increase 5 % cannot be checked: unmeasured (a classifier has no perplexity*"
        ]
    )
    classify("--llm-strict").assert_outcomes(failed=1)


def test_without_labels_nothing_is_known_of_quality(pytester, classify):
    """Then opt is unmeasured."""
    own_test(pytester)
    classify(evaluate=False).assert_outcomes(passed=1)
    (row,) = rows_of(pytester)
    assert row["opt"]["value"] is None
    assert row["opt"]["reason"].startswith("quality: a classifier has no perplexity")


def test_a_baseline_of_a_classifier(pytester, classify):
    """Written and compared like any other: labels that stay pass, and perplexity has no verdict."""
    own_test(pytester)
    classify("--llm-update").assert_outcomes(passed=1)
    classify().assert_outcomes(passed=1)
    (row,) = rows_of(pytester)
    assert not any("perplexity" in sentence for sentence in row["sentences"])
    assert any("sms_spam" in sentence for sentence in row["sentences"])


def test_a_causal_candidate_of_a_classifier(pytester, classify, folders, tiny_folder):
    """It gives logits of another shape, as is said."""
    pytester.makepyfile(
        test_own=f"""
        def test_other(llm):
            llm.measure({str(tiny_folder)!r})
    """
    )
    result = classify(evaluate=False)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*returns logits of shape (1, *, the reference (1, 2); a candidate keeps * labels.*"]
    )


def test_weights_without_numbers(pytester, classify):
    """A candidate whose logits are NaN is refused."""
    pytester.makepyfile(
        test_own="""
        def broken(model):
            model.score.weight.data.fill_(float("nan"))

        def test_broken(llm):
            llm.measure(broken)
    """
    )
    result = classify(evaluate=False)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*broken on tiny-spam gives no finite logits on window 0; check the weights*"]
    )


def test_evaluations_of_next_tokens_refuse_a_classifier(pytester, classify):
    """By name an error in one sentence; of all kinds of text it is left out."""
    own_test(pytester)
    result = classify("--llm-eval=generation")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["generation: it asks a model for next tokens, and tiny-spam gives labels; ask for those, e.g. *"]
    )
    classify("--llm-slices=all").assert_outcomes(passed=1)


def test_opt_rests_on_labels_alone():
    """Without perplexity the evaluations stand alone; where there are none, or all are at chance, nothing does."""
    none = no_estimate("a classifier has no perplexity")
    ratio = Estimate(0.9, 0.85, 0.95, 120, "measured", "questions")
    found = Evaluation("sms_spam", "weighted_f1", True, 0.5, 0.9, 0.81, ratio, 120, {})
    (alone, nothing, chance) = (
        combined(none, evaluations) for evaluations in ([found], [], [replace(found, reference=0.3)])
    )
    assert alone.worsening.value == pytest.approx((0.9 - 0.4) / (0.81 - 0.4))
    assert alone.scored == {"sms_spam"}
    assert (nothing.worsening, chance.worsening) == (None, None)
    assert "sms_spam is no part of opt: the reference's weighted_f1 " in chance.notes[0]
    assert "no perplexity" in combined(none, [found], ["perplexity", "sms_spam"]).worsening.reason
