"""Which invariants of which methods `pytest --llm-conformance` runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.conformance import INVARIANTS, MethodInvariants, invariants_of, kind_of
from pytest_llmslim.conformance.subject import Subject, check_waives, resolve
from pytest_llmslim.registry import Registry
from pytest_llmslim.state import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

MODULE: Final = Path(__file__).with_name("run.py")
ALL: Final = "all"


class Trial(NamedTuple):
    """One invariant of one method."""

    subject: Subject
    name: str
    check: Callable[..., None]
    kind: type[MethodInvariants]

    @property
    def id(self) -> str:
        """As its test is called."""
        return f"{self.subject.title}-{self.name}"

    def run(self) -> None:
        """Fail, skip or pass."""
        self.check(self.kind(), self.subject)


def trials(config: pytest.Config) -> list[Trial]:
    """All that `--llm-conformance` asks for.

    Raises:
        SlimError: an unknown method, or one that waives what does not exist.
    """
    contributed = config.hook.pytest_llmslim_methods(config=config)
    registry = Registry([*BUILTIN_METHODS, *(spec for specs in contributed for spec in specs)])
    asked = settings_of(config).conformance
    names = [each for name in asked for each in (registry.names() if name == ALL else (name,))]
    found = []
    for subject in {name: resolve(name, registry) for name in names}.values():
        check_waives(subject, tuple(INVARIANTS))
        kind = kind_of(subject.stage)
        found += [Trial(subject, name, check, kind) for name, check in invariants_of(kind).items()]
    return found
