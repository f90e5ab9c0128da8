"""Invariants that every method keeps."""

from __future__ import annotations

import functools
import math
import re
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest
import torch
from hypothesis import strategies as st

from pytest_llmslim.conformance import hosts
from pytest_llmslim.conformance.broken import BrokenInvariantError, explore, require
from pytest_llmslim.conformance.subject import Subject, check_waives, resolve, shake
from pytest_llmslim.errors import NothingCompressedError, RecipeError, SlimError
from pytest_llmslim.integrity import check
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.saving import save
from pytest_llmslim.models.storage import copy_model, weights_hash
from pytest_llmslim.strategies.tiny import FAMILIES, Tiny
from pytest_llmslim.strategies.weights import bad_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_llmslim.methods import Method
    from pytest_llmslim.strategies.matrix import Matrix

_SHAPES: Final = 8
_NONSENSE: Final = ("no such value", -1, -1e9)


def invariant(test: Callable[[Any, Subject], None]) -> Callable[[Any, Subject], None]:
    """A test method as an invariant: skipped where it is waived, and without a traceback where it is broken."""
    name = name_of(test)

    @functools.wraps(test)
    def run(self: object, subject: Subject) -> None:
        if subject.missing:
            pytest.skip(subject.missing)
        if name in subject.waives:
            pytest.skip(f"waived: {subject.waives[name]}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # those of libraries, which a user may have made errors
                test(self, subject)
        except BrokenInvariantError as error:
            said = f"{subject.title} breaks {name}: {error}"
        else:
            return
        pytest.fail(said, pytrace=False)

    return run


def name_of(test: Callable[..., object]) -> str:
    """An invariant's name: that of its test method in plain words with hyphens."""
    return test.__name__.removeprefix("test_").replace("_", "-")


class MethodInvariants:
    """What every method keeps; subclass it in a test file, as `class TestMine(MethodInvariants)`.

    Attributes:
        stage: the kind of step that a class is for.
        method: a recipe of one step, e.g. `mine(bits=4)`, or an instance.
        waives: invariants that the method does not keep, as pairs of name and reason; what the `Spec` waives counts
            too.
    """

    stage: ClassVar[int | None] = None
    method: ClassVar[str | Method]
    waives: ClassVar[tuple[tuple[str, str], ...]] = ()

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, request: pytest.FixtureRequest) -> Subject:
        """The method under test."""
        from pytest_llmslim.collection import registry_for
        from pytest_llmslim.conformance import INVARIANTS

        if isinstance(cls.method, str):
            found = resolve(cls.method, registry_for(request.node))
        else:
            found = Subject.of_method(cls.method)
        stage = found.stage if cls.stage is None else cls.stage
        found = replace(found, stage=stage, waives={**found.waives, **dict(cls.waives)})
        check_waives(found, tuple(INVARIANTS))
        return found

    @invariant
    def test_deterministic(self, subject: Subject) -> None:
        """Two runs under one seed give the same weights and logits, whatever the global generators hold."""
        found = []
        for _ in range(2):
            shake()
            module = subject.example().module
            found.append((weights_hash(module), hosts.logits(module)))
        require(
            found[0][0] == found[1][0],
            "one seed gives one result, got other weights the second time; draw from a generator of your own that "
            "Context.seed seeds",
        )
        require(torch.equal(found[0][1], found[1][1]), "one seed gives one result, got other logits")

    @invariant
    def test_reference_untouched(self, subject: Subject) -> None:
        """The uncompressed model and the calibration text are as they were."""
        reference = subject.tiny.module()
        before, config = copy_model(reference), reference.config.to_dict()
        context = hosts.context(reference)
        subject.apply(subject.prepared(reference), reference, context=context)
        was, now = dict(before.named_parameters()), dict(reference.named_parameters())
        require(was.keys() == now.keys(), "the reference keeps its parameters, got other names of them")
        for name, value in now.items():
            same = value.shape == was[name].shape and torch.equal(value, was[name])
            require(
                same,
                f"the reference is not changed, got another {name}",
                before=_rows(was[name]),
                now=_rows(value),
            )
        require(
            weights_hash(reference) == weights_hash(before),
            "the reference is not changed, got another buffer or type in it",
        )
        require(config == reference.config.to_dict(), "the reference's config is not changed, got another")
        require(not reference.training, "the reference stays in eval mode, got it in training mode")
        trained = [name for name, value in now.items() if value.requires_grad]
        require(not trained, f"the reference wants no gradients, got some for {', '.join(trained[:3])}")
        require(
            torch.equal(hosts.tokens(8), _present(context.calibration)),
            "the calibration text is not changed, got other tokens",
        )

    @invariant
    def test_dtype_and_device_kept(self, subject: Subject) -> None:
        """Logits come in the dtype and on the device of the uncompressed model's, or the dtype is refused."""
        worked = 0
        for dtype in (torch.float32, torch.bfloat16):
            try:
                found = subject.example(dtype)
            except SlimError:
                continue
            worked += 1
            wanted, got = hosts.logits(found.reference), hosts.logits(found.module)
            require(
                wanted.dtype == got.dtype,
                f"logits of a model in {dtype} stay in {wanted.dtype}, got {got.dtype}",
            )
            require(wanted.device == got.device, f"logits stay on {wanted.device}, got {got.device}")
        require(worked, "a method works in float32 or bfloat16, got both refused")

    @invariant
    def test_gradients_off(self, subject: Subject) -> None:
        """No parameter wants gradients, and no graph is built."""
        module = subject.example().module
        wanting = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        require(not wanting, f"no parameter wants gradients, got {len(wanting)} that do, e.g. {wanting[:1]}")
        with torch.enable_grad():
            output = module(input_ids=hosts.tokens(1), use_cache=False).logits
        require(not output.requires_grad, "logits carry no gradients, got a graph behind them")

    @invariant
    def test_eval_mode(self, subject: Subject) -> None:
        """Every part of the model is in eval mode."""
        parts = subject.example().module.named_modules()
        training = [name or "the model" for name, part in parts if part.training]
        require(not training, f"the model is in eval mode, got {', '.join(training[:3])} in training mode")

    @invariant
    def test_changes_something(self, subject: Subject) -> None:
        """Something differs from the uncompressed model, or the method says that there was nothing to compress."""
        try:
            found = subject.example()
            before = subject.prepared(found.reference)
            check(before, found.module, control=False, simulated=("under test",))
        except NothingCompressedError as error:
            require(False, str(error))

    @invariant
    def test_logits_finite(self, subject: Subject) -> None:
        """Models of any shape give finite logits afterwards, or are refused."""

        def one(tiny: Tiny) -> None:
            module = subject.compressed(tiny.module()).module
            require(
                torch.isfinite(hosts.logits(module)).all(),
                "logits are finite, got NaN or infinity",
            )

        explore(subject.tinies(), one, _SHAPES, first=subject.tiny)

    @invariant
    def test_survives_save_and_load(self, subject: Subject) -> None:
        """A checkpoint of the result loads to the same logits."""
        module = subject.example().module
        wanted = hosts.logits(module)[0]
        dtype = str(wanted.dtype).removeprefix("torch.")
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "saved"
            try:
                save(module, hosts.tokenizer(), folder, {})
                loaded = load_model(str(folder), device="cpu", dtype=dtype).module
            except Exception as error:
                said = f"a checkpoint can be saved and loaded, got {type(error).__name__}: {error}"
                raise BrokenInvariantError(said) from error
        got = hosts.logits(loaded)[0]
        require(
            hosts.near(wanted, got),
            "a checkpoint gives the same logits, got others",
            saved=wanted,
            loaded=got,
        )

    @invariant
    def test_every_family(self, subject: Subject) -> None:
        """Each known family works, or is refused in a sentence that names the method and the model."""
        refused = []
        for family in FAMILIES:
            tiny = replace(subject.tiny, family=family) if type(subject.tiny) is Tiny else Tiny(family)
            reference = tiny.module()
            try:
                module = subject.compressed(reference).module
            except SlimError as error:
                refused.append(f"{family}: {error}")
                started = any(str(error).startswith(f"{name} on {hosts.LABEL}: ") for name in subject.names)
                require(
                    started or not subject.names,
                    f"a refusal begins with the method and the model, as '{subject.title} on {hosts.LABEL}: ', "
                    f"got {str(error)!r}",
                )
                continue
            wanted, got = hosts.logits(reference), hosts.logits(module)
            require(
                wanted.shape == got.shape and torch.isfinite(got).all(),
                f"{family} gives finite logits of shape {list(wanted.shape)}, got {list(got.shape)}",
            )
        require(
            len(refused) < len(FAMILIES) or subject.needs_sinks,
            "\n".join(["a method works on one family at least, got", *refused]),
        )

    @invariant
    def test_sentence_begins_with_its_name(self, subject: Subject) -> None:
        """`Applied.sentence` begins with a name under which the method is registered."""
        sentence = subject.example().applied.sentence
        begun = [name for name in subject.names if re.match(rf"{re.escape(name)}(\(|: )", sentence)]
        plain = not subject.names and re.match(r"[A-Za-z][\w./-]*(\(.*?\))?: ", sentence)
        names = " or ".join(subject.names) or "the method's name"
        require(begun or plain, f"what was done is said as '{names}: ...', got {sentence!r}")

    @invariant
    def test_bad_parameters_refused(self, subject: Subject) -> None:
        """An unknown parameter, NaN, and nonsense of another kind are refused by name, as a `RecipeError`."""
        subject.method()
        if subject.names:
            unknown = _refused(subject, "no_such_parameter", 1)
            require(unknown, "a parameter that does not exist is refused, got it accepted")
        for name in subject.parameters:
            require(
                _refused(subject, name, math.nan), f"{name} is refused when it is NaN, got no RecipeError"
            )
            taken = [value for value in _NONSENSE if not _refused(subject, name, value)]
            shown = ", ".join(map(repr, taken))
            require(len(taken) < len(_NONSENSE), f"{name} has a rule, got every one of {shown} accepted")

    @invariant
    def test_nan_weights_refused(self, subject: Subject) -> None:
        """A weight that is NaN or infinite is refused before it spoils others."""
        reference = subject.tiny.module()
        subject.compressed(reference)  # so that a refusal is about the weight

        def one(drawn: tuple[Matrix, int]) -> None:
            matrix, index = drawn
            module = subject.prepared(reference)
            linears = Blocks(module).linears()
            name, linear = list(linears.items())[index % len(linears)]
            rows, columns = matrix.shape
            linear.weight.data[:rows, :columns] = matrix.tensor
            try:
                subject.apply(module, reference)
            except SlimError:
                return
            require(
                False, f"weights that are not finite are refused, got them accepted in {name}", weights=matrix
            )

        explore(st.tuples(bad_weights((1, 3), (1, 3), dtypes=(torch.float32,)), st.integers(0, 13)), one)


def _refused(subject: Subject, name: str, value: object) -> bool:
    """Whether the method refuses this value, in a sentence that names method and parameter."""
    try:
        subject.method(**{name: value})
    except RecipeError as error:
        said = str(error)
    except Exception as error:
        require(False, f"{name}={value!r} is refused with a RecipeError, got {type(error).__name__}: {error}")
        return False
    else:
        return False
    named = any(each in said for each in subject.names) or not subject.names
    require(
        named and name in said,
        f"{name}={value!r} is refused in a sentence that names the method and the parameter, got {said!r}",
    )
    return True


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """As a matrix, to be printed."""
    return tensor.reshape(-1, tensor.shape[-1])


def _present(tensor: torch.Tensor | None) -> torch.Tensor:
    return torch.empty(0) if tensor is None else tensor
