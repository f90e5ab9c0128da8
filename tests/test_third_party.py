"""A method and an evaluation in packages of their own: installed, put through the invariants, and used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = [Path(__file__).parent / "third_party" / name for name in ("llm_halve", "llm_echo")]
OWN_TEST = """
    import pytest

    @pytest.mark.llm(recipe="halve+int8")
    def test_ships(llm):
        measured = llm.measure()
        assert measured.candidate.parameters < measured.reference.parameters
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip installed the packages to, without a network."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the package, is not installed")
    target = tmp_path_factory.mktemp("site")
    options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check --target".split()
    command = [sys.executable, "-m", "pip", "install", *options, str(target), *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return target


@pytest.fixture
def run_with(installed, pytester, monkeypatch):
    """Runs pytest in a process of its own, in an empty folder, with the package on the path."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(installed), *filter(None, [os.getenv("PYTHONPATH")])])
    )
    return lambda *args: pytester.runpytest_subprocess("-p", "no:benchmark", "-p", "no:cacheprovider", *args)


def test_the_package_brings_its_hook(installed):
    """By an entry point, as any plugin of pytest."""
    told = (installed / "llm_halve-0.1.0.dist-info/entry_points.txt").read_text()

    assert ["[pytest11]", "llm_halve = llm_halve"] == told.split("\n")[:2]


def test_its_method_keeps_the_invariants(run_with):
    """All those of a method that cuts shapes."""
    result = run_with("--llm-conformance", "halve", "-v")

    assert 0 == result.ret
    assert {"passed": 17} == result.parseoutcomes()
    result.stdout.fnmatch_lines(["conformance::test_invariant[[]halve-equal-to-masking] PASSED *"])


def test_its_method_stands_in_a_recipe(run_with, pytester, small):
    """Cut first, then quantized by ours; both are told."""
    pytester.makepyfile(test_own=OWN_TEST)
    result = run_with(*small())

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1  halve+int8 *"])


def test_its_evaluation_is_asked_by_name(run_with, pytester, small):
    """Of reference and candidate, and paired, although it knows of no pairs."""
    pytester.makepyfile(test_own=OWN_TEST)
    result = run_with(*small("--llm-eval", "echo(prompts=12)"))

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["  echo(prompts=12): echo, lower is better, n = 12", "*reference *", "*halve+int8 *"]
    )


def test_its_evaluation_refuses_by_itself(run_with, pytester, small):
    """Bad parameters are found before anything runs."""
    pytester.makepyfile(test_own=OWN_TEST)
    result = run_with(*small("--llm-eval", "echo(prompts=0)"))

    assert pytest.ExitCode.USAGE_ERROR == result.ret
    result.stderr.fnmatch_lines(["*echo: prompts is 1 or more, got 0*"])
