"""`llmslim.json`: what a saved candidate is, beside its weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CARD: Final = "llmslim.json"
SCHEMA: Final = 1
_GROUPS: Final = "key_value_groups"


def write_card(
    folder: Path, card: Mapping[str, object], notes: Sequence[str], groups: Sequence[int] | None
) -> None:
    """Write `card` with what saving adds: schema, notes, and the groups that layers really have."""
    content: dict[str, object] = {**card, "schema": SCHEMA, "checkpoint": {"notes": [*notes]}}
    if groups is not None:
        content["checkpoint"] = {"notes": [*notes], _GROUPS: [*groups]}
    text = json.dumps(content, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / CARD).write_text(f"{text}\n", encoding="utf-8")


def key_value_groups(folder: Path, name: str) -> tuple[int, ...] | None:
    """Groups that each layer really has in a saved candidate with heads of zeros; `None` for any other folder.

    Raises:
        ModelError: `llmslim.json` is damaged or of a later version.
    """
    file = folder / CARD
    if not file.is_file():
        return None
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        schema, checkpoint = content["schema"], content["checkpoint"]
        groups = checkpoint.get(_GROUPS)
        if schema <= SCHEMA:
            return None if groups is None else tuple(int(count) for count in groups)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(
            f"{CARD} of {name} says what a saved candidate is, got {type(error).__name__}: {error}; save the "
            "candidate again, or delete the file to load the folder as any other"
        ) from error
    raise ModelError(
        f"{CARD} of {name} has the schema {SCHEMA} or an earlier one, got {schema}; update pytest-llmslim"
    )
