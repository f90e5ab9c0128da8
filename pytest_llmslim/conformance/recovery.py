"""Invariants of methods that make up for what earlier steps lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from pytest_llmslim.conformance import hosts
from pytest_llmslim.conformance.broken import require
from pytest_llmslim.conformance.methods import MethodInvariants, invariant
from pytest_llmslim.methods.layerwise import watching
from pytest_llmslim.methods.low_rank import LowRank
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.methods.rtn import RTN
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, weights_hash
from pytest_llmslim.registry import RECOVER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from pytest_llmslim.conformance.subject import Subject
    from pytest_llmslim.methods import Method

_EARLIER: Final[Mapping[str, Method]] = {"magnitude": Magnitude(), "rtn(bits=3)": RTN(bits=3)}
_STEPS = 20
_SLACK = 1.001


class RecoveryInvariants(MethodInvariants):
    """What a method of recovery keeps, beside the invariants of every method; each after pruning and rounding."""

    stage = RECOVER

    @invariant
    def test_error_of_linears_never_grows(self, subject: Subject) -> None:
        """On calibration text the outputs of all linears together are as near to the reference's as before."""

        def error(module: nn.Module, reference: nn.Module) -> float:
            wanted = hosts.weights(reference)
            inputs = _inputs(module)
            found = hosts.weights(module)
            return sum(
                float((inputs[name] @ (found[name].double() - wanted[name].double()).T).square().sum())
                for name in wanted
            )

        _compare(subject, "squared error of the linears' outputs", error)

    @invariant
    def test_divergence_never_grows(self, subject: Subject) -> None:
        """On calibration text the divergence from the reference is no larger than before."""
        _compare(subject, "divergence from the reference", hosts.divergence)

    @invariant
    def test_base_untouched(self, subject: Subject) -> None:
        """What is added stands beside the weights of earlier steps, which are as they were."""
        reference = subject.tiny.module()
        for step, earlier in _EARLIER.items():
            module = subject.prepared(reference, earlier)
            before = {
                name: weights_hash(copy_model(linear)) for name, linear in Blocks(module).linears().items()
            }
            weights = hosts.weights(module)
            after = Blocks(subject.apply(module, reference).module).linears()
            for name, linear in after.items():
                base = linear.base if isinstance(linear, LowRank) else linear
                if name in before:
                    require(
                        weights_hash(base) == before[name],
                        f"weights stay as {step} left them, got others in {name}",
                        before=weights[name],
                        now=hosts.weight_of(base),
                    )


def _compare(subject: Subject, what: str, measure: Callable[[nn.Module, nn.Module], float]) -> None:
    reference = subject.tiny.module()
    method = subject.method(steps=_STEPS) if "steps" in subject.parameters else subject.method()
    for step, earlier in _EARLIER.items():
        module = subject.prepared(reference, earlier)
        before = measure(copy_model(module), reference)
        after = measure(subject.apply(module, reference, method=method).module, reference)
        require(
            after <= _SLACK * before,
            f"the {what} after {step} does not grow from {before:.6g}, got {after:.6g}",
        )


def _inputs(module: nn.Module) -> dict[str, torch.Tensor]:
    """What enters each linear of the blocks on calibration text, [tokens, in] in float64."""
    seen: dict[str, list[torch.Tensor]] = {}

    def note(name: str, inputs: torch.Tensor) -> None:
        seen.setdefault(name, []).append(inputs.double())

    with watching(Blocks(module).linears(), note), torch.no_grad():
        module(input_ids=hosts.tokens(8), use_cache=False)
    return {name: torch.cat(parts) for name, parts in seen.items()}
