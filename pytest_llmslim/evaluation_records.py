"""What an evaluation beyond perplexity gave, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_llmslim.readings import Estimate, Reading, unmeasured


@dataclass(frozen=True, slots=True)
class Flips:
    """Questions whose answer changed between right and wrong, and `p` of the exact two-sided McNemar test.

    As many flips each way keep the accuracy and are damage all the same.
    """

    right_to_wrong: int
    wrong_to_right: int
    p: float


@dataclass(frozen=True, slots=True)
class Question:
    """A question that the candidate answers worse than the reference, with both answers as text.

    `worsening`: how much its score fell, in units of the metric.
    """

    id: str
    text: str
    expected: str
    reference: str
    candidate: str
    worsening: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A further number about both models, shown and never gated by itself.

    `ratio`: candidate / reference with its interval, where the two were measured in pairs.
    """

    name: str
    unit: str
    reference: float | None
    candidate: float | None
    ratio: Estimate | None = None


_NOT_RUN = unmeasured("s", "none", "nothing was run")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Both models on one evaluation beyond perplexity, question by question.

    Args:
        name: as asked for, e.g. `arc_challenge(shots=5)`.
        metric: e.g. `acc_norm`; empty where there are only figures.
        higher_is_better: direction of the metric.
        chance: what guessing reaches; `None`: not known, or there is no such level.
        reference: the metric over all questions; `None` where there is no metric. `candidate` likewise.
        ratio: candidate / reference, its 95 % interval from the pairs of answers.
        n: questions.
        protocol: what has to be equal for two runs to be compared: task, shots, sample, sha256 of the data.
        flips: for answers that are right or wrong, else `None`.
        reference_right: one character a question, `1` or `0`, in order; empty where answers are not right or wrong.
        candidate_right: likewise; by it a later run is paired with this one.
        scored: whether it is part of `opt`.
        figures: other numbers.
        worst: the questions that lost most, worst first.
        tokens: tokens that both models processed, without what was cached.
        seconds: that both took, likewise.
        notes: what a reader has to know.
    """

    name: str
    metric: str
    higher_is_better: bool
    chance: float | None
    reference: float | None
    candidate: float | None
    ratio: Estimate
    n: int
    protocol: dict[str, str]
    flips: Flips | None = None
    reference_right: str = ""
    candidate_right: str = ""
    scored: bool = False
    figures: tuple[Figure, ...] = ()
    worst: tuple[Question, ...] = ()
    tokens: int = 0
    seconds: Reading = _NOT_RUN
    notes: tuple[str, ...] = ()
