"""Answers of reference and candidate, question by question.

Both models answer the same questions, so the difference between them is told by the questions on which they differ:
how hard the questions are cancels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import totals
from pytest_llmslim.proportions import changes
from pytest_llmslim.readings import Estimate, Reading, no_estimate, unmeasured
from pytest_llmslim.records import Evaluation, Figure, Flips, Question
from pytest_llmslim.statistics import mcnemar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.evals import Answer, Answers, Metric

WORST: Final = 10
"""Questions that are listed."""
LONGEST: Final = 400
"""Characters of a text that is listed."""
SOURCE: Final = "questions"


def paired(name: str, reference: Answers, candidate: Answers, subject: str) -> Evaluation:
    """Both models on one evaluation.

    Args:
        name: of the evaluation, as asked for.
        reference: its answers.
        candidate: its answers to the same questions in the same order, under the same protocol.
        subject: names both in messages, e.g. `int4 on gpt2`.

    Raises:
        EvaluationError: they answered different questions, or a score is no number; names the first difference.
    """
    difference = _difference(reference, candidate)
    if difference:
        raise EvaluationError(f"{subject}: answers cannot be paired: {difference}; ask both models alike")
    if not reference.answers:
        raise EvaluationError(f"{subject}: an evaluation asks at least one question, got none")
    for side, answers in (("reference", reference.answers), ("candidate", candidate.answers)):
        _check(side, answers, subject)
    metric, pairs = reference.metric, (reference.answers, candidate.answers)
    total = totals.named(metric.total)
    values = [total.value(answers) for answers in pairs]
    rights = _rights(metric, *pairs) if _right_or_wrong(metric, *pairs) else ("", "")
    return Evaluation(
        name=name,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        chance=metric.chance,
        reference=values[0],
        candidate=values[1],
        ratio=_ratio(metric, total, values, *pairs),
        n=len(pairs[0]),
        protocol=_protocol(reference),
        flips=flips(*rights) if rights[0] else None,
        reference_right=rights[0],
        candidate_right=rights[1],
        figures=_figures(reference.figures, candidate.figures),
        worst=_worst(metric, *pairs),
        tokens=reference.tokens + candidate.tokens,
        seconds=_seconds(reference.seconds + candidate.seconds),
        notes=tuple(dict.fromkeys((*reference.notes, *candidate.notes))),
    )


def figures_only(name: str, figures: tuple[Figure, ...]) -> Evaluation:
    """An evaluation without a metric."""
    none = no_estimate("it has no metric, only figures")
    return Evaluation(name, "", False, None, None, None, none, 0, {}, figures=figures)


def flips(reference_right: str, candidate_right: str) -> Flips:
    """Changes between right and wrong, from one character a question; exact two-sided McNemar test."""
    lost, won = changes(reference_right, candidate_right)
    return Flips(lost, won, mcnemar(lost, won).differs)


# Whether they can be paired ---------------------------------------------------------------------------------


def _difference(reference: Answers, candidate: Answers) -> str:
    """The first thing that is not equal; empty when all is."""
    if reference.metric != candidate.metric:
        return f"the metric is {reference.metric} of the reference and {candidate.metric} of the candidate"
    first, second = reference.protocol, candidate.protocol
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            ours, theirs = (side.get(name, "absent") for side in (first, second))
            return f"protocol {name} is {ours} of the reference and {theirs} of the candidate"
    if len(reference.answers) != len(candidate.answers):
        counts = [len(side.answers) for side in (reference, candidate)]
        return f"the reference answered {counts[0]} questions and the candidate {counts[1]}"
    for i, (one, other) in enumerate(zip(reference.answers, candidate.answers, strict=True), 1):
        if one.id != other.id:
            return f"question {i} is {one.id!r} of the reference and {other.id!r} of the candidate"
    return ""


def _check(side: str, answers: Sequence[Answer], subject: str) -> None:
    bad = next((answer for answer in answers if not math.isfinite(answer.score)), None)
    if bad is not None:
        raise EvaluationError(
            f"{subject}: a score is a finite number, got {bad.score} of the {side} for question {bad.id!r}; "
            "look whether its logits are finite"
        )


def _protocol(answers: Answers) -> dict[str, str]:
    """With the total, where it is not the mean: it decides what the number is."""
    total = answers.metric.total
    return answers.protocol if total == "mean" else {**answers.protocol, "total": total}


# What comes of it -------------------------------------------------------------------------------------------


def _ratio(
    metric: Metric,
    total: totals.Total,
    values: Sequence[float],
    before: Sequence[Answer],
    after: Sequence[Answer],
) -> Estimate:
    if not values[0] > 0:
        reason = f"the reference's {metric.name} is {values[0]:g}, so there is no ratio to it"
        return no_estimate(reason, source=SOURCE)
    if math.isinf(values[0]):
        return no_estimate(f"the reference's {metric.name} is infinite", source=SOURCE)
    return Estimate(*total.ratio(before, after), "measured", SOURCE)


def _right_or_wrong(metric: Metric, *sides: Sequence[Answer]) -> bool:
    return metric.total != "perplexity" and totals.all_or_nothing(*sides)


def _rights(metric: Metric, before: Sequence[Answer], after: Sequence[Answer]) -> tuple[str, str]:
    """`1` where an answer is right, by the metric's direction."""
    right = 1 if metric.higher_is_better else 0
    texts = ["".join("01"[answer.score == right] for answer in answers) for answers in (before, after)]
    return texts[0], texts[1]


def _worst(metric: Metric, before: Sequence[Answer], after: Sequence[Answer]) -> tuple[Question, ...]:
    """The questions that lost most, worst first and in their order where they lost alike."""
    sign = 1 if metric.higher_is_better else -1
    lost = [
        (sign * (old.score - new.score), old, new)
        for old, new in zip(before, after, strict=True)
        if sign * (old.score - new.score) > 0
    ]
    lost.sort(key=lambda item: -item[0])
    return tuple(
        Question(
            id=old.id,
            text=_end(old.question or new.question),
            expected=_start(old.expected or new.expected),
            reference=_start(old.said),
            candidate=_start(new.said),
            worsening=worsening,
        )
        for worsening, old, new in lost[:WORST]
    )


def _start(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _end(text: str) -> str:
    """Of a question the end says what is asked; examples come first."""
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def _figures(reference: dict[str, float], candidate: dict[str, float]) -> tuple[Figure, ...]:
    names = dict.fromkeys((*reference, *candidate))
    return tuple(Figure(name, "", _number(reference, name), _number(candidate, name)) for name in names)


def _number(figures: dict[str, float], name: str) -> float | None:
    """What is no number was not had."""
    value = figures.get(name)
    return None if value is None or math.isnan(value) else float(value)


def _seconds(seconds: float) -> Reading:
    if seconds > 0:
        return Reading(seconds, "s", "perf_counter", "measured")
    return unmeasured("s", "perf_counter", "all answers were in the cache")
