"""What changed between stored records and measured ones."""

from __future__ import annotations

import dataclasses
import math

import pytest
from sample_records import KEY, blocks, evaluation, quality, record, side

from pytest_llmslim.comparison import Change, compared, two_runs, with_baselines
from pytest_llmslim.records import Estimate, Verdict, no_estimate
from pytest_llmslim.run_records import Run

OTHER = {"cpu": "Xeon", "threads": "1"}


def named(recipe, **fields):
    return record(key=dataclasses.replace(KEY, recipe=recipe), label=f"{recipe} on embedded:gpt2", **fields)


def change_of(old, new, figure):
    return {change.figure: change for change in compared(old, new, ()).changes}[figure]


def test_every_figure_has_its_change():
    """New over old, less one; figures of both sides stand beside it."""
    old, new = record(), record(perplexity=quality(1.122), time=blocks(0.88))
    change = change_of(old, new, "perplexity")
    assert (change.old.value, change.new.value) == (1.02, 1.122)
    assert change.change == pytest.approx(0.1)
    assert change_of(old, new, "time").change == pytest.approx(0.1)
    assert change_of(old, new, "stored_bytes").change == 0


@pytest.mark.parametrize(
    ("figure", "new", "reason"),
    [
        ("perplexity", record(reference=side(weights="x")), "sha256 of the reference's weights is x"),
        ("time", record(fingerprint=OTHER), "fingerprint cpu is Xeon now and EPYC there"),
        ("energy", record(energy=()), "now, unmeasured (no energy meter)"),
        ("energy", record(energy_method="estimated"), "energy method is estimated now and measured there"),
        ("opt", record(fingerprint=OTHER), "fingerprint cpu is Xeon"),
        (
            "opt",
            record(opt=Estimate(math.inf, math.inf, math.inf, 8, "measured", "all")),
            "now, it is inf",
        ),
        (
            "stored_bytes",
            record(stored_bytes=no_estimate("only rounded.", method="simulated")),
            "now, simulated (only rounded)",
        ),
    ],
)
def test_what_cannot_be_compared_says_why(figure, new, reason):
    """No change, and a reason."""
    change = change_of(record(), new, figure)
    assert change.change is None
    assert change.reason.startswith(reason)
    assert not change.moved


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (evaluation(both=18), ""),
        (
            evaluation(both=18, protocol={"task": "arc_challenge", "shots": "5"}),
            "protocol shots is 5 now and 25",
        ),
        (evaluation(both=9, questions=20), "the number of questions is 20 now and 40 there"),
        (evaluation(ratio=Estimate(0.0, 0.0, 0.1, 40, "measured", "questions")), "now, its ratio is 0"),
    ],
)
def test_evaluations_are_compared_under_one_protocol(now, reason):
    """Other shots or questions give another number that says nothing about the candidate."""
    old, new = record(evaluations=(evaluation(both=20),)), record(evaluations=(now,))
    change = change_of(old, new, "arc_challenge acc_norm")
    assert change.reason.startswith(reason)
    assert (change.change is None) == bool(reason)
    assert bool(change.reason) == bool(reason)


def test_an_evaluation_of_one_side_stands_alone():
    """New or no longer asked for: one side is empty, and there is no reason to give."""
    old, new = record(), record(evaluations=(evaluation(),))
    for pair, empty in (((old, new), "old"), ((new, old), "new")):
        change = change_of(*pair, "arc_challenge acc_norm")
        assert getattr(change, empty) is None
        assert (change.change, change.reason) == (None, "")


@pytest.mark.parametrize(
    ("figure", "then", "now", "moved"),
    [
        (
            "perplexity",
            (1.04, 1.03, 1.05),
            (1.0400001, 1.03, 1.05),
            False,
        ),  # digits that baselines do not keep
        ("perplexity", (1.04, 1.03, 1.05), (1.0401, 1.03, 1.05), True),
        ("time", (0.80, 0.79, 0.81), (0.815, 0.805, 0.825), False),  # the intervals meet
        ("time", (0.80, 0.79, 0.81), (0.83, 0.82, 0.84), True),
        ("opt", (0.83, 0.82, 0.84), (0.80, 0.79, 0.81), True),
        ("energy", (0.80, 0.0, math.inf), (1.6, 0.0, math.inf), False),  # too few blocks for bounds
        ("energy", (0.80, None, None), (1.6, None, None), False),
    ],
)
def test_noise_is_no_change(figure, then, now, moved):
    """Time, energy and opt are never the same twice; quality on one machine is."""
    old, new = (Estimate(*values, 8, "measured", "x") for values in (then, now))
    change = Change(figure, old, new, new.value / old.value - 1)
    assert change.moved is moved


@pytest.mark.parametrize(
    ("change", "higher", "better"), [(0.1, False, False), (-0.1, False, True), (0.1, True, True)]
)
def test_better_follows_the_direction_of_the_metric(change, higher, better):
    """Lower is better for ratios of cost and perplexity, and not for accuracy."""
    assert Change("x", None, None, change, higher_is_better=higher).better is better


def test_a_run_is_compared_with_its_baselines_worst_first():
    """The verdicts are those of the run; the stored entry of the same device goes first."""
    bad = (Verdict("perplexity", "failed", "int4: worse."),)
    stored = [named("int8"), named("int8", fingerprint=OTHER), named("int4", fingerprint=OTHER)]
    found = with_baselines(Run(records=(named("int8"), named("int4", verdicts=bad)), baselines=tuple(stored)))
    assert [(each.key.recipe, each.outcome) for each in found] == [("int4", "failed"), ("int8", "passed")]
    assert found[1].old is stored[0]
    assert found[0].old is stored[2]


def test_two_runs_regressions_first_then_what_is_gone():
    """The gate judges the new run by the old; each key is once in the result."""
    old = [named("a"), named("b"), named("gone")]
    new = [named("a"), named("b", perplexity=quality(1.2)), named("c")]
    found = two_runs(old, new)
    assert [(each.key.recipe, each.outcome) for each in found] == [
        ("b", "failed"), ("c", "new"), ("a", "passed"), ("gone", "passed")
    ]  # fmt: skip
    assert found[-1].new is None
    assert found[1].old is None


def test_one_device_that_is_gone_is_seen():
    """A job of a matrix that no longer runs leaves its records behind, though the key is still there."""
    old = [named("a"), named("a", fingerprint=OTHER)]
    found = two_runs(old, [named("a")])
    assert [(each.device, each.new is None) for each in found] == [("EPYC", False), ("Xeon", True)]


def test_another_device_is_compared_in_quality_alone():
    """Where the device is new, the entry of another one stands in, and cost is not comparable."""
    (found,) = two_runs([named("a")], [named("a", fingerprint=OTHER)])
    assert found.outcome == "not comparable"
    assert {change.figure for change in found.changes if change.change is not None} == {
        "perplexity",
        "stored_bytes",
    }


def test_a_comparison_needs_a_side():
    """Neither is a fault of the caller."""
    with pytest.raises(ValueError, match="an old record, a new one, or both"):
        compared(None, None, ())
