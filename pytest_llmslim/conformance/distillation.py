"""Invariants of methods that train a student."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from pytest_llmslim.conformance import hosts
from pytest_llmslim.conformance.broken import require
from pytest_llmslim.conformance.methods import MethodInvariants, invariant
from pytest_llmslim.models.storage import parameter_count
from pytest_llmslim.registry import DISTIL

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from pytest_llmslim.conformance.subject import Compressed, Subject

_STEPS: Final = 24
_BARELY: Final = 1e-9
"""A learning rate that leaves a student as it began."""


class DistillationInvariants(MethodInvariants):
    """What a distillation keeps, beside the invariants of every method."""

    stage = DISTIL

    @invariant
    def test_no_more_parameters(self, subject: Subject) -> None:
        """The student is no larger than the model it was made from."""
        found = subject.example()
        before, after = parameter_count(found.reference), parameter_count(found.module)
        require(after <= before, f"a student has no more parameters than {before}, got {after}")

    @invariant
    def test_training_helps(self, subject: Subject) -> None:
        """The loss that `Applied.sentence` tells falls; if none, the divergence from the teacher or the text's loss."""
        if not {"steps", "rate"} <= set(subject.parameters):
            pytest.skip("the method has no parameters steps and rate")
        trained = subject.example(steps=_STEPS)
        told = re.search(r"loss (\S+) to (\S+) in ", trained.applied.sentence)
        if told:
            falls = {"loss": (float(told[1]), float(told[2]))}
        else:
            began = subject.example(steps=1, rate=_BARELY)
            falls = {
                "divergence from the teacher": _both(hosts.divergence, began, trained),
                "loss on the text": _both(hosts.loss, began, trained),
            }
        said = ", ".join(f"{what} {before:.4g} to {after:.4g}" for what, (before, after) in falls.items())
        falling = any(after < before for before, after in falls.values())
        require(falling, f"training makes something smaller in {_STEPS} steps, got {said}")


def _both(
    measure: Callable[[nn.Module, nn.Module], float], began: Compressed, trained: Compressed
) -> tuple[float, float]:
    return measure(began.module, began.reference), measure(trained.module, trained.reference)
