"""Figures 2 to 5 as charts and as pictures."""

from __future__ import annotations

import re
import sys

import pytest
from sample_records import KEY, blocks, record

from pytest_llmslim.errors import MissingPackageError
from pytest_llmslim.paper import scores, tables
from pytest_llmslim.paper.charts import Chart, Panel, charts
from pytest_llmslim.paper.scores import Scored
from pytest_llmslim.records import Key
from pytest_llmslim.reports import figures

PUBLISHED = scores.published((*tables.level_one(), *tables.level_two()))


def scored(model, name, opt=1.2, **fields):
    """A measured row with the same score under each profile, or none."""
    values = {} if opt is None else dict.fromkeys(("balanced", "energy", "runtime"), opt)
    return Scored(model, name, "embedded:gpt2", 1.1, 1.0, 1.0, values, **fields)


def panel(bars=(1.0, 2.0), names=("int8", "int4"), captions=()):
    """A panel with one profile."""
    return Panel("measured on gpt2", names, {"balanced": bars}, captions, ("no cost",) * len(names))


def chart(*rows):
    return Chart("figure-2", "Figure 2: opt on GPT-2", rows)


def texts(figure):
    """All texts of a picture."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_the_published_figures():
    """GPT-2 with the pruned OPT, Large and XL by technique and combination; figure 5 on perplexity and logic tasks."""
    found = {each.name: each for each in charts(PUBLISHED)}
    assert list(found) == ["figure-2", "figure-3", "figure-4", "figure-5"]
    names = {name: [len(panel.names) for panel in each.rows[0]] for name, each in found.items()}
    assert names == {"figure-2": [18], "figure-3": [17], "figure-4": [8], "figure-5": [12, 12]}
    assert found["figure-2"].rows[0][0].names[-1] == "sparsegpt\n(pattern=2:4)\non opt-125m"
    assert found["figure-4"].rows[0][0].captions == (
        "means over WikiText-2 and C4; combinations from the paper's supplement",
    )


def test_the_highest_bars_of_figure_5_are_the_papers():
    """2.46 where its axis ends at 2.5, and just above 1 where its last tick is 1."""
    perplexity, logic = charts(PUBLISHED)[-1].rows[0]
    place = logic.names.index("sheared-llama-1.3b")
    assert logic.bars["runtime"][place] == max(logic.bars["runtime"]) == pytest.approx(2.46, abs=0.005)
    assert perplexity.bars["runtime"][place] == pytest.approx(1.02, abs=0.005)


def test_measured_stands_below_published():
    """Group below group, with where it was measured, how energy was had, and why a bar is absent."""
    rows = [scored("gpt2", "int8", method="estimated"), scored("gpt2", "ah90", None), scored("gpt2", "rtn")]
    upper, lower = (row[0] for row in charts(PUBLISHED, rows)[0].rows)
    assert (upper.title, lower.title) == ("published, table 4 and supplement", "measured on embedded:gpt2")
    assert upper.names == lower.names
    assert lower.captions == ("energy is estimated, not measured", "no cost, so no bar: ah90")
    shown = dict(zip(lower.names, zip(lower.bars["energy"], lower.absent, strict=True), strict=True))
    assert shown["int8"][0] == 1.2
    assert shown["ah90"] == (None, "no cost")
    assert shown["kd+int4"] == (None, "not measured")
    assert upper.absent[upper.names.index("rtn")] == "not published"


def test_of_opt_only_the_published_technique_joins_figure_2():
    """All else that is measured on it has a figure of its own, as a model that the paper lacks."""
    rows = [scored("opt-125m", name, 1.0 + i) for i, name in enumerate(("int8", "sparsegpt(pattern=2:4)"))]
    found = {each.name: each for each in charts(PUBLISHED, [*rows, scored("mine", "int4")])}
    (lower,) = found["figure-2"].rows[1]
    values = dict(zip(lower.names, lower.bars["energy"], strict=True))
    assert {name: value for name, value in values.items() if value} == {
        "sparsegpt\n(pattern=2:4)\non opt-125m": 2.0
    }
    assert found["figure-opt-125m"].rows[0][0].names == ("int8", "sparsegpt\n(pattern=2:4)")
    assert found["figure-mine"].title == "opt on mine"


def test_logic_tasks_have_bars_only_where_they_were_asked():
    """Their place is empty after a run without tasks, with the reason; notes of the tasks stand above their panel."""
    bare = scored("opt-13b", "opt-6.7b-kd")
    asked = scored("opt-13b", "opt-6.7b", logic={"balanced": 1.3}, notes=("mmlu: mine is at chance",))
    empty = charts(PUBLISHED, [bare])[-1]
    assert empty.rows[1][1].names == ()
    assert "not asked: they need --llm-data, or models from the hub" in texts(figures.picture(empty))
    logic = charts(PUBLISHED, [bare, asked])[-1].rows[1][1]
    assert logic.captions == ("left out: mmlu: mine is at chance",)
    shown = dict(zip(logic.names, zip(logic.bars["balanced"], logic.absent, strict=True), strict=True))
    assert shown["opt-6.7b"][0] == 1.3
    assert shown["opt-6.7b-kd"] == (None, "not asked")
    assert shown["mn-minitron-8b"] == (None, "not measured")


def test_a_record_becomes_a_bar():
    """With the names it is given; one without a cost says why."""
    key = Key("suites.paper.test_level_one", "test_technique", "embedded:gpt2", "int8")
    row = scores.measured(record(key=key), "gpt2", "int8")
    assert charts((), [row])[0].rows[0][0].bars["balanced"] == (pytest.approx(record().opt.value),)
    row = scores.measured(record(key=KEY, time=(), energy=blocks(1.0)), "gpt2", "rtn")
    assert (row.opt, row.reason) == ({}, "time: no energy meter")
    assert charts((), [row])[0].rows[0][0].captions == ("no cost, so no bar: rtn",)


def test_pictures_are_png_and_svg(tmp_path):
    """Both of every chart, in a folder that git passes over; the SVG has its text as text."""
    files = figures.draw([chart((panel(captions=("energy is estimated",)),))], tmp_path / "out" / "figures")
    assert [path.name for path in files] == ["figure-2.png", "figure-2.svg"]
    assert (tmp_path / "out" / ".gitignore").read_text() == "*\n"
    assert files[0].read_bytes().startswith(b"\x89PNG\r\n")
    text = files[1].read_text()
    for shown in ("Figure 2: opt on GPT-2", "measured on gpt2", "energy is estimated", "int8", "balanced"):
        assert shown in text
    assert "opt, without unit (lower is better)" in text


def test_the_same_chart_is_the_same_picture(tmp_path):
    """No date and no chance: a picture changes in git when its numbers do."""
    first, second = (figures.draw([chart((panel(),))], tmp_path / name) for name in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert not re.search(r"<dc:date>", first[1].read_text())


def test_drawing_leaves_no_state(tmp_path, monkeypatch):
    """No pyplot, no backend, no changed setting."""
    import matplotlib as mpl

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # of another test
    before = mpl.rcParams.copy()  # dict() would look the backend up, and load pyplot
    figures.draw([chart((panel(),))], tmp_path)
    assert mpl.rcParams.copy() == before
    assert "matplotlib.pyplot" not in sys.modules


def test_what_has_no_value_is_said():
    """A group without any bar reads `no cost`; one value of several just has no bar."""
    figure = figures.picture(chart((panel((None, 2.0)),)))
    assert texts(figure).count("no cost") == 1


def test_a_bar_that_towers_is_cut_with_its_value():
    """The others stay legible; a bar that is only somewhat higher is shown whole."""
    figure = figures.picture(chart((panel((1.1, 1.3, 2.4, 41.7), ("a", "b", "c", "d")),)))
    assert "41.7" in texts(figure)
    assert "2.4" not in texts(figure)
    (axis,) = figure.subfigs[0].axes
    assert 2.4 < axis.get_ylim()[1] < 3


@pytest.mark.parametrize("number", range(4))
def test_no_text_leaves_the_picture_or_hides_another(number):
    """Of the published figures beside a long measured one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    long = "no cost, so no bar: " + ", ".join(f"ah80+int4 number {i}" for i in range(30))
    rows = [scored(row.model, row.name) for row in PUBLISHED]
    whole = charts(PUBLISHED, rows)[number]
    lower = tuple(Panel(each.title, each.names, each.bars, (long,)) for each in whole.rows[1])
    figure = figures.picture(Chart(whole.name, whole.title, (whole.rows[0], lower)))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    boxes = [(text, text.get_window_extent()) for text in shown]
    for text, box in boxes:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, text.get_text()
    level = [box for text, box in boxes if not text.get_rotation()]
    for i, box in enumerate(level):
        for other in level[:i]:
            apart = box.shrunk(0.9, 0.9)
            assert not apart.overlaps(other.shrunk(0.9, 0.9))


def test_without_matplotlib_the_pip_line_is_named(monkeypatch, tmp_path):
    """And nothing is written."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingPackageError, match=r"figures need the Python package matplotlib.*\[figures\]'"
    ):
        figures.draw([chart((panel(),))], tmp_path / "figures")
    assert not list(tmp_path.iterdir())
