"""The plots of the HTML report as plotly figures, without colours: the page gives those, by theme.

A figure is `{"data": [...], "layout": {...}}`. `meta` of a trace and `name` of a shape say which colour of the page
they have; `customdata` of a trace holds the ids of the recipes behind its points, by which the page filters them.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim import units
from pytest_llmslim.comparison import FIGURES
from pytest_llmslim.records import WORST_FIRST
from pytest_llmslim.reports.figures import AXIS, highest
from pytest_llmslim.score import PROFILES, opt_estimate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.records import Estimate, Outcome, Record
    from pytest_llmslim.reports.html.data import Named
    from pytest_llmslim.run_records import Point

Figure = dict[str, Any]

AXES: Final = {"energy": "energy", "time": "time", "bytes": "stored_bytes"}
"""What perplexity stands against in the Pareto plot: name in the page to field of a record."""
SYMBOLS: Final[dict[Outcome, str]] = {
    "failed": "x",
    "inconclusive": "diamond",
    "not comparable": "square",
    "new": "triangle-up",
    "passed": "circle",
}
_OVER: Final = "candidate / reference"
_WIDE, _HIGH = 0.12, 0.05
"""Shares of the plot that a name takes."""
_LETTERS: Final = 24
_LOG: Final = 4.0
"""Largest / smallest value from which an axis is logarithmic."""


# Pareto -----------------------------------------------------------------------------------------------------


def pareto(named: Sequence[Named], axis: str) -> Figure | None:
    """Quality against one cost, with intervals; `None` where no recipe has both.

    Colour and symbol say the verdict. The front joins the recipes that nothing beats in both: what failed and controls
    are no part of it, the reference is.
    """
    field = AXES[axis]
    perplexity = any(each.record.perplexity.known for each in named)
    points = [
        (each, x, y)
        for each in named
        for x, y in [(getattr(each.record, field), _quality(each.record, perplexity=perplexity))]
        if _drawn(x) and _drawn(y)
    ]
    if not points:
        return None
    traces = [_front(points)]
    for outcome in reversed(WORST_FIRST):
        these = [point for point in points if point[0].record.outcome == outcome]
        if these:
            traces.append(_cloud(outcome, these))
    traces.append(_ring())
    worse = f"perplexity, {_OVER}" if perplexity else "quality lost, above 1 is worse"
    layout = {
        "xaxis": {"title": {"text": f"{axis}, {_OVER}"}, **_scale([x.value for _, x, _ in points])},
        "yaxis": {"title": {"text": worse}, **_scale([y.value for _, _, y in points])},
        "shapes": [_line("x"), _line("y")],
    }
    return _figure(traces, layout)


def left_out(named: Sequence[Named], axis: str) -> list[str]:
    """Names of the recipes that have no place in the Pareto plot: a part is missing or infinite."""
    perplexity = any(each.record.perplexity.known for each in named)
    return [
        each.name
        for each in named
        if not (
            _drawn(getattr(each.record, AXES[axis])) and _drawn(_quality(each.record, perplexity=perplexity))
        )
    ]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both, from left to right; of equal points the first."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    found: list[int] = []
    for i in order:
        if not found or points[i][1] < points[found[-1]][1]:
            found.append(i)
    return found


def _quality(record: Record, *, perplexity: bool) -> Estimate:
    return record.perplexity if perplexity else record.worsening


def _drawn(found: Estimate) -> bool:
    return found.value is not None and math.isfinite(found.value)


def _front(points: Sequence[tuple[Named, Estimate, Estimate]]) -> Figure:
    able = [
        (x.value or 0.0, y.value or 0.0, plain(each.name))
        for each, x, y in points
        if each.record.outcome != "failed" and each.record.integrity.status != "control"
    ]
    able.append((1.0, 1.0, "reference"))
    best = [able[i] for i in front([(x, y) for x, y, _ in able])]
    return {
        "x": [x for x, _, _ in best],
        "y": [y for _, y, _ in best],
        "text": _labels(best),
        "name": "front",
        "mode": "lines+markers+text",
        "marker": {"size": 20, "opacity": 0},
        "textposition": "bottom center",
        "line": {"shape": "hv", "width": 1.5, "dash": "dot"},
        "meta": "ink",
        "hoverinfo": "skip",
    }


def _ring() -> Figure:
    """Around the recipe that is best for the weights chosen in the page, which fills it."""
    return {
        "x": [],
        "y": [],
        "text": [],
        "name": "best",
        "mode": "markers+text",
        "textposition": "top center",
        "marker": {"symbol": "circle-open", "size": 20, "line": {"width": 2}},
        "meta": "ink",
        "hoverinfo": "skip",
    }


def _labels(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """The names of points, without those that would be written over one before."""
    wide, high = (
        math.log(1.2 * max(found) / min(found))
        for found in ([1.0, *(x for x, _, _ in points)], [1.0, *(y for _, y, _ in points)])
    )
    shown: list[tuple[float, float]] = []
    labels = []
    for x, y, text in points:
        place = (math.log(x) / wide, math.log(y) / high)
        clear = all(abs(place[0] - a) > _WIDE or abs(place[1] - b) > _HIGH for a, b in shown)
        labels.append(text if clear else "")
        shown += [place] if clear else []
    return labels


def _cloud(outcome: Outcome, points: Sequence[tuple[Named, Estimate, Estimate]]) -> Figure:
    return {
        "x": [x.value for _, x, _ in points],
        "y": [y.value for _, _, y in points],
        "error_x": _errors([x for _, x, _ in points]),
        "error_y": _errors([y for _, _, y in points]),
        "text": [plain(each.name) for each, _, _ in points],
        "customdata": [each.id for each, _, _ in points],
        "name": outcome,
        "mode": "markers",
        "marker": {"symbol": SYMBOLS[outcome], "size": 9},
        "meta": outcome.replace(" ", "-"),
        "hovertemplate": f"<b>%{{text}}</b>, {outcome}<br>%{{x:.4~g}} by %{{y:.4~g}}<extra></extra>",
    }


# Scores -----------------------------------------------------------------------------------------------------


def scores(named: Sequence[Named]) -> Figure | None:
    """Opt by profile as grouped bars, as in the paper; `None` where no recipe has a cost.

    Bars that tower over the others are cut off, with their values. A further trace, which the page fills, has the
    scores under the weights chosen there.
    """
    found = {
        profile: [opt_estimate(each.record.worsening, each.record.time, each.record.energy, weights) for each in named]
        for profile, weights in PROFILES.items()
    }  # fmt: skip
    shown = [i for i, each in enumerate(named) if _drawn(each.record.worsening) and _drawn(each.record.time)]
    if not shown:
        return None
    names = [plain(named[i].name) for i in shown]
    traces = [_bars(profile, names, [bars[i] for i in shown]) for profile, bars in found.items()]
    for trace in traces:
        trace["customdata"] = [named[i].id for i in shown]
    top = 1.08 * highest(bars[i].value for bars in found.values() for i in shown)
    chosen = {"symbol": "diamond", "size": 8}
    traces.append({**traces[0], "type": "scatter", "name": "chosen", "mode": "markers", "meta": "ink"})
    traces[-1] |= {"y": [None] * len(shown), "error_y": None, "marker": chosen}
    traces[-1]["hovertemplate"] = "%{x}<br>%{y:.4~g}<extra>chosen weights</extra>"
    layout = {
        "barmode": "group",
        "xaxis": {
            "type": "category",
            "tickangle": -40,
            "categoryorder": "array",
            "categoryarray": names,
            "tickvals": names,
            "ticktext": [_short(named[i].name) for i in shown],
        },
        "yaxis": {"title": {"text": AXIS}, "range": [0, top]},
        "shapes": [_line("y")],
        "annotations": _cut(names, [[bars[i] for bars in found.values()] for i in shown], top),
    }
    return _figure(traces, layout)


def _short(name: str) -> str:
    """A name below a bar, which a long one would push off the page."""
    return plain(name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…")


def _bars(profile: str, names: Sequence[str], bars: Sequence[Estimate]) -> Figure:
    weights = PROFILES[profile]
    return {
        "type": "bar",
        "x": names,
        "y": [bar.value if _drawn(bar) else None for bar in bars],
        "error_y": {**_errors(bars), "width": 0},
        "name": f"{profile} ({weights.alpha:g} T + {weights.beta:g} E)",
        "meta": profile,
        "hovertemplate": f"%{{x}}<br>%{{y:.4~g}}<extra>{profile}</extra>",
    }


def _cut(names: Sequence[str], bars: Sequence[Sequence[Estimate]], top: float) -> list[dict[str, Any]]:
    """At the upper end of bars that are cut off: how far they reach."""
    notes = []
    for name, estimates in zip(names, bars, strict=True):
        over = [bar.value for bar in estimates if _drawn(bar) and (bar.value or 0.0) > top]
        if over:
            texts = dict.fromkeys(units.significant(value) for value in (min(over), max(over)))  # type: ignore[type-var]
            notes.append(
                {"x": name, "y": top, "text": f"↑ {' to '.join(texts)}", "textangle": -90, "showarrow": False,
                 "yanchor": "top", "font": {"size": 10}, "borderpad": 2}
            )  # fmt: skip
    return notes


# Of one recipe ----------------------------------------------------------------------------------------------


def blocks(record: Record) -> Figure | None:
    """The ratio of each block of pairs in the order in which they were measured; `None`: nothing was timed."""
    samples = record.samples
    series = {"time": samples.time, "wall": samples.wall, "energy": samples.energy}
    traces = [_series(name, [math.exp(value) for value in found]) for name, found in series.items() if found]
    layout = {
        "xaxis": {"title": {"text": f"block of {record.sampling.per_block or 'some'} pairs"}, **_WHOLE},
        "yaxis": {"title": {"text": _OVER}, "tickformat": ".3~f"},
        "shapes": [_line("y")],
    }
    return _figure(traces, layout) if traces else None


def positions(record: Record) -> Figure | None:
    """Mean KL by place in a window of text; `None`: it was not kept."""
    found = record.samples.kl_by_position
    if not found:
        return None
    bars = {"type": "bar", "x": list(range(1, len(found) + 1)), "y": [_finite(value) for value in found]}
    trace = {**bars, "name": "KL", "meta": "accent", "hovertemplate": "part %{x}: %{y:.3~g}<extra></extra>"}
    layout = {
        "xaxis": {"title": {"text": f"part of the window, 1 to {len(found)}"}, **_WHOLE},
        "yaxis": {"title": {"text": "KL, nats a token"}, "rangemode": "tozero"},
        "showlegend": False,
    }
    return _figure([trace], layout)


def windows(record: Record) -> Figure | None:
    """KL and loss of each window of text, in the order of the text; `None`: they were not kept."""
    series = {"KL": record.samples.kl, "loss": record.samples.nll_difference}
    traces = [_series(name, [_finite(value) for value in found]) for name, found in series.items() if found]
    layout = {
        "xaxis": {"title": {"text": "window of text"}, **_WHOLE},
        "yaxis": {"title": {"text": "nats a token"}},
        "shapes": [_line("y", 0.0)],
    }
    return _figure(traces, layout) if traces else None


def history(points: Sequence[Point]) -> Figure:
    """The figures of one recipe on one device over its runs, oldest first."""
    runs = [f"{point.started[:16].replace('T', ' ')}<br>{point.commit[:7]}" for point in points]
    traces = []
    for name in FIGURES:
        estimates = [getattr(point, name) for point in points]
        if any(_drawn(found) for found in estimates):
            title = "bytes" if name == "stored_bytes" else name
            trace = _series(title, [_finite(found.value) for found in estimates])
            # Two runs of one minute have one label: the page's order is theirs all the same.
            trace |= {"x": list(range(1, len(points) + 1)), "error_y": _errors(estimates), "text": runs}
            trace["hovertemplate"] = "%{text}<br>%{y:.4~g}<extra>%{fullData.name}</extra>"
            traces.append(trace)
    ticks = {"tickmode": "array", "tickvals": list(range(1, len(points) + 1)), "ticktext": runs}
    layout = {
        "xaxis": {"title": {"text": "run"}, **(ticks if len(points) <= _LABELLED else _WHOLE)},
        "yaxis": {"title": {"text": f"{_OVER}, or opt"}},
        "shapes": [_line("y")],
    }
    return _figure(traces, layout)


_WHOLE: Final[dict[str, Any]] = {"tickformat": "d"}
_LABELLED: Final = 8


# Parts ------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """A text as plotly shows it unchanged: it takes some HTML for its own."""
    return html.escape(text, quote=False)


def _figure(traces: Sequence[Figure], layout: Figure) -> Figure:
    return {"data": [{"type": "scatter", **trace} for trace in traces], "layout": layout}


def _series(name: str, values: Sequence[float | None]) -> Figure:
    return {
        "x": list(range(1, len(values) + 1)),
        "y": list(values),
        "name": name,
        "meta": name,
        "mode": "lines+markers",
        "line": {"width": 1.5, "dash": "dot" if name == "wall" else "solid"},  # often it lies over time
        "marker": {"size": 6},
        "hovertemplate": "%{x}: %{y:.4~g}<extra>%{fullData.name}</extra>",
    }


def _errors(estimates: Iterable[Estimate]) -> dict[str, Any]:
    """Distances to the bounds; where there is no bound there is no bar."""
    up, down = [], []
    for found in estimates:
        value, low, high = found.value or 0.0, found.low or None, found.high
        up.append(high - value if high is not None and math.isfinite(high) else None)
        down.append(value - low if low is not None and math.isfinite(value) else None)
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 2}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _scale(values: Sequence[float | None]) -> dict[str, Any]:
    """A logarithmic axis where values lie far apart: ratios are as far from 1 on either side."""
    known = [value for value in (*values, 1.0) if value]
    if max(known) / min(known) < _LOG:
        return {"tickformat": ".3~f"}
    return {"type": "log", "tickformat": ".3~g", "dtick": "D2"}


def _line(axis: str, at: float = 1.0) -> dict[str, Any]:
    """Where the reference is: a line across the plot at a value of `axis`."""
    other = "y" if axis == "x" else "x"
    return {
        "type": "line", "name": "line", "layer": "below", "line": {"width": 1, "dash": "dash"},
        f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1, f"{axis}ref": axis,
        f"{other}ref": f"{other} domain",
    }  # fmt: skip
