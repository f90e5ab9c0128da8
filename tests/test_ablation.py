"""What each step of a recipe contributes: the parts to measure, the arithmetic, the table, the run."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import KEY, quality, record

from pytest_llmslim.ablation import AXES, Contribution, attributions, parts
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.recipe import parse
from pytest_llmslim.records import Estimate, no_estimate
from pytest_llmslim.registry import Registry
from pytest_llmslim.reports.ablation import lines

REGISTRY = Registry(BUILTIN_METHODS)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("int4", []),
        ("ah90+int4", ["ah90", "int4"]),
        ("kd+ah90+int8", ["kd", "ah90", "int8", "kd+ah90", "ah90+int8", "kd+int8"]),
        ("magnitude+lora", ["magnitude"]),
        ("depth+wanda+lora", ["depth", "wanda", "depth+wanda", "wanda+lora", "depth+lora"]),
        ("ah80+ah80", ["ah80"]),
    ],
)
def test_the_parts_of_a_recipe(recipe, expected):
    """Steps alone, beginnings, and the recipe without each step; what cannot stand alone is left out."""
    assert expected == [part.text for part in parts(parse(recipe, REGISTRY), REGISTRY)]


def ratio(value):
    return no_estimate("not measured") if value is None else Estimate(value, value, value, 9, "measured", "x")


def measured(recipe, *values, key=KEY, method="measured"):
    perplexity, time, energy, size = values
    return dataclasses.replace(
        record(perplexity=quality(perplexity)),
        key=dataclasses.replace(key, recipe=recipe),
        time=ratio(time),
        energy=dataclasses.replace(ratio(energy), method=method) if energy else ratio(None),
        stored_bytes=ratio(size),
    )


def test_the_three_ways_of_a_pair():
    """In order the second step is held against the first; left out, each against the other."""
    found = attributions(
        [
            measured("a+b", 1.5, 0.6, 0.5, 0.3),
            measured("a", 1.2, 0.8, 0.8, 0.5),
            measured("b", 1.1, 0.9, None, 0.6),
        ]
    )

    assert 1 == len(found)
    first, second = found[0].steps
    assert ("a+b", KEY.model, (1.5, 0.6, 0.5, 0.3)) == (found[0].recipe, found[0].model, found[0].whole)
    assert (first.alone, first.in_order) == ((1.2, 0.8, 0.8, 0.5), (1.2, 0.8, 0.8, 0.5))
    assert first.left_out == pytest.approx((1.5 / 1.1, 0.6 / 0.9, None, 0.5), nan_ok=True)
    assert second.alone == (1.1, 0.9, None, 0.6)
    assert second.in_order == second.left_out == pytest.approx((1.25, 0.75, 0.625, 0.6))


@given(st.lists(st.floats(0.2, 5), min_size=7, max_size=7))
@settings(max_examples=30, deadline=None)
def test_steps_in_order_multiply_to_the_whole(values):
    """Whatever the parts are, the factors in order are the whole recipe's ratio."""
    names = ("a", "b", "c", "a+b", "b+c", "a+c", "a+b+c")
    found = attributions([measured(name, v, v, v, v) for name, v in zip(names, values, strict=True)])
    whole = next(each for each in found if each.recipe == "a+b+c")
    for axis in range(len(AXES)):
        product = 1.0
        for step in whole.steps:
            product *= step.in_order[axis]
        assert product == pytest.approx(whole.whole[axis])


def test_parts_that_were_not_measured_are_not_made_up():
    """Without its parts a recipe has no attribution; with some, the others are absent."""
    whole = measured("a+b", 1.5, 0.6, 0.5, 0.3)
    assert [] == attributions([whole])
    steps = attributions([whole, measured("b", 1.1, 0.9, 0.9, 0.6)])[0].steps
    assert Contribution("b", (1.1, 0.9, 0.9, 0.6), (None,) * 4, (None,) * 4) == steps[1]


def test_records_of_other_tests_and_labels_do_not_mix():
    """A part measured by another test may have had other text; a label of a brought model is no recipe."""
    other = dataclasses.replace(KEY, test="test_other")
    assert [] == attributions(
        [measured("a+b", 1.5, 0.6, 0.5, 0.3), measured("a", 1.2, 0.8, 0.8, 0.5, key=other)]
    )
    assert [] == attributions([measured("our checkpoint, v2 (best)", 1.0, 1.0, 1.0, 1.0)])


def test_the_table():
    """Changes in percent, factors where they are large, a dash where nothing was measured."""
    found = attributions(
        [
            measured("a+b(c=1)", 2.5, 0.6, 0.5, 0.3, method="estimated"),
            measured("a", 1.0000001, 0.8, None, 0.5),
            measured("b(c=1)", 12.5, None, None, 0.6),
        ]
    )
    heads = "".join(name.rjust(9) for name in ("ppl", "time", "energy", "bytes"))
    assert [
        "what each step of a+b(c=1) on embedded:gpt2 changes",
        "          alone                                 in order                              left out",
        f"          {heads}  {heads}  {heads}",
        "  a          +0.0 %  -20.0 %        -  -50.0 %     +0.0 %  -20.0 %        -  -50.0 %    -80.0 %        -"
        "        -  -50.0 %",
        "  b(c=1)      12.5x        -        -  -40.0 %     +150 %  -25.0 %        -  -40.0 %     +150 %  -25.0 %"
        "        -  -40.0 %",
        "  whole      +150 %  -40.0 % ~-50.0 %  -70.0 %",
        "",
    ] == lines(found)


def test_a_run_measures_and_prints_the_parts(pytester, run):
    """The parts are measured beside the recipe, keep no limits, need no baseline, and end in the summary."""
    pytester.makepyfile(
        test_pair="""
        import pytest

        @pytest.mark.llm(recipe="magnitude(sparsity=0.3)+int8", max_perplexity_increase="1000%")
        def test_pair(llm):
            llm.measure()
        """
    )
    result = run("--llm-ablate", "--llm-require-baseline", "--llm-results=out", "-q")

    result.assert_outcomes(passed=2, failed=1)  # only the recipe itself needs a baseline
    result.stdout.fnmatch_lines(["what each step of magnitude(sparsity=0.3)+int8 on tiny-gpt2 changes"])
    found = json.loads((pytester.path / "out" / "summary.json").read_text())["ablation"]
    assert ["magnitude(sparsity=0.3)", "int8"] == [step["step"] for step in found[0]["steps"]]
    assert found[0]["steps"][0]["alone"] == found[0]["steps"][0]["in_order"]


def test_parts_are_not_stored(pytester, run):
    """Baselines are of what is shipped, so the two options exclude each other."""
    pytester.makepyfile("def test_any(llm): llm.measure()")
    result = run("--llm-ablate", "--llm-update")

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(
        ["*--llm-ablate measures parts of recipes, which have no baselines; run --llm-update without it.*"]
    )
