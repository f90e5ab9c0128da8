"""Invariants of methods that train a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import torch
from torch.nn import functional

from pytest_llmslim.conformance import hosts
from pytest_llmslim.conformance.broken import require
from pytest_llmslim.conformance.methods import MethodInvariants, invariant
from pytest_llmslim.models.storage import parameter_count

if TYPE_CHECKING:
    from pytest_llmslim.conformance.subject import Compressed, Subject

_STEPS: Final = 24
_BARELY: Final = 1e-9
"""A learning rate that leaves a student as it began."""


class DistillationInvariants(MethodInvariants):
    """What a distillation keeps, beside the invariants of every method."""

    @invariant
    def test_no_more_parameters(self, subject: Subject) -> None:
        """The student is no larger than the model it was made from."""
        found = subject.example()
        before, after = parameter_count(found.reference), parameter_count(found.module)
        require(after <= before, f"a student has no more parameters than {before}, got {after}")

    @invariant
    def test_training_helps(self, subject: Subject) -> None:
        """After some steps the student is nearer to its teacher, or to the text, than one that hardly learnt."""
        if not {"steps", "rate"} <= set(subject.parameters):
            pytest.skip("the method has no parameters steps and rate")
        trained = _distances(subject.example(steps=_STEPS))
        untrained = _distances(subject.example(steps=1, rate=_BARELY))
        said = ", ".join(
            f"{name} {untrained[name]:.4g} without training and {trained[name]:.4g} after {_STEPS} steps"
            for name in trained
        )
        better = any(trained[name] < untrained[name] for name in trained)
        require(better, f"training brings a student nearer to its teacher or to the text, got {said}")


def _distances(found: Compressed) -> dict[str, float]:
    tokens = hosts.tokens()
    with torch.no_grad():
        wanted, got = (each(input_ids=tokens, use_cache=False).logits.log_softmax(-1) for each in found[:2])
    text = functional.nll_loss(got[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    divergence = (wanted.exp() * (wanted - got)).sum(-1).mean()
    return {"divergence": float(divergence), "loss": float(text)}
