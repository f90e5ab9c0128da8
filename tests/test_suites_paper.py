"""The paper's suites: published tables, the models map, what is run, and what is printed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from sample_records import KEY, PROTOCOL, blocks, quality, record

from pytest_llmslim import published
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.errors import SettingError
from pytest_llmslim.paper import mapping, scores, tables
from pytest_llmslim.paper.mapping import EMBEDDED, HUB, models_of
from pytest_llmslim.readings import Estimate
from pytest_llmslim.recipe import parse
from pytest_llmslim.records import Evaluation, Key
from pytest_llmslim.registry import Registry
from pytest_llmslim.reports.paper import compared_lines
from pytest_llmslim.score import PROFILES, parse_profile
from suites.test_combinations import COMBINATIONS

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "suites" / "paper"
TABLES = json.loads((Path(__file__).parent / "paper_tables.json").read_text())
STANDALONE = ("int8", "int4", "kd", "ah90", "ah80")


# Tables -----------------------------------------------------------------------------------------------------


def test_the_wheel_carries_the_tables():
    """Row by row those of the paper, in our spelling."""
    ours = [row for row in tables.level_one() if row.place != "supplement"]
    assert len(ours) == len(TABLES["standalone"])
    for printed in TABLES["standalone"]:
        technique = printed["technique"].replace("sparsegpt-2:4", "sparsegpt(pattern=2:4)")
        (row,) = [each for each in ours if (each.model, each.technique) == (printed["model"], technique)]
        assert row.place == f"table {printed['table']}"
        assert (row.perplexity, row.runtime_s, row.energy_kwh) == tuple(
            printed[name] for name in ("perplexity", "runtime_s", "energy_kwh")
        )
    for printed, row in zip(TABLES["advanced"], tables.level_two(), strict=True):
        assert (row.model, row.reference) == (printed["model"], printed["reference"] or "")
        assert dict(row.accuracy) == {name: printed[name] for name in TABLES["logic_tasks"]}


@pytest.mark.parametrize("row", [row for row in tables.level_one() if row.place != "supplement"], ids=str)
def test_the_papers_tables_are_means_of_its_supplement(row):
    """Two publications of the same numbers agree, so neither was copied wrongly."""
    rows = [
        each for _, each in tables.by_dataset() if (each.model, each.technique) == (row.model, row.technique)
    ]
    assert len(rows) == (2 if row.model == "gpt2-xl" else 3)
    for name in ("perplexity", "runtime_s", "energy_kwh"):
        mean = math.fsum(getattr(each, name) for each in rows) / len(rows)
        assert getattr(row, name) == pytest.approx(mean, rel=2e-3)


def test_every_technique_of_the_paper_has_a_row():
    """All twelve combinations on GPT-2 and GPT-2 Large; nothing was distilled from GPT-2 XL."""
    found = {
        model: [row.technique for row in tables.level_one() if row.model == model]
        for model in tables.LEVEL_ONE
    }
    for model in ("gpt2", "gpt2-large"):
        assert set(found[model]) == {"base", *STANDALONE, *COMBINATIONS}
    assert set(found["gpt2-xl"]) == {name for name in found["gpt2"] if "kd" not in name}
    assert found["opt-125m"] == ["base", "sparsegpt(pattern=2:4)"]


def test_a_combination_by_hand():
    """kd+int4 on GPT-2: means of three data sets over the reference's, and the equation."""
    row = next(r for r in scores.published(tables.level_one()) if (r.model, r.name) == ("gpt2", "kd+int4"))
    ratio = (50.40625 + 46.34375 + 57) / 3 / 34.29
    time, energy = (113 + 96 + 168) / 3 / 212.33, (0.006023 + 0.005155 + 0.009239) / 3 / 0.02335
    assert (row.perplexity, row.time, row.energy) == pytest.approx((ratio, time, energy), rel=1e-9)
    assert row.opt["energy"] == pytest.approx(ratio**1.5 * (0.1 * time + 0.9 * energy), rel=1e-9)


# Scores of records ------------------------------------------------------------------------------------------


def asked(name, reference, candidate):
    """An evaluation with nothing but its two numbers."""
    ratio = Estimate(candidate / reference, None, None, 40, "measured", "questions")
    return Evaluation(name, "acc", True, None, reference, candidate, ratio, 40, {})


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_record_scores_as_it_does_by_itself(profile):
    """The same opt as in the run's own table, under each profile."""
    row = scores.measured(record(profile=profile), "gpt2", "int4")
    assert row.opt[profile.name] == pytest.approx(record(profile=profile).opt.value)


def test_logic_tasks_of_a_record_score_as_the_papers():
    """The published accuracies of Sheared LLaMA 1.3B, as evaluations of a record with its costs, give its score."""
    row = next(row for row in tables.level_two() if row.model == "sheared-llama-1.3b")
    base = tables.reference_of(row)
    evaluations = tuple(
        asked(f"{task}(shots=1)", base.accuracy[task], row.accuracy[task]) for task in row.accuracy
    )
    found = scores.measured(
        record(
            perplexity=quality(row.perplexity / base.perplexity),
            time=blocks(row.runtime_s / base.runtime_s),
            energy=blocks(row.energy_kwh / base.energy_kwh),
            evaluations=evaluations,
        ),
        base.model,
        row.model,
    )
    (printed,) = [each for each in scores.published(tables.level_two()) if each.name == row.model]
    assert dict(found.logic) == pytest.approx(dict(printed.logic))
    assert dict(found.opt) == pytest.approx(dict(printed.opt))


def test_a_task_at_chance_is_left_out_by_name():
    """The rest is scored; a task that is none of the five is passed over."""
    parts = (asked("mmlu", 0.19, 0.2), asked("hellaswag", 0.6, 0.5), asked("sst2", 0.9, 0.5))
    row = scores.measured(record(evaluations=parts), "opt-13b", "opt-6.7b")
    assert row.notes == ("mmlu: embedded:gpt2 is at chance",)
    assert row.logic["balanced"] == pytest.approx((0.4 / 0.3) ** 1.5 * 0.75)


def test_a_worthless_candidate_has_no_bar():
    """Infinity is left out of a table of finite scores."""
    row = scores.measured(record(evaluations=(asked("hellaswag", 0.6, 0.2),)), "opt-13b", "opt-6.7b")
    assert row.logic == {}


# The models map ---------------------------------------------------------------------------------------------


def test_every_name_has_a_model_here_and_on_the_hub():
    """And every recipe that stands for a candidate here is one."""
    names = {*tables.LEVEL_ONE, *(row.model for row in tables.level_two())}
    assert set(HUB) == set(EMBEDDED) == names
    registry = Registry(BUILTIN_METHODS)
    for row in tables.level_two():
        model = EMBEDDED[row.model]
        assert model.startswith(mapping.RECIPE) == bool(row.reference)
        if row.reference:
            parse(model.removeprefix(mapping.RECIPE), registry)
    assert models_of("hub") is HUB
    assert models_of("embedded") is EMBEDDED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.toml", 'gpt2 = "tiny"\n"opt-1.3b" = "someone/opt"\n"*" = "hub"'),
        ("map.json", '{"gpt2": "tiny", "opt-1.3b": "someone/opt", "*": "hub"}'),
    ],
)
def test_a_file_names_models(tmp_path, name, text):
    """A folder beside the file is meant from there, an id as it is, and all others as the star says."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / name).write_text(text)
    found = models_of(tmp_path / name)
    assert dict(found) == {**HUB, "gpt2": str(tmp_path / "tiny"), "opt-1.3b": "someone/opt"}


def test_the_rest_can_be_left_out(tmp_path):
    """With a dash, which is also one model's own."""
    (tmp_path / "map.toml").write_text('gpt2 = "embedded:gpt2"\n"*" = "-"')
    found = models_of(tmp_path / "map.toml")
    assert found["gpt2"] == "embedded:gpt2"
    assert set(found.values()) == {"embedded:gpt2", "-"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'gpt2 = "a"',
            r"map.toml has a model for every name of the paper, and none for gpt2-large, .*'\*' = '-'",
        ),
        ('gpt3 = "a"', r"names models of the paper, one of gpt2, .*, got 'gpt3'"),
        ("gpt2 = 3", "gives each name one text, got something else at 'gpt2'"),
        ('opt-6.7b = "a"', "something else at 'opt-6'; in TOML a name with a dot stands in quotes"),
        ('gpt2 = "a"\n"*" = "gpt2"', r"'\*' is hub, embedded or -, got 'gpt2'"),
        ("gpt2", "does not parse"),
    ],
)
def test_a_map_that_cannot_be_used_is_one_sentence(tmp_path, text, message):
    """It names the file, the rule and what was got."""
    (tmp_path / "map.toml").write_text(text)
    with pytest.raises(SettingError, match=message):
        models_of(tmp_path / "map.toml")


def test_a_map_that_is_not_there_is_named(tmp_path):
    """With the words that need no file."""
    with pytest.raises(
        SettingError, match=r"is hub, embedded or a TOML or JSON file, got .*none\.toml, which cannot"
    ):
        models_of(tmp_path / "none.toml")


# Reports ----------------------------------------------------------------------------------------------------


def test_published_stands_beside_measured():
    """One table a model; what was not published or has no cost is a dash, and estimated energy keeps its mark."""
    key = Key("suites.paper.test_level_one", "test_technique", "embedded:gpt2", "int4")
    rows = [
        scores.measured(
            record(key=key, energy_method="estimated", energy_source="codecarbon"), "gpt2", "int4"
        ),
        scores.measured(record(key=key, time=(), energy=()), "gpt2", "wanda"),
    ]
    lines = [
        line for line, _ in compared_lines(scores.published(tables.level_one()), rows, PROFILES["balanced"])
    ]
    assert lines[0] == "gpt2 as published, and embedded:gpt2 as measured here"
    assert lines[1].split() == ["perplexity", "time", "energy", "opt", "balanced"]
    assert lines[3].split() == [
        "int4",
        "1.037",
        "1.020",
        "1.049",
        "0.800",
        "0.498",
        "~0.700",
        "0.817",
        "~0.773",
    ]
    assert lines[4].split() == ["wanda", "-", "1.020", "-", "-", "-", "-", "-", "-"]


class Chosen:
    """Settings of which only these are asked."""

    models_map = "embedded"
    profile = parse_profile("0.3:0.7")


def test_records_find_their_names():
    """One model may stand for several; a candidate of level two has its own name; other suites are passed over."""
    one = [record(key=Key("suites.paper.test_level_one", "t", "embedded:gpt2", r)) for r in ("kd", "int8")]
    own = record(key=Key("suites.paper.test_level_one", "t", "mine", "int8"))
    two = record(key=Key("suites.paper.test_level_two", "t", "embedded:llama", "llama-6.7b"))
    found = published.measured_of([two, own, *one, record(key=KEY)], Chosen())
    assert [(row.model, row.name) for row in found] == [
        *((model, name) for model in ("gpt2", "gpt2-large", "gpt2-xl") for name in ("int8", "kd")),
        ("llama-13b", "llama-6.7b"),
        ("mine", "int8"),
    ]
    assert "0.3:0.7" in found[0].opt


# Runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawing():
    """Matplotlib, imported before an inner run would forget it; its compiled parts cannot be loaded twice."""
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401


def collected(pytester, *args):
    """Ids of what a run would do, seen from the repository."""
    result = pytester.runpytest(
        f"--rootdir={ROOT}", "-p", "no:cacheprovider", "--collect-only", "-q", *map(str, args)
    )
    return [line for line in result.outlines if "::" in line]


def test_the_suite_runs_only_when_it_is_named(pytester):
    """Not with the other suites, whose run has to stay short."""
    assert not [line for line in collected(pytester, ROOT / "suites") if "paper" in line]
    named = collected(pytester, PAPER)
    techniques = [line for line in named if "test_technique" in line]
    assert len(techniques) == 2 * (6 + 12)
    assert len(named) - len(techniques) == sum(bool(row.reference) for row in tables.level_two())
    assert collected(pytester, PAPER / "test_level_one.py") == techniques


def test_models_of_the_hub(pytester):
    """Every model has its techniques, and every candidate its progenitor."""
    named = collected(pytester, PAPER, "--llm-models-map", "hub")
    assert len([line for line in named if "test_technique" in line]) == 5 * (6 + 12)
    for row in tables.level_two():
        if row.reference:
            test = f"test_{row.model.replace('-', '_').replace('.', '_')}[{HUB[row.reference]}]"
            assert any(line.endswith(f"::{test}") for line in named)


def test_a_bad_map_is_a_usage_error(pytester):
    """Said once, before anything runs."""
    pytester.makefile(".toml", map='gpt3 = "a"')
    result = pytester.runpytest(
        f"--rootdir={ROOT}", "-p", "no:cacheprovider", str(PAPER), "--llm-models-map=map.toml"
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--llm-models-map map.toml names models of the paper*"])
    assert str(result.stderr).count("gpt3") == 1


def test_the_published_tables_need_no_model(pytester, drawing):
    """Every row under three profiles, and four figures; no test is run, no torch is needed."""
    result = pytester.runpytest("--llm-published", "--llm-results", "out")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "arXiv 2502.00046: opt = Q (alpha T + beta E), ratios*",
            "profiles: balanced (0.5 T, 0.5 E), energy (0.1 T, 0.9 E), runtime (0.9 T, 0.1 E)",
            "gpt2, as published",
            "  kd+ah80+int4 *supplement *",
            "llama2-6.7b, as published",
            "  sheared-llama-1.3b  table 9 *1.017 *2.463",
            "figures in out/figures, each as .png and .svg: figure-2, figure-3, figure-4, figure-5",
        ]
    )
    assert len(list((pytester.path / "out" / "figures").iterdir())) == 8


def test_the_published_tables_without_matplotlib(pytester, monkeypatch, drawing):
    """The tables stand alone, with the pip line."""
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = pytester.runpytest("--llm-published")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["gpt2, as published", "figures need the Python package matplotlib*"])


def test_figures_that_cannot_be_written(pytester, drawing):
    """The folder is named, and the option."""
    (pytester.path / "out").write_text("a file")
    result = pytester.runpytest("--llm-published", "--llm-results", "out")
    result.stdout.fnmatch_lines(
        ["*out/figures cannot be written (*); give another folder with --llm-results.*"]
    )


@pytest.fixture
def paper(pytester, small, heavy, drawing, tiny_folder, monkeypatch):
    """Runs the paper's suites with a models map of these lines, on tiny models."""
    from pytest_llmslim import session
    from pytest_llmslim.meters.null import NullMeter

    monkeypatch.setattr(session, "choose_energy_meter", lambda device: NullMeter("switched off in this test"))

    def run(lines, *args, rounds=True):
        pytester.makefile(".toml", map=f'{lines}\n"*" = "-"')
        options = [o for o in small() if "--llm-model=" not in o and (rounds or "--llm-rounds" not in o)]
        places = ["--llm-results=out", "--llm-baseline=stored", "--llm-models-map=map.toml"]
        quiet = [f"--rootdir={ROOT}", "-p", "no:cacheprovider", "-p", "no:benchmark"]
        return pytester.runpytest(*quiet, *options, *places, *map(str, args))

    return run


def records(pytester):
    return [json.loads(line) for line in (pytester.path / "out" / "results.jsonl").read_text().splitlines()]


def test_level_one_runs_and_is_compared(pytester, paper, tiny_folder):
    """Techniques on the model of the map: 30 rounds, of pruning 5 on a CPU; the published row stands beside."""
    result = paper(
        f'gpt2 = "{tiny_folder}"', PAPER / "test_level_one.py", "-k", "int8 and not +", rounds=False
    )
    result.assert_outcomes(passed=1, deselected=17)
    result.stdout.fnmatch_lines(
        [
            "gpt2 as published, and tiny-gpt2 as measured here",
            "  int8 *1.003*3.036*",
            "perplexity is over words.txt here and over WikiText-2 in the paper; give its file with --llm-text",
            "figures in out/figures, *",
        ]
    )
    (row,) = records(pytester)
    assert len(row["samples"]["time"]) * row["sampling"]["per_block"] == 32  # whole blocks of four


def test_level_two_brings_finished_models(pytester, paper, tiny_folder, tmp_path):
    """A folder, or a recipe, is measured under the paper's name; what the map leaves out is skipped."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(0.5)
    model.save_pretrained(tmp_path / "mine")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path / "mine")
    lines = f'''
    opt-13b = "{tiny_folder}"
    opt-6_7b-kd = "{tmp_path / "mine"}"
    opt-6_7b = "recipe:magnitude"
    '''.replace("opt-6_7b-kd", '"opt-6.7b-kd"').replace("opt-6_7b ", '"opt-6.7b" ')
    result = paper(lines, PAPER / "test_level_two.py", "-rs", "-k", "opt_6_7b")
    result.assert_outcomes(passed=2, skipped=2, deselected=8)
    result.stdout.fnmatch_lines(
        [
            "*the models map leaves out opt-6.7b-minillm or its progenitor*",
            "opt-13b as published, and tiny-gpt2 as measured here",
            "  opt-6.7b *",
            "  opt-6.7b-kd *",
            "the five logic tasks were left out at level two: they need --llm-data DIR, or models from the hub",
        ]
    )
    assert {row["key"]["recipe"] for row in records(pytester)} == {"opt-6.7b-kd", "opt-6.7b"}
    assert all(row["key"]["suite"] == "suites.paper.test_level_two" for row in records(pytester))


def test_tasks_are_asked_where_they_can_be_had(pytester, monkeypatch):
    """With a folder of data, or a progenitor from the hub; WikiText-2 of that folder is then the text."""
    from suites.paper import conftest as suite

    class Given:
        data = text = None

    assert not suite._has_tasks("embedded:llama", Given)
    assert not suite._has_tasks(str(pytester.path), Given)
    assert suite._has_tasks("facebook/opt-13b", Given)
    Given.data = pytester.path
    assert suite._has_tasks("embedded:llama", Given)
    keywords = suite._one_against_another("mn-minitron-8b", HUB, Given)
    assert keywords == {"model": HUB["mistral-nemo-12b"], "evals": list(TABLES["logic_tasks"])}
    suite._choose_text(Given, HUB)
    assert Given.text is None
    (pytester.path / "wikitext-2-raw").mkdir()
    (pytester.path / suite.WIKITEXT).write_text("a text")
    for mixed in (EMBEDDED, {**HUB, "gpt2": "embedded:gpt2"}):
        suite._choose_text(Given, mixed)
        assert Given.text is None
    suite._choose_text(Given, HUB)
    assert Given.text == pytester.path / suite.WIKITEXT


def test_the_run_on_embedded_models_says_so():
    """Whose figures these are."""
    key = Key("suites.paper.test_level_one", "t", "embedded:gpt2", "int8")
    assert published._notes([record(key=key, protocol=PROTOCOL)], Chosen()) == [published.ON_EMBEDDED]
