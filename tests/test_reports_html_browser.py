"""The HTML report in a real browser: it opens, sorts, filters, ranks again, and shuts nobody out."""

from __future__ import annotations

import dataclasses
import math
import shutil

import pytest
from sample_records import KEY, blocks, evaluation, quality
from test_reports_html import EVIL, aged, classifier, recipe, simulated, worthless

from pytest_llmslim.evaluation_records import Question
from pytest_llmslim.records import Profile
from pytest_llmslim.reports.html import data, page
from pytest_llmslim.run_records import Missed, Run
from pytest_llmslim.score import LowerIsBetter, opt

expect = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser").expect
pytest.importorskip("plotly", reason="the report draws with plotly")

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()
WEIGHTS = (0.0, 0.01, 0.1, 0.33, 0.5, 0.9, 1.0)


def some_run():
    """Two models, every outcome, and every way in which a score is missing."""
    kept = dataclasses.replace(recipe("int4").samples, kl=(0.1, 0.2), kl_by_position=(0.3, 0.1))
    asked = evaluation(lost=3, worst=(Question("q1", "What is 2 + 2?", "4", "4", "5", 1.0),))
    first = dataclasses.replace(recipe("int4", time=blocks(0.5), energy=blocks(0.9)), samples=kept)
    llama = dataclasses.replace(KEY, model="llama")
    records = (
        first,
        recipe("int8", "inconclusive", time=blocks(0.9), energy=blocks(0.4), energy_method="estimated"),
        recipe("asked", time=blocks(0.95), energy=blocks(0.95, 0.1), evaluations=(asked,)),
        recipe("bad", "failed", perplexity=quality(9.0), time=blocks(0.1), energy=blocks(0.1)),
        recipe("no meter", "not comparable", energy=()),
        recipe(EVIL, "new", time=blocks(1.2)),
        simulated(),
        worthless(),
        recipe("int4", key=llama, time=blocks(0.8)),
        dataclasses.replace(classifier(), key=dataclasses.replace(KEY, model=EVIL, recipe="int8")),
    )
    run = Run(records=records, baselines=records[:1], unmeasured=(Missed("gptq", "no GPU"),), missing=("m.",))
    earlier = aged(run, "2026-01-01T00:00:00Z").points
    return dataclasses.replace(aged(run, "2026-02-02T00:00:00Z"), history=earlier)


RUN = some_run()


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """The report of `RUN` as a file."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(RUN), encoding="utf-8")
    return path


@pytest.fixture
def show(browser, report):
    """Opens the report in a new window; afterwards nothing may have been complained of or asked from a network."""
    contexts, said, asked = [], [], []

    def opened(path=report, width=1280, **kinds):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **kinds))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(10_000)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def names(tab, group="g0"):
    """Recipes of a table that are to be seen, from top to bottom."""
    rows = tab.locator(f"#{group} table.recipes tbody tr:visible")
    return [row.strip() for row in rows.locator("th").all_inner_texts()]


def weigh(tab, alpha):
    tab.locator("#alpha").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", str(alpha)
    )


def plot(tab, name, expression):
    """Evaluate an expression of `plot`, once it is drawn."""
    tab.locator(f"#plot-{name}").scroll_into_view_if_needed()
    tab.wait_for_selector(f"#plot-{name}[data-drawn]")
    return tab.evaluate(f"((plot) => {expression})(document.getElementById('plot-{name}'))")


def test_it_opens(show):
    """With the answer on top, tables in the order of the ranking, and without a word on the console."""
    tab = show()
    assert tab.locator("h1").inner_text().split("\n")[-1] == "✕ No."
    assert tab.title() == "No: pytest-llmslim report"
    assert "First: bad on gpt2" not in tab.locator(".sentence").inner_text()
    assert "bad on gpt2: this is failed." in tab.locator(".sentence").inner_text()
    assert names(tab)[:2] == ["int8", "int4"]
    assert names(tab)[-1] == "bad"
    assert tab.locator("img").count() == 0


def test_headers_sort(show):
    """Up, then down; what has no number stays at the end, and the state is told."""
    tab = show()
    header = tab.locator("#g0 th.time")
    header.get_by_role("button").click()
    up = names(tab)
    assert up[:3] == ["bad", "int4", "broken"]
    assert up[-1] == "rtn"
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").click()
    down = names(tab)
    assert down[0].startswith("</script>")
    assert down[-1] == "rtn"
    assert header.get_attribute("aria-sort") == "descending"
    tab.locator("#g0 th.recipe button").click()
    assert names(tab)[1:4] == ["asked", "bad", "broken"]
    assert tab.locator("#g0 [aria-sort=ascending]").count() == 1


def test_filters(show):
    """By name, verdict and model, in tables, details and plots alike."""
    tab = show()
    tab.get_by_label("Recipe", exact=True).first.fill("INT")
    assert names(tab) == ["int8", "int4"]
    expect(tab.locator("#status")).to_have_text("4 of 10 recipes shown.")
    assert plot(tab, "g0-energy", "plot.data.find((t) => t.name === 'passed').x.length") == 1
    tab.locator("input[value=passed]").uncheck()
    assert names(tab) == ["int8"]
    assert tab.locator("#g1").is_hidden()
    assert tab.locator("details.panel:visible").count() == 1
    assert plot(tab, "g0-energy", "plot.data.find((t) => t.name === 'passed').x.length") == 0
    tab.locator("input[value=passed]").check()
    tab.get_by_label("Model").select_option("llama")
    assert tab.locator("#g0").is_hidden()
    assert names(tab, "g1") == ["int4"]


def test_the_slider_scores_as_python_does(show):
    """To 1e-9 at every weight; what lacks a part has no score unless that part has no weight."""
    tab = show()
    for alpha in WEIGHTS:
        weigh(tab, alpha)
        profile = Profile("chosen", alpha, 1 - alpha)
        for named in (named for group in data.tables(RUN) for named in group.named):
            record, cell = named.record, tab.locator(f"tr[data-record={named.id}] td.opt")
            time, energy = record.time.value, record.energy.value
            if (time is None and alpha > 0) or (energy is None and alpha < 1):
                assert cell.inner_text() == ("simulated" if named.name == "rtn" else "unmeasured")
                assert cell.get_attribute("data-value") is None
                continue
            expected = opt([LowerIsBetter(record.worsening.value, 1.0)], time, energy, profile)
            assert math.isclose(float(cell.get_attribute("data-value")), expected, rel_tol=1e-9)
            assert cell.inner_text().startswith("~") == (record.energy.method == "estimated" and alpha < 1)


def test_the_slider_ranks_again(show):
    """Table, bars and sentences follow; the button brings the run's own weights back."""
    tab = show()
    before = names(tab)
    assert before[:2] == ["int8", "int4"]
    weigh(tab, 0.9)
    assert names(tab)[:2] == ["int4", "int8"]
    expect(tab.locator("#status")).to_contain_text("embedded:gpt2: int4 with opt")
    assert tab.locator("[data-best=g0]").inner_text().startswith("For your weights: int4 with opt ")
    assert plot(tab, "g0-scores", "plot.layout.xaxis.categoryarray[0]") == "int4"
    chosen = plot(
        tab, "g0-scores", "plot.data.find((t) => t.name === 'chosen').y[plot.data[0].x.indexOf('int4')]"
    )
    assert chosen == pytest.approx(1.02**1.5 * (0.9 * 0.5 + 0.1 * 0.9))
    assert plot(tab, "g0-energy", "plot.data.find((t) => t.name === 'best').text") == ["<b>int4</b>"]
    assert tab.locator("#g0 tr.best a").inner_text() == "int4"
    tab.get_by_role("button", name="runtime").click()
    assert tab.locator("#alpha").input_value() == "0.9"
    tab.get_by_role("button", name="as measured").click()
    assert names(tab) == before
    assert tab.locator("[data-best=g0]").is_hidden()


def test_cost_axis_is_a_choice(show):
    """Energy, time or bytes; what has no place under each is named."""
    tab = show()
    figure = tab.locator("#g0 figure").first
    for axis in ("time", "bytes", "energy"):
        figure.locator("select").select_option(axis)
        title = plot(tab, "g0-energy", "plot.layout.xaxis.title.text")
        assert title == f"{axis}, candidate / reference"
    assert figure.locator(".away:visible").inner_text().startswith("No place for broken, no meter, rtn:")


def test_every_plot_has_a_table(show):
    """With the numbers that it draws, by the names of the recipes."""
    tab = show()
    figure = tab.locator("#g0 figure").first
    figure.get_by_text("Show as a table").click()
    figure.locator("tbody tr").first.wait_for()
    texts = figure.locator("tbody tr").all_inner_texts()
    assert "passed\tint4\t0.9\t1.02" in texts
    figure = tab.locator("#g0 figure").nth(1)
    figure.get_by_text("Show as a table").click()
    figure.locator("tbody tr").first.wait_for()
    assert any(text.startswith("chosen\tint4\t") for text in figure.locator("tbody tr").all_inner_texts())


def test_details_open_with_their_plots(show):
    """From the table, or by the address; they are drawn only then."""
    tab = show()
    link = tab.locator("#g0 tbody a", has_text="int4").first
    panel = tab.locator(link.get_attribute("href"))
    assert panel.locator("[data-drawn]").count() == 0
    link.click()
    assert panel.get_attribute("open") is not None
    assert panel.locator(".canvas[data-drawn] svg.main-svg").count() >= 3
    assert tab.evaluate("document.activeElement.parentElement.id") == panel.get_attribute("id")
    asked = tab.locator("details.panel", has=tab.get_by_text("asked", exact=True))
    asked.locator("summary").first.click()
    asked.get_by_text("What got worse").click()
    assert "What is 2 + 2?" in asked.locator(".questions").inner_text()
    assert "3 answers went from right to wrong" in asked.inner_text()
    asked.get_by_role("link", name="EPYC").click()
    assert "threads" in tab.locator("#m0").inner_text()


def test_an_address_opens_its_details(show, report):
    """So that a link to a recipe can be sent."""
    tab = show()
    tab.goto(f"{report.as_uri()}#r2")
    tab.reload()
    assert tab.locator("#r2").get_attribute("open") is not None


def test_history_follows_the_recipe(show):
    """One recipe at a time, each run a point."""
    tab = show()
    select = tab.locator("#history select")
    select.select_option(label="int4 on llama")
    canvas = tab.locator("#history .canvas")
    canvas.scroll_into_view_if_needed()
    tab.wait_for_selector("#history .canvas[data-drawn]")
    assert canvas.evaluate("(plot) => plot.data.map((t) => [t.name, t.x.length])") == [
        [name, 2] for name in ("perplexity", "time", "energy", "bytes", "opt")
    ]
    tab.locator("#history").get_by_text("Show as a table").click()
    assert tab.locator("#history tbody tr").nth(2).inner_text() == "time\t2026-01-01 00:00 abababa\t0.8"


def test_the_keyboard_alone_will_do(show):
    """Skip link, sorting, slider, details: reached by Tab, worked by Enter, Space and arrows."""
    tab = show()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "recipes"
    reached = {}
    for _ in range(60):
        tab.keyboard.press("Tab")
        what = tab.evaluate(
            "(e => [e.id || e.dataset.column || e.getAttribute('href') || e.name || '', "
            "getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        assert what[1] != "none", f"{what[0]} does not show that it has the focus"
        reached[what[0]] = True
        if what[0] == "alpha":
            tab.keyboard.press("ArrowRight")
            assert tab.locator("#alpha-shown").inner_text() == "0.51"
        if what[0] == "0" and tab.locator("#g0 [aria-sort=descending]").count() == 0:
            tab.keyboard.press("Enter")
            assert tab.locator("#g0 [aria-sort=descending]").count() == 1
        if what[0].startswith("#r"):
            tab.keyboard.press("Enter")
            assert tab.locator(what[0]).get_attribute("open") is not None
            break
    assert {"find", "model", "outcome", "alpha", "reset", "0"} <= set(reached)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_no_serious_barrier(show, width, scheme):
    """By axe's rules, with details, tables of plots and history open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe knows the rules")
    tab = show(width=width, color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    tab.wait_for_selector("#r0 .canvas[data-drawn]")
    found = axe.Axe().run(tab).response["violations"]
    assert [
        (v["id"], [n["html"][:120] for n in v["nodes"]][:3]) for v in found if v["impact"] != "minor"
    ] == []


def test_dark_and_light_are_followed_at_once(show):
    """Page and plots, also when it changes while the page is open."""
    tab = show(color_scheme="light")
    ink = plot(tab, "g0-scores", "plot.layout.font.color")
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_timeout(300)
    assert plot(tab, "g0-scores", "plot.layout.font.color") != ink
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != paper


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_window_does_not_scroll_sideways(show, width):
    """Tables and plots scroll in their own boxes."""
    tab = show(width=width)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    tab.wait_for_selector("#r0 .canvas[data-drawn]")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_print_is_light_and_has_plots(show):
    """Without what only a screen can do."""
    tab = show(color_scheme="dark")
    ink = plot(tab, "g0-scores", "plot.layout.font.color")
    tab.emulate_media(media="print", color_scheme="dark")
    tab.wait_for_timeout(300)
    assert plot(tab, "g0-scores", "plot.layout.font.color") != ink
    assert tab.locator("form.controls").is_hidden()
    assert tab.locator("#g0 .canvas svg.main-svg").first.is_visible()


@pytest.mark.parametrize(
    "run",
    [Run(unmeasured=(Missed("x", "no GPU"),)), Run(records=(recipe("int4"),)), Run(records=(simulated(),)),
     Run(records=(classifier(),)), Run(records=(worthless(),), interrupted=True)],
    ids=["nothing", "one", "simulated", "classifier", "worthless"],
)  # fmt: skip
def test_small_runs_open(show, tmp_path, run):
    """Nothing at all, one recipe, one without a cost, one without perplexity, one that is worth nothing."""
    path = tmp_path / "small.html"
    path.write_text(page(run), encoding="utf-8")
    tab = show(path)
    assert tab.locator("h1").is_visible()
    if run.records:
        weigh(tab, 1)
        assert tab.locator("tbody td.opt").first.inner_text() in ("0.824", "simulated", "inf", "1.008")


def test_many_recipes_open_soon(show, tmp_path):
    """200 recipes can be filtered three seconds after the page was asked for."""
    path = tmp_path / "many.html"
    many = [recipe(f"r{i}", time=blocks(0.5 + i / 200), energy=blocks(0.7, 0.1)) for i in range(200)]
    path.write_text(page(Run(records=tuple(many))), encoding="utf-8")
    tab = show(path)
    tab.locator("#find").fill("r19")
    assert len(names(tab)) == 11
    assert tab.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") < 3000
