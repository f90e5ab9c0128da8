"""Names of methods and evaluations, as lazy targets: listing and checking them imports none."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim.errors import EvaluationError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
TARGET: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

# What a step does, in an order that works: shapes are cut before weights are zeroed, and a quantized weight can
# neither be trained nor cut. Training (DISTIL) may come before or after pruning, as it heals it; what makes up for
# the loss of earlier steps (RECOVER) comes after at least one of them.
DISTIL: Final = 10
PRUNE: Final = 20
SPARSIFY: Final = 25
QUANTIZE: Final = 30
RECOVER: Final = 40


class Spec(NamedTuple):
    """Where a method or an evaluation is found, and what may be said about it.

    Args:
        name: as written in a recipe; a letter, then letters, digits, `_`, `.`, `/` or `-`.
        target: `package.module:attribute` of a frozen dataclass with `compress(module, context)`; of an evaluation,
            with `answers(model, context)` or `compare(reference, candidate, context, meter)`.
        summary: one line for listings.
        parameters: the names of those fields of the dataclass that a recipe may set.
        stage: what kind of step it is, which decides where it may stand in a recipe and which invariants it is
            put through: `DISTIL`, `PRUNE` (shapes), `SPARSIFY` (zeros), `QUANTIZE` or `RECOVER`; `None`: anywhere.
        preset: fields that this name fixes, as pairs.
        origin: the package or file that registered it, for messages.
        extra: the extra of pytest-llmslim that brings a package it needs, e.g. `torchao`.
        waives: invariants of `pytest_llmslim.conformance` that it declares not to keep, as pairs of name and reason.
    """

    name: str
    target: str
    summary: str
    parameters: tuple[str, ...] = ()
    stage: int | None = None
    preset: tuple[tuple[str, object], ...] = ()
    origin: str = "pytest_llmslim"
    extra: str = ""
    waives: tuple[tuple[str, str], ...] = ()


class Registry:
    """Methods, or evaluations, by name.

    Args:
        specs: of all of them.
        noun: `method` or `evaluation`, for messages; the errors are `RecipeError` or `EvaluationError`.

    Raises:
        SlimError: two different specs of one name, or a spec whose name or target is malformed.
    """

    def __init__(self, specs: Iterable[Spec], noun: str = "method") -> None:
        self.noun = noun
        self.error = RecipeError if noun == "method" else EvaluationError
        self._specs: dict[str, Spec] = {}
        for spec in specs:
            self._add(spec)

    def _add(self, spec: Spec) -> None:
        if not NAME.fullmatch(spec.name):
            raise self.error(
                f"the {self.noun} name {spec.name!r} from {spec.origin} is a letter followed by letters, digits, "
                "'_', '.', '/' or '-'; rename it"
            )
        if not TARGET.fullmatch(spec.target):
            raise self.error(
                f"{self.noun} {spec.name!r} from {spec.origin} has a target like 'package.module:attribute', "
                f"got {spec.target!r}"
            )
        known = self._specs.setdefault(spec.name, spec)
        if known != spec:
            raise self.error(
                f"{self.noun} {spec.name!r} is registered twice, by {known.origin} ({known.target}) and by "
                f"{spec.origin} ({spec.target}); rename one of them"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._specs

    def names(self) -> tuple[str, ...]:
        """All names, sorted, so that every xdist worker sees the same order."""
        return tuple(sorted(self._specs))

    def get(self, name: str) -> Spec:
        """The spec of that name.

        Raises:
            SlimError: no such name; names the nearest ones and all that are known.
        """
        spec = self._specs.get(name)
        if spec is None:
            raise self.error(
                f"there is no {self.noun} {name!r}{self._meant(name)}; known are {self._listing()}"
            )
        return spec

    def nearest(self, name: str) -> list[str]:
        """At most two names that are written nearly so."""
        return difflib.get_close_matches(name[:80].lower(), self.names(), n=2)

    def _meant(self, name: str) -> str:
        nearest = self.nearest(name)
        return f" (did you mean {' or '.join(nearest)}?)" if nearest else ""

    def _listing(self) -> str:
        return ", ".join(self.names()) or "none"
