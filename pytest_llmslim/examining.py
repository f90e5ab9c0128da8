"""Evaluations of a run: the reference is asked once, each candidate once, and answers are paired."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pytest_llmslim.errors import NotApplicableError, SlimError
from pytest_llmslim.evals import Answers, Comparator, EvalContext, Evaluator
from pytest_llmslim.evals.cache import Cache
from pytest_llmslim.evals.latency import sign_flips
from pytest_llmslim.evals.pairing import figures_only, paired
from pytest_llmslim.evaluations import optional
from pytest_llmslim.models.classifiers import is_classifier
from pytest_llmslim.pairs import names_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmslim.candidates import Candidate
    from pytest_llmslim.collection import Case
    from pytest_llmslim.records import Evaluation
    from pytest_llmslim.session import Session


NO_CLASSIFIER = (
    "it asks a model for next tokens, and {} gives labels; ask for those, e.g. --llm-eval sms_spam or "
    "'classification(task=sst2)'"
)
SIMULATED = "{} is simulated, so it has no cost of its own"


class Examiner:
    """Asks models, and remembers what the reference of this moment answered.

    Args:
        session: the run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._reference: dict[tuple[str, str], Answers | SlimError] = {}

    def examine(self, case: Case, candidate: Candidate, subject: str) -> tuple[Evaluation, ...]:
        """All evaluations of a case, in the order in which they were asked for.

        Raises:
            SlimError: one of them cannot be run, with its name and the reason.
        """
        found: list[Evaluation] = []
        spare = optional(self._session.settings, case.keywords.get("evals", ()))
        for step, evaluation in case.evaluations:
            try:
                found.append(self._one(case, candidate, subject, step.text, evaluation))
            except SlimError as error:
                if isinstance(error, NotApplicableError) and step.text in spare:
                    found += _left_out(step.text, error)
                    continue
                raise type(error)(f"{step.text}: {error}") from None
        return tuple(found)

    def _one(
        self, case: Case, candidate: Candidate, subject: str, name: str, evaluation: Evaluator | Comparator
    ) -> Evaluation:
        session = self._session
        reference = session.reference(case.model).module
        if is_classifier(reference) and not getattr(evaluation, "classifiers", False):
            raise NotApplicableError(NO_CLASSIFIER.format(case.label))
        told = session.progress(subject).say if session.progress else None
        session.tell(subject, f"evaluation {name}")
        first, second = names_of(subject)
        asked = self._context(case, told, name)
        torch.set_num_threads(session.settings.threads)
        with torch.inference_mode():
            if isinstance(evaluation, Comparator):
                return self._compared(reference, candidate, replace(asked, label=subject), name, evaluation)
            before = self._answers_of_reference(
                case, evaluation, reference, replace(asked, label=first), name
            )
            context = replace(
                asked,
                label=second,
                weights_hash=candidate.weights_hash,
                reference=before,
                reference_model=reference,
            )
            after = evaluation.answers(candidate.module, context)
        return paired(name, before, after, subject)

    def _compared(
        self,
        reference: torch.nn.Module,
        candidate: Candidate,
        context: EvalContext,
        name: str,
        evaluation: Comparator,
    ) -> Evaluation:
        """Costs of both models, while no other worker disturbs; or why they cannot be compared."""
        if candidate.integrity.status == "simulated":
            return replace(figures_only(name, ()), notes=(SIMULATED.format(context.label),))
        meter = self._session.meter
        with self._session.alone() as reason:
            if reason:
                return replace(figures_only(name, ()), notes=(reason,))
            figures = evaluation.compare(reference, candidate.module, context, meter)
        return replace(figures_only(name, figures), notes=sign_flips(figures, candidate.name))

    def _answers_of_reference(
        self, case: Case, evaluation: Evaluator, reference: torch.nn.Module, context: EvalContext, name: str
    ) -> Answers:
        """Asked once a run; what that cost belongs to the first candidate."""
        key = (context.weights_hash, name)
        known = self._reference.get(key)
        if isinstance(known, SlimError):  # it would fail again: without a network after half a minute
            raise known
        if known is not None:
            return replace(known, tokens=0, seconds=0.0)
        try:
            self._reference[key] = answers = evaluation.answers(reference, context)
        except SlimError as error:
            self._reference[key] = error
            raise
        return answers

    def _context(self, case: Case, told: Callable[[str], None] | None, name: str) -> EvalContext:
        session = self._session
        settings = session.settings
        model = session.reference(case.model)
        return EvalContext(
            tokenizer=model.tokenizer,
            device=session.device,
            label=case.label,
            seed=settings.seed,
            passage=session.passage(case.model),
            limit=settings.limit,
            data=settings.data,
            weights_hash=session.reference_hash(case.model),
            cache=None if settings.cache is None else Cache(settings.cache),
            progress=None
            if told is None
            else lambda what: told(f"evaluation {name}: {what}" if what else ""),
            trust_remote_code=settings.trust_remote_code,
        )


def _left_out(name: str, why: NotApplicableError) -> tuple[Evaluation, ...]:
    """With the reason, and without what to do about it: `all` asks for what makes sense."""
    reason = str(why).partition(";")[0]
    return () if why.quiet else (replace(figures_only(name, ()), notes=(f"left out: {reason}",)),)
