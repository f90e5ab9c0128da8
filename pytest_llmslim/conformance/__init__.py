"""Invariants that any compression method is put through, ours or yours.

In a test file, by subclassing the class of the method's kind:

    from pytest_llmslim.conformance import QuantizerInvariants

    class TestMine(QuantizerInvariants):
        method = "mine(bits=4)"  # or an instance, MyQuantizer(bits=4)

or without one, by `pytest --llm-conformance mine`, which takes the class from the stage of the method's `Spec`.
A method that does not keep an invariant for a good reason says so in `Spec(waives=(("half-a-step", "reason"),))` or
in `waives` of the test class. `INVARIANTS` names all of them, with what each means.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

from pytest_llmslim.conformance.broken import BrokenInvariantError
from pytest_llmslim.conformance.distillation import DistillationInvariants
from pytest_llmslim.conformance.methods import MethodInvariants, name_of
from pytest_llmslim.conformance.pruners import PrunerInvariants
from pytest_llmslim.conformance.quantizers import QuantizerInvariants
from pytest_llmslim.conformance.recovery import RecoveryInvariants
from pytest_llmslim.conformance.sparsifiers import SparsifierInvariants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "INVARIANTS",
    "KINDS",
    "BrokenInvariantError",
    "DistillationInvariants",
    "MethodInvariants",
    "PrunerInvariants",
    "QuantizerInvariants",
    "RecoveryInvariants",
    "SparsifierInvariants",
    "invariants_of",
    "kind_of",
]

KINDS: Final = (
    DistillationInvariants,
    PrunerInvariants,
    SparsifierInvariants,
    QuantizerInvariants,
    RecoveryInvariants,
)
"""One class for every stage."""


def kind_of(stage: int | None) -> type[MethodInvariants]:
    """The class of invariants for methods of a stage of the registry."""
    return next((kind for kind in KINDS if kind.stage == stage), MethodInvariants)


def invariants_of(kind: type[MethodInvariants]) -> dict[str, Callable[..., None]]:
    """The invariants of a class by name, those of every method first."""
    classes = [each for each in reversed(kind.__mro__) if issubclass(each, MethodInvariants)]
    tests = [test for each in classes for name, test in vars(each).items() if name.startswith("test_")]
    return {name_of(test): test for test in tests}


def _sentence(test: Callable[..., None]) -> str:
    return (inspect.getdoc(test) or "").partition("\n")[0]


def _told() -> dict[str, str]:
    """Every name with what it says; classes of two stages may mean their own by one name."""
    told: dict[str, dict[str, None]] = {}
    for kind in KINDS:
        for name, test in invariants_of(kind).items():
            told.setdefault(name, {})[_sentence(test)] = None
    return {name: " ".join(sentences) for name, sentences in told.items()}


INVARIANTS: Final[Mapping[str, str]] = _told()
"""What may be waived: each invariant's name and what it says."""
