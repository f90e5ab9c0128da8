"""The pages of the docs as tests read them: blocks of code, with what a comment before them asks for.

A comment `<!-- run -->` before a block says that the tests run it, `<!-- run: 1 -->` that it ends with exit code 1,
`<!-- file: NAME -->` that the block is that file, and `<!-- edit: NAME: OLD -> NEW -->` that a line of it changes then.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
GENERATED = {"method", "evaluation", "reference", "_build"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *(
        path
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if path.relative_to(ROOT / "docs").parts[0] not in GENERATED
    ),
]
_BLOCK = re.compile(r"^((?:<!-- [^\n]* -->\n)*)```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_ASKED = re.compile(r"<!-- (run|file|edit)(?:: (.*))? -->")


class Block(NamedTuple):
    """A block of code; `asked`: what comments before it ask for, by their first word."""

    language: str
    text: str
    asked: dict[str, str]


def blocks(page, *languages):
    """All blocks of a page, or those in some languages."""
    found = [
        Block(language, text, {word: rest or "" for word, rest in _ASKED.findall(comments)})
        for comments, language, text in _BLOCK.findall(page.read_text())
    ]
    return [block for block in found if not languages or block.language in languages]


def texts(page, language):
    """The texts of the blocks in one language."""
    return [block.text for block in blocks(page, language)]


def commands(block):
    """The words of every command of a console block: without prompt and comment, lines joined, `&&` split."""
    joined = block.text.replace("\\\n", " ")
    for line in joined.splitlines():
        if line.startswith("$ "):
            words = shlex.split(line[2:], comments=True)
            while "&&" in words:
                end = words.index("&&")
                yield words[:end]
                words = words[end + 1 :]
            yield words


def name(page):
    """A page for the name of a test."""
    return str(page.relative_to(ROOT))
