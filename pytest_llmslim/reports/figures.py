"""Charts as pictures, PNG and SVG; matplotlib is imported when one is drawn, and its global state is left alone."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim.errors import MissingPackageError
from pytest_llmslim.reports.files import make_folder
from pytest_llmslim.units import safe_file_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pytest_llmslim.paper.charts import Chart, Panel

COLOURS: Final = {"balanced": "#0072B2", "energy": "#009E73", "runtime": "#D55E00"}
"""Okabe and Ito's, which stay apart for every kind of colour vision."""
GREY: Final = "#555555"
AXIS: Final = "opt, without unit (lower is better)"
GROUP_INCH, LEAST_INCH, ROW_INCH = 0.62, 5.5, 4.4
TALL: Final = 2.2
"""Bars above so many times the next ones are cut off, with their value."""


def draw(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Draw every chart into `folder` as PNG and SVG.

    Returns:
        The files, in order.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    pictures = [(chart, picture(chart)) for chart in charts]
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    return [path for chart, figure in pictures for path in _save(figure, folder, safe_file_name(chart.name))]


def picture(chart: Chart) -> Any:  # noqa: ANN401  # matplotlib's Figure
    """The chart as a figure of matplotlib that no backend and no pyplot knows of.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError(
            "figures need the Python package matplotlib, which is not installed; "
            "install it with: pip install 'pytest-llmslim[figures]'"
        ) from None
    figure = Figure(figsize=_size(chart), layout="constrained")
    _fill(figure, chart)
    return figure


def _size(chart: Chart) -> tuple[float, float]:
    """Inches, by the groups of the widest row."""
    return max(_inches(row) * len(row) for row in chart.rows), ROW_INCH * len(chart.rows) + 0.5


def _inches(row: Sequence[Panel]) -> float:
    """The width of each panel of a row."""
    return max(LEAST_INCH, *(GROUP_INCH * len(panel.names) for panel in row))


def _fill(figure: Any, chart: Chart) -> None:  # noqa: ANN401  # matplotlib's Figure
    figure.suptitle(chart.title, fontsize=13, fontweight="bold")
    rows = figure.subfigures(len(chart.rows), 1, squeeze=False)[:, 0]
    for place, row in zip(rows, chart.rows, strict=True):
        axes = place.subplots(1, len(row), squeeze=False)[0]
        for axis, panel in zip(axes, row, strict=True):
            _bars(axis, panel, _inches(row))
    handles, labels = axes[0].get_legend_handles_labels()  # the first of a row always has bars
    figure.legend(
        handles, labels, title="profile", loc="outside lower center", ncols=len(labels), frameon=False,
        fontsize=9, title_fontsize=9,
    )  # fmt: skip


def _bars(axis: Any, panel: Panel, inches: float) -> None:  # noqa: ANN401  # matplotlib's Axes
    _title(axis, panel, inches)
    if not panel.names:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        return
    top = highest(value for bars in panel.bars.values() for value in bars)
    width = 0.8 / len(panel.bars)
    for i, (profile, values) in enumerate(panel.bars.items()):
        places = [group - 0.4 + width * (i + 0.5) for group in range(len(values))]
        heights = [min(value or 0.0, top) for value in values]
        axis.bar(places, heights, width, label=profile, color=COLOURS.get(profile, GREY))
        for place, value in zip(places, values, strict=True):
            if value is not None and value > top:
                _note(axis, place, top, f"{value:.3g}")
    for group, reason in enumerate(panel.absent):
        if all(values[group] is None for values in panel.bars.values()):
            _note(axis, group, 0.0, reason)
    axis.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axis.annotate(
        "reference", (1, 1), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
        fontsize=7, va="center",
    )  # fmt: skip
    axis.set_ylim(0, top * 1.12)
    axis.set_xlim(-0.6, len(panel.names) - 0.4)
    axis.set_xticks(
        range(len(panel.names)), panel.names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8
    )
    axis.set_ylabel(AXIS, fontsize=8)
    axis.tick_params(axis="y", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _title(axis: Any, panel: Panel, inches: float) -> None:  # noqa: ANN401  # matplotlib's Axes
    """What is shown, and below it what has to be known, as wide as the panel."""
    lines = [
        line for caption in panel.captions for line in textwrap.wrap(caption, int(14.5 * (inches - 0.8)))
    ]
    axis.set_title("\n".join(lines), loc="left", fontsize=7.5, color=GREY)
    axis.annotate(
        panel.title, (0, 1), xycoords="axes fraction", xytext=(0, 8 + 10.5 * len(lines)), textcoords="offset points",
        fontsize=10,
    )  # fmt: skip


def _note(axis: Any, x: float, y: float, text: str) -> None:  # noqa: ANN401  # matplotlib's Axes
    axis.annotate(
        text, (x, y), xytext=(0, 2), textcoords="offset points", fontsize=6.5, color=GREY, ha="center", va="bottom",
        rotation=90,
    )  # fmt: skip


def highest(values: Iterable[float | None]) -> float:
    """The highest bar that is shown whole: a few that tower over the others would hide them."""
    top = 1.0
    for value in sorted(value for value in values if value is not None):
        if value > TALL * max(top, 1.0):
            break
        top = max(top, value)
    return top


def _save(figure: Any, folder: Path, name: str) -> list[Path]:  # noqa: ANN401  # matplotlib's Figure
    """The same picture twice; the SVG has text as text, and neither holds a date."""
    from matplotlib import rc_context

    files = [folder / f"{name}.png", folder / f"{name}.svg"]
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(files[0], dpi=150)
        figure.savefig(files[1], metadata={"Date": None})
    return files
