"""Invariants of methods that train a student."""

from __future__ import annotations

import re
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
        """The loss that is told falls, or the student comes nearer to its teacher or to the text."""
        if not {"steps", "rate"} <= set(subject.parameters):
            pytest.skip("the method has no parameters steps and rate")
        trained = subject.example(steps=_STEPS)
        losses = re.search(r"loss (\S+) to (\S+) in ", trained.applied.sentence)
        if losses and float(losses[2]) < float(losses[1]):
            return
        after = _distances(trained)
        before = _distances(subject.example(steps=1, rate=_BARELY))
        said = ", ".join(f"{name} {before[name]:.4g} to {after[name]:.4g}" for name in after)
        require(
            any(after[name] < before[name] for name in after),
            f"training makes something smaller in {_STEPS} steps, got {said} ({trained.applied.sentence})",
        )


def _distances(found: Compressed) -> dict[str, float]:
    tokens = hosts.tokens()
    with torch.no_grad():
        wanted, got = (each(input_ids=tokens, use_cache=False).logits.log_softmax(-1) for each in found[:2])
    text = functional.nll_loss(got[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    divergence = (wanted.exp() * (wanted - got)).sum(-1).mean()
    return {"divergence": float(divergence), "loss": float(text)}
