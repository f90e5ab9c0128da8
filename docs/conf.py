"""How the site is built (`make docs`): from pages, docstrings, tables of the code, and stored numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import _contents  # noqa: E402  # found by the line above
import _pages  # noqa: E402
import _reference  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "pytest-llmslim"
author = "the authors of pytest-llmslim"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "schema", "numbers"]
html_theme = "furo"
html_title = "pytest-llmslim"
html_show_copyright = False

nitpicky = True
# Types of other packages, of type checking alone, and what the standard library calls itself inside.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pytest_llmslim).*"),
    (r"py:class", r"pytest_llmslim\.conformance\.subject\..*"),
]
smartquotes = False  # they make one dash of the two of an option
default_role = "literal"  # a single backtick in a docstring is code
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

GENERATED = ("method", "evaluation", "reference")
"""Folders of pages that are made anew with every build, and are not in the repository."""


def make_pages(app: Sphinx) -> None:
    """Write the generated pages; what is the same stays as it is, so that only changes are built again."""
    pages = {**_pages.methods(), **_pages.evaluations(), **_reference.pages()}
    for name, text in pages.items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for folder in GENERATED:
        for path in (DOCS / folder).rglob("*.*"):
            if str(path.relative_to(DOCS)) not in pages:
                path.unlink()


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Put tables of contents under pages; in the files themselves GitHub would show them as code."""
    source[0] += _contents.below(page, DOCS)


def mark_code(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """An indented block under a paragraph is code, which reStructuredText wants to be told by two colons."""

    def depth(line: str) -> int:
        return len(line) - len(line.lstrip())

    for i in range(len(lines) - 3, -1, -1):
        here, between, after = lines[i : i + 3]
        if here.strip() and not between.strip() and after.strip() and depth(after) > depth(here):
            lines[i + 1 : i + 1] = ["", f"{' ' * depth(here)}::"]


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("builder-inited", make_pages)
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-docstring", mark_code, priority=400)  # before napoleon, at 500
