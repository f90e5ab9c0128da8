"""The HTML report: what it says, what it draws, and that no name can break it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import math
import re

import pytest
from sample_records import KEY, blocks, evaluation, quality, record

from pytest_llmslim import runs
from pytest_llmslim.comparison import with_baselines
from pytest_llmslim.errors import MissingExtraError
from pytest_llmslim.records import Accepted, Integrity, Profile, Verdict, no_estimate
from pytest_llmslim.reports.html import contents, data, page, panels, plots
from pytest_llmslim.reports.terminal import ranked
from pytest_llmslim.run_records import Missed, Origin, Run
from pytest_llmslim.score import PROFILES, opt_estimate

EVIL = "</script><img src=x onerror=alert(1)>\u2028&amp;'\""
SIMULATED = Integrity("simulated", "weights are rounded, and stored in full.")
NO_COST = no_estimate("weights are only rounded", method="simulated")


def recipe(name, outcome="passed", key=KEY, **fields):
    """A record of one recipe with one verdict."""
    verdict = Verdict("perplexity", outcome, f"{name} on gpt2: this is {outcome}.", "baseline")
    whole = record(**fields)
    return dataclasses.replace(
        whole,
        key=dataclasses.replace(key, recipe=name),
        label=f"{name} on gpt2",
        verdicts=fields.get("verdicts", (verdict,)),
    )


def simulated(name="rtn"):
    """Of weights that were only rounded."""
    costs = dict.fromkeys(("time", "energy", "stored_bytes", "opt"), NO_COST)
    return dataclasses.replace(recipe(name), integrity=SIMULATED, **costs)


def classifier(name="int8"):
    """Without perplexity; its quality is an evaluation's."""
    whole = recipe(name, perplexity=no_estimate("it classifies"), evaluations=(evaluation(lost=2),))
    bare = dataclasses.replace(whole.candidate, perplexity=None)
    return dataclasses.replace(whole, candidate=bare, divergence=None)


def worthless(name="broken"):
    return recipe(name, perplexity=quality(math.inf, 0.0, math.inf))


def named(*records):
    [group] = data.tables(Run(records=records))
    return group.named


# The verdict ------------------------------------------------------------------------------------------------

ANSWERS = [
    (["passed"], "passed", "Yes", "int4 on gpt2 passed."),
    (["passed", "passed"], "passed", "Yes", "All 2 candidates passed."),
    (["failed"], "failed", "No", "int4 on gpt2: this is failed."),
    (
        ["passed", "failed", "failed"],
        "failed",
        "No",
        "2 of 3 candidates failed. First: int8 on gpt2: this is failed.",
    ),
    (
        ["passed", "inconclusive"],
        "inconclusive",
        "Not sure yet",
        "1 of 2 candidates is inconclusive, and nothing failed. It says: int8 on gpt2: this is inconclusive.",
    ),
    (
        ["not comparable", "not comparable"],
        "not comparable",
        "Not sure",
        "All 2 candidates are not comparable with the baseline in part, and nothing failed. First: int4 on gpt2: "
        "this is not comparable.",
    ),
    (
        ["new", "passed"],
        "new",
        "Nothing failed, and part is new",
        "1 of 2 candidates is new in part, and nothing failed. It says: int4 on gpt2: this is new.",
    ),
    (
        ["new", "new"],
        "new",
        "Nothing to compare with yet",
        "All 2 candidates are new, without a baseline. First: int4 on gpt2: this is new.",
    ),
    ([], "inconclusive", "Nothing was measured", "No candidate gave a record."),
]


@pytest.mark.parametrize(("outcomes", "state", "word", "sentence"), ANSWERS)
def test_the_answer_stands_on_top(outcomes, state, word, sentence):
    """One sentence a state, with what failed first."""
    names = ("int4", "int8", "kd")
    run = Run(records=tuple(recipe(name, o) for name, o in zip(names, outcomes, strict=False)))
    assert data.answer(run) == data.Answer(state, word, sentence)


def test_an_interrupted_run_is_never_a_yes():
    """What was not measured could have failed."""
    found = data.answer(Run(records=(recipe("int4"),), interrupted=True))
    assert (found.state, found.word) == ("inconclusive", "Not sure yet")
    assert found.notes == (
        "The run was interrupted before its end: what follows is what was measured until then.",
    )


@pytest.mark.parametrize(
    ("count", "unmeasured", "missing"),
    [
        (1, "1 test measured nothing; the reasons stand below.", "1 baseline was compared with nothing; see below."),
        (2, "2 tests measured nothing; the reasons stand below.", "2 baselines were compared with nothing; see below."),
    ],
)  # fmt: skip
def test_a_yes_is_bounded_by_what_was_measured(count, unmeasured, missing):
    """Tests without a record and baselines without a test are said on top."""
    lost = tuple(Missed(f"t{i}", "no GPU") for i in range(count))
    found = data.answer(Run(records=(recipe("int4"),), unmeasured=lost, missing=("m.",) * count))
    assert found.word == "Yes, what was measured"
    assert found.notes == (unmeasured, missing)


def test_a_baseline_without_a_test_bounds_a_yes():
    """Its candidate may be worse; nobody looked."""
    found = data.answer(Run(records=(recipe("int4"),), missing=("kd has a baseline.",)))
    assert found.word == "Yes, what was measured"


def test_stored_records_are_no_answer():
    """A folder of baselines is shown too, and nothing was decided on it."""
    found = data.answer(Run(records=(recipe("int4", verdicts=()),)))
    assert (found.word, found.sentence) == ("No verdict", "No rule was held against these records.")


def test_machines_of_one_name_are_told_apart():
    """A fingerprint is more than the name of a CPU, and each is told once."""
    other = dataclasses.replace(recipe("int8"), fingerprint={"cpu": "EPYC", "threads": "8"})
    found = data.machines(Run(records=(recipe("int4"), other, recipe("kd"))))
    assert [(machine.id, machine.title) for machine in found] == [("m0", "EPYC (1)"), ("m1", "EPYC (2)")]


def best(*records):
    return data.best_of(ranked(records)).replace("\u00a0", " ")


def test_the_best_recipe_and_why():
    """Of those that did not fail the one of the lowest score, with what it costs and saves."""
    cheap = recipe("cheap", "failed", time=blocks(0.1), energy=blocks(0.1))
    assert best(recipe("int4", time=blocks(0.8), energy=blocks(0.7)), cheap) == (
        "Best of those that did not fail: int4 with opt 0.773: perplexity +2.0 %, time -20.0 %, energy -30.0 %, "
        "bytes -86.0 %"
    )
    assert best(recipe("int4", energy_method="estimated")).endswith(
        "energy -30.0 % (estimated), bytes -86.0 %"
    )
    assert best(recipe("int4")).startswith("Best: int4 with opt ")
    assert best(recipe("int4", "inconclusive")).endswith("; its verdict is inconclusive")


def test_no_best_recipe():
    """None better than the reference, none with a score, none that did not fail."""
    slow = recipe("slow", time=blocks(1.5), energy=blocks(1.5))
    assert best(slow).startswith(
        "No recipe scores better than the reference (1); lowest is slow with opt 1.545"
    )
    assert best(recipe("x", energy=())) == "No recipe has a score: energy: no energy meter"
    assert best(recipe("x", "failed")) == "No recipe has a score that did not fail"


# Tables -----------------------------------------------------------------------------------------------------


def test_columns_are_those_that_the_records_fill():
    """A classifier has no perplexity; evaluations with a metric get a column; a device only where there are several."""
    [group] = data.tables(Run(records=(classifier(),)))
    assert [column.key for column in group.columns] == [
        "rank", "recipe", "verdict", "opt", "time", "energy", "bytes", "eval arc_challenge",
    ]  # fmt: skip
    other = dataclasses.replace(recipe("int4"), fingerprint={"cpu": "none", "gpu": "H200"})
    [group] = data.tables(Run(records=(recipe("int4"), other)))
    assert [column.key for column in group.columns][:4] == ["rank", "recipe", "device", "verdict"]
    assert [row.named.name for row in group.rows] == ["int4, EPYC", "int4, H200"]
    assert [row.cells[2].text for row in group.rows] == ["EPYC", "H200"]


def test_a_name_is_of_one_record_only():
    """Recipes of one name are told apart by their test, and by their suite."""
    keys = [("a", "t1"), ("a", "t2"), ("b", "t2")]
    found = [recipe("int4", key=dataclasses.replace(KEY, suite=suite, test=test)) for suite, test in keys]
    assert data.names(found) == ["int4, t1", "int4, t2, a", "int4, t2, b"]
    assert data.names([*found[:1], recipe("int8")]) == ["int4", "int8"]


def cells(*records):
    """Of each row of the table: column key to cell."""
    [group] = data.tables(Run(records=records))
    keys = [column.key for column in group.columns]
    return [dict(zip(keys, row.cells, strict=True)) for row in group.rows]


def test_cells_say_how_a_number_was_had():
    """Estimated and sampled are marked, what has no number is a word, and never sorted as a number."""
    [row] = cells(recipe("int4", energy_method="estimated"))
    assert row["energy"] == data.Cell("~0.700", pytest.approx(0.7), "[0.700, 0.700]")
    assert row["opt"].text.startswith("~")
    [row] = cells(recipe("int4", energy_method="sampled"))
    assert row["energy"].text == "^0.700"
    [row] = cells(simulated())
    assert row["opt"] == row["bytes"] == data.Cell("simulated", None)
    [row] = cells(recipe("int4", energy=()))
    assert row["energy"] == row["opt"] == data.Cell("unmeasured", None)
    [row] = cells(worthless())
    assert (row["opt"].text, row["opt"].value) == ("inf", math.inf)


def test_rows_are_ranked_as_on_the_terminal():
    """By opt; without one before what failed."""
    names = [row["recipe"].text for row in cells(
        recipe("failed", "failed", time=blocks(0.1)), simulated(), worthless(), recipe("slow", time=blocks(0.9)),
        recipe("fast", time=blocks(0.5)),
    )]  # fmt: skip
    assert names == ["fast", "slow", "broken", "rtn", "failed"]


def test_models_and_protocols_have_tables_of_their_own():
    """Ids run through the page."""
    llama = dataclasses.replace(recipe("int4"), key=dataclasses.replace(KEY, model="llama"))
    found = data.tables(Run(records=(recipe("int4"), llama, recipe("int8"))))
    assert [(g.id, g.model, [n.id for n in g.named]) for g in found] == [
        ("g0", "embedded:gpt2", ["r0", "r1"]),
        ("g1", "llama", ["r2"]),
    ]


def test_parts_give_the_score_again():
    """What the script ranks by; with the methods by which it marks."""
    several = recipe("int4", evaluations=(evaluation(lost=3),), profile=Profile("0.3:0.7", 0.3, 0.7))
    for found in (recipe("int4"), several):
        [part] = data.parts(data.tables(Run(records=(found,))))
        assert part["q"] * (part["alpha"] * part["t"] + (1 - part["alpha"]) * part["e"]) == pytest.approx(
            found.opt.value, rel=1e-12
        )
    [part] = data.parts(data.tables(Run(records=(worthless(),))))
    assert part["q"] == "inf"
    [part] = data.parts(data.tables(Run(records=(simulated(),))))
    assert (part["t"], part["e"], part["methods"]["t"]) == (None, None, "simulated")


# Plots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(1, 1)], [0]),
        ([(1, 1), (1, 1)], [0]),
        ([(2, 1), (1, 2)], [1, 0]),
        ([(1, 1), (2, 2)], [0]),
        ([(1, 2), (1, 1)], [1]),
        ([(2, 1), (1, 1)], [1]),
        ([(1, 3), (2, 2), (3, 1), (3, 3), (1.5, 2.5)], [0, 4, 1, 2]),
    ],
)
def test_the_front_is_what_nothing_beats_in_both(points, expected):
    """From left to right; of equal points the first."""
    assert plots.front(points) == expected


def test_the_front_holds_the_reference_and_nothing_that_failed():
    """A control is the reference once more, and what failed is not to be had."""
    control = dataclasses.replace(
        recipe("identity", time=blocks(0.99)), integrity=Integrity("control", "the same.")
    )
    found = named(recipe("int4"), recipe("bad", "failed", time=blocks(0.1)), control)
    figure = plots.pareto(found, "time")
    front = figure["data"][0]
    assert (front["name"], front["x"]) == ("front", [pytest.approx(0.8), 1.0])
    assert [trace["name"] for trace in figure["data"]] == ["front", "passed", "failed", "best"]
    assert figure["data"][2]["marker"]["symbol"] == "x"


def test_intervals_are_error_bars():
    """Distances to the bounds; where there is no bound there is no bar."""
    [one] = named(recipe("int4", perplexity=quality(1.02, 1.01, 1.04)))
    cloud = plots.pareto([one], "time")["data"][1]
    assert cloud["error_y"]["array"] == [pytest.approx(0.02)]
    assert cloud["error_y"]["arrayminus"] == [pytest.approx(0.01)]
    [few] = named(recipe("int4", perplexity=quality(1.02, 0.0, math.inf)))
    cloud = plots.pareto([few], "time")["data"][1]
    assert (cloud["error_y"]["array"], cloud["error_y"]["arrayminus"]) == ([None], [None])


def test_what_has_no_place_is_named():
    """Infinite quality and simulated costs are not drawn; without any point there is no plot."""
    found = named(recipe("int4"), worthless(), simulated())
    assert [
        trace["text"] for trace in plots.pareto(found, "energy")["data"] if trace["name"] == "passed"
    ] == [["int4"]]
    assert plots.left_out(found, "energy") == ["broken", "rtn"]
    assert plots.pareto(named(simulated()), "energy") is None
    assert plots.scores(named(simulated())) is None


def test_a_classifier_stands_by_its_quality():
    """Without perplexity the vertical axis is what the score rests on."""
    figure = plots.pareto(named(classifier()), "time")
    assert figure["layout"]["yaxis"]["title"]["text"] == "quality lost, above 1 is worse"


def test_bars_are_scores_by_profile():
    """Three profiles as in the paper, each the score of the score room, and the page's own to be filled."""
    one, two = recipe("int4", energy_method="estimated"), recipe("half", energy=())
    figure = plots.scores(named(one, two))
    for trace, profile in zip(figure["data"], PROFILES.values(), strict=False):
        assert trace["y"] == [opt_estimate(one.worsening, one.time, one.energy, profile).value, None]
    assert [trace["meta"] for trace in figure["data"]] == ["balanced", "energy", "runtime", "ink"]
    assert figure["data"][-1]["y"] == [None, None]


def test_bars_that_tower_are_cut_and_say_so():
    """Else they would hide all others."""
    figure = plots.scores(named(recipe("int4"), recipe("bad", perplexity=quality(9.0))))
    [note] = figure["layout"]["annotations"]
    assert (note["x"], note["text"]) == ("bad", "↑ 19.2 to 21.3")
    assert figure["layout"]["yaxis"]["range"][1] < 1.2


def test_long_names_are_cut_below_bars_only():
    """And what plotly would take for HTML is text."""
    axis = plots.scores(named(recipe("<b>" + 30 * "x")))["layout"]["xaxis"]
    assert axis["tickvals"] == axis["categoryarray"] == ["&lt;b&gt;" + 30 * "x"]
    assert axis["ticktext"] == ["&lt;b&gt;" + 20 * "x" + "…"]


def test_plots_of_one_recipe():
    """Blocks as ratios, KL by position and by window; nothing where nothing was kept."""
    full = recipe("int4")
    samples = dataclasses.replace(full.samples, kl=(0.1, 0.2), kl_by_position=(0.3, math.inf))
    full = dataclasses.replace(full, samples=samples)
    series = {trace["name"]: trace["y"] for trace in plots.blocks(full)["data"]}
    assert series == {"time": [pytest.approx(0.8)] * 12, "wall": [pytest.approx(0.8)] * 12,
                      "energy": [pytest.approx(0.7)] * 12}  # fmt: skip
    assert plots.positions(full)["data"][0]["y"] == [0.3, None]
    assert {trace["name"]: trace["y"] for trace in plots.windows(full)["data"]} == {
        "KL": [0.1, 0.2],
        "loss": [0.01, 0.02],
    }
    empty = dataclasses.replace(full, samples=type(samples)())
    assert (plots.blocks(empty), plots.positions(empty), plots.windows(empty)) == (None, None, None)


def aged(run, started):
    return dataclasses.replace(run, origin=Origin(id=started, started=started, commit="ab" * 20))


def test_history_is_shown_for_what_earlier_runs_have():
    """Points of the same recipe and device in the order of time; without earlier runs there is no such part."""
    run = aged(Run(records=(recipe("int4"), recipe("new"))), "2026-02-02T00:00:00Z")
    assert contents(run)["history"] == ()
    old = aged(Run(records=(recipe("int4", time=blocks(0.9)),)), "2026-01-01T00:00:00Z")
    [plot] = contents(dataclasses.replace(run, history=old.points))["history"]
    assert plot.title == "int4 on embedded:gpt2"
    time = next(trace for trace in plot.figure["data"] if trace["name"] == "time")
    assert time["y"] == [pytest.approx(0.9), pytest.approx(0.8)]
    assert time["text"] == ["2026-01-01 00:00<br>abababa", "2026-02-02 00:00<br>abababa"]
    elsewhere = dataclasses.replace(old.points[0], device="other")
    assert contents(dataclasses.replace(run, history=(elsewhere,)))["history"] == ()


def test_plotly_takes_every_figure():
    """Its own classes know all keys and values that the page is given."""
    go = pytest.importorskip("plotly.graph_objects")
    records = (recipe("int4"), recipe("bad", "failed", perplexity=quality(9.0)), worthless(), simulated())
    run = aged(Run(records=records), "2026-02-02T00:00:00Z")
    shown = contents(dataclasses.replace(run, history=aged(run, "2026-01-01T00:00:00Z").points))
    figures = [shown["scores"]["g0"], *(plot.figure for plot in shown["history"])]
    figures += [plot.figure for plot in shown["pareto"]["g0"]]
    figures += [plot.figure for panel in shown["panels"].values() for plot in panel.plots]
    for figure in figures:
        go.Figure(json.loads(json.dumps(figure, allow_nan=False)))
    assert len(figures) > 10


# Details ----------------------------------------------------------------------------------------------------


def test_every_number_says_where_it_comes_from():
    """Method and source, or why there is none."""
    rows = {row.name: row for row in panels.numbers(recipe("int4", energy=()))}
    assert rows["time a window"].how == "measured, process cpu time"
    assert rows["time a window"].n == "12"
    assert (rows["energy a window"].ratio, rows["energy a window"].how) == (
        "unmeasured",
        "unmeasured: no energy meter",
    )
    assert rows["peak memory"].how == "unmeasured: the peak did not move"
    assert rows["opt"].how == "opt is unmeasured: energy: no energy meter"
    assert all(row.how for row in rows.values())
    assert "perplexity" not in {row.name for row in panels.numbers(classifier())}


def test_changes_against_the_baseline_tell_better_from_worse():
    """Noise is no change; what cannot be compared says why."""
    old = recipe("int4", time=blocks(0.8, 0.01), energy=blocks(0.7))
    new = recipe("int4", time=blocks(0.805, 0.01), energy=blocks(0.9), perplexity=quality(1.01))
    [compared] = with_baselines(Run(records=(new,), baselines=(old,)))
    rows = {row.figure: row.change for row in panels.moved(compared)}
    assert rows["perplexity"] == "-0.98 %, better"
    assert rows["energy"] == "+28.6 %, worse"
    assert rows["time"] == "+0.63 %, within its intervals"
    assert rows["bytes"] == "none"
    other = dataclasses.replace(old, fingerprint={"cpu": "Xeon"})
    [compared] = with_baselines(Run(records=(new,), baselines=(other,)))
    [reason] = [row.reason for row in panels.moved(compared) if row.figure == "time"]
    assert "Xeon" in reason
    [compared] = with_baselines(Run(records=(new,)))
    assert list(panels.moved(compared)) == []


def test_a_baseline_says_who_took_it_and_why():
    """With the commit at which it was measured."""
    old = dataclasses.replace(
        recipe("int4"), accepted=Accepted("new kernels", "cd" * 20, "r", "2026-01-01T00:00:00Z")
    )
    [compared] = with_baselines(Run(records=(recipe("int4"),), baselines=(old,)))
    [each] = named(recipe("int4"))
    found = panels.panel(each, compared)
    assert found.accepted == "Accepted 2026-01-01T00:00:00Z, at commit cdcdcdcdcdcd: new kernels"


def test_evaluations_say_what_flipped():
    """As many flips each way keep the accuracy, and are damage all the same."""
    found = panels.asked(evaluation(lost=3, won=1))
    assert found.flips == "3 answers went from right to wrong, 1 from wrong to right (McNemar p = 0.62)"
    assert [row.name for row in found.numbers] == ["acc_norm"]


# The page ---------------------------------------------------------------------------------------------------


def script(text, name):
    """The JSON of one element."""
    [found] = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def test_no_name_breaks_out_of_the_page():
    """Names of models, recipes, tests and settings are text wherever they stand."""
    pytest.importorskip("plotly")
    key = dataclasses.replace(KEY, model=EVIL, test=EVIL)
    run = Run(
        origin=Origin(command=EVIL, settings={EVIL: EVIL}),
        records=(recipe(EVIL, "failed", key=key), recipe("int4", key=key)),
        unmeasured=(Missed(EVIL, EVIL),),
        missing=(EVIL,),
    )
    text = page(run)
    assert "<img" not in text
    assert EVIL not in text
    assert html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in text
    assert {part["name"] for part in script(text, "state")} == {EVIL, "int4"}
    raw = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert len(raw) == 9
    assert not [found for found in raw if re.search("[<>&\u2028]", found)]


def test_only_the_pages_own_scripts_run():
    """Its policy names them by their hashes, and forbids everything that it does not name."""
    pytest.importorskip("plotly")
    text = page(Run(records=(recipe("int4"),)))
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for found in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(found.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not re.search(r"\b(src|srcset|action)=", re.sub("<script.*?</script>", "", text, flags=re.DOTALL))


def test_a_run_without_records_has_a_page():
    """With what was not measured, and why; a name that is no text is no obstacle."""
    pytest.importorskip("plotly")
    text = page(Run(unmeasured=(Missed("int4 on gpt2\udcff", "CUDA is not available"),)))
    assert "Nothing was measured." in text
    assert "CUDA is not available" in text
    assert "There is nothing to show: no candidate was measured." in text
    text.encode()


def test_the_origin_is_told():
    """Command, commit, time, version and settings."""
    pytest.importorskip("plotly")
    origin = Origin(
        "id1",
        "2026-01-01T00:00:00Z",
        "",
        "pytest suites/",
        "ab" * 20,
        "main",
        True,
        "9.9",
        {"llm-rounds": "4"},
    )
    text = page(Run(origin=origin, records=(recipe("int4"),)))
    for shown in (
        "pytest suites/", f"{'ab' * 20} on main, with changes that are not committed",
        "2026-01-01T00:00:00Z, without an end", "pytest-llmslim 9.9", "<dt>llm-rounds</dt><dd>4</dd>",
    ):  # fmt: skip
        assert shown in text


def test_without_plotly_it_says_what_to_install(monkeypatch):
    """The report is an extra."""
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError) as error:
        page(Run())
    assert str(error.value) == (
        "an HTML report needs the package plotly; install it with: pip install 'pytest-llmslim[report]'."
    )


def test_two_devices_make_one_page():
    """Runs of two machines, merged, each record beside the baseline of its own machine."""
    gpu = dataclasses.replace(recipe("int4", time=blocks(0.5)), fingerprint={"cpu": "x", "gpu": "H200"})
    run = runs.merged([Run(records=(recipe("int4"),)), Run(records=(gpu,), baselines=(gpu,))])
    shown = contents(run)
    assert [machine.title for machine in shown["machines"]] == ["EPYC", "H200"]
    assert len(shown["panels"]) == 2
    assert shown["panels"]["r0"].moved
