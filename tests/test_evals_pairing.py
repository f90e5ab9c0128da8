"""Answers of both models, paired: totals against scikit-learn, tests against scipy, intervals by simulation."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from pytest_llmslim.encoding import from_builtins, to_builtins
from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import Answer, Answers, Metric, totals
from pytest_llmslim.evals.pairing import LONGEST, figures_only, flips, paired
from pytest_llmslim.proportions import accuracy_ratio
from pytest_llmslim.records import Evaluation, Figure, Question
from pytest_llmslim.statistics import window_interval

ACC = Metric("acc", chance=0.25)
TASK = {"task": "arc_challenge", "shots": "25"}


def answers(scores: Any, metric: Metric = ACC, **fields: Any) -> Answers:
    found = tuple(Answer(f"q{i}", float(score)) for i, score in enumerate(scores))
    return Answers(metric, found, **{"protocol": TASK, **fields})


def labelled(said: Any, expected: Any, total: str = "matthews") -> Answers:
    found = tuple(
        Answer(str(i), float(a == b), a, b) for i, (a, b) in enumerate(zip(said, expected, strict=True))
    )
    return Answers(Metric("mcc", total=total, chance=0.0), found)


def pair(before: Answers, after: Answers) -> Evaluation:
    return paired("arc_challenge", before, after, "int4 on gpt2")


# Right and wrong --------------------------------------------------------------------------------------------


def test_right_and_wrong_answers() -> None:
    """Accuracies, their ratio with the score interval, flips with McNemar's p, and one character a question."""
    before, after = [1, 1, 1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0, 0, 0]
    found = pair(answers(before, tokens=100, seconds=1.5), answers(after, tokens=90, seconds=0.5))
    assert (found.name, found.metric, found.higher_is_better, found.chance) == (
        "arc_challenge",
        "acc",
        True,
        0.25,
    )
    assert (found.reference, found.candidate, found.n) == (5 / 8, 3 / 8, 8)
    assert (found.reference_right, found.candidate_right) == ("11110010", "10011000")
    assert (found.flips.right_to_wrong, found.flips.wrong_to_right) == (3, 1)  # type: ignore[union-attr]
    assert found.flips.p == pytest.approx(binomtest(3, 4, 0.5).pvalue)  # type: ignore[union-attr]
    estimate = found.ratio
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == accuracy_ratio(2, 3, 1, 8)
    assert (estimate.method, estimate.source) == ("measured", "questions")
    assert (found.protocol, found.tokens, found.seconds.value) == (TASK, 190, 2.0)
    assert not found.scored
    assert from_builtins(Evaluation, to_builtins(found)) == found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_flips_are_an_exact_test(pairs: list[tuple[bool, bool]]) -> None:
    """The p-value is the exact two-sided binomial p of the answers that changed."""
    before, after = ("".join("01"[side] for side in sides) for sides in zip(*pairs, strict=True))
    found = flips(before, after)
    lost = sum(a and not b for a, b in pairs)
    won = sum(b and not a for a, b in pairs)
    assert (found.right_to_wrong, found.wrong_to_right) == (lost, won)
    expected = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert found.p == pytest.approx(expected)


def test_fewer_errors_are_better() -> None:
    """Where lower is better a score of 0 is right, and the ratio is that of the error rates."""
    found = pair(*(answers(x, Metric("error", higher_is_better=False)) for x in ([0, 1, 0, 1], [1, 1, 0, 1])))
    assert (found.reference_right, found.candidate_right) == ("1010", "0010")
    assert found.flips.right_to_wrong == 1  # type: ignore[union-attr]
    assert found.ratio.value == 1.5
    assert [question.id for question in found.worst] == ["q0"]


def test_a_reference_that_knows_nothing() -> None:
    """There is no ratio to 0; everything else is there."""
    found = pair(answers([0, 0, 0]), answers([0, 1, 0]))
    assert (found.ratio.method, found.ratio.reason) == (
        "unmeasured",
        "the reference's acc is 0, so there is no ratio to it",
    )
    assert (found.reference, found.candidate, found.flips.wrong_to_right) == (0, 1 / 3, 1)  # type: ignore[union-attr]


# Real scores ------------------------------------------------------------------------------------------------


def test_perplexity_is_the_exponential_of_the_mean() -> None:
    """Scores are in nats; the ratio's interval is that of windows of text."""
    metric = Metric("perplexity", higher_is_better=False, total="perplexity")
    before, after = [2.0, 3.0, 4.0, 2.5], [2.1, 3.3, 4.0, 2.4]
    found = pair(answers(before, metric), answers(after, metric))
    assert found.reference == pytest.approx(math.exp(np.mean(before)))
    assert found.candidate == pytest.approx(math.exp(np.mean(after)))
    differences = [b - a for a, b in zip(before, after, strict=True)]
    estimate = found.ratio
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == window_interval(differences, [1] * 4)
    assert estimate.value == pytest.approx(found.candidate / found.reference)
    assert (found.flips, found.reference_right) == (None, "")
    assert found.protocol == TASK | {"total": "perplexity"}
    assert [(question.id, round(question.worsening, 6)) for question in found.worst] == [
        ("q1", 0.3),
        ("q0", 0.1),
    ]


def test_an_infinite_perplexity() -> None:
    """Nats too many for a float make the candidate's perplexity infinite, and the reference's useless."""
    metric = Metric("perplexity", higher_is_better=False, total="perplexity")
    found = pair(answers([2.0, 3.0], metric), answers([2000.0, 1e5], metric))
    assert (found.candidate, found.ratio.value) == (math.inf, math.inf)
    assert from_builtins(Evaluation, to_builtins(found)) == found
    broken = pair(answers([2e5, 2e5], metric), answers([1.0, 2.0], metric))
    assert broken.ratio.reason == "the reference's perplexity is infinite"


def test_means_of_shares() -> None:
    """A metric between 0 and 1 has no flips; its ratio is that of the means."""
    found = pair(answers([0.5, 0.7, 0.9]), answers([0.4, 0.7, 0.8]))
    assert found.ratio.value == pytest.approx(1.9 / 2.1)
    assert found.ratio.low < found.ratio.value < found.ratio.high  # type: ignore[operator]
    assert found.flips is None


@pytest.mark.parametrize("n", [12, 60])
def test_coverage_of_a_ratio_of_means(n: int) -> None:
    """Simulated: the 95 % interval holds the truth in at least 94 %, paired shares of unlike questions."""
    generator = np.random.default_rng(n)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        before = generator.beta(1, 1, count)
        return before, np.clip(before - 0.05 + 0.15 * generator.normal(size=count), 0, 1)

    before, after = draw(1_000_000)
    truth = after.mean() / before.mean()
    found = [totals.ratio_of_means(*(side.tolist() for side in draw(n))) for _ in range(500)]
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.94


def test_a_mean_that_is_not_above_0() -> None:
    """Without a logarithm the interval is that of the ratio itself, and holds it."""
    found = pair(answers([0.5, 0.7, 0.9]), answers([0.1, -0.3, 0.1]))
    assert found.ratio.value < 0  # type: ignore[operator]
    assert found.ratio.low < found.ratio.value < found.ratio.high  # type: ignore[operator]


# Labels -----------------------------------------------------------------------------------------------------

labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(deadline=None)
@given(labels)
def test_totals_of_labels_are_those_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    """Matthews' correlation and weighted F1, also where a class is never said or never right."""
    metrics = pytest.importorskip("sklearn.metrics")
    said, expected = zip(*pairs, strict=True)
    counts = Counter(pairs)
    assert totals.matthews(counts) == pytest.approx(metrics.matthews_corrcoef(expected, said), abs=1e-12)
    f1 = metrics.f1_score(expected, said, average="weighted", zero_division=0)
    assert totals.weighted_f1(counts) == pytest.approx(f1, abs=1e-12)


def draw_labels(generator: np.random.Generator, n: int) -> tuple[list[str], list[str], list[str]]:
    expected = generator.random(n) < 0.4
    luck = generator.random(n)
    right = [luck < 0.85, np.where(generator.random(n) < 0.8, luck < 0.8, generator.random(n) < 0.8)]
    return tuple(["ab"[x] for x in said] for said in (right[0] == expected, right[1] == expected, expected))  # type: ignore[return-value]


@pytest.mark.parametrize("total", ["matthews", "weighted_f1"])
def test_coverage_of_the_jackknife(total: str) -> None:
    """Simulated on 80 questions: the 95 % interval holds the truth in at least 91 %."""
    generator = np.random.default_rng(1)
    measure = getattr(totals, total)
    before, after, expected = draw_labels(generator, 200_000)
    truth = measure(Counter(zip(after, expected, strict=True))) / measure(
        Counter(zip(before, expected, strict=True))
    )
    held = []
    for _ in range(150):
        before, after, expected = draw_labels(generator, 80)
        found = pair(labelled(before, expected, total), labelled(after, expected, total)).ratio
        held.append(found.low <= truth <= found.high)  # type: ignore[operator]
    assert np.mean(held) >= 0.91


@pytest.mark.parametrize("total", ["matthews", "weighted_f1"])
def test_without_a_flip_labels_are_as_unsure_as_accuracy(total: str) -> None:
    """40 equal answers say as little about a small drop as they do of accuracy; nothing is sure to the last digit."""
    expected = ["spam" if i % 4 == 0 else "ham" for i in range(40)]
    said = ["ham" if i % 10 == 0 else label for i, label in enumerate(expected)]
    answers = labelled(said, expected, total)
    found = paired("f1", answers, answers, "int4 on gpt2").ratio
    right = sum(one == other for one, other in zip(said, expected, strict=True))
    assert (found.value, found.low, found.high) == pytest.approx(accuracy_ratio(right, 0, 0, 40)[:3])


def test_the_jackknife_leaves_out_each_of_few_answers() -> None:
    """Up to 50 answers it is the delete-one jackknife, written out here."""
    generator = np.random.default_rng(3)
    before, after, expected = draw_labels(generator, 30)
    found = pair(labelled(before, expected), labelled(after, expected))

    def ratio(kept: list[int]) -> float:
        one, other = (
            totals.matthews(Counter((said[i], expected[i]) for i in kept)) for said in (before, after)
        )
        return other / one

    left = [ratio([j for j in range(30) if j != i]) for i in range(30)]
    error = math.sqrt(29 / 30 * sum((x - np.mean(left)) ** 2 for x in left))
    assert found.ratio.value == pytest.approx(ratio(list(range(30))))
    assert found.ratio.high - found.ratio.value == pytest.approx(2.0452296 * error, rel=1e-6)  # type: ignore[operator]
    assert found.flips is not None
    assert found.protocol["total"] == "matthews"


def test_too_few_labels_have_no_bounds() -> None:
    """One answer, or a reference that is at 0 without one of them, leaves the value alone."""
    found = pair(labelled("ab", "ab"), labelled("ab", "ab"))
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == (1.0, 0.0, math.inf)


# Worst questions, figures, notes ----------------------------------------------------------------------------


def test_the_worst_questions() -> None:
    """At most ten that lost, worst first, in their order where alike, with both answers and long texts cut."""
    scores = [0.9, *[0.5] * 12, 0.2]
    lost = [0.5, *[0.4] * 12, 0.3]
    before, after = answers(scores), answers(lost)
    first = Answer("q0", 0.9, "yes", "of course", "Q" * 1000 + "?")
    before = dataclasses.replace(before, answers=(first, *before.answers[1:]))
    after = dataclasses.replace(after, answers=(Answer("q0", 0.5, "n" * 1000), *after.answers[1:]))
    worst = pair(before, after).worst
    assert [question.id for question in worst] == [f"q{i}" for i in range(10)]
    assert worst[0] == Question(
        "q0",
        "…" + "Q" * (LONGEST - 2) + "?",
        "of course",
        "yes",
        "n" * (LONGEST - 1) + "…",
        pytest.approx(0.4),  # type: ignore[arg-type]
    )


def test_figures_are_paired_by_name() -> None:
    """In the order in which they come; what one model lacks, or what is no number, is not there."""
    found = pair(
        answers([1], figures={"loss nats": 0.5, "recall": 0.25}, notes=("sampled", "cut")),
        answers([1], figures={"recall": math.nan, "extra": 3}, notes=("sampled",)),
    )
    assert found.figures == (
        Figure("loss nats", "", 0.5, None),
        Figure("recall", "", 0.25, None),
        Figure("extra", "", None, 3.0),
    )
    assert found.notes == ("sampled", "cut")
    assert found.seconds.reason == "all answers were in the cache"


def test_figures_alone() -> None:
    """An evaluation without a metric has no ratio and says so."""
    found = figures_only("latency", (Figure("first token", "s", 1.0, 0.5),))
    assert (found.metric, found.reference, found.n) == ("", None, 0)
    assert found.ratio.reason == "it has no metric, only figures"


# What cannot be paired --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (answers([1, 0, 1]), "the reference answered 2 questions and the candidate 3"),
        (answers([1, 0], protocol=TASK | {"shots": "5"}), "protocol shots is 25 of the reference and 5"),
        (answers([1, 0], protocol=TASK | {"seed": "1"}), "protocol seed is absent of the reference and 1 of"),
        (answers([1, 0], Metric("f1")), "the metric is Metric(name='acc'"),
        (Answers(ACC, (Answer("q0", 1.0), Answer("x", 0.0)), TASK), "question 2 is 'q1' of the reference and 'x' of"),
    ],
)  # fmt: skip
def test_unlike_answers_are_not_paired(after: Answers, words: str) -> None:
    """The first difference is named."""
    with pytest.raises(EvaluationError) as caught:
        pair(answers([1, 0]), after)
    assert str(caught.value).startswith("int4 on gpt2: answers cannot be paired: ")
    assert words in str(caught.value)
    assert str(caught.value).endswith("; ask both models alike")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_are_finite(bad: float) -> None:
    """A score that is no number is an error that names model and question."""
    with pytest.raises(
        EvaluationError, match=rf"a score is a finite number, got {bad} of the candidate for question 'q1'"
    ):
        pair(answers([1, 0]), answers([1, bad]))
    with pytest.raises(EvaluationError, match="of the reference for question 'q0'"):
        pair(answers([bad, 0]), answers([1, 0]))


def test_other_errors() -> None:
    """No question, and a total that nobody knows."""
    with pytest.raises(EvaluationError, match="an evaluation asks at least one question, got none"):
        pair(answers([]), answers([]))
    with pytest.raises(
        EvaluationError, match="total is one of mean, perplexity, matthews, weighted_f1, got 'median'"
    ):
        pair(answers([1], Metric("x", total="median")), answers([1], Metric("x", total="median")))


# Properties -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30), st.booleans(), st.data()
)
def test_an_interval_holds_its_value(
    pairs: list[tuple[float, float]], round_them: bool, data: st.DataObject
) -> None:
    """Whatever the scores, and equal models have a ratio of 1."""
    name = data.draw(st.sampled_from(["mean", "perplexity"]))
    before, after = ([round(x) if round_them else x for x in side] for side in zip(*pairs, strict=True))
    assume(sum(before) > 1e-3)
    metric = Metric("m", total=name)
    found = pair(answers(before, metric), answers(after, metric)).ratio
    assert found.low <= found.value * (1 + 1e-12)  # type: ignore[operator]
    assert found.value <= found.high * (1 + 1e-12)  # type: ignore[operator]
    same = pair(answers(before, metric), answers(before, metric)).ratio
    assert same.value == 1
