from __future__ import annotations

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sample_records import blocks, cost, evaluation, kind_of_text, quality, record

from pytest_llmslim.encoding import from_builtins, to_builtins
from pytest_llmslim.errors import ScoreError, SettingError
from pytest_llmslim.records import Estimate, Profile, Record, no_estimate
from pytest_llmslim.score import (
    PROFILES,
    HigherIsBetter,
    LowerIsBetter,
    combined,
    opt,
    opt_estimate,
    parse_profile,
    parts_sentence,
    worsening_of,
)
from pytest_llmslim.score import quality as q

INF, NAN = math.inf, math.nan
ratios = st.floats(1e-3, 1e3)
profiles = st.floats(0, 1).map(lambda alpha: Profile("any", alpha, 1 - alpha))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_reference_scores_1(profile: Profile) -> None:
    """A candidate that equals the reference in everything scores 1 in every profile."""
    assert opt([LowerIsBetter(34.2, 34.2)], 1.0, 1.0, profile) == pytest.approx(1.0, abs=1e-15)
    assert opt([HigherIsBetter(0.5, 0.5, 0.25)], 1.0, 1.0, profile) == pytest.approx(1.0, abs=1e-15)


@given(ratios, ratios, ratios, profiles, st.floats(1.001, 10))
def test_every_part_makes_it_worse(p: float, t: float, e: float, profile: Profile, factor: float) -> None:
    """The score grows strictly with perplexity, and with time and energy wherever they have weight."""
    base = opt([LowerIsBetter(p, 1)], t, e, profile)
    assert opt([LowerIsBetter(p * factor, 1)], t, e, profile) > base
    if profile.alpha * t > 1e-9 * profile.beta * e:
        assert opt([LowerIsBetter(p, 1)], t * factor, e, profile) > base
    if profile.beta * e > 1e-9 * profile.alpha * t:
        assert opt([LowerIsBetter(p, 1)], t, e * factor, profile) > base


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0, 0.9))
def test_better_accuracy_scores_lower(reference: float, one: float, other: float, chance: float) -> None:
    """Of two candidates the more accurate one never scores higher."""
    assume(reference > 0.8 * chance + 1e-6)
    worse, better = sorted((one, other))
    scores = [q([HigherIsBetter(c, reference, chance)]) for c in (worse, better)]
    assert scores[0] >= scores[1]


def test_one_metric() -> None:
    """With perplexity alone, Q is the ratio to the power of 1.5."""
    assert q([LowerIsBetter(40.0, 10.0)]) == pytest.approx(8.0)


def test_several_metrics_are_averaged_after_the_power() -> None:
    """Q is the mean of the powers, and the mean is not raised again."""
    assert q([LowerIsBetter(40.0, 10.0), HigherIsBetter(0.45, 0.7, 0.25)]) == pytest.approx((8 + 2**1.5) / 2)


@pytest.mark.parametrize(
    ("candidate", "worsening"), [(0.2, INF), (0.1, INF), (0.0, INF), (0.3, 3.0), (0.6, 0.75)]
)
def test_a_candidate_at_chance_is_worthless(candidate: float, worsening: float) -> None:
    """At 0.8 of the chance level and below the candidate scores infinity."""
    assert HigherIsBetter(candidate, 0.5, 0.25).worsening() == pytest.approx(worsening)


def test_a_worthless_candidate_scores_infinity() -> None:
    """One worthless metric makes the score infinite, and so does an infinite perplexity."""
    worthless = [LowerIsBetter(1, 1), HigherIsBetter(0.2, 0.5, 0.25)]
    assert opt(worthless, 0.1, 0.1, PROFILES["energy"]) == INF
    assert opt([LowerIsBetter(INF, 1)], 0.1, 0.1, PROFILES["energy"]) == INF
    assert opt([LowerIsBetter(1e300, 1e-300)], 0.1, 0.1, PROFILES["energy"]) == INF
    assert opt([LowerIsBetter(1e300, 1)], 0.1, 0.1, PROFILES["energy"]) == INF


@pytest.mark.parametrize("reference", [0.2, 0.1, 0.0])
def test_a_reference_at_chance_is_an_error(reference: float) -> None:
    """A reference that guesses says nothing about the candidate."""
    with pytest.raises(
        ScoreError, match=r"the reference's mmlu is above 0.2, or it says nothing .* use another"
    ):
        HigherIsBetter(0.5, reference, 0.25, "mmlu").worsening()


@pytest.mark.parametrize("bad", [NAN, 0.0, -1.0, None])
@pytest.mark.parametrize("place", range(4))
def test_unusable_parts_are_errors(bad: float | None, place: int) -> None:
    """NaN, zero, negative and missing parts never become a score, and the message names the part."""
    parts: list[float | None] = [2.0, 1.0, 0.5, 0.5]
    parts[place] = bad
    name = ["the candidate's perplexity", "the reference's perplexity", "the time ratio", "the energy ratio"][
        place
    ]
    with pytest.raises(
        ScoreError, match=f"{name} is a finite number above 0, got {str(bad).removesuffix('.0')}"
    ):
        opt([LowerIsBetter(parts[0], parts[1])], parts[2], parts[3], PROFILES["balanced"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("time", "energy", "reference"), [(INF, 1, 1), (1, INF, 1), (1, 1, INF)])
def test_infinite_costs_are_errors(time: float, energy: float, reference: float) -> None:
    """Only a candidate's quality may be infinite."""
    with pytest.raises(ScoreError, match="is a finite number above 0, got inf"):
        opt([LowerIsBetter(1, reference)], time, energy, PROFILES["balanced"])


@pytest.mark.parametrize("bad", [NAN, INF, -0.1, None])
def test_unusable_accuracies_are_errors(bad: float | None) -> None:
    """An accuracy is a finite number from 0 on."""
    with pytest.raises(ScoreError, match="the candidate's accuracy is a finite number from 0 on, got"):
        HigherIsBetter(bad, 0.5).worsening()  # type: ignore[arg-type]


def test_no_metric_is_an_error() -> None:
    """A score without quality is none."""
    with pytest.raises(ScoreError, match="at least one quality metric, got none"):
        opt([], 1, 1, PROFILES["balanced"])


def test_a_vanishing_score_is_an_error() -> None:
    """A product too small for a number is no score of 0."""
    with pytest.raises(ScoreError, match="the score is a finite number above 0, got 0"):
        opt([LowerIsBetter(1e-300, 1e300)], 1, 1, PROFILES["balanced"])


def test_a_part_without_weight_may_be_missing() -> None:
    """The profile 1:0 scores time alone, so that energy need not be known."""
    assert opt([LowerIsBetter(1, 1)], 0.5, None, Profile("1:0", 1, 0)) == 0.5
    assert opt([LowerIsBetter(1, 1)], None, 0.4, Profile("0:1", 0, 1)) == 0.4


# Estimates --------------------------------------------------------------------------------------------------


@given(*[st.tuples(*[st.floats(0.1, 10)] * 3).map(sorted)] * 3, profiles)
def test_bounds_of_parts_bound_the_score(
    p: list[float], t: list[float], e: list[float], profile: Profile
) -> None:
    """The interval is made of the worst and best values of the parts, and holds the value."""
    parts = [
        Estimate(v, low, high, n, "measured", "x")
        for (low, v, high), n in zip((p, t, e), (24, 12, 8), strict=True)
    ]
    score = opt_estimate(*parts, profile)
    for column, bound in ((0, score.low), (1, score.value), (2, score.high)):
        assert bound == pytest.approx(opt([LowerIsBetter(p[column], 1)], t[column], e[column], profile))
    assert score.low <= score.value <= score.high  # type: ignore[operator]


@pytest.mark.parametrize("method", ["measured", "sampled", "estimated"])
def test_the_score_says_how_energy_was_had(method: str) -> None:
    """Sampled and estimated energy mark the score; n is the smallest of the parts."""
    score = opt_estimate(quality(), cost(blocks(0.8)), cost(blocks(0.7, n=8), method), PROFILES["energy"])
    assert (score.method, score.n, score.source) == (method, 8, "windows of text+rapl")


@pytest.mark.parametrize("name", ["time", "energy"])
@pytest.mark.parametrize("method", ["unmeasured", "simulated"])
def test_without_a_cost_there_is_no_score(name: str, method: str) -> None:
    """An unmeasured or simulated cost leaves no score, with the reason."""
    parts = {"time": cost(blocks(0.8)), "energy": cost(blocks(0.7))}
    parts[name] = no_estimate("the meter is too slow", method=method)  # type: ignore[arg-type]
    score = opt_estimate(quality(), parts["time"], parts["energy"], PROFILES["balanced"])
    assert (score.value, score.low, score.high, score.method) == (None, None, None, method)
    assert score.reason == f"{name}: the meter is too slow"


def test_simulated_weighs_more_than_unmeasured() -> None:
    """Where nothing was saved, the reason is that and not the missing meter."""
    fake = no_estimate("weights are only rounded", method="simulated")
    assert opt_estimate(quality(), fake, no_estimate("no meter"), PROFILES["balanced"]).method == "simulated"


def test_a_cost_without_weight_is_not_looked_at() -> None:
    """The profile 1:0 has a score on a machine without a meter, and 0:1 one without times."""
    equal, known, unknown = quality(1.0, 1.0, 1.0), cost(blocks(0.8)), no_estimate("no meter")
    for parts, profile in (
        ((known, unknown), Profile("1:0", 1, 0)),
        ((unknown, known), Profile("0:1", 0, 1)),
    ):
        score = opt_estimate(equal, *parts, profile)
        assert (score.low, score.value, score.high) == pytest.approx((0.8, 0.8, 0.8))
        assert (score.method, score.n) == ("measured", 12)


def test_missing_bounds_stay_missing() -> None:
    """Too few blocks for an interval of time leave the score without one above."""
    few = cost(blocks(0.8, n=3))
    score = opt_estimate(quality(1.0, 1.0, 1.0), few, cost(blocks(0.6)), PROFILES["balanced"])
    assert (score.low, score.value, score.high) == (pytest.approx(0.3), pytest.approx(0.7), INF)
    assert opt_estimate(quality(INF, INF, INF), few, few, PROFILES["balanced"]).low == 0.0


def test_an_infinite_perplexity_is_an_infinite_estimate() -> None:
    """A worthless candidate has a score, and it is infinite."""
    score = opt_estimate(quality(INF, INF, INF), cost(blocks(0.8)), cost(blocks(0.6)), PROFILES["balanced"])
    assert (score.low, score.value, score.high) == (INF, INF, INF)


# Profiles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_presets_weigh_to_1(profile: Profile) -> None:
    """Alpha and beta of every preset sum to 1, and a preset is found by its name."""
    assert profile.alpha + profile.beta == 1
    assert parse_profile(profile.name) is profile


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("0.3:0.7", Profile("0.3:0.7", 0.3, 0.7)),
        (" .25 : .75 ", Profile("0.25:0.75", 0.25, 0.75)),
        ("1:0", Profile("1:0", 1.0, 0.0)),
        ("0:1", Profile("0:1", 0.0, 1.0)),
        ("0.5:0.5", PROFILES["balanced"]),
        ("0.1:0.9", PROFILES["energy"]),
    ],
)
def test_own_weights(text: str, profile: Profile) -> None:
    """Two weights make a profile, and those of a preset that preset."""
    assert parse_profile(text) == profile


@pytest.mark.parametrize("text", ["", "fast", "0.5", "0.2:0.3:0.5", "a:b", "0.5;0.5"])
def test_no_profile(text: str) -> None:
    """What is no profile is refused with the names there are."""
    message = (
        "--llm-profile is one of balanced, energy, runtime, or the weights of time and energy like 0.3:0.7"
    )
    with pytest.raises(SettingError, match=re.escape(f"{message}, got {text!r}")):
        parse_profile(text, "--llm-profile")


@pytest.mark.parametrize("text", ["1:1", "0.3:0.6", "1.5:-0.5", "nan:1", "inf:-inf", "0.5:0.5000001", "0:0"])
def test_weights_that_do_not_weigh(text: str) -> None:
    """Weights are from 0 on and sum to 1."""
    with pytest.raises(SettingError, match=r"both from 0 on and with a sum of 1, got .* with a sum of"):
        parse_profile(text)
    with pytest.raises(SettingError, match=r"got '1:1' with a sum of 2"):
        parse_profile("1:1")


# Several measures -------------------------------------------------------------------------------------------

AT_CHANCE = evaluation(8, 0, 2)  # the reference has 8 of 40 right, 0.8 of the chance level


def test_perplexity_alone_is_itself() -> None:
    """Without evaluations, or where perplexity alone is asked for, nothing is combined."""
    assert combined(quality(), ()) == (None, frozenset(), ())
    assert combined(quality(), (evaluation(20, 2),), ("perplexity",)) == (None, frozenset(), ())
    assert combined(quality(), (kind_of_text(),)) == (None, frozenset(), ())


def test_the_worsening_of_several_measures() -> None:
    """Raised to 1.5 it is the mean of the powers, of the value and of both bounds."""
    task = evaluation(20, 4, 1)
    found = combined(quality(1.03, 1.02, 1.04), (task,))
    part = worsening_of("arc_challenge", task)
    assert part.value == pytest.approx((0.6 - 0.2) / (21 / 40 - 0.2))
    assert part.low == pytest.approx((0.6 - 0.2) / (0.6 * task.ratio.high - 0.2))  # type: ignore[operator]
    assert part.high == pytest.approx((0.6 - 0.2) / (0.6 * task.ratio.low - 0.2))  # type: ignore[operator]
    estimate = found.worsening
    assert estimate is not None
    for name, ratio in (("low", 1.02), ("value", 1.03), ("high", 1.04)):
        expected = (ratio**1.5 + getattr(part, name) ** 1.5) / 2
        assert getattr(estimate, name) ** 1.5 == pytest.approx(expected)
    assert (estimate.n, estimate.method, estimate.source) == (24, "measured", "perplexity + arc_challenge")
    assert found.scored == {"arc_challenge"}
    assert [each.scored for each in found.marked((task, kind_of_text()))] == [True, False]


def test_opt_over_several_measures() -> None:
    """The score is that of the equation over all parts, without another power."""
    now = record(evaluations=(evaluation(20, 4, 1),))
    parts = [LowerIsBetter(1.02, 1.0), HigherIsBetter(21 / 40, 0.6, 0.25)]
    assert now.opt.value == pytest.approx(opt(parts, 0.8, 0.7, PROFILES["balanced"]))


def test_an_evaluation_at_chance_is_left_out_and_said() -> None:
    """Where nothing was asked for, the others carry the score, and a note says which one does not."""
    found = combined(quality(), (AT_CHANCE, evaluation(20, 4, name="winogrande")))
    assert found.scored == {"winogrande"}
    assert found.notes == (
        "arc_challenge is no part of opt: the reference's acc_norm 0.200 is no better than guessing, 0.250",
    )
    assert combined(quality(), (AT_CHANCE,)).worsening is None


@pytest.mark.parametrize(
    ("tasks", "asked", "reason"),
    [
        ((AT_CHANCE,), ("arc_challenge",), "the reference's arc_challenge acc_norm is above 0.2, or it says nothing"),
        ((), ("mmlu",), "mmlu is not evaluated here; add --llm-eval mmlu, or name another measure"),
        (
            (evaluation(reference=None, metric=""),),
            ("perplexity", "arc_challenge"),
            "arc_challenge has figures and no metric; name another measure in --llm-quality",
        ),
    ],
)  # fmt: skip
def test_a_measure_that_was_asked_for_is_never_left_out(tasks, asked, reason) -> None:  # type: ignore[no-untyped-def]
    """The score is then unmeasured, with the reason."""
    now = record(evaluations=tasks, asked=asked)
    assert now.opt.method == "unmeasured"
    assert now.opt.reason.startswith(f"quality: {reason}")
    assert parts_sentence(now).startswith(f"opt is unmeasured: quality: {reason}")
    assert not any(each.scored for each in now.evaluations)


def test_what_is_asked_for_alone_counts() -> None:
    """A named task without perplexity; a lower-is-better one by its ratio; the order of asking is of no account."""
    tasks = (evaluation(20, 4), kind_of_text(1.1))
    alone = combined(quality(), tasks, ("arc_challenge",))
    assert alone.worsening.value == pytest.approx(0.4 / 0.3)  # type: ignore[union-attr]
    text = combined(quality(), tasks, ("slice(kind=code)",)).worsening
    assert (text.value, text.low, text.high) == pytest.approx((1.1, 1.1 * 0.99, 1.1 * 1.01))  # type: ignore[union-attr]
    both = [
        combined(quality(), tasks, names)
        for names in (("arc_challenge", "perplexity"), ("perplexity", "arc_challenge"))
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize("candidate", [0.2, 0.0, -0.3])
def test_a_candidate_at_chance_makes_opt_infinite(candidate: float) -> None:
    """It is worthless, not an error; the record still crosses process borders, and the sentence is whole."""
    now = record(evaluations=(evaluation(20, 4, candidate=candidate),))
    assert now.worsening.value == now.opt.value == INF
    assert from_builtins(Record, to_builtins(now)) == now
    assert parts_sentence(now) == (
        "opt inf = Q inf (perplexity 1.02, arc_challenge inf) x (0.5 T 0.800 + 0.5 E 0.700)"
    )


def test_the_score_with_its_parts() -> None:
    """Weights, ratios, and how energy was had."""
    now = record(evaluations=(evaluation(20, 4),), energy_method="estimated")
    assert parts_sentence(now) == (
        "opt ~0.964 = Q 1.28 (perplexity 1.02, arc_challenge 1.33) x (0.5 T 0.800 + 0.5 E ~0.700)"
    )
    alone = record(profile=Profile("1:0", 1.0, 0.0), energy=())
    assert parts_sentence(alone) == "opt 0.824 = Q 1.03 (perplexity 1.02) x (1 T 0.800)"
    named = record(evaluations=(evaluation(20, 4),), asked=("arc_challenge",))
    assert "= Q 1.54 (arc_challenge 1.33) x" in parts_sentence(named)


@given(st.integers(1, 20), st.integers(0, 10), st.integers(0, 10), st.floats(0.5, 2))
def test_bounds_hold_the_worsening(both: int, lost: int, won: int, ratio: float) -> None:
    """Whatever was measured, the interval holds the value, and a part that gets worse makes it worse."""
    task = evaluation(both, lost, won, chance=0.0)
    found = combined(quality(ratio), (task,)).worsening
    assert found is not None
    assert found.low <= found.value <= found.high  # type: ignore[operator]
    worse = combined(quality(ratio * 1.1), (task,)).worsening
    assert worse.value > found.value  # type: ignore[union-attr, operator]
