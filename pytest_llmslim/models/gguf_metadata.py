"""The key-value head of a GGUF file, version 2 and 3, little-endian.

Reference: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package reads the same, but
makes an object of every token: 10 s for a vocabulary of 262,144.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from pytest_llmslim.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""By type number, as `struct` and numpy spell them."""

_STRING, _ARRAY = 8, 9


def read_metadata(file: Path, name: str) -> dict[str, Any]:
    """All keys of the head; arrays as lists.

    Raises:
        ModelError: no GGUF file, another version, or a file that ends early.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(
                f"{name} is a GGUF file, got one that does not start with GGUF; download it again"
            )
        try:
            (version,) = _unpack(stream, "I")
            if version not in (2, 3):
                raise ModelError(
                    f"{name} is a GGUF file of version 2 or 3, got version {version}; convert it again"
                )
            _tensors, count = _unpack(stream, "QQ")
            return dict(_entry(stream) for _ in range(count))
        except (struct.error, EOFError, UnicodeDecodeError, LookupError) as error:
            raise ModelError(f"{name} is a whole GGUF file, got a damaged head; download it again") from error


def _entry(stream: BinaryIO) -> tuple[str, Any]:
    key = _string(stream)
    (kind,) = _unpack(stream, "I")
    return key, _value(stream, kind)


def _value(stream: BinaryIO, kind: int) -> Any:  # noqa: ANN401  # the type is in the file
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _unpack(stream, _SCALARS[kind])[0]
    item, length = _unpack(stream, "IQ")
    if item in _SCALARS:
        scalar = np.dtype(_SCALARS[item]).newbyteorder("<")
        return np.frombuffer(_read(stream, length * scalar.itemsize), scalar).tolist()
    return [_value(stream, item) for _ in range(length)]


def _string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "Q")
    return _read(stream, length).decode("utf-8")


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", _read(stream, struct.calcsize(f"<{layout}")))


def _read(stream: BinaryIO, length: int) -> bytes:
    if length > _LONGEST:
        raise EOFError
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


_LONGEST = 1 << 30
"""Bytes of the longest string or array that is believed; more is a damaged length."""
