"""The published JSON Schema (2020-12) of a run and of a record, made from their classes.

It says what `encoding.to_builtins` writes and `encoding.from_builtins` reads. The files in `schemas/` are what `text`
gives; a test compares the two.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from typing import Any, Final, Literal

from pytest_llmslim.records import SCHEMA, Record
from pytest_llmslim.run_records import RUN_SCHEMA, Run

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
NUMBER: Final = {"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf"]}]}
"""JSON has no word for infinity."""
PUBLISHED: Final = {"run": Run, "record": Record}
"""Name of a schema to the class that it describes; a record is a line of `results.jsonl`."""

_SIMPLE: Final[dict[Any, dict[str, Any]]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: NUMBER,
}
_ARGUMENT: Final = re.compile(r"^    (\w+): (.*(?:\n      +.*)*)", re.MULTILINE)


def schema(name: str) -> dict[str, Any]:
    """The schema called `name`, one of `PUBLISHED`; each class that it is made of is a definition.

    Raises:
        KeyError: there is no such schema.
    """
    kind = PUBLISHED[name]
    definitions: dict[str, Any] = {}
    root = _object(kind, definitions)
    if kind is Run:  # by these two a document says that it is a run, and of which form
        root["required"] = ["origin", "schema"]
        root["properties"]["schema"] |= {"const": RUN_SCHEMA}
    return {
        "$schema": DIALECT,
        "$id": f"urn:pytest-llmslim:schema:{name}:{RUN_SCHEMA if kind is Run else SCHEMA}",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def text(name: str) -> str:
    """The text of `schemas/<name>.schema.json`."""
    return json.dumps(schema(name), indent=1) + "\n"


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints, about = typing.get_type_hints(kind), inspect.getdoc(kind) or ""
    arguments = dict(_ARGUMENT.findall(about))
    properties = {}
    for field in dataclasses.fields(kind):
        properties[field.name] = dict(_value(hints[field.name], definitions))
        if field.name in arguments:
            properties[field.name]["description"] = _line(arguments[field.name])
    return {
        "title": kind.__name__,
        "description": _line(re.split(r"\n(?:Args|Raises):\n", about)[0]),
        "type": "object",
        "properties": properties,
        "required": [field.name for field in dataclasses.fields(kind) if _needed(field)],
        "additionalProperties": False,
    }


def _value(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401  # an annotation
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kind = next(each for each in arguments if each is not type(None))
        return {"anyOf": [_value(kind, definitions), {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _value(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1], definitions)}
    if dataclasses.is_dataclass(hint):
        return _reference(typing.cast("type", hint), definitions)
    return _SIMPLE[hint]


def _reference(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # in work
        definitions[kind.__name__] = _object(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _line(about: str) -> str:
    return " ".join(about.split())
