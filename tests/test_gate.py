from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import KEY, PROTOCOL, blocks, quality, record, side

from pytest_llmslim.errors import SettingError
from pytest_llmslim.gate import Limits, Thresholds, decide, failure, worst
from pytest_llmslim.records import Axis, Integrity, Key, Outcome, Profile, Record, Verdict, no_estimate
from pytest_llmslim.statistics import block_medians, minimum_blocks

INF, NAN = math.inf, math.nan
NONE = Thresholds()
SIMULATED = no_estimate("weights are only rounded", method="simulated")


def found(verdicts: tuple[Verdict, ...], axis: Axis, against: str = "threshold") -> Verdict | None:
    matching = [v for v in verdicts if v.axis == axis and v.against == against]
    assert len(matching) <= 1
    return matching[0] if matching else None


def against_threshold(axis: Axis, now: Record, limit: float, **keywords: Any) -> Verdict:
    name = "max_opt" if axis == "opt" else f"max_{axis}_increase"
    verdict = found(decide(now, Thresholds(**{name: limit}), **keywords), axis)
    assert verdict is not None
    return verdict


def against_baseline(axis: Axis, now: Record, then: Record, **keywords: Any) -> Verdict | None:
    return found(decide(now, NONE, then, **keywords), axis, "baseline")


# Integrity -----------------------------------------------------------------------------------------------


def test_nothing_compressed_fails_before_all_else() -> None:
    """A candidate that equals the reference fails, and nothing else is decided."""
    now = record(integrity=Integrity("nothing", "No parameter differs."))
    verdicts = decide(now, Thresholds(max_perplexity_increase=0.5))
    assert [(v.axis, v.outcome) for v in verdicts] == [("integrity", "failed")]
    assert verdicts[0].sentence == "int4 on embedded:gpt2: nothing was compressed. No parameter differs."


@pytest.mark.parametrize("status", ["compressed", "simulated", "changed", "control"])
def test_other_candidates_pass_integrity(status: Any) -> None:
    """What was compressed, simulated, changed, or is a control, passes with its sentence."""
    verdict = found(decide(record(integrity=Integrity(status, "So it is.")), NONE), "integrity", "integrity")
    assert verdict == Verdict("integrity", "passed", "int4 on embedded:gpt2: So it is.", "integrity")


def test_order() -> None:
    """Integrity comes first, then quality, then cost, and opt last."""
    limits = Thresholds(0.5, None, 0.5, 0.5, 2.0)
    verdicts = decide(record(), limits, record())
    assert list(dict.fromkeys(v.axis for v in verdicts)) == [
        "integrity",
        "perplexity",
        "time",
        "energy",
        "opt",
    ]
    assert len(verdicts) == 9
    assert worst(verdicts) == "passed"
    assert failure(verdicts) == failure(verdicts, strict=True) == ""


# Perplexity against a threshold --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "limit", "outcome"),
    [
        (1.0299, 0.03, "passed"),
        (1.03, 0.03, "passed"),
        (1.0301, 0.03, "failed"),
        (1.0, 0.0, "passed"),
        (1.0001, 0.0, "failed"),
        (0.9, -0.05, "passed"),
        (0.96, -0.05, "failed"),
        (INF, 0.03, "failed"),
        (NAN, 0.03, "failed"),
        (0.0, 0.03, "failed"),
        (-1.0, 0.03, "failed"),
    ],
)
def test_perplexity_limit(ratio: float, limit: float, outcome: Outcome) -> None:
    """The point estimate is over the limit or not; equal is not over; what is no ratio never passes."""
    now = dataclasses.replace(record(), perplexity=quality(ratio, ratio, ratio))
    assert against_threshold("perplexity", now, limit).outcome == outcome


def test_perplexity_failure_in_words() -> None:
    """The sentence has subject, rule, what was got with its interval, and the next step."""
    now = record(perplexity=quality(1.041, 1.038, 1.044))
    assert against_threshold("perplexity", now, 0.03).sentence == (
        "int4 on embedded:gpt2: perplexity 35.6 is 4.1 % [3.8, 4.4] over the reference, limit 3 %. "
        "Take a milder recipe, or raise max_perplexity_increase."
    )


def test_perplexity_pass_in_words() -> None:
    """A passed sentence says how far it is from the limit."""
    now = record(perplexity=quality(0.99, 0.98, 1.0))
    assert against_threshold("perplexity", now, 0.03).sentence == (
        "int4 on embedded:gpt2: perplexity 33.9 is 1.0 % [0.0, 2.0] under the reference, limit 3 %."
    )


@pytest.mark.parametrize(
    ("low", "high", "note"),
    [
        (1.0, 1.04, " 24 windows of text are too few to be sure; about 96 would do (--llm-tokens)."),
        (1.03, 1.04, " 24 windows of text are too few to be sure; about "),
        (1.0, 1.03, ""),
        (1.0301, 1.04, ""),
    ],
)
def test_a_short_text_is_said(low: float, high: float, note: str) -> None:
    """A passed sentence says when the windows leave the limit open, and how many would settle it."""
    now = record(perplexity=quality(1.02, low, high))
    sentence = against_threshold("perplexity", now, 0.03).sentence
    assert note in sentence
    assert ("too few" in sentence) == bool(note)


def test_a_text_that_no_length_settles() -> None:
    """On the limit itself no text is long enough, and the sentence says so."""
    now = record(perplexity=quality(1.03, 1.02, 1.04))
    assert "no reasonable length would do." in against_threshold("perplexity", now, 0.03).sentence


def test_a_broken_candidate_fails_without_a_limit() -> None:
    """A perplexity that is no number fails even where nothing was asked."""
    now = dataclasses.replace(record(), perplexity=quality(NAN, NAN, NAN))
    verdict = found(decide(now, NONE), "perplexity")
    assert verdict is not None
    assert verdict.sentence.endswith(
        "perplexity cannot be judged: its ratio is nan; the candidate is broken."
    )


# Noisy axes against a threshold --------------------------------------------------------------------------

AXES: list[Axis] = ["time", "energy", "opt"]


def costs(axis: Axis, ratio: float, spread: float = 0.0, n: int = 12) -> Record:
    """A record whose `axis` is `ratio`, everything else being the reference's."""
    noisy, exact = blocks(ratio, spread, n), blocks(1.0)
    equal = quality(1.0, 1.0, 1.0)
    if axis == "opt":
        return record(perplexity=equal, time=noisy, energy=noisy)
    return record(perplexity=equal, **{"time": exact, "energy": exact, axis: noisy})


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    ("ratio", "spread", "outcome"),
    [
        (1.04, 0.0, "passed"),
        (1.05, 0.0, "passed"),
        (1.051, 0.0, "failed"),
        (1.2, 0.05, "failed"),
        (0.9, 0.05, "passed"),
        (1.051, 0.05, "inconclusive"),
        (1.049, 0.05, "inconclusive"),
    ],
)
def test_cost_limit(axis: Axis, ratio: float, spread: float, outcome: Outcome) -> None:
    """Failed when the lower bound is over, passed when the upper bound is not, undecided in between."""
    limit = 1.05 if axis == "opt" else 0.05
    assert against_threshold(axis, costs(axis, ratio, spread), limit).outcome == outcome


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_too_few_blocks_decide_nothing(axis: Axis, ratio: float) -> None:
    """Below log2(1 / alpha) blocks nothing passes or fails, and the sentence says how many it takes."""
    least = 8 if axis == "opt" else 7  # opt rests on two series, so each has half of the one percent
    few, enough = costs(axis, ratio, n=least - 1), costs(axis, ratio, n=least)
    limit = 1.05 if axis == "opt" else 0.05
    verdict = against_threshold(axis, few, limit)
    assert verdict.outcome == "inconclusive"
    assert (
        f"{least - 1} blocks can decide nothing; it takes at least {least} (--llm-rounds {least})."
        in verdict.sentence
    )
    assert against_threshold(axis, enough, limit).outcome == ("passed" if ratio < 1 else "failed")


def test_a_family_of_gates_needs_more_blocks() -> None:
    """With one percent split over twenty gates, ten blocks cannot fail what eleven can."""
    alpha = 0.01 / 20
    assert minimum_blocks(alpha) == 11
    ten = against_threshold("time", costs("time", 2.0, n=10), 0.05, alpha=alpha)
    assert ten.outcome == "inconclusive"
    assert "about 11 blocks would settle it" in ten.sentence
    assert against_threshold("time", costs("time", 2.0, n=11), 0.05, alpha=alpha).outcome == "failed"


def test_cost_in_words() -> None:
    """Each outcome says subject, rule, got and next step; the bracket is what the decision rests on."""
    slow = against_threshold("time", costs("time", 1.12, 0.02), 0.05)
    assert slow.sentence == (
        "int4 on embedded:gpt2: time is 12.0 % [10.8, 13.2] over the reference, limit 5 %. "
        "Take a cheaper recipe, or raise max_time_increase."
    )
    fast = against_threshold("time", costs("time", 0.8), 0.05)
    assert (
        fast.sentence == "int4 on embedded:gpt2: time is 20.0 % [20.0, 20.0] under the reference, limit 5 %."
    )
    open_ = against_threshold("time", costs("time", 1.04, 0.05), 0.05)
    assert re.fullmatch(
        r"int4 on embedded:gpt2: time is 4.0 % \[1.2, 6.9\] over the reference, limit 5 %: undecided. "
        r"Above 1.069 is excluded; about \d+ blocks would settle it \(--llm-rounds \d+\).",
        open_.sentence,
    )


def test_on_the_limit_more_blocks_do_not_help() -> None:
    """An estimate on the limit is undecided with any number of blocks."""
    sentence = against_threshold("time", costs("time", 1.05, 0.05), 0.05).sentence
    assert sentence.endswith("is excluded; more blocks would not help.")


def test_opt_in_words() -> None:
    """The score is shown with its bounds, and with how energy was had."""
    now = record(energy_method="estimated", energy_source="codecarbon")
    assert against_threshold("opt", now, 0.7).sentence == (
        "int4 on embedded:gpt2: opt is 0.773 [0.773, 0.773] (energy estimated), limit 0.7. "
        "Take a cheaper recipe, or raise max_opt."
    )


def test_sampled_energy_is_said() -> None:
    """Energy that was sampled is gated, and its sentence says so."""
    now = record(energy_method="sampled", energy_source="nvml-power")
    assert against_threshold("energy", now, 0.05).sentence == (
        "int4 on embedded:gpt2: energy is 30.0 % [30.0, 30.0] under the reference "
        "(sampled by nvml-power), limit 5 %."
    )


@pytest.mark.parametrize(
    ("missing", "profile"), [("energy", Profile("1:0", 1.0, 0.0)), ("time", Profile("0:1", 0.0, 1.0))]
)
def test_opt_on_one_cost_alone(missing: str, profile: Profile) -> None:
    """A profile without weight on a cost needs no meter for it, and spends all of alpha on the other."""
    alone = {"time": blocks(0.8, n=7), "energy": blocks(0.8, n=7), missing: ()}
    now = record(**alone, profile=profile, perplexity=quality(1.0, 1.0, 1.0))
    assert against_threshold("opt", now, 0.9).outcome == "passed"
    assert against_threshold("opt", now, 0.7).outcome == "failed"
    then = dataclasses.replace(now, energy=dataclasses.replace(now.energy, source="another"))
    comparable = against_baseline("opt", now, then)
    assert comparable is not None
    assert comparable.outcome == ("passed" if missing == "energy" else "not comparable")


def test_enough_blocks_say_what_they_exclude() -> None:
    """Seven blocks can decide, so an undecided sentence says what they exclude."""
    verdict = against_threshold("time", costs("time", 1.04, 0.05, n=7), 0.05)
    assert verdict.outcome == "inconclusive"
    assert "Above 1.093 is excluded; about " in verdict.sentence


@given(
    st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=14),
    st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=14),
    st.floats(-0.2, 0.2),
    st.floats(0, 0.3),
)
def test_a_higher_limit_is_never_stricter(t: list[float], e: list[float], limit: float, more: float) -> None:
    """Raising a limit never turns passed into failed or undecided, nor undecided into failed."""
    now = record(time=tuple(t), energy=tuple(e))
    order = ["failed", "inconclusive", "passed"]
    for axis in AXES:
        base = 1.0 if axis == "opt" else 0.0
        low, high = (against_threshold(axis, now, base + x).outcome for x in (limit, limit + more))
        assert order.index(low) <= order.index(high)


# What cannot be checked ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "fields", "reason"),
    [
        (
            "time",
            {"time": no_estimate("2 workers shared the machine.")},
            "unmeasured (2 workers shared the machine)",
        ),
        ("time", {"time": SIMULATED}, "simulated (weights are only rounded)"),
        ("energy", {"energy": SIMULATED}, "simulated (weights are only rounded)"),
        ("opt", {"opt": SIMULATED}, "simulated (weights are only rounded)"),
        ("perplexity", {"perplexity": no_estimate("no text")}, "unmeasured (no text)"),
    ],
)
def test_a_limit_that_cannot_be_checked(axis: Axis, fields: Any, reason: str) -> None:
    """A limit on something unmeasured or simulated is undecided with the reason, never passed."""
    verdict = against_threshold(axis, dataclasses.replace(record(), **fields), 0.03)
    limit = "max_opt 0.03" if axis == "opt" else f"max_{axis}_increase 3 %"
    assert verdict.outcome == "inconclusive"
    assert verdict.sentence == f"int4 on embedded:gpt2: {limit} cannot be checked: {reason}."


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("axis", AXES)
def test_samples_that_are_no_numbers(axis: Axis, bad: float) -> None:
    """A block that is no number leaves the limit undecided."""
    whole = costs(axis, 0.5)
    broken = dataclasses.replace(whole.samples, time=(0.1, bad), energy=(0.1, bad))
    verdict = against_threshold(axis, dataclasses.replace(whole, samples=broken), 0.5)
    assert verdict.outcome == "inconclusive"
    assert "cannot be checked: a log ratio is finite" in verdict.sentence


def test_lost_samples() -> None:
    """A record without samples decides nothing."""
    whole = record()
    lost = dataclasses.replace(whole, samples=dataclasses.replace(whole.samples, time=()))
    assert against_threshold("time", lost, 0.5).outcome == "inconclusive"


def test_estimated_energy_is_gated_only_when_asked() -> None:
    """A limit on estimated energy is undecided, unless estimates are to be gated too."""
    now = record(energy_method="estimated", energy_source="codecarbon")
    refused = against_threshold("energy", now, 0.05)
    assert refused.outcome == "inconclusive"
    assert refused.sentence == (
        "int4 on embedded:gpt2: max_energy_increase 5 % cannot be checked: codecarbon only estimates energy; "
        "pass --llm-gate-estimated to use it all the same."
    )
    assert against_threshold("energy", now, 0.05, gate_estimated=True).outcome == "passed"
    assert found(decide(now, NONE), "energy") is None


@pytest.mark.parametrize("bad", [NAN, INF, -1.0, -2.0])
def test_thresholds_are_checked(bad: float) -> None:
    """A limit is finite and leaves something over."""
    with pytest.raises(SettingError, match=f"max_time_increase is a finite number above -1, got {bad}"):
        Thresholds(max_time_increase=bad)
    with pytest.raises(SettingError, match="max_opt is a finite number above 0, got 0"):
        Thresholds(max_opt=0)


# Perplexity against the baseline -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "then", "outcome", "words"),
    [
        (1.0301, 1.02, "passed", "was 1.020 in the baseline: 0.99 % over, limit 1 %."),
        (1.0302, 1.02, "passed", "was 1.020 in the baseline: 1.0 % over, limit 1 %."),
        (
            1.0303,
            1.02,
            "failed",
            "1.01 % over, limit 1 %. Accept with --llm-update, or find what made it worse.",
        ),
        (1.02, 1.02, "passed", "was 1.020 in the baseline: 0.0 % over, limit 1 %."),
        (1.01, 1.02, "passed", "was 1.020 in the baseline: 0.98 % under, limit 1 %."),
        (1.0, 1.02, "passed", "That is better than the baseline; keep it with --llm-update."),
        (INF, 1.02, "failed", "perplexity ratio inf was 1.020"),
        (INF, INF, "passed", "perplexity ratio inf was inf"),
        (1.02, INF, "passed", "That is better than the baseline"),
        (1.02, 0.0, "not comparable", "there, its ratio is 0"),
        (NAN, 1.02, "not comparable", "now, its ratio is nan"),
    ],
)
def test_perplexity_regression(now: float, then: float, outcome: Outcome, words: str) -> None:
    """One percent over the stored ratio is a regression; better is passed with a hint."""
    records = [dataclasses.replace(record(), perplexity=quality(r, r, r)) for r in (now, then)]
    verdict = against_baseline("perplexity", *records)
    assert verdict is not None
    assert verdict.outcome == outcome
    assert words in verdict.sentence
    assert ("better" in verdict.sentence) == (now < 0.99 * then < INF or now < then == INF)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PROTOCOL)])
def test_protocols_are_not_mixed(field: str) -> None:
    """Any difference of protocol is named, with both values, and nothing is compared."""
    value = getattr(PROTOCOL, field)
    other = not value if isinstance(value, bool) else value + ("x" if isinstance(value, str) else 1)
    then = record(protocol=dataclasses.replace(PROTOCOL, **{field: other}))
    for axis in ("perplexity", "time", "energy", "opt"):
        verdict = against_baseline(axis, record(), then)
        assert verdict is not None
        assert verdict.outcome == "not comparable"
        assert verdict.sentence == (
            f"int4 on embedded:gpt2: {axis} is not comparable with the baseline: protocol {field} is {value} "
            f"now and {other} there; measure alike, or use --llm-update."
        )


def test_another_reference_is_not_comparable() -> None:
    """A stored run of other reference weights is another experiment."""
    verdict = against_baseline("perplexity", record(), record(reference=side(weights="s")))
    assert verdict is not None
    assert "sha256 of the reference's weights is rrrrrrrrrrrr now and ssssssssssss there" in verdict.sentence


@pytest.mark.parametrize(
    ("now", "fingerprint", "dtype", "said"),
    [
        (35.0001, {}, "float32", False),
        (35.001, {}, "float32", True),
        (35.001, {"cpu": "Xeon"}, "float32", False),
        (35.01, {"cpu": "Xeon"}, "float32", True),
        (35.01, {"cpu": "Xeon"}, "bfloat16", False),
        (35.1, {"cpu": "Xeon"}, "bfloat16", True),
    ],
)
def test_same_weights_give_the_same_perplexity(now: float, fingerprint: Any, dtype: str, said: bool) -> None:
    """Equal weights with another perplexity are mentioned, with room for hardware and stored digits."""
    protocol = dataclasses.replace(PROTOCOL, dtype=dtype)
    then = record(protocol=protocol, candidate=side(35.0, "c"))
    here = record(protocol=protocol, candidate=side(now, "c"), fingerprint=then.fingerprint | fingerprint)
    verdict = against_baseline("perplexity", here, then)
    assert verdict is not None
    assert ("The same weights gave perplexity 35.0000 there and" in verdict.sentence) == said
    other = dataclasses.replace(here, candidate=side(now, "d"))
    assert "same weights" not in decide(other, NONE, then)[1].sentence


# Cost against the baseline -------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(
    ("ratio", "spread", "outcome", "words"),
    [
        (1.02, 0.0, "passed", "2.0 % over, limit 2 %; more than 10 % is excluded."),
        (
            1.021,
            0.0,
            "failed",
            "2.1 % over, limit 2 %. Accept with --llm-update, or find what made it worse.",
        ),
        (1.2, 0.02, "failed", "Accept with --llm-update"),
        (1.06, 0.02, "failed", "Accept with --llm-update"),
        (1.01, 0.05, "passed", "more than 10 % is excluded."),
        (1.06, 0.10, "inconclusive", "undecided. Above 1."),
        (1.0, 0.5, "inconclusive", "blocks would settle it (--llm-rounds "),
        (0.9, 0.02, "passed", "That is better than the baseline; keep it with --llm-update."),
    ],
)
def test_cost_regression(axis: Axis, ratio: float, spread: float, outcome: Outcome, words: str) -> None:
    """Failed when past 2 % for sure, passed when inside 10 % for sure, undecided in between."""
    verdict = against_baseline(axis, costs(axis, ratio, spread), costs(axis, 1.0))
    assert verdict is not None
    assert (verdict.outcome, verdict.against) == (outcome, "baseline")
    assert words in verdict.sentence


def test_the_stored_interval_widens_the_tolerance() -> None:
    """What an exact baseline fails is undecided against one that is itself uncertain."""
    now = costs("time", 1.05)
    exact, vague = costs("time", 1.0), costs("time", 1.0, 0.15)
    assert against_baseline("time", now, exact).outcome == "failed"  # type: ignore[union-attr]
    assert against_baseline("time", now, vague).outcome == "inconclusive"  # type: ignore[union-attr]


def test_a_stored_run_without_an_interval() -> None:
    """A baseline of too few blocks decides nothing, and the sentence says what to do."""
    verdict = against_baseline("time", costs("time", 1.0), costs("time", 1.0, n=3))
    assert verdict is not None
    assert verdict.outcome == "inconclusive"
    assert verdict.sentence.endswith("The stored run has too few blocks; write it anew with --llm-update.")


def test_own_limits() -> None:
    """The limits of a regression can be set."""
    strict = Limits(baseline_perplexity=0.001, limit=0.001, resolve=0.002)
    now, then = costs("time", 1.01), costs("time", 1.0)
    assert against_baseline("time", now, then, limits=strict).outcome == "failed"  # type: ignore[union-attr]
    assert against_baseline("time", now, then).outcome == "passed"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": {"cpu": "Xeon", "threads": "1"}}, "fingerprint cpu is EPYC now and Xeon there"),
        ({"fingerprint": {"cpu": "EPYC"}}, "fingerprint threads is 1 now and absent there"),
        (
            {"fingerprint": {"cpu": "EPYC", "threads": "1", "gpu": "H200"}},
            "fingerprint gpu is absent now and H200",
        ),
    ],
)
def test_another_machine(changes: Any, reason: str) -> None:
    """On another machine quality is compared, and cost is not, with the first difference named."""
    verdicts = decide(record(), NONE, record(**changes))
    assert found(verdicts, "perplexity", "baseline").outcome == "passed"  # type: ignore[union-attr]
    for axis in AXES:
        verdict = found(verdicts, axis, "baseline")
        assert verdict is not None
        assert verdict.outcome == "not comparable"
        assert reason in verdict.sentence


@pytest.mark.parametrize(
    ("fields", "time", "energy", "opt"),
    [
        ({"profile": Profile("energy", 0.1, 0.9)}, "", "", "profile is balanced now and energy there"),
        (
            {"energy_source": "nvml"},
            "",
            "energy source is rapl now and nvml there",
            "energy source is rapl now and",
        ),
        (
            {"energy_method": "sampled"},
            "",
            "energy method is measured now and sampled",
            "energy method is measured",
        ),
        (
            {"energy_method": "estimated"},
            "",
            "energy method is measured now and estimated",
            "energy method is",
        ),
    ],
)
def test_energies_and_profiles_do_not_mix(fields: Any, time: str, energy: str, opt: str) -> None:
    """Energy of another source and opt of another profile are not compared; time still is."""
    for axis, reason in (("time", time), ("energy", energy), ("opt", opt)):
        verdict = against_baseline(axis, record(), record(**fields))  # type: ignore[arg-type]
        assert verdict is not None
        assert verdict.outcome == ("not comparable" if reason else "passed")
        assert reason in verdict.sentence


def test_estimated_energy_has_no_regression() -> None:
    """Estimates on both sides are not compared, unless asked."""
    now, then = (record(energy=blocks(r), energy_method="estimated") for r in (0.9, 0.7))
    assert against_baseline("energy", now, then) is None
    assert against_baseline("opt", now, then) is None
    asked = decide(now, NONE, then, gate_estimated=True)
    assert found(asked, "energy", "baseline").outcome == "failed"  # type: ignore[union-attr]
    assert "(energy estimated)" in found(asked, "opt", "baseline").sentence  # type: ignore[union-attr]


def test_unmeasured_on_one_side_or_both() -> None:
    """What has a number on one side only is not comparable; on neither side there is nothing to say."""
    without = record(energy=())
    assert against_baseline("energy", without, without) is None
    lost = against_baseline("energy", without, record())
    gained = against_baseline("energy", record(), without)
    assert lost is not None
    assert gained is not None
    assert "not comparable with the baseline: now, unmeasured (no energy meter);" in lost.sentence
    assert "not comparable with the baseline: there, unmeasured (no energy meter);" in gained.sentence


def test_broken_samples_against_a_baseline() -> None:
    """A block that is no number leaves the comparison undecided."""
    whole = record()
    broken = dataclasses.replace(whole, samples=dataclasses.replace(whole.samples, time=(NAN,)))
    verdict = against_baseline("time", broken, whole)
    assert verdict is not None
    assert verdict.outcome == "inconclusive"
    assert "time ratio cannot be judged: a log ratio is finite, got nan" in verdict.sentence


# Missing baseline, messages ------------------------------------------------------------------------------


def test_no_baseline() -> None:
    """A missing baseline is new, and fails where one is required."""
    new = found(decide(record(), NONE), "perplexity", "baseline")
    required = found(decide(record(), NONE, require_baseline=True), "perplexity", "baseline")
    text = (
        "int4 on embedded:gpt2: test_ptq in suites/test_ptq.py has no baseline; write one with --llm-update"
    )
    assert new == Verdict("perplexity", "new", f"{text}.", "baseline")
    assert required == Verdict("perplexity", "failed", f"{text} and commit it.", "baseline")


def test_a_baseline_of_something_else_is_a_fault() -> None:
    """A record is never compared with that of another key."""
    other = record(key=Key(KEY.suite, KEY.test, KEY.model, "int8"))
    with pytest.raises(ValueError, match="a baseline has the record's key"):
        decide(record(), NONE, other)


def test_failure_lists_what_fails() -> None:
    """Failed sentences fail a test, one a line; under strict also what was undecided or not comparable."""
    verdicts = [
        Verdict("time", outcome, outcome)
        for outcome in ("passed", "failed", "inconclusive", "not comparable", "new")
    ]
    assert failure([*verdicts, Verdict("opt", "failed", "again")]) == "failed\nagain"
    assert failure(verdicts, strict=True) == "failed\ninconclusive\nnot comparable"
    assert failure([]) == ""


def test_opt_never_excuses_quality() -> None:
    """A candidate with a splendid score still fails on its perplexity."""
    now = record(perplexity=quality(1.25, 1.24, 1.26), time=blocks(0.1), energy=blocks(0.1))
    verdicts = decide(now, Thresholds(max_perplexity_increase=0.03, max_opt=0.9))
    assert found(verdicts, "opt").outcome == "passed"  # type: ignore[union-attr]
    assert worst(verdicts) == "failed"


@settings(deadline=None)
@given(
    st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=14).map(tuple),
    st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=14).map(tuple),
    st.floats(0.5, 2),
)
def test_every_verdict_is_one_sentence_of_one_subject(t: Any, e: Any, ratio: float) -> None:
    """Whatever was measured, verdicts are deterministic, begin with the subject and are one line."""
    now, limits = record(perplexity=quality(ratio), time=t, energy=e), Thresholds(0.03, 0.03, 0.03, 0.03, 1.0)
    verdicts = decide(now, limits, record())
    assert verdicts == decide(now, limits, record())
    for verdict in verdicts:
        assert verdict.sentence.startswith("int4 on embedded:gpt2: ")
        assert verdict.sentence.endswith(".")
        assert "\n" not in verdict.sentence
        assert "nan" not in verdict.sentence


# Recorded noise ------------------------------------------------------------------------------------------

NOISE = Path(__file__).parents[2] / "shared" / "noise" / "blocks"


@pytest.mark.skipif(not NOISE.is_dir(), reason="recorded noise is not here: shared/noise/blocks")
def test_recorded_noise_of_a_loaded_machine() -> None:
    """Thirty recorded blocks: equal models never fail, +20 % always fails, limit and baseline alike."""
    exact = costs("time", 1.0)
    for path in sorted(NOISE.glob("*.npz")):
        pairs = np.load(path)["T"][:30, :4, :, :, 1]  # [block, round, effect, who], process CPU time
        logs = np.log(pairs[..., 1] / pairs[..., 0])
        for effect, outcomes in ((0, {"passed", "inconclusive"}), (3, {"failed"})):
            samples = block_medians(logs[:, :, effect].flatten().tolist(), 4)
            now = record(perplexity=quality(1.0, 1.0, 1.0), time=samples, energy=blocks(1.0))
            assert against_threshold("time", now, 0.02).outcome in outcomes
            assert against_baseline("time", now, exact).outcome in outcomes  # type: ignore[union-attr]
