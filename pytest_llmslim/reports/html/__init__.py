"""One self-contained HTML file about a run: no network, no server, nothing beside it."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pytest_llmslim import runs, units
from pytest_llmslim.comparison import with_baselines
from pytest_llmslim.errors import MissingExtraError
from pytest_llmslim.reports.html import data, panels, plots
from pytest_llmslim.run_records import device_of
from pytest_llmslim.score import PROFILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.run_records import Run

NO_PLOTLY: Final = (
    "an HTML report needs the package plotly; install it with: pip install 'pytest-llmslim[report]'"
)


def page(run: Run, title: str = "") -> str:
    """The report of a run (of several devices: `runs.merged`) as one HTML file that needs no network.

    Args:
        run: with or without records.
        title: of the page; empty: the name of this package.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    scripts = [Markup(text) for text in (_plotly(), _file("report.js"))]
    environment = Environment(
        loader=PackageLoader("pytest_llmslim.reports.html", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    text = environment.get_template("report.html.jinja").render(
        **contents(run),
        title=title or "pytest-llmslim",
        style=Markup(_file("report.css")),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
    )
    # A name from a command line may hold bytes that are no text.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def contents(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    groups = data.tables(run)
    named = [each for group in groups for each in group.named]
    compared = {id(each.new): each for each in with_baselines(run)}
    overviews = {group.id: panels.overview(group.id, group.named) for group in groups}
    return {
        "run": run,
        "answer": data.answer(run),
        "counts": data.counts(run.records),
        "groups": groups,
        "pareto": {name: found for name, (found, _) in overviews.items()},
        "left_out": {name: notes for name, (_, notes) in overviews.items()},
        "scores": {group.id: plots.scores(group.named) for group in groups},
        "panels": {each.id: panels.panel(each, compared.get(id(each.record))) for each in named},
        "history": tuple(_history(run, named)),
        "machines": data.machines(run),
        "parts": data.parts(groups),
        "profiles": PROFILES,
        "glyphs": data.GLYPHS,
        "units": units,
    }


def _history(run: Run, named: Sequence[data.Named]) -> Iterable[panels.Plot]:
    """A plot for each recipe that an earlier run of its device has."""
    points = runs.with_history(run.history, run.points)
    earlier = {(point.key, point.device) for point in run.history}
    for each in named:
        place = (each.record.key, device_of(each.record.fingerprint))
        if place in earlier:
            these = [point for point in points if (point.key, point.device) == place]
            title = f"{each.name} on {each.record.key.model}"
            yield panels.Plot(
                f"{each.id}-history", title, "Figures by run, oldest first.", plots.history(these)
            )


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError(f"{NO_PLOTLY}.") from None
    return str(get_plotlyjs())


def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """By which the page's policy knows its own scripts: no other runs, whatever a name may hold."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
