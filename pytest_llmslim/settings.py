"""Every option's value: command line, environment variable and ini value come from one table (`options.py`).

This module is imported in every pytest run, so it imports nothing heavy.
Precedence: command line, then environment (`LLMSLIM_*`), then ini (`llm_*`), then the default.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_llmslim.errors import SettingError, SlimError
from pytest_llmslim.options import BY_NAME, CHOICES, OPTIONS, Option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llmslim.gate import Limits, Thresholds
    from pytest_llmslim.records import Profile


class Sourced(NamedTuple):
    """A value and where it came from: `command line`, `LLMSLIM_X`, `ini` or `default`."""

    value: Any
    source: str


def add_options(parser: Any) -> None:  # noqa: ANN401  # pytest.Parser, which this layer does not import
    """Declare every option and ini value on a pytest parser.

    Defaults on the command line are always `None`, flags included: only so can an ini value be told from silence.
    """
    group = parser.getgroup("llmslim", "compressed language models (pytest-llmslim)")
    for option in OPTIONS:
        group.addoption(option.flag, dest=option.dest, default=None, help=_help(option), **_argument(option))
        parser.addini(
            option.ini,
            help=f"{option.help.replace('%%', '%')} ({option.flag})",
            type="linelist" if option.kind == "list" else "string",
            default=None,
        )


def _argument(option: Option) -> dict[str, Any]:
    if option.kind == "flag":
        return {"action": argparse.BooleanOptionalAction}
    argument: dict[str, Any] = {"metavar": option.metavar, "type": _converter(option)}
    if option.kind == "list":
        argument["action"] = "append"
    return argument


def _help(option: Option) -> str:
    if option.default is None or option.default is False or option.default == ():
        return option.help
    return f"{option.help} Default: {_shown(option)}."


def _shown(option: Option) -> str:
    if isinstance(option.default, tuple):
        return ", ".join(option.default)
    # argparse formats help texts with %.
    return f"{100 * option.default:g} %%" if isinstance(option.default, float) else str(option.default)


def _converter(option: Option) -> Callable[[str], object]:
    def convert(text: str) -> object:
        try:
            return parse_value(option, text, option.flag)
        except SlimError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    convert.__name__ = option.kind
    return convert


def parse_value(option: Option, text: str, where: str) -> object:
    """The value of `option` written as `text`; `where` names the place for the error.

    Raises:
        SettingError: the text does not fit the option's kind.
    """
    if option.kind == "int":
        return _integer(option, text, where)
    if option.kind == "flag":
        return _boolean(text, where)
    if option.kind == "percent":
        from pytest_llmslim.units import parse_percent

        return parse_percent(text, where)
    if option.kind == "number":
        return _positive(text, where)
    if not text.strip():
        raise SettingError(f"{where} needs a value, got an empty text.")
    return _checked(option, text, where)


def _checked(option: Option, text: str, where: str) -> str:
    choices = CHOICES.get(option.name)
    if choices and text not in choices:
        raise SettingError(f"{where} is one of {', '.join(choices)}, got {text!r}.")
    if option.name == "profile":
        from pytest_llmslim.score import parse_profile

        parse_profile(text, where)
    if (
        option.name == "device"
        and text not in ("auto", "cpu", "cuda")
        and not (text.startswith("cuda:") and text[5:].isdigit())
    ):
        raise SettingError(f"{where} is cpu, cuda, cuda:N or auto, got {text!r}.")
    if option.name == "country" and not (len(text) == 3 and text.isascii() and text.isupper()):
        raise SettingError(f"{where} is an ISO 3166 code of three capitals, e.g. FRA, got {text!r}.")
    return text


def _integer(option: Option, text: str, where: str) -> int:
    least = {"seed": 0, "window": 2, "tokens": 2}.get(option.name, 1)
    try:
        value = int(text)
    except ValueError:
        raise SettingError(f"{where} is a whole number, got {text!r}.") from None
    if value < least:
        raise SettingError(f"{where} is at least {least}, got {value}.")
    return value


def _positive(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise SettingError(f"{where} is a number above 0, got {text!r}.")
    return value


def _boolean(text: str, where: str) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if text.strip().lower() not in words:
        raise SettingError(f"{where} is true or false, got {text!r}.")
    return words[text.strip().lower()]


class Settings:
    """All settings of a run, resolved, with the source of each.

    Attributes have the options' names with underscores; `sources` maps a name to its `Sourced` value.
    """

    def __init__(self, values: Mapping[str, Sourced], root: Path, invocation: Path) -> None:
        self.sources = dict(values)
        plain = {name: sourced.value for name, sourced in values.items()}
        self.models: tuple[str, ...] = tuple(plain["model"])
        self.recipes: tuple[str, ...] = tuple(plain["recipe"])
        self.profile_text: str = plain["profile"]
        self.text: Path | None = self._path("text", root, invocation) if plain["text"] else None
        self.tokens: int | None = plain["tokens"]
        self.window: int | None = plain["window"]
        self.stride: int | None = plain["stride"]
        self.bos: str = plain["bos"]
        self.evaluations: tuple[str, ...] = tuple(plain["eval"])
        self.limit: int | None = plain["limit"]
        self.data: Path | None = self._path("data", root, invocation) if plain["data"] else None
        self.cache: Path | None = self._path("cache", root, invocation) if plain["cache"] else None
        self.quality: tuple[str, ...] = tuple(plain["quality"])
        self.slices: tuple[str, ...] = tuple(plain["slices"])
        self.rounds: int | None = plain["rounds"]
        self.max_rounds: int | None = plain["max-rounds"]
        self.device: str = plain["device"]
        self.dtype: str = plain["dtype"]
        self.threads: int = plain["threads"]
        self.seed: int = plain["seed"]
        self.max_perplexity_increase: float | None = plain["max-perplexity-increase"]
        self.max_time_increase: float | None = plain["max-time-increase"]
        self.max_energy_increase: float | None = plain["max-energy-increase"]
        self.max_accuracy_drop: float | None = plain["max-accuracy-drop"]
        self.max_opt: float | None = plain["max-opt"]
        self.regression: float = plain["regression"]
        self.resolve: float = plain["resolve"]
        self.quality_regression: float = plain["quality-regression"]
        self.energy: str = plain["energy"]
        self.country: str | None = plain["country"]
        self.gate_estimated: bool = plain["gate-estimated"]
        self.strict: bool = plain["strict"]
        self.baseline: Path = self._path("baseline", root, invocation)
        self.update: bool = plain["update"]
        self.anchor: bool = plain["anchor"]
        self.require_baseline: bool = plain["require-baseline"]
        self.ablate: bool = plain["ablate"]
        self.save: Path | None = self._path("save", root, invocation) if plain["save"] else None
        self.results: Path = self._path("results", root, invocation)
        self.resume: bool = plain["resume"]
        self.report, self.markdown, self.csv, self.json = (
            self._path(name, root, invocation) if plain[name] else None
            for name in ("report", "markdown", "csv", "json")
        )
        self.timeout: float | None = plain["timeout"]
        self.calibrate: bool = plain["calibrate"]
        self.conformance: tuple[str, ...] = tuple(plain["conformance"])
        named = plain["models-map"] in ("hub", "embedded")
        self.models_map: str | Path = (
            plain["models-map"] if named else self._path("models-map", root, invocation)
        )
        self.published: bool = plain["published"]
        self.trust_remote_code: bool = plain["trust-remote-code"]

    def _path(self, name: str, root: Path, invocation: Path) -> Path:
        """A path given on the command line starts where the user stands; others start beside the ini file."""
        sourced = self.sources[name]
        return (invocation if sourced.source == "command line" else root) / sourced.value

    @property
    def changed(self) -> dict[str, str]:
        """Every setting that is not the default, as text."""
        return {name: as_text(value) for name, (value, source) in self.sources.items() if source != "default"}

    @property
    def profile(self) -> Profile:
        """The weights of time and energy."""
        from pytest_llmslim.score import parse_profile

        return parse_profile(self.profile_text)

    def limits(self) -> Limits:
        """The rules of comparing with a baseline.

        Raises:
            SettingError: `--llm-resolve` is not above `--llm-regression`, or one is negative.
        """
        from pytest_llmslim.gate import Limits

        return Limits(self.quality_regression, self.regression, self.resolve)

    def thresholds(self, **marked: object) -> Thresholds:
        """The thresholds of one test: what its marker says, else the run's; its other keywords are passed over."""
        from pytest_llmslim.gate import Thresholds
        from pytest_llmslim.marker import THRESHOLDS

        values = {name: getattr(self, name) for name in THRESHOLDS}
        for name, value in ((name, marked[name]) for name in THRESHOLDS if name in marked):
            option = BY_NAME[name.replace("_", "-")]
            values[name] = parse_value(option, str(value), f"@pytest.mark.llm({name}=...)")
        return Thresholds(**values)


def resolve(config: Any, environ: Mapping[str, str] = os.environ) -> Settings:  # noqa: ANN401
    """The settings of a pytest run.

    Raises:
        SettingError: an ini value or environment variable does not fit its option.
    """
    values = {option.name: lookup(config, option, environ) for option in OPTIONS}
    invocation = Path(config.invocation_params.dir)
    # Not config.rootpath: without an ini file pytest takes the value of --llm-model for a test path, and its
    # root becomes a folder above both.
    return Settings(values, Path(config.inipath).parent if config.inipath else invocation, invocation)


def lookup(config: Any, option: Option, environ: Mapping[str, str] = os.environ) -> Sourced:  # noqa: ANN401
    """The value of one option and where it came from."""
    given = config.getoption(option.dest, None)
    if given is not None:
        return Sourced(given, "command line")
    if option.env in environ:
        return Sourced(_from_text(option, environ[option.env], option.env), option.env)
    ini = config.getini(option.ini)
    if ini:
        text = "\n".join(ini) if isinstance(ini, list) else ini
        return Sourced(_from_text(option, text, f"{option.ini} in the ini file"), "ini")
    return Sourced(option.default, "default")


def _from_text(option: Option, text: str, where: str) -> object:
    if option.kind != "list":
        return parse_value(option, text, where)
    # One entry a line, or separated by commas outside brackets: `int8, magnitude(sparsity=0.5)`.
    return tuple(parse_value(option, part, where) for part in _split_list(text))


def _split_list(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "\n" or (character == "," and depth == 0):
            parts.append(current)
            current = ""
        else:
            current += character
    return [part.strip() for part in [*parts, current] if part.strip()]


def as_text(value: object) -> str:
    """A value as it is shown and stored; nothing for one that is absent."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def not_default(config: Any, environ: Mapping[str, str] = os.environ) -> list[str]:  # noqa: ANN401
    """One `name: value (source)` for every setting that is not the default, for the header."""
    lines = []
    for option in OPTIONS:
        value, source = lookup(config, option, environ)
        if source != "default":
            lines.append(f"{option.name}: {as_text(value)} ({source})")
    return lines


def table() -> str:
    """All options as a Markdown table, as it stands in the README."""
    rows = ["| option | meaning |", "|---|---|"]
    for option in OPTIONS:
        value = f" {option.metavar}" if option.metavar else ""
        rows.append(f"| `{option.flag}{value}` | {_help(option).replace('%%', '%')} |")
    return "\n".join(rows)
