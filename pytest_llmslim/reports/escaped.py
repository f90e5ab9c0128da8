"""Texts of others inside Markdown: names of models, recipes and tests, and sentences that quote them.

What is written here stays one line and one cell of a table, opens no tag and no link, and notifies nobody: GitHub
and GitLab link `@name`, `#12` and bare addresses, which a zero-width space behind the sign keeps them from.
"""

from __future__ import annotations

import re
from typing import Final

NAME: Final = 80
"""Characters that are shown of a name."""
SENTENCE: Final = 400
"""Characters that are shown of a sentence."""

_APART: Final = "&#8203;"
_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ufeff]+")
_UNPLAIN: Final = re.compile(r"[`|\\\u200b-\u200f\u202a-\u202e\u2066-\u2069]")
_RULES: Final = (
    (re.compile(r"[\u200b-\u200f\u202a-\u202e\u2066-\u2069]"), ""),  # invisible, or turning the text around
    (re.compile(r"&"), "&amp;"),
    (re.compile(r"#(?=\d)"), f"#{_APART}"),  # before entities, which have digits too
    (re.compile(r"<"), "&lt;"),
    (re.compile(r"([\\`*~$])"), r"\\\1"),
    (re.compile(r"(?<![^\W_])_|_(?![^\W_])"), r"\\_"),
    (re.compile(r"\]([(\[:])"), r"]\\\1"),
    (re.compile(r"\|"), "&#124;"),
    (re.compile(r"@(?=\w)"), f"@{_APART}"),
    (re.compile(r"://"), f":{_APART}//"),
    (re.compile(r"(?i)(www)\."), rf"\1{_APART}."),
)


def clipped(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = _UNPRINTABLE.sub(" ", text).strip()
    return line if len(line) <= most else f"{line[: most - 1]}…"


def plain(text: str, most: int = SENTENCE) -> str:
    """Text that looks in Markdown as it does here."""
    line = clipped(text, most)
    for pattern, instead in _RULES:
        line = pattern.sub(instead, line)
    return line


def code(text: str, most: int = NAME) -> str:
    """A name, a command or a path, set as code."""
    line = clipped(text, most)
    if line and not _UNPLAIN.search(line):
        return f"`{line}`"
    return f"<code>{plain(line, most)}</code>"
