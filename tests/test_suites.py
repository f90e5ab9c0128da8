"""The shipped suites: which recipes they run, and what they skip."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.errors import RecipeError
from pytest_llmslim.recipe import parse
from pytest_llmslim.registry import Registry
from suites.test_combinations import COMBINATIONS
from suites.test_standalone import STANDALONE
from suites.trained import TRAINED

ROOT = Path(__file__).parents[1]
REGISTRY = Registry(BUILTIN_METHODS)


def test_the_combinations_are_those_of_the_paper():
    """All twelve of table 1, each in the order that works."""
    tables = json.loads((Path(__file__).with_name("paper_tables.json")).read_text())
    expected = set()
    for text in tables["combinations"]:
        try:
            expected.add(parse(text, REGISTRY).text)
        except RecipeError as error:
            expected.add(str(error).rpartition("write ")[2])
    assert 12 == len(COMBINATIONS) == len(expected)
    assert expected == set(COMBINATIONS)


def test_every_method_has_its_place():
    """What the catalogue holds is run by a suite, but for other names of the same, and what needs a plan."""
    steps = {
        step.name for text in (*STANDALONE, *COMBINATIONS, *TRAINED) for step in parse(text, REGISTRY).steps
    }
    assert {"nf4", "ah", "layers", "int8-weight"} == {spec.name for spec in BUILTIN_METHODS} - steps


@pytest.fixture
def suite(pytester):
    """A suite of one test with the fixture of the shipped ones."""
    pytester.makeconftest((ROOT / "fixtures" / "measurement.py").read_text())
    pytester.makepyfile(
        test_suite="""
        import pytest

        @pytest.mark.llm(recipes=("int8-dynamic", "magnitude"))
        def test_standalone(measure):
            measure()
        """
    )
    return "test_suite.py"


def test_a_method_without_its_package_is_skipped(pytester, run, suite, monkeypatch):
    """The suite names the pip line and goes on."""
    monkeypatch.setitem(sys.modules, "torchao", None)
    result = run(suite, "-rs")

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["*needs the Python package torchao*pip install 'pytest-llmslim[[]torchao[]]'*"]
    )


def test_a_method_that_was_asked_for_needs_its_package(pytester, run, suite, monkeypatch):
    """Whoever names it gets an error, not a skip."""
    monkeypatch.setitem(sys.modules, "torchao", None)
    result = run(suite, "--llm-recipe", "int8-dynamic")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*needs the Python package torchao*"])
