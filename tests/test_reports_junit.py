"""Figures, verdicts and provenance in JUnit's XML."""

from __future__ import annotations

import dataclasses
import subprocess
import xml.etree.ElementTree as ET

import pytest
from own_tests import own_test
from sample_records import KEY, record

from pytest_llmslim.records import Verdict
from pytest_llmslim.reports.junit import properties, suite_properties
from pytest_llmslim.run_records import Origin, Run

BAD = (
    Verdict("integrity", "passed", "fine."),
    Verdict("time", "failed", "too slow."),
    Verdict("evaluation", "inconclusive", "few questions.", evaluation="piqa"),
)


def test_a_test_has_its_figures_and_what_did_not_pass():
    """By the name of the axis or the evaluation; passed verdicts say nothing new."""
    found = dict(properties(record(verdicts=BAD), alone=True))
    assert found["llmslim.perplexity_ratio"] == 1.02
    assert found["llmslim.outcome"] == "failed"
    assert found["llmslim.failed time"] == "too slow."
    assert found["llmslim.inconclusive piqa"] == "few questions."
    assert not [name for name in found if name.startswith("llmslim.passed")]


def test_several_candidates_of_a_test_are_told_apart():
    """By their recipes; a number that could not be had is no property."""
    found = dict(properties(record(verdicts=BAD, energy=()), alone=False))
    assert found["llmslim.int4.failed time"] == "too slow."
    assert "llmslim.int4.energy_ratio" not in found
    assert found["llmslim.int4.energy_method"] == "unmeasured"


def test_estimated_energy_is_said_to_be():
    """A property has no room for a mark."""
    found = dict(properties(record(energy_method="estimated"), alone=True))
    assert (found["llmslim.energy_ratio"], found["llmslim.energy_method"]) == (
        pytest.approx(0.7),
        "estimated",
    )


def test_the_suite_has_where_the_run_comes_from():
    """Each value once; what is not known is left out."""
    origin = Origin(id="run-1", commit="ab" * 20, changed=True, version="0.1.0")
    other = record(key=dataclasses.replace(KEY, recipe="b"), fingerprint={"gpu": "H100"}, verdicts=BAD)
    assert dict(suite_properties(Run(origin, (record(), other, record())))) == {
        "llmslim.run": "run-1",
        "llmslim.commit": "ab" * 20,
        "llmslim.changed_files": "yes",
        "llmslim.device": "EPYC, H100",
        "llmslim.profile": "balanced",
        "llmslim.text_sha256": "ab" * 32,
        "llmslim.version": "0.1.0",
        "llmslim.outcome": "failed",
    }
    assert suite_properties(Run()) == [("llmslim.outcome", "nothing was measured")]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_the_xml_of_a_run(pytester, small, workers):
    """Properties of the suite and of the test, also where a worker of xdist has measured."""
    subprocess.run(["git", "init", "-q"], cwd=pytester.path, check=True)
    own_test(pytester, max_perplexity_increase="0.1%")
    pytester.runpytest_subprocess(
        *workers, "--junitxml=out.xml", "-p", "no:benchmark", *small(rounds=8)
    ).assert_outcomes(failed=1)
    suite = ET.parse(pytester.path / "out.xml").getroot().find("testsuite")
    whole = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
    assert len(whole["llmslim.text_sha256"]) == 64
    assert (whole["llmslim.profile"], whole["llmslim.outcome"]) == ("balanced", "failed")
    assert {"llmslim.run", "llmslim.device", "llmslim.version"} <= whole.keys()
    (case,) = suite.findall("testcase")
    found = {each.get("name"): each.get("value") for each in case.iter("property")}
    assert float(found["llmslim.perplexity_ratio"]) > 1.001
    assert found["llmslim.failed perplexity"] in case.find("failure").get("message")


def test_a_run_without_our_tests_has_no_properties_of_ours(pytester):
    """The plugin is there, and says nothing."""
    pytester.makepyfile("def test_mine(): pass")
    pytester.runpytest("--junitxml=out.xml").assert_outcomes(passed=1)
    assert "llmslim" not in (pytester.path / "out.xml").read_text()
