"""The gate on evaluations: three-way against limits, McNemar against stored runs, each outcome with its sentence."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import blocks, evaluation, kind_of_text, quality, record, side

from pytest_llmslim.gate import Limits, Thresholds, decide, failure
from pytest_llmslim.proportions import accuracy_ratio
from pytest_llmslim.records import Estimate, Evaluation, Outcome, Record, Verdict, no_estimate
from pytest_llmslim.statistics import mcnemar

SUBJECT = "int4 on embedded:gpt2: "
NONE = Thresholds()
DROP = Thresholds(max_accuracy_drop=0.03)


def verdicts_on(now: Record, thresholds: Thresholds = NONE, **keywords: Any) -> list[Verdict]:
    return [verdict for verdict in decide(now, thresholds, **keywords) if verdict.axis == "evaluation"]


def against_limit(each: Evaluation, thresholds: Thresholds = DROP, *others: Evaluation) -> Verdict:
    return verdicts_on(record(evaluations=(each, *others)), thresholds)[0]


def against_baseline(now: Evaluation, then: Evaluation, *others: Evaluation, **keywords: Any) -> Verdict:
    stored = record(evaluations=(then, *others))
    return verdicts_on(record(evaluations=(now, *others)), baseline=stored, **keywords)[0]


# Limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ((400, 80, 10, 1000), "failed"),
        ((400, 0, 0, 1000), "passed"),
        ((400, 8, 8, 1000), "passed"),
        ((400, 20, 20, 1000), "inconclusive"),
        ((400, 25, 2, 1000), "inconclusive"),
        ((20, 2, 0, 40), "inconclusive"),
        ((20, 0, 0, 40), "inconclusive"),
        ((20, 20, 0, 40), "failed"),
        ((20, 0, 15, 40), "passed"),
    ],
)
def test_a_limit_is_three_way(counts: tuple[int, ...], outcome: Outcome) -> None:
    """Failed and passed only where it is sure; a few questions without a flip are not sure of 3 %."""
    verdict = against_limit(evaluation(*counts))
    assert (verdict.outcome, verdict.evaluation, verdict.against) == (outcome, "arc_challenge", "threshold")


def test_failed_in_words() -> None:
    """Subject, metric, how far with the bounds of the decision, limit, flips, and what to do."""
    found = accuracy_ratio(400, 80, 10, 1000, miss_low=0.01, miss_high=0.01)
    verdict = against_limit(evaluation(400, 80, 10, 1000))
    assert verdict.sentence == (
        f"{SUBJECT}arc_challenge acc_norm 0.410 is 14.6 % "
        f"[{100 * (1 - found.high):.1f}, {100 * (1 - found.low):.1f}] under the reference's 0.480, limit 3 %; "
        "80 right answers went wrong, 10 wrong ones right. Raise max_accuracy_drop, or compress less."
    )


def test_passed_and_inconclusive_in_words() -> None:
    """A passed sentence ends after the flips; an open one says what is excluded and how many would settle it."""
    passed = against_limit(evaluation(1000, 1, 1, 2000))
    assert passed.sentence == (
        f"{SUBJECT}arc_challenge acc_norm 0.500 is 0.0 % [-0.6, 0.6] over the reference's 0.500, limit 3 %; "
        "1 right answer went wrong, 1 wrong one right."
    )
    open_ = against_limit(evaluation(20, 2, 0, 40)).sentence
    assert ": undecided. A ratio below 0.677 is excluded; about " in open_
    assert open_.endswith("about 546 questions would settle it (--llm-limit 546).")


def test_on_the_limit_more_questions_do_not_help() -> None:
    """Where the ratio is the limit, no number would do; and without a bound nothing is excluded."""
    each = evaluation(97, 3, 0, 200)
    assert against_limit(each).sentence.endswith("is excluded; more questions would not help.")
    bare = dataclasses.replace(
        kind_of_text(1.1), ratio=Estimate(1.1, 0.0, math.inf, 1, "measured", "questions")
    )
    limit = Thresholds(max_perplexity_increase=0.1)
    assert "undecided. Nothing is excluded; more" in against_limit(bare, limit).sentence


def test_a_kind_of_text_is_held_against_the_limit_on_perplexity() -> None:
    """A slice's perplexity goes by max_perplexity_increase, three-way, and not by max_accuracy_drop."""
    limits = Thresholds(max_perplexity_increase=0.05)
    assert [against_limit(kind_of_text(ratio), limits).outcome for ratio in (1.02, 1.045, 1.055, 1.08)] == [
        "passed",
        "inconclusive",
        "inconclusive",
        "failed",
    ]
    assert "there is no evaluation" in against_limit(kind_of_text(2.0), DROP).sentence
    failed = against_limit(kind_of_text(1.08), limits)
    assert failed.sentence.startswith(f"{SUBJECT}slice(kind=code) perplexity 21.6 is 8.0 % [")
    assert failed.sentence.endswith(
        "] over the reference's 20.0, limit 5 %. Raise max_perplexity_increase, or compress less."
    )
    open_ = against_limit(kind_of_text(1.045), limits).sentence
    assert "A ratio above 1.0" in open_
    assert open_.endswith(f" windows of text would settle it (windows={open_.split('windows=')[1]}")


def test_another_lower_is_better_metric() -> None:
    """A loss may grow by the drop that is allowed."""
    loss = kind_of_text(1.08, metric="loss")
    assert against_limit(loss, DROP).outcome == "failed"
    assert against_limit(dataclasses.replace(loss, ratio=kind_of_text(1.001).ratio), DROP).outcome == "passed"


def test_bounds_of_real_scores_are_wider_than_those_shown() -> None:
    """At 1 % and with several evaluations to share it, what is surely past at 95 % need not be."""
    each = kind_of_text(1.062)
    assert each.ratio.low > 1.05  # type: ignore[operator]
    assert against_limit(each, Thresholds(max_perplexity_increase=0.05)).outcome == "inconclusive"


def test_the_error_is_shared() -> None:
    """One evaluation among ten has a tenth of the error, so that less is sure."""
    each = evaluation(400, 27, 2, 1000)
    assert against_limit(each).outcome == "failed"
    others = [evaluation(400, 0, 0, 1000, name=f"task{i}") for i in range(9)]
    assert against_limit(each, DROP, *others).outcome == "inconclusive"


@pytest.mark.parametrize(
    ("each", "reason"),
    [
        (evaluation(8, ratio=no_estimate("the reference's acc_norm is 0")), "the reference's acc_norm is 0"),
        (evaluation(8, 0, 2), "the reference's acc_norm 0.200 is no better than guessing, 0.250."),
        (evaluation(10), "the reference's acc_norm 0.250 is no better than guessing, 0.250."),
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_checked(each: Evaluation, reason: str) -> None:
    """Without a ratio, or with a reference at chance, it is undecided with the reason, never passed."""
    verdict = against_limit(each)
    assert verdict.outcome == "inconclusive"
    assert verdict.sentence.startswith(
        f"{SUBJECT}max_accuracy_drop 3 % cannot be checked on arc_challenge: {reason}"
    )


def test_the_error_is_shared_with_stored_runs() -> None:
    """Against a limit, a baseline and an anchor there are three decisions, each with a third."""
    now = record(evaluations=(evaluation(93, 7, 0, 200),))
    then = record(evaluations=(evaluation(100, 0, 0, 200),))
    assert mcnemar(7, 0).worse < 0.01
    (alone,) = verdicts_on(now, baseline=then)
    among = verdicts_on(now, DROP, baseline=then, anchor=then)
    assert (alone.outcome, [v.outcome for v in among[1:]]) == ("failed", ["inconclusive", "inconclusive"])


def test_guessing_goes_by_the_direction() -> None:
    """A loss below what guessing reaches is no guess, one above it is."""
    limit = Thresholds(max_accuracy_drop=0.5)
    good, bad = (kind_of_text(1.0, metric="loss", chance=chance) for chance in (50.0, 10.0))
    assert against_limit(good, limit).outcome == "passed"
    assert "no better than guessing, 10.0" in against_limit(bad, limit).sentence


def test_a_limit_without_an_evaluation_is_not_passed() -> None:
    """What was asked for and cannot be checked is said, as for every limit."""
    (verdict,) = verdicts_on(record(), DROP)
    assert verdict.outcome == "inconclusive"
    assert verdict.sentence == (
        f"{SUBJECT}max_accuracy_drop 3 % cannot be checked: there is no evaluation that it holds for; "
        "add one with --llm-eval."
    )


def test_figures_and_no_limit_have_no_verdict() -> None:
    """What has no metric is not judged, and nothing is without a limit."""
    bare = evaluation(metric="", reference=None, candidate=None, ratio=no_estimate("only figures"))
    assert [v.evaluation for v in verdicts_on(record(evaluations=(bare,)), DROP)] == [""]
    assert verdicts_on(record(evaluations=(evaluation(20, 20),))) == []


def test_a_broken_candidate_is_failed() -> None:
    """An infinite perplexity of a slice, and a candidate without a right answer, are past any limit."""
    infinite = Estimate(math.inf, math.inf, math.inf, 32, "measured", "questions")
    broken = dataclasses.replace(kind_of_text(), candidate=math.inf, ratio=infinite)
    assert against_limit(broken, Thresholds(max_perplexity_increase=0.5)).outcome == "failed"
    assert against_limit(evaluation(0, 30, 0, 40)).outcome == "failed"


def test_order() -> None:
    """After perplexity and before time, each against its limit, the baseline and the anchor."""
    now = record(evaluations=(evaluation(400, 0, 0, 1000),))
    limits = Thresholds(max_perplexity_increase=0.5, max_accuracy_drop=0.5, max_time_increase=0.5)
    anchor = record(evaluations=now.evaluations, perplexity=quality(1.01))
    found = [(v.axis, v.against) for v in decide(now, limits, now, anchor=anchor)]
    start = found.index(("perplexity", "anchor")) + 1
    assert found[start : start + 4] == [
        ("evaluation", "threshold"),
        ("evaluation", "baseline"),
        ("evaluation", "anchor"),
        ("time", "threshold"),
    ]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 30), st.integers(0, 30), st.floats(-0.1, 0.5), st.floats(0, 0.4))
def test_a_higher_limit_is_never_stricter(both: int, lost: int, won: int, limit: float, more: float) -> None:
    """Allowing a larger drop never turns passed into undecided or failed, nor undecided into failed."""
    each = evaluation(both, lost, won, 120, chance=None)
    order = ["failed", "inconclusive", "passed"]
    low, high = (
        order.index(against_limit(each, Thresholds(max_accuracy_drop=share)).outcome)
        for share in (limit, limit + more)
    )
    assert low <= high


# Stored runs ------------------------------------------------------------------------------------------------


def test_the_same_answers_pass() -> None:
    """Equal answers are no regression, whatever the limits."""
    verdict = against_baseline(evaluation(20, 4), evaluation(20, 4))
    assert verdict.outcome == "passed"
    assert verdict.sentence == (
        f"{SUBJECT}arc_challenge acc_norm 0.500 was 0.500 in the baseline, with the same answers right."
    )


@pytest.mark.parametrize(
    ("lost", "outcome", "words"),
    [
        (30, "failed", ": 6.0 % under, limit 1 %; 30 right answers went wrong, 0 wrong ones right. Accept with"),
        (6, "inconclusive", ": 1.2 % under, limit 1 %; 6 right answers went wrong, 0 wrong ones right: undecided. "
         "Chance alone does that in 1.6 % of cases; ask more questions (--llm-limit), or use --llm-update."),
        (4, "passed", ": 0.80 % under, limit 1 %; 4 right answers went wrong, 0 wrong ones right."),
    ],
)  # fmt: skip
def test_right_answers_that_are_wrong_now(lost: int, outcome: Outcome, words: str) -> None:
    """Failed where more than the limit is lost and McNemar's test on then and now is sure of it."""
    verdict = against_baseline(evaluation(500 - lost, lost, 0, 1000), evaluation(500, 0, 0, 1000))
    assert (verdict.outcome, verdict.against, verdict.evaluation) == (outcome, "baseline", "arc_challenge")
    assert words in verdict.sentence
    assert (mcnemar(lost, 0).worse <= 0.01) == (lost > 6)


def test_the_alpha_of_a_stored_run_is_shared() -> None:
    """Seven lost answers are sure alone (p 0.8 %) and not among three evaluations."""
    now, then = evaluation(93, 7, 0, 200), evaluation(100, 0, 0, 200)
    assert against_baseline(now, then).outcome == "failed"
    others = [evaluation(name=name) for name in ("mmlu", "winogrande")]
    assert against_baseline(now, then, *others).outcome == "inconclusive"


def test_better_than_stored() -> None:
    """More right answers pass, with the hint to keep them."""
    verdict = against_baseline(evaluation(100, 0, 5, 200), evaluation(100, 0, 0, 200))
    assert verdict.outcome == "passed"
    assert verdict.sentence.endswith("That is better than the baseline; keep it with --llm-update.")


def test_real_scores_against_a_stored_run() -> None:
    """They are the same number again on one machine: past the limit is failed, rounding is nothing."""
    then = kind_of_text(1.02)
    assert against_baseline(kind_of_text(1.02 * 1.02), then).outcome == "failed"
    assert against_baseline(kind_of_text(1.02 * 1.005), then).outcome == "passed"
    assert (
        against_baseline(kind_of_text(1.0200001), then, limits=Limits(baseline_perplexity=0)).outcome
        == "passed"
    )
    infinite = dataclasses.replace(then, candidate=math.inf)
    assert against_baseline(infinite, then).outcome == "failed"
    assert against_baseline(infinite, infinite).outcome == "passed"
    better = against_baseline(then, infinite)
    assert (better.outcome, "better than the baseline" in better.sentence) == ("passed", True)


def test_right_or_wrong_in_one_run_only() -> None:
    """Texts that all agreed then and agree in part now are shares: the point estimates are compared."""
    shares = evaluation(8, 0, 0, 8, candidate=0.6, reference_right="", candidate_right="", flips=None)
    whole = evaluation(8, 0, 0, 8)
    assert against_baseline(shares, whole).outcome == "failed"
    assert against_baseline(whole, shares).outcome == "passed"
    assert against_baseline(evaluation(0, 8, 0, 8), shares).outcome == "failed"


def test_an_anchor_allows_three_losses() -> None:
    """Against the anchor the limit is three times as wide, and its sentence says what to do."""
    then, now = (record(evaluations=(evaluation(500 - n, n, 0, 1000),)) for n in (0, 12))
    found = {v.against: v for v in verdicts_on(now, baseline=then, anchor=then)}
    assert (found["baseline"].outcome, found["anchor"].outcome) == ("failed", "passed")
    far = record(evaluations=(evaluation(460, 40, 0, 1000),))
    found = {v.against: v for v in verdicts_on(far, baseline=then, anchor=then)}
    assert "accept their sum with --llm-update --llm-anchor" in found["anchor"].sentence


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ({"protocol": {"task": "arc_challenge", "shots": "5"}}, "protocol shots is 25 now and 5 there"),
        ({"protocol": {"shots": "25"}}, "protocol task is arc_challenge now and absent there"),
        ({"metric": "acc"}, "the metric is acc_norm now and acc there"),
        ({"n": 50}, "the number of questions is 40 now and 50 there"),
    ],
)
def test_unlike_runs_are_not_compared(then: Any, reason: str) -> None:
    """Another protocol or metric is named, and nothing is compared."""
    verdict = against_baseline(evaluation(20, 4), evaluation(20, **then))
    assert verdict.outcome == "not comparable"
    assert verdict.sentence == (
        f"{SUBJECT}arc_challenge is not comparable with the baseline: {reason}; measure alike, or use --llm-update."
    )


def test_another_reference_is_not_compared() -> None:
    """Answers beside another reference are another experiment."""
    each = evaluation(20, 4)
    stored = record(evaluations=(each,), reference=side(weights="s"))
    (verdict,) = verdicts_on(record(evaluations=(each,)), baseline=stored)
    assert verdict.outcome == "not comparable"
    assert "sha256 of the reference's weights is rrrrrrrrrrrr now and ssssssssssss there" in verdict.sentence


def test_an_evaluation_that_is_not_stored() -> None:
    """It is new, unless baselines are required: then it is failed. Without a baseline the record itself is new."""
    now = record(evaluations=(evaluation(20, 4),))
    assert [verdict.outcome for verdict in verdicts_on(now, baseline=record())] == ["new"]
    (verdict,) = verdicts_on(now, baseline=record(), require_baseline=True)
    assert verdict.outcome == "failed"
    assert verdict.sentence == (
        f"{SUBJECT}arc_challenge has no baseline; write one with --llm-update and commit it."
    )
    assert verdicts_on(now, baseline=None) == []


def test_an_evaluation_that_was_not_asked_for() -> None:
    """It is said and not failed; strict runs fail on it."""
    (verdict,) = verdicts_on(record(), baseline=record(evaluations=(evaluation(20, 4),)))
    assert verdict.outcome == "not comparable"
    assert verdict.sentence == (
        f"{SUBJECT}arc_challenge is in the baseline and was not asked for now; add --llm-eval arc_challenge, "
        "or use --llm-update."
    )
    (verdict,) = verdicts_on(record(), baseline=record(evaluations=(kind_of_text(),)))
    assert "add --llm-eval 'slice(kind=code)', or" in verdict.sentence
    assert failure([verdict]) == ""
    assert failure([verdict], strict=True)


# opt of several measures ------------------------------------------------------------------------------------


def opt_verdict(now: Record, **keywords: Any) -> Verdict:
    keywords = {"thresholds": NONE, **keywords}
    return next(verdict for verdict in decide(now, **keywords) if verdict.axis == "opt")


def test_opt_of_several_measures_is_gated() -> None:
    """The limit sees the damage that perplexity hides; a worthless candidate is past any limit."""
    limit = Thresholds(max_opt=0.9)
    assert opt_verdict(record(), thresholds=limit).outcome == "passed"
    assert opt_verdict(record(evaluations=(evaluation(20, 8),)), thresholds=limit).outcome == "failed"
    worthless = opt_verdict(record(evaluations=(evaluation(8, 12),)), thresholds=limit)
    assert worthless.outcome == "failed"
    assert "opt is inf" in worthless.sentence


def test_an_unscorable_opt_is_undecided() -> None:
    """A measure that was asked for at chance leaves the limit open, with the reason."""
    now = record(evaluations=(evaluation(8, 0, 2),), asked=("arc_challenge",))
    verdict = opt_verdict(now, thresholds=Thresholds(max_opt=0.9))
    assert verdict.outcome == "inconclusive"
    assert "unmeasured (quality: the reference's arc_challenge acc_norm is above 0.2" in verdict.sentence


def test_opt_of_other_measures_is_not_compared() -> None:
    """Opt over perplexity and a task is not opt over perplexity; nor under another protocol."""
    now = record(evaluations=(evaluation(20, 4),))
    verdict = opt_verdict(now, baseline=record())
    assert verdict.outcome == "not comparable"
    assert "the quality in opt is perplexity + arc_challenge now and perplexity there" in verdict.sentence
    other = record(evaluations=(evaluation(20, 4, protocol={"shots": "5", "task": "arc_challenge"}),))
    assert "arc_challenge: protocol shots is 25 now and 5 there" in opt_verdict(now, baseline=other).sentence
    assert opt_verdict(now, baseline=now).outcome == "passed"


@pytest.mark.parametrize(
    ("both", "lost", "outcome"),
    [(20, 4, "passed"), (20, 5, "passed"), (18, 6, "inconclusive"), (14, 10, "failed")],
)
def test_opt_against_a_stored_run_allows_for_few_questions(both: int, lost: int, outcome: Outcome) -> None:
    """A flip or two of 40 can be chance, so they do not fail opt; the same answers pass it."""
    then = record(evaluations=(evaluation(20, 4),))
    assert opt_verdict(record(evaluations=(evaluation(both, lost),)), baseline=then).outcome == outcome


def test_opt_against_too_few_stored_questions() -> None:
    """Where those leave open that the stored candidate is worthless, more questions are the advice, not blocks."""
    then = record(evaluations=(evaluation(11, 2, 0, 40),))
    assert then.quality is not None
    assert then.quality.high == math.inf
    verdict = opt_verdict(record(evaluations=(evaluation(9, 4, 2, 40),), time=blocks(1.2)), baseline=then)
    assert verdict.outcome == "inconclusive"
    assert verdict.sentence.endswith(
        "The stored run has too few questions (--llm-limit); write it anew with --llm-update."
    )
