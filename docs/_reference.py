"""The reference: options, fixtures, marker, hooks, exit codes, the command, and the Python modules."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Final

import _numbers

from pytest_llmslim import fixtures, marker
from pytest_llmslim.options import OPTIONS, Option

NAMES: Final = ("reference/options", "reference/pytest", "reference/command", "reference/python")
MODULES: Final = {
    "records": "records",
    "run_records": "a whole run",
    "readings": "readings and estimates",
    "evaluation_records": "evaluations",
    "gate": "the gate",
    "comparison": "comparing",
    "runs": "reading stored runs",
    "baselines": "the store of baselines",
    "statistics": "estimators",
    "score": "the score",
    "registry": "names of methods and evaluations",
    "methods": "what a method is",
    "evals": "what an evaluation is",
    "meters": "what a meter is",
    "strategies": "Hypothesis strategies",
    "conformance": "invariants of methods",
    "bench": "the fixture `llm`",
    "errors": "errors that a user can mend",
}
"""Public modules, with what is in them."""

MARKER: Final = {
    "model": "the reference of this test; `models=[...]` for several",
    "recipe": "what is compressed how; `recipes=[...]` for a test each",
    "eval": "what is asked beside perplexity; `evals=[...]` for several",
    "max_perplexity_increase": 'the limit, as text with a percent sign, e.g. `"3%"`',
    "max_accuracy_drop": "likewise, of every evaluation with a metric",
    "max_time_increase": "likewise, of time",
    "max_energy_increase": "likewise, of energy",
    "max_opt": "the highest score, e.g. `0.9`; 1 is the reference itself",
}
EXIT_CODES: Final = (
    ("0", "nothing failed", "done"),
    ("1", "a test failed: a limit, a regression, a broken candidate", "`compare --fail`: a regression; `check`: an "
     "edited baseline; `doctor`: something that a run needs is missing"),
    ("2", "interrupted", "wrong usage, or a run that cannot be read"),
    ("4", "wrong usage: an unknown recipe, an unreadable baseline, a bad option; nothing was run", "-"),
    ("5", "no test was found", "-"),
)  # fmt: skip


def pages() -> dict[str, str]:
    """Text of every page of the reference by its file."""
    return {
        "reference/options.md": _options(),
        "reference/pytest.md": _pytest(),
        "reference/command.rst": _command(),
        "reference/python.md": _python(),
        **{f"reference/python/{name}.rst": _module(name, title) for name, title in MODULES.items()},
    }


def _options() -> str:
    rows = [
        (f"`{option.flag}`<br>`{option.ini}`<br>`{option.env}`", option.kind, _default(option), option.help)
        for option in OPTIONS
    ]
    head = ("option, ini, environment", "kind", "default", "meaning")
    return (
        "# Options\n\nThe command line wins over the environment, that over the ini file; a marker wins over all. A "
        "list is given by repeating the option, or by lines in the ini file. A flag has a form with `no`, e.g. "
        "`--no-llm-strict`. What is not default is shown in pytest's header.\n\n" + _numbers.table(head, rows)
    )


def _default(option: Option) -> str:
    value = option.default
    if value in (None, ()):
        return "-"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    if isinstance(value, bool):
        return "off" if not value else "on"
    return f"`{100 * value:g}%`" if isinstance(value, float) else f"`{value}`"


def _pytest() -> str:
    found = [*_fixtures()]
    marks = [(f"`{name}`", meaning) for name, meaning in MARKER.items()]
    known = {word for word in marker.KEYWORDS if word not in ("models", "recipes", "evals")}
    if known != set(MARKER):
        raise ValueError(
            f"the page of the marker tells all keywords, got {sorted(known ^ set(MARKER))} in one only"
        )
    return "\n".join(
        [
            "# Fixtures, marker, hooks, exit codes\n",
            "## Fixtures\n",
            _numbers.table(("fixture", "gives", "scope", "what it is"), found),
            "`llm` is a [Bench](python/bench.rst).\n",
            "## Marker\n\n`@pytest.mark.llm(...)`, by keyword only; on a test, a class or a module.\n",
            _numbers.table(("keyword", "meaning"), marks),
            "## Hooks\n",
            *(
                f"```{{eval-rst}}\n.. autofunction:: pytest_llmslim.hookspecs.{name}\n```\n"
                for name in _hooks()
            ),
            "## Exit codes\n",
            _numbers.table(("code", "pytest", "llmslim"), EXIT_CODES),
        ]
    )


def _fixtures() -> list[tuple[str, str, str, str]]:
    """Name, class, scope and docstring of every public fixture, as its file has them."""
    tree = ast.parse(inspect.getsource(fixtures))
    found = []
    for node in tree.body:
        decorators = [ast.unparse(each) for each in getattr(node, "decorator_list", ())]
        if isinstance(node, ast.FunctionDef) and any("pytest.fixture" in each for each in decorators):
            scope = "session" if "session" in decorators[0] else "test"
            kind = ast.unparse(node.returns) if node.returns else ""
            found.append(
                (f"`{node.name}`", f"`{kind}`", scope, " ".join((ast.get_docstring(node) or "").split()))
            )
    return found


def _hooks() -> list[str]:
    from pytest_llmslim import hookspecs

    return re.findall(r"^def (pytest_llmslim_\w+)", inspect.getsource(hookspecs), re.MULTILINE)


def _command() -> str:
    heading = "The command llmslim"
    directive = ".. click:: pytest_llmslim.commands:main\n   :prog: llmslim\n   :nested: full\n"
    return f"{heading}\n{'=' * len(heading)}\n\n{directive}"


def _python() -> str:
    rows = [(f"[pytest_llmslim.{name}](python/{name}.rst)", title) for name, title in MODULES.items()]
    tree = "\n".join(f"python/{name}" for name in MODULES)
    return (
        "# Python\n\nRecords and decisions work without pytest, e.g. in a notebook: `runs.read(path)` gives a run, "
        "`comparison.two_runs` compares two.\n\n"
        + _numbers.table(("module", "what is in it"), rows)
        + f"\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n"
    )


def _module(name: str, title: str) -> str:
    heading = f"pytest_llmslim.{name}: {title}".replace("`", "")
    # What a module hands on from others of these pages is shown there.
    own = "   :ignore-module-all:\n" if name in ("records", "baselines") else ""
    return f"{heading}\n{'=' * len(heading)}\n\n.. automodule:: pytest_llmslim.{name}\n   :members:\n{own}"
