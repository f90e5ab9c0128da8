"""Evaluations: one file each.

Perplexity and divergence come from the same forward passes as the timing. Every other evaluation is an `Evaluator`:
it lets one model answer questions, and answers of reference and candidate are paired afterwards (`evals.pairing`),
so that a third party's evaluation is one method; or a `Comparator`, which needs both models at once, as timing does.

The smallest one that works:

    @dataclass(frozen=True)
    class Length:
        words: int = 8

        def answers(self, model: nn.Module, context: EvalContext) -> Answers:
            asked = [...]
            found = tuple(Answer(f"prompt {i}", score) for i, score in enumerate(asked))
            return Answers(Metric("words", higher_is_better=True), found)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from pytest_llmslim.evals.cache import Cache
    from pytest_llmslim.evals.text import Passage
    from pytest_llmslim.meters import Meter
    from pytest_llmslim.records import Figure

__all__ = ["Answer", "Answers", "Comparator", "EvalContext", "Evaluator", "Metric"]


class Metric(NamedTuple):
    """What answers are scored by.

    Args:
        name: the field's name, e.g. `acc_norm`, `exact_match`, `f1`.
        higher_is_better: its direction.
        chance: what guessing reaches; `None`: not known, or there is no such level.
        total: how the scores of the answers become one number; a name in `evals.totals`: `mean`, `perplexity`
            (exp of the mean; scores in nats), `matthews` or `weighted_f1` (of `said` against `expected`).
    """

    name: str
    higher_is_better: bool = True
    chance: float | None = None
    total: str = "mean"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model did with one question.

    Args:
        id: of the question; the same for reference and candidate.
        score: by the metric: 1 or 0 where an answer is right or wrong, else any number (nats, a share).
        said: what the model answered, as text.
        expected: what is right, as text.
        question: what was asked, its end where it is long.
    """

    id: str
    score: float
    said: str = ""
    expected: str = ""
    question: str = ""


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model answered.

    Args:
        metric: what scores mean.
        answers: in the order of the questions.
        protocol: what has to be equal for two runs to be compared: task, shots, sample, sha256 of the data; texts.
        figures: other numbers about this model by name, with the unit in the name where there is one: shown, not gated.
        tokens: tokens that the model processed for this, without what was cached.
        seconds: that it took, likewise; 0 where all was cached.
        notes: what a reader has to know.
    """

    metric: Metric
    answers: tuple[Answer, ...]
    protocol: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class EvalContext:
    """What an evaluation may know besides the model.

    Args:
        tokenizer: a Hugging Face tokenizer.
        device: where the model lies.
        label: names the model in messages, e.g. `int4 on gpt2` or `The reference of int4 on gpt2`.
        seed: of everything random.
        passage: the windows of text of the run; `passage.rest(n)` gives text that is not scored.
        limit: questions a task at most; `None`: all.
        data: folder of local tasks (`--llm-data`); `None`: the hub.
        weights_hash: of the model.
        cache: where answers to requests are kept (`--llm-cache`), or `None`.
        reference: what the reference answered; `None` while the reference itself is asked.
        reference_model: which answered it, not to be changed; `None` likewise.
        progress: told now and then what is being done.
        trust_remote_code: whether code that comes with data or models may run.
    """

    tokenizer: Any
    device: str
    label: str
    seed: int
    passage: Passage
    limit: int | None = None
    data: Path | None = None
    weights_hash: str = ""
    cache: Cache | None = None
    reference: Answers | None = None
    reference_model: nn.Module | None = None
    progress: Callable[[str], None] | None = None
    trust_remote_code: bool = False

    def tell(self, what: str) -> None:
        """Show what is being done, where somebody watches."""
        if self.progress is not None:
            self.progress(what)


@runtime_checkable
class Evaluator(Protocol):
    """A frozen dataclass of parameters; checked in `__post_init__`, which raises `EvaluationError`.

    One that can ask classifiers (`...ForSequenceClassification`), too, has the class attribute `classifiers = True`.
    """

    def answers(self, model: nn.Module, context: EvalContext) -> Answers:
        """Let `model` (in eval mode, not to be changed) answer.

        Raises:
            EvaluationError: it cannot, with the reason and what to do.
        """


@runtime_checkable
class Comparator(Protocol):
    """An evaluation that needs both models at once: their costs are measured in pairs."""

    def compare(
        self, reference: nn.Module, candidate: nn.Module, context: EvalContext, meter: Meter
    ) -> tuple[Figure, ...]:
        """Numbers about both models.

        Raises:
            EvaluationError: they cannot be had, with the reason and what to do.
        """
