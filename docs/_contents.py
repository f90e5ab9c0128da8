"""What belongs under what: the tables of contents of the site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import _pages
import _reference

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

START: Final = ("tutorial",)
HOWTO: Final = ("howto/choose", "howto/ship", "howto/method", "howto/paper", "howto/scale")
USING: Final = ("running", "parallel", "outputs", "report", "command", "ci")
WHAT: Final = ("methods", "evaluations", "extending")
WHY: Final = ("score", "measuring", "reliability", "calibrating", "embedded")


def below(page: str, docs: Path) -> str:
    """The tables of contents that a page ends with, as MyST; most have none."""
    if page == "methods":
        return "\n## A page each\n" + _tree("", _pages.method_names(), visible=True)
    if page == "evaluations":
        return "\n## A page each\n" + _tree("", _pages.evaluation_names(), visible=True)
    if page != "index":
        return ""
    named = {"index", *START, *HOWTO, *USING, *WHAT, *WHY}
    others = sorted(path.stem for path in docs.glob("*.md") if path.stem not in named)
    using = [name for name in USING if (docs / f"{name}.md").exists()]
    parts = {
        "Start": START,
        "How to": HOWTO,
        "Every day": (*using, *others),
        "Methods and evaluations": WHAT,
        "Why": WHY,
        "Reference": _reference.NAMES,
    }
    return "".join(_tree(caption, names) for caption, names in parts.items())


def _tree(caption: str, names: Iterable[str], *, visible: bool = False) -> str:
    options = [f":caption: {caption}"] if caption else []
    options += [":maxdepth: 1"] + ([] if visible else [":hidden:"])
    return "\n```{toctree}\n" + "\n".join([*options, "", *names]) + "\n```\n"
