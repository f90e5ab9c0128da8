"""Cost of compressing: tokens that pay for building, and the CO2 of a token."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import PROTOCOL, blocks, record

from pytest_llmslim.breakeven import (
    break_even,
    energy_break_even,
    grams_per_million_tokens,
    time_break_even,
    tokens_a_pass,
)
from pytest_llmslim.records import Build, Carbon, Estimate, Reading, Sampling, no_estimate, unmeasured

costs = st.floats(1e-6, 1e9)
ratios = st.floats(1e-3, 1e3)


def estimate(value, low=None, high=None, method="measured"):
    return Estimate(
        value, value if low is None else low, value if high is None else high, 12, method, "clock"
    )


def joules(value, source="rapl", method="measured"):
    return Reading(value, "J", source, method)


def built(energy=None, seconds=2.0):
    return Build(
        Reading(seconds, "s", "perf_counter", "measured"), energy or unmeasured("J", "none", "no meter"), ()
    )


def test_the_example_of_the_docstring():
    """2 s of building, 1 ms a token, a saving of a fifth: 10,000 tokens; the bounds follow the ratio's."""
    found = break_even(2.0, 1e-3, estimate(0.8, 0.75, 0.9))
    assert found.outcome == "after"
    assert [found.tokens, found.low, found.high] == pytest.approx([10_000, 8_000, 20_000])


@pytest.mark.parametrize(
    ("ratio", "outcome", "low"),
    [
        (estimate(1.0), "never", math.inf),
        (estimate(1.2, 1.1, 1.3), "never", math.inf),
        (estimate(0.99, 0.9, 1.05), "not sure", 20_000),
        (estimate(1.01, 0.9, 1.05), "not sure", 20_000),
        (estimate(0.9, 0.8, 1.0), "not sure", 10_000),
        (Estimate(0.5, 0.0, math.inf, 3, "measured", "clock"), "not sure", 2_000),
        (Estimate(0.5, None, None, 3, "measured", "clock"), "not sure", 2_000),
    ],
)
def test_no_saving_never_pays_and_an_unsure_one_has_a_least(ratio, outcome, low):
    """Where the interval reaches 1 no number of tokens is claimed, except the one before which it cannot pay."""
    found = break_even(2.0, 1e-3, ratio)
    assert found.outcome == outcome
    assert found.low == pytest.approx(low)
    assert found.high == math.inf
    assert found.tokens == (math.inf if outcome == "never" else None)


@given(costs, costs, ratios, ratios, ratios)
def test_break_even_is_ordered_and_never_negative_nor_nan(build, reference, one, other, third):
    """Whatever the interval, low <= tokens <= high."""
    low, value, high = sorted((one, other, third))
    found = break_even(build, reference, estimate(value, low, high))
    numbers = [n for n in (found.low, found.tokens, found.high) if n is not None]
    assert numbers == sorted(numbers)
    assert all(n > 0 for n in numbers)


@given(costs, costs, costs, st.floats(1e-3, 0.999))
def test_break_even_grows_with_the_cost_of_building(build, more, reference, ratio):
    """And in proportion to it."""
    small, large = (break_even(b, reference, estimate(ratio)).tokens for b in (build, build + more))
    assert small <= large
    assert large / small == pytest.approx((build + more) / build)


@given(costs, costs, st.floats(1e-3, 0.9), st.floats(1e-3, 0.9))
def test_break_even_falls_with_the_saving(build, reference, one, other):
    """A smaller ratio pays sooner."""
    low, high = sorted((one, other))
    sooner, later = (break_even(build, reference, estimate(ratio)).tokens for ratio in (low, high))
    assert sooner <= later


def test_time_is_paid_in_wall_seconds_by_the_ratio_of_cpu_time():
    """1.5 s against 12.5 ms a window of 256 tokens, of which a fifth is saved."""
    found = time_break_even(record())
    assert found.tokens == pytest.approx(1.5 / (0.0125 / 256 * 0.2))
    assert (found.source, found.method) == ("process cpu time", "measured")


@pytest.mark.parametrize(
    ("clock", "wall_over_cpu", "source"),
    [
        ("process cpu time", None, "process cpu time"),
        ("process cpu time", 1.0, "process cpu time"),
        ("process cpu time", 1.8, "process cpu time"),  # other load stretches wall time alone
        ("process cpu time", 0.4, "perf_counter"),  # several threads
        ("cuda events", None, "perf_counter"),
    ],
)
def test_the_ratio_is_that_of_what_a_user_waits_for(clock, wall_over_cpu, source):
    """CPU time on one core, wall time on several and on a GPU."""
    plain = record()
    shown = dataclasses.replace(
        plain,
        time=dataclasses.replace(plain.time, source=clock),
        wall=dataclasses.replace(plain.wall, value=0.5, low=0.5, high=0.5),
        sampling=Sampling(wall_over_cpu=wall_over_cpu),
    )
    found = time_break_even(shown)
    saved = 0.5 if source == "perf_counter" else 0.2
    assert found.source == source
    assert found.tokens == pytest.approx(1.5 / (0.0125 / 256 * saved))


def test_energy_is_paid_in_joules_of_one_source():
    """60 J against 0.345 J a window of 256 tokens, of which three tenths are saved."""
    found = energy_break_even(record(build=built(joules(60.0))))
    assert found.tokens == pytest.approx(60 / (0.345 / 256 * 0.3))


def test_estimated_joules_give_an_estimate():
    """All three of one estimating source."""
    plain = record(energy_method="estimated", energy_source="codecarbon")
    sides = {
        name: dataclasses.replace(getattr(plain, name), energy_j=joules(0.3, "codecarbon", "estimated"))
        for name in ("reference", "candidate")
    }
    found = energy_break_even(
        dataclasses.replace(plain, build=built(joules(9.0, "codecarbon", "estimated")), **sides)
    )
    assert (found.outcome, found.method) == ("after", "estimated")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"build": built()}, "the cost of building is unmeasured (no meter)"),
        ({"energy": ()}, "no energy meter"),
        (
            {"build": built(joules(9.0, "nvml-power", "sampled"))},
            "its joules are sampled by nvml-power and measured by rapl, which are never set off against each other",
        ),
        (
            {"build": built(joules(9.0, "rapl", "estimated"))},
            "its joules are estimated by rapl and measured by rapl, which are never set off against each other",
        ),
    ],
)
def test_energy_that_is_missing_or_of_two_kinds_has_a_reason(fields, reason):
    """And no number."""
    found = energy_break_even(record(**fields))
    assert (found.outcome, found.method, found.reason) == ("unknown", "unmeasured", reason)
    assert (found.tokens, found.low, found.high) == (None, None, None)


def test_time_that_is_missing_has_a_reason():
    """Simulated stays simulated, and a reference without a clock pays for nothing."""
    none = no_estimate("half of the weights are zero", method="simulated")
    found = time_break_even(dataclasses.replace(record(), time=none, wall=none))
    assert (found.outcome, found.method, found.reason) == (
        "unknown",
        "simulated",
        "half of the weights are zero",
    )
    plain = record()
    still = dataclasses.replace(plain.reference, wall_s=unmeasured("s", "none", "not timed"))
    found = time_break_even(dataclasses.replace(plain, reference=still))
    assert found.reason == "the cost of the reference is unmeasured (not timed)"


@pytest.mark.parametrize(
    ("window", "tokens", "expected"), [(256, 6120, 256), (256, 255, 256), (256, 100, 101)]
)
def test_a_pass_is_a_window_or_a_shorter_text(window, tokens, expected):
    """One token of every text has nothing before it, BOS or the first."""
    assert tokens_a_pass(dataclasses.replace(PROTOCOL, window=window, tokens=tokens)) == expected


def test_carbon_of_a_kilowatt_hour():
    """3.6 J a token are 1 kWh in a million tokens, which emits what the country's table says."""
    carbon = Carbon("FRA", 56.0, "table")
    protocol = dataclasses.replace(PROTOCOL, window=100)
    assert grams_per_million_tokens(joules(360.0), protocol, carbon) == pytest.approx(56.0)
    assert grams_per_million_tokens(unmeasured("J", "none", "no meter"), protocol, carbon) is None


def test_a_control_is_not_sure_to_pay():
    """A copy of the reference with noise around 1."""
    assert time_break_even(record(time=blocks(1.0, 0.01))).outcome == "not sure"
