"""Answers of reference and candidate, question by question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llmslim.readings import no_estimate
from pytest_llmslim.records import Evaluation

if TYPE_CHECKING:
    from pytest_llmslim.evals import Answers
    from pytest_llmslim.records import Figure


def paired(name: str, reference: Answers, candidate: Answers, subject: str) -> Evaluation:
    """Both models on one evaluation."""
    raise NotImplementedError


def figures_only(name: str, figures: tuple[Figure, ...]) -> Evaluation:
    """An evaluation without a metric."""
    none = no_estimate("it has no metric, only figures")
    return Evaluation(name, "", False, None, None, None, none, 0, {}, figures=figures)
