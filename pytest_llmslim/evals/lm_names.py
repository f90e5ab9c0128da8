"""Names of lm-eval's tasks, looked up without loading them.

Its own `TaskManager()` parses 14 000 files, which takes 9 to 16 s; reading one line of each takes 0.4 s.
"""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

# A key at the start of a line with a plain value: groups list their tasks below `task:`, or in brackets.
_NAMED = re.compile(rb"""^["']?(task|group)["']?[ \t]*:[ \t]*["']?([^\s"'#\[]+)""", re.MULTILINE)


class Found(NamedTuple):
    """Where a name is defined, and whether it stands for several tasks."""

    file: Path
    group: bool


def is_task(name: str) -> bool:
    """Whether lm-eval has a task or a group of tasks of that name."""
    return name in named()


def nearest(name: str) -> list[str]:
    """Names that are written nearly so, the nearest first."""
    return get_close_matches(name.lower(), named(), n=3)


@cache
def named() -> dict[str, Found]:
    """Every task and group of the installed lm-eval; empty without it."""
    spec = find_spec("lm_eval")
    found: dict[str, Found] = {}
    for package in (spec.submodule_search_locations or ()) if spec else ():
        for file in _files(Path(package) / "tasks"):
            kinds = {kind: name.decode() for kind, name in _NAMED.findall(file.read_bytes())}
            if b"task" in kinds:
                found.setdefault(kinds[b"task"], Found(file, group=False))
            elif b"group" in kinds:
                found.setdefault(kinds[b"group"], Found(file, group=True))
    return found


def _files(root: Path) -> list[Path]:
    """In lm-eval's order, in which the first of two equal names counts."""
    found = [
        Path(folder, name) for folder, _, names in os.walk(root) for name in names if name.endswith(".yaml")
    ]
    return sorted(found, key=Path.as_posix)
