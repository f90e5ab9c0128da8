"""Where the settings of a project are, by the rules of pytest, which is not imported for it."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import iniconfig

from pytest_llmslim import settings
from pytest_llmslim.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILES: Final = (
    ("pytest.toml", "pytest"),
    (".pytest.toml", "pytest"),
    ("pytest.ini", "pytest"),
    (".pytest.ini", "pytest"),
    ("pyproject.toml", "tool.pytest.ini_options"),
    ("pyproject.toml", "tool.pytest"),
    ("tox.ini", "pytest"),
    ("setup.cfg", "tool:pytest"),
)
"""Files and tables in which pytest looks, in its order."""


@dataclass(frozen=True, slots=True)
class Ini:
    """A file with settings of pytest.

    Args:
        path: of the file.
        table: in which they stand; empty: it is a pyproject.toml without any, beside which pytest starts all the same.
        values: all of them, as written.
    """

    path: Path
    table: str
    values: Mapping[str, Any] = field(default_factory=dict)


def find(folder: Path) -> Ini | None:
    """The file whose settings pytest takes when it is called in `folder`: there, or above it.

    Raises:
        SettingError: a file cannot be read.
    """
    for place in (folder, *folder.parents):
        for name, table in FILES:
            values = _values(place / name, table)
            if values is not None:
                return Ini(place / name, table, values)
    places = (place / "pyproject.toml" for place in (folder, *folder.parents))
    return next((Ini(path, "") for path in places if path.is_file()), None)


def resolved(folder: Path, environ: Mapping[str, str] = os.environ) -> settings.Settings:
    """The settings of a run that is started in `folder` without options on its command line.

    Raises:
        SettingError: a file cannot be read, or a value in it or in the environment does not fit its option.
    """
    ini = find(folder)
    values = ini.values if ini else {}
    config = SimpleNamespace(
        getoption=lambda name, default: default,
        getini=values.get,
        inipath=ini.path if ini else None,
        invocation_params=SimpleNamespace(dir=folder),
    )
    return settings.resolve(config, environ)


def _values(path: Path, table: str) -> Mapping[str, Any] | None:
    """What stands in a table; `None` where there is none. A file of pytest's own counts without one, too."""
    if not path.is_file():
        return None
    try:
        found = _toml(path, table) if path.suffix == ".toml" else _ini(path, table)
    except (OSError, ValueError, iniconfig.ParseError) as error:
        raise SettingError(f"{path} cannot be read by pytest ({error}); mend it.") from None
    return {} if found is None and "pytest." in path.name else found


def _ini(path: Path, section: str) -> Mapping[str, Any] | None:
    read = iniconfig.IniConfig(str(path))
    return dict(read[section].items()) if section in read else None


def _toml(path: Path, table: str) -> Mapping[str, Any] | None:
    found: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    for name in table.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    # An empty [tool.pytest] is there only to hold ini_options.
    if not isinstance(found, dict) or (table == "tool.pytest" and not found):
        return None
    return {name: value if isinstance(value, list) else str(value) for name, value in found.items()}
