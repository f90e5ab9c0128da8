"""The recipe grammar: `ah(threshold=0.9)+int4` is two steps, applied from left to right.

    recipe    = step { "+" step }
    step      = name [ "(" [ parameter { "," parameter } ] ")" ]
    parameter = name "=" value
    value     = number | true | false | word | quoted string

A word may hold letters, digits and `_ . : / -`, and balanced parentheses; anything else is quoted.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, cast

from pytest_llmslim.errors import MissingPackageError, RecipeError, SlimError
from pytest_llmslim.registry import DISTIL, NAME, PRUNE, QUANTIZE, RECOVER, SPARSIFY, Registry, Spec

if TYPE_CHECKING:
    from pytest_llmslim.methods import Method

Value = bool | int | float | str

CONTROL: Final = "identity"

_PARAMETER: Final = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_WORD: Final = re.compile(r"[\w.:/-]+", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SPACE: Final = re.compile(r"\s*")
_LIMIT: Final = 2000  # characters; also keeps numbers below Python's limit on digits
_EXACT: Final = 2.0**53  # beyond it a float no longer names one integer


class Step(NamedTuple):
    """One method of a recipe with the parameters that were written, sorted by name."""

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    @property
    def text(self) -> str:
        """The canonical spelling; defaults are not written out."""
        inner = ",".join(f"{name}={_spell(value)}" for name, value in self.parameters)
        return f"{self.name}({inner})" if inner else self.name


class Recipe(NamedTuple):
    """Steps in the order in which they are applied, and their canonical text."""

    steps: tuple[Step, ...]
    text: str

    @property
    def control(self) -> bool:
        """Whether this is the identity: a candidate that has to equal its reference."""
        return all(step.name == CONTROL for step in self.steps)


def parse(text: str, registry: Registry) -> Recipe:
    """The recipe that `text` spells; imports no method.

    Raises:
        RecipeError: text that is no recipe (with the column), an unknown method or parameter, or steps in
            an order that cannot work (with the order that can).
    """
    steps = steps_of(text)
    specs = [registry.get(step.name) for step in steps]
    for step, spec in zip(steps, specs, strict=True):
        check_parameters(step, spec, registry)
    _check_control(steps)
    _check_quantized_once(steps, specs)
    _check_order(steps, specs)
    return _recipe(steps)


def steps_of(text: str) -> tuple[Step, ...]:
    """The steps that `text` spells, whether or not such methods are known.

    Raises:
        RecipeError: text that is no recipe.
    """
    return _Reader(text).recipe()


def instantiate(step: Step, registry: Registry) -> Method:
    """The method of `step` with its parameters; imports its module.

    Raises:
        RecipeError: the module or a package it needs is missing, the target is no method, or a value is
            refused by the method.
    """
    method = made(step, registry)
    if not callable(getattr(method, "compress", None)):
        spec = registry.get(step.name)
        raise RecipeError(
            f"method {spec.name!r} from {spec.origin} points to {spec.target}, "
            "which has no compress(module, context)"
        )
    return cast("Method", method)


def made(step: Step, registry: Registry) -> object:
    """What `step` names, a method or an evaluation, with its parameters; imports its module.

    Raises:
        SlimError: the module or a package it needs is missing, or a value is refused.
    """
    spec = registry.get(step.name)
    try:
        made: object = _load(spec, registry)(**dict(spec.preset) | dict(step.parameters))
    except TypeError as error:
        raise registry.error(
            f"{registry.noun} {spec.name!r} from {spec.origin} does not take the parameters its spec declares: {error}"
        ) from error
    except ImportError as error:  # of what it needs only when it is used
        raise _import_failure(spec, registry, error) from error
    return made


def _load(spec: Spec, registry: Registry) -> type:
    module, _, attribute = spec.target.partition(":")
    try:
        return cast("type", getattr(importlib.import_module(module), attribute))
    except ImportError as error:
        raise _import_failure(spec, registry, error) from error
    except AttributeError as error:
        raise registry.error(
            f"{registry.noun} {spec.name!r} from {spec.origin} has the target {spec.target}, but {error}"
        ) from error


def _import_failure(spec: Spec, registry: Registry, error: ImportError) -> SlimError:
    package = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and sys.modules.get(package) is None:
        wanted = f"'pytest-llmslim[{spec.extra}]'" if spec.extra else package
        return MissingPackageError(
            f"{registry.noun} {spec.name!r} needs the Python package {package}, which is not installed; "
            f"run: pip install {wanted}"
        )
    return registry.error(
        f"{registry.noun} {spec.name!r} from {spec.origin} cannot be imported: {error}; "
        "reinstall the package that is named there"
    )


def _recipe(steps: tuple[Step, ...]) -> Recipe:
    return Recipe(steps, "+".join(step.text for step in steps))


def check_parameters(step: Step, spec: Spec, registry: Registry) -> None:
    """Refuse parameters that a spec fixes or does not have.

    Raises:
        SlimError: of the registry's kind; names the parameter and those that are known.
    """
    for name, _ in step.parameters:
        if name in dict(spec.preset):
            raise registry.error(
                f"{spec.name} fixes {name}={dict(spec.preset)[name]} and takes no other value"
            )
        if name not in spec.parameters:
            known = f"it takes {', '.join(spec.parameters)}" if spec.parameters else "it takes none"
            raise registry.error(f"{spec.name} has no parameter {name!r}; {known}")


def _check_control(steps: tuple[Step, ...]) -> None:
    others = tuple(step for step in steps if step.name != CONTROL)
    if len(steps) > 1 and len(others) < len(steps):
        remedy = _recipe(others).text if others else CONTROL
        raise RecipeError(
            f"{CONTROL} changes nothing and stands alone, got {_recipe(steps).text}; write {remedy}"
        )


def _check_quantized_once(steps: tuple[Step, ...], specs: list[Spec]) -> None:
    quantized = [step.text for step, spec in zip(steps, specs, strict=True) if spec.stage == QUANTIZE]
    if len(quantized) > 1:
        raise RecipeError(
            f"weights are quantized once, got {_recipe(steps).text}; keep one of {', '.join(quantized)}"
        )


# A kind of step, and the kinds that cannot come after it.
_NEVER_AFTER: Final = {
    SPARSIFY: (PRUNE,),  # cutting shapes would break the pattern of zeros
    QUANTIZE: (DISTIL, PRUNE, SPARSIFY),
}


def _check_order(steps: tuple[Step, ...], specs: list[Spec]) -> None:
    staged = [(spec.stage, step) for step, spec in zip(steps, specs, strict=True) if spec.stage is not None]
    wrong = any(
        after in _NEVER_AFTER.get(before, ())
        for position, (before, _) in enumerate(staged)
        for after, _ in staged[position + 1 :]
    )
    alone = bool(staged) and staged[0][0] == RECOVER
    if not (wrong or alone):
        return
    if all(stage == RECOVER for stage, _ in staged):
        raise RecipeError(
            f"{staged[0][1].name} makes up for what an earlier step lost, got {_recipe(steps).text}; "
            f"write a step before it, e.g. int4+{staged[0][1].text}"
        )
    following = iter(sorted(staged, key=lambda pair: pair[0]))
    working = tuple(
        step if spec.stage is None else next(following)[1] for step, spec in zip(steps, specs, strict=True)
    )
    raise RecipeError(
        "steps run from left to right, training before pruning before quantizing before recovery, "
        f"got {_recipe(steps).text}; write {_recipe(working).text}"
    )


def _spell(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        plain = _WORD.fullmatch(value) and _unquoted(value) == value
        return value if plain else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def _unquoted(word: str) -> Value:
    """What an unquoted word means; 6.0 becomes 6, so that one setting has one spelling."""
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if not _NUMBER.fullmatch(word):
        return word
    if word.lstrip("+-").isdigit():
        return int(word)
    number = float(word)
    if not math.isfinite(number):
        return word
    return int(number) if number.is_integer() and abs(number) < _EXACT else number


class _Reader:
    """Reads a recipe from left to right; `at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def recipe(self) -> tuple[Step, ...]:
        if len(self.text) > _LIMIT:
            raise RecipeError(f"a recipe has at most {_LIMIT} characters, got {len(self.text)}")
        steps = [self.step()]
        while not self.ended():
            if not self.took("+"):
                self.fail("expected '+' or the end")
            steps.append(self.step())
        return tuple(steps)

    def step(self) -> Step:
        name = self.match(NAME, "expected the name of a method")
        parameters: dict[str, Value] = {}
        if self.took("(") and not self.took(")"):
            self.parameter(parameters)
            while not self.took(")"):
                if not self.took(","):
                    self.fail("expected ',' or ')'")
                self.parameter(parameters)
        return Step(name, tuple(sorted(parameters.items())))

    def parameter(self, parameters: dict[str, Value]) -> None:
        start = self.skip()
        name = self.match(_PARAMETER, "expected parameter=value")
        if not self.took("="):
            self.at = start
            self.fail("expected parameter=value")
        if name in parameters:
            self.at = start
            self.fail(f"{name} is given twice")
        parameters[name] = self.value()

    def value(self) -> Value:
        self.skip()
        quote = self.text[self.at : self.at + 1]
        if quote and quote in "'\"":
            return self.quoted(quote)
        return self.bare()

    def quoted(self, quote: str) -> str:
        start = self.at
        self.at += 1
        characters: list[str] = []
        while (character := self.text[self.at : self.at + 1]) != quote:
            if character == "\\":
                self.at += 1
                character = self.text[self.at : self.at + 1]
            if not character:
                self.at = start
                self.fail(f"this {quote} is never closed")
            characters.append(character)
            self.at += 1
        self.at += 1
        return "".join(characters)

    def bare(self) -> Value:
        start, depth = self.at, 0
        while (character := self.text[self.at : self.at + 1]) and not (depth == 0 and character in ",)"):
            depth += (character == "(") - (character == ")")
            self.at += 1
        word = self.text[start : self.at].strip()
        if depth:
            self.at = start
            self.fail("this value opens a '(' that is never closed")
        if not word or re.search(r"[\s'\"\\]", word):
            self.at = start
            self.fail("expected a number, true, false, a word, or a string in quotes")
        return _unquoted(word)

    def match(self, pattern: re.Pattern[str], otherwise: str) -> str:
        found = pattern.match(self.text, self.skip())
        if found is None:
            self.fail(otherwise)
        self.at = found.end()
        return found.group()

    def took(self, character: str) -> bool:
        self.skip()
        taken = self.text.startswith(character, self.at)
        self.at += taken
        return taken

    def ended(self) -> bool:
        return self.skip() == len(self.text)

    def skip(self) -> int:
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        return self.at

    def fail(self, expected: str) -> NoReturn:
        got = repr(self.text[self.at : self.at + 20]) if self.at < len(self.text) else "the end"
        raise RecipeError(
            f"recipe {self.text!r}: {expected} at column {self.at + 1}, got {got}; "
            "write it like ah(threshold=0.9)+int4"
        )
