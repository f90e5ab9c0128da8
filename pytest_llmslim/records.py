"""What a run knows, as frozen records that go to and from plain builtins.

Records cross process borders (xdist), land in JSON and are compared with stored ones, so every number
carries how it came to be. A number that could not be had is `None` with a reason, never 0.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

SCHEMA = 1

Method = Literal["measured", "sampled", "estimated", "simulated", "unmeasured"]
"""How a number was obtained. `sampled`: power readings integrated over time. `simulated`: it belongs to
weights that were only rounded or masked, so no cost may be read off it."""

Outcome = Literal["passed", "failed", "inconclusive", "not comparable", "new"]

Axis = Literal["integrity", "perplexity", "time", "energy", "opt"]

WORST_FIRST: tuple[Outcome, ...] = ("failed", "inconclusive", "not comparable", "new", "passed")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of a meter: a value with unit, source, method and resolution.

    Args:
        value: in `unit`; `None` exactly when `method` is `unmeasured`.
        unit: `J`, `s` or `B`.
        source: which counter or model gave it, e.g. `nvml-counter`, `rapl`, `codecarbon`, `perf_counter`.
        method: see `Method`.
        resolution: smallest step of the source, in seconds between updates; `None` when unknown.
        reason: why there is no value, as a sentence; empty when there is one.

    Raises:
        ValueError: a value that is not finite and positive, a value on an unmeasured reading, or an
            unmeasured reading without a reason. A meter that returns 0 J has failed.
    """

    value: float | None
    unit: str
    source: str
    method: Method
    resolution: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.method == "unmeasured":
            if self.value is not None or not self.reason:
                raise ValueError(f"an unmeasured reading has a reason and no value, got {self!r}")
        elif self.value is None or not math.isfinite(self.value) or self.value <= 0:
            raise ValueError(f"a {self.method} reading is finite and above 0, got {self.value!r} {self.unit}")


def unmeasured(unit: str, source: str, reason: str) -> Reading:
    """A reading that could not be had, and why."""
    return Reading(None, unit, source, "unmeasured", None, reason)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio candidate / reference (or a score) with its confidence interval.

    `value`, `low` and `high` are all `None` when `method` is `unmeasured` or `simulated`; `reason` then says
    why. `n` counts what the interval rests on: blocks for time and energy, windows of text for quality. With
    too few of them there is a value without bounds: `low` is 0 and `high` infinite.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: Method
    source: str
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return self.value is not None


def no_estimate(reason: str, *, method: Method = "unmeasured", source: str = "none") -> Estimate:
    """An estimate that could not be had, and why."""
    return Estimate(None, None, None, 0, method, source, reason)


@dataclass(frozen=True, slots=True)
class Key:
    """What a record is about; the key of a baseline. Built from fields, never from a node id."""

    suite: str
    test: str
    model: str
    recipe: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a quality number was computed; numbers under different protocols are never compared.

    Args:
        name: `window` (disjoint windows) or `stride` (overlapping, only new tokens scored).
        window: tokens in one forward pass, BOS included.
        stride: tokens between the starts of windows; equals the fresh tokens of a window.
        bos: whether every window starts with the BOS token.
        tokens: tokens that were scored.
        windows: forward passes a model.
        text: name of the text (a file name or `embedded`).
        text_sha256: of the bytes read.
        dtype: in which the reference ran.
    """

    name: str
    window: int
    stride: int
    bos: bool
    tokens: int
    windows: int
    text: str
    text_sha256: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Side:
    """One model as it was measured. `None`: not available, e.g. words of a text without offsets."""

    parameters: int
    stored_bytes: int
    weights_hash: str
    perplexity: float
    word_perplexity: float | None
    byte_perplexity: float | None
    time_s: Reading
    wall_s: Reading
    energy_j: Reading
    peak_memory: Reading


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far the candidate's next-token distributions are from the reference's, over all scored tokens.

    `mean_kl` is KL(reference || candidate) in nats; `top1` the share of tokens with the same likeliest token.
    """

    mean_kl: float
    top1: float


@dataclass(frozen=True, slots=True)
class Build:
    """What compressing cost, and what it did, one sentence a step."""

    time_s: Reading
    energy_j: Reading
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Integrity:
    """Whether something was compressed at all, and whether the saving is real.

    `compressed`: stored bytes or shapes fell, or kernels were replaced. `simulated`: weights were rounded or
    masked but are stored and multiplied in full. `control`: the identity recipe, for A/A runs.
    `changed`: other weights of the same size. `nothing`: equal to the reference.
    """

    status: Literal["compressed", "simulated", "changed", "control", "nothing"]
    sentence: str


@dataclass(frozen=True, slots=True)
class Profile:
    """Weights of time (alpha) and energy (beta) in `opt`."""

    name: str
    alpha: float
    beta: float


@dataclass(frozen=True, slots=True)
class Samples:
    """What the estimates rest on: log(candidate / reference), one value a block (time) or window (quality).

    `nll_difference` is in nats a token, one mean a window; `window_tokens` the tokens scored in each.
    """

    time: tuple[float, ...] = ()
    wall: tuple[float, ...] = ()
    energy: tuple[float, ...] = ()
    nll_difference: tuple[float, ...] = ()
    window_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One decision of the gate on one axis, with its sentence (subject, rule, got, next step)."""

    axis: Axis
    outcome: Outcome
    sentence: str
    against: Literal["threshold", "baseline", "integrity"] = "threshold"


@dataclass(frozen=True, slots=True)
class Record:
    """Everything one measurement of one candidate against its reference gave."""

    key: Key
    label: str
    protocol: Protocol
    reference: Side
    candidate: Side
    perplexity: Estimate
    divergence: Divergence
    time: Estimate
    wall: Estimate
    energy: Estimate
    stored_bytes: Estimate
    floor: float | None
    build: Build
    integrity: Integrity
    profile: Profile
    opt: Estimate
    fingerprint: dict[str, str]
    samples: Samples
    notes: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = field(default=())

    @property
    def outcome(self) -> Outcome:
        """The worst outcome of all verdicts; a record without verdicts passed."""
        return worst(self.verdicts)


def worst(verdicts: Iterable[Verdict]) -> Outcome:
    """The worst outcome of some verdicts; of none, `passed`."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return next((outcome for outcome in WORST_FIRST if outcome in outcomes), "passed")


def to_builtins(value: object) -> Any:  # noqa: ANN401  # the JSON value type is recursive
    """Plain dicts, lists, strings, numbers and None, safe for JSON and for xdist.

    Subclasses of float, int and str (numpy scalars, enums) become the plain type. Infinity becomes the
    string `inf`, since JSON has no word for it.

    Raises:
        ValueError: a NaN. It is a fault, and would spread silently.
        TypeError: a value that is no record and no builtin.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_builtins(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(to_builtins(key)): to_builtins(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_builtins(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise ValueError("a record holds finite numbers, inf or None, got NaN")
        return float(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, str):
        return str.__str__(value)  # str() of an enum is its name
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # numpy or torch, but no subclass
        return to_builtins(value.item())
    raise TypeError(f"a record holds builtins, got {type(value).__name__}: {value!r}")


def from_builtins(kind: type[T], value: object) -> T:
    """The record of class `kind` from what `to_builtins` gave.

    Raises:
        ValueError: a missing or unknown field, or a value of the wrong type; the message names the field.
    """
    return typing.cast("T", _decode(kind, value, kind.__name__))


def _decode(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401  # follows annotations
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
        return _decode(kind, value, where)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{where} is one of {', '.join(typing.get_args(kind))}, got {value!r}")
        return value
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(_decode(item, v, f"{where}[{i}]") for i, v in enumerate(_expect(value, list, where)))
    if origin is dict:
        return {str(k): _decode(str, v, f"{where}.{k}") for k, v in _expect(value, dict, where).items()}
    if dataclasses.is_dataclass(kind):
        return _decode_record(kind, _expect(value, dict, where), where)
    return _decode_number(value, where) if kind is float else _expect(value, kind, where)


def _decode_number(value: Any, where: str) -> float:  # noqa: ANN401
    if value in ("inf", "-inf"):
        return float(value)
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023
    number: float = float(value) if whole else _expect(value, float, where)
    if not math.isfinite(number):
        raise ValueError(f"{where} is a finite number, or the text 'inf', got {number!r}")
    return number


def _decode_record(kind: Any, value: dict[str, Any], where: str) -> Any:  # noqa: ANN401
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ValueError(f"{where} has no field {unknown[0]!r}; it has {', '.join(fields)}")
    missing = [
        name
        for name, f in fields.items()
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where} needs the field {missing[0]!r}, which is missing")
    decoded = {name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return kind(**decoded)
    except ValueError as error:
        raise ValueError(f"{where} is no {kind.__name__}: {error}") from None


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:  # noqa: ANN401
    return typing.get_type_hints(kind)


def _expect(value: Any, kind: Any, where: str) -> Any:  # noqa: ANN401
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} is of type {kind.__name__}, got {value!r}")
    return value
