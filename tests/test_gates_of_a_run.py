"""What the gates of one run share, and what a baseline has to be worth, through pytest."""

from __future__ import annotations

import json

import pytest
from sample_records import record

from pytest_llmslim import bench, session
from pytest_llmslim.meters.replay import ReplayMeter
from pytest_llmslim.records import Estimate, Sampling, Verdict, no_estimate

OWN = """
    import pytest
    import torch

    @pytest.mark.llm(recipes=["int8", "fp4"])
    def test_ships(llm):
        llm.measure()

    def halve(model):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float16).to(torch.float32)

    @pytest.mark.llm(max_time_increase="900%")
    def test_brings(llm):
        llm.measure(halve)
        llm.measure(lambda model: halve(model), label="again")
"""


def levels(pytester):
    """What each noisy gate could spend at its one look, by recipe."""
    lines = (pytester.path / "llm-results/results.jsonl").read_text().splitlines()
    found = {record["key"]["recipe"]: record["sampling"]["level"] for record in map(json.loads, lines)}
    return {recipe: pytest.approx(level, rel=1e-9) for recipe, level in found.items()}


def test_one_percent_is_split_over_the_gates_that_collection_foresaw(pytester, run):
    """Without baselines only thresholds count; with them two clocks of each test; an unforeseen one gets the rest."""
    pytester.makepyfile(test_own=OWN)
    assert run().ret == pytest.ExitCode.OK
    # One threshold on time, for two clocks; `again` is beyond them, and shares the reserve of a tenth.
    found = levels(pytester)
    assert found["halve"] == 0.009 / 2
    assert found["again"] in (0.0005, 0.000375)  # one beyond where wall time had no verdict, else two
    run("--llm-update")
    run("test_own.py::test_ships")
    assert levels(pytester) == {"int8": 0.009 / 4, "fp4": 0.009 / 4}
    run("test_own.py::test_ships", "--llm-recipe=int8")
    assert levels(pytester) == {"int8": 0.009 / 2}


def test_energy_that_is_measured_adds_its_gates(pytester, run, monkeypatch):
    """Time on two clocks, energy and opt of one test."""
    monkeypatch.setattr(session, "choose_energy_meter", lambda device: ReplayMeter([1.0] * 99, source="rapl"))
    pytester.makepyfile(test_own=OWN)
    run("test_own.py::test_ships", "--llm-recipe=int8", "--llm-update")
    run("test_own.py::test_ships", "--llm-recipe=int8")
    assert levels(pytester) == {"int8": 0.009 / 4}


@pytest.mark.parametrize(
    ("low", "high", "coarse"),
    [
        (0.995, 1.005, False),
        (0.991, 1.010, False),
        (0.989, 1.011, True),
        (0.0, float("inf"), True),
        (None, None, False),
    ],
)
def test_a_stored_interval_is_at_most_half_a_regression_to_each_side(low, high, coarse):
    """It widens what a later run may lose; without a number there is nothing to narrow."""
    estimate = no_estimate("no meter") if low is None else Estimate(1.0, low, high, 8, "measured", "cpu")
    assert bench._coarse(estimate, 0.02) == coarse


@pytest.mark.parametrize(("looks", "kept"), [((8,), 2), ((8, 12), 3)])
def test_gates_that_a_failed_one_left_open_are_not_shown(looks, kept):
    """They were not pursued; after the last look they are what they are."""
    verdicts = (
        Verdict("perplexity", "failed", "worse"),
        Verdict("time", "inconclusive", "open", more=True),
        Verdict("energy", "inconclusive", "no meter"),
    )
    red = record(verdicts=verdicts, sampling=Sampling(4, looks, planned=2))
    assert len(bench._settled(red).verdicts) == kept
    green = record(verdicts=verdicts[1:], sampling=Sampling(4, looks, planned=2))
    assert bench._settled(green) == green


def test_a_baseline_that_is_made_on_a_busy_machine_is_told_so(pytester, run, monkeypatch):
    """Where it is written, not where it is compared."""
    monkeypatch.setattr("pytest_llmslim.conditions.WALL_AGREES", 0.0)
    pytester.makepyfile(test_own=OWN)
    told = (
        "baselines were measured while the machine was busy with other work; write them again on a quiet one*"
    )
    run("test_own.py::test_ships", "--llm-update").stdout.fnmatch_lines([told])
    run("test_own.py::test_ships").stdout.no_fnmatch_line(told)


def test_carbon_and_the_policy_on_idle_power_are_in_the_record(pytester, run):
    """Asked for by options."""
    pytester.makepyfile(test_own=OWN)
    result = run("test_own.py::test_ships", "--llm-recipe=int8", "--llm-country=FRA", "--llm-energy=net")
    assert result.ret == pytest.ExitCode.OK
    (line,) = (pytester.path / "llm-results/results.jsonl").read_text().splitlines()
    carbon = json.loads(line)["carbon"]
    assert carbon["country"] == "FRA"
    assert 20 < carbon["g_per_kwh"] < 100
