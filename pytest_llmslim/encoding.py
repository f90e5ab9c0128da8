"""Records to and from plain builtins: what crosses process borders (xdist) and lands in JSON."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from functools import lru_cache
from typing import Any, Literal, TypeVar

T = TypeVar("T")


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
