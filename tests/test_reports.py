"""Summaries: records in, text out."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from sample_records import KEY, blocks, quality, record

from pytest_llmslim.records import (
    Build,
    Carbon,
    Divergence,
    Integrity,
    Key,
    Metering,
    Reading,
    Sampling,
    Verdict,
    no_estimate,
    unmeasured,
)
from pytest_llmslim.reports.details import details
from pytest_llmslim.reports.files import row, summary
from pytest_llmslim.reports.terminal import Shown, lines, ranked


def named(recipe, **fields):
    """A record under another recipe's name."""
    return record(key=dataclasses.replace(KEY, recipe=recipe), **fields)


def joules(value, source="rapl", method="measured"):
    return Reading(value, "J", source, method)


def built(energy):
    """A candidate that took 1.5 s to build."""
    return Build(Reading(1.5, "s", "perf_counter", "measured"), energy, ("int4",))


def text(*records, skipped=(), changes=(), troubles=(), missing=(), update=False, verbose=False):
    """The summary as one text."""
    shown = Shown(
        tuple(records),
        tuple(skipped),
        tuple(changes),
        tuple(troubles),
        "baselines",
        "llm-results",
        update,
        verbose,
        missing=tuple(missing),
    )
    return "\n".join(line for line, _ in lines(shown))


def verdict(outcome, sentence="int4 on m: a sentence.", against="threshold", axis="perplexity"):
    return Verdict(axis, outcome, sentence, against)


def test_a_row_shows_every_axis():
    """Perplexity, its ratio with interval, time, energy, bytes, divergence, opt and verdict."""
    table = text(record())
    assert "1  int4" in table
    for cell in (
        "1.020 [1.015, 1.025]",
        "0.800 [0.800, 0.800]",
        "0.700 [0.700, 0.700]",
        "0.140",
        "0.0120",
        "97.0 %",
        "0.773",
        "passed",
    ):
        assert cell in table


def test_rows_are_ranked_by_opt_and_failures_come_last():
    """The control without energy has no opt and stands below those that have one."""
    good, better = named("good", time=blocks(0.9)), named("better", time=blocks(0.5))
    bad = named("bad", time=blocks(0.1), verdicts=(verdict("failed"),))
    blank = named("blank", energy=())
    assert [r.key.recipe for r in ranked([blank, bad, good, better])] == ["better", "good", "blank", "bad"]


def test_the_winner_is_named():
    """The lowest opt that did not fail; never the control."""
    control = named("identity", time=blocks(0.1), integrity=Integrity("control", "equal"))
    table = text(control, named("int8", time=blocks(0.9)), named("bad", verdicts=(verdict("failed"),)))
    assert "lowest opt: int8 with 0.824; stored bytes fell" in table


def test_a_reference_that_is_best_is_said_to_be():
    """A ranking alone would recommend the least bad."""
    table = text(named("int8", time=blocks(1.5), energy=blocks(1.4)))
    assert "no recipe scores better than the reference (1); lowest opt: int8 with 1.494" in table


def test_estimated_energy_is_marked_wherever_it_is_shown():
    """The ratio and the opt that rests on it carry the mark, and the legend says what it means."""
    table = text(record(energy_method="estimated", energy_source="codecarbon"))
    assert "~0.700" in table
    assert "~0.773" in table
    assert "~ energy is estimated by a model (rapl), not measured" in table
    assert "~" not in text(record())


def test_unmeasured_energy_gives_a_dash_and_its_reason():
    """Never 0."""
    table = text(record(energy=()))
    assert "- energy unmeasured: no energy meter" in table
    row_line = next(line for line in table.split("\n") if line.startswith("1  int4"))
    assert row_line.split()[-2:] == ["-", "passed"]


def test_unmeasured_time_gives_a_dash_and_its_reason():
    """As energy does; opt, which rests on it, has none either."""
    found = dataclasses.replace(record(), time=no_estimate("other work took the CPU"))
    assert "- time unmeasured: other work took the CPU" in text(found)


def test_reasons_that_differ_in_numbers_alone_are_said_once():
    """Every candidate's windows have another length."""
    rows = [
        dataclasses.replace(named(name, energy=()), energy=no_estimate(reason))
        for name, reason in (("a", "65.2 J over 2.32 s"), ("b", "6.4 J over 229 s"), ("c", "no meter"))
    ]
    found = [line for line in text(*rows).split("\n") if line.startswith("- energy")]
    assert found == ["- energy unmeasured: 65.2 J over 2.32 s", "- energy unmeasured: no meter"]


def test_simulated_candidates_show_no_cost():
    """Weights that are only rounded have no time, energy or bytes."""
    none = no_estimate("half of the weights are zero but stored", method="simulated")
    table = text(
        dataclasses.replace(
            record(time=(), energy=()),
            time=none,
            energy=none,
            stored_bytes=none,
            integrity=Integrity("simulated", "zeros"),
        )
    )
    assert table.count("simulated") >= 3
    assert (
        "simulated: weights are rounded or zeroed, and no kernel here is faster for it, so there is no cost to show; "
        "bytes are shown where they are really fewer\n"
    ) in table


def test_packed_codes_show_their_bytes():
    """What is stored is real, also where every product is simulated."""
    none = no_estimate("codes are unpacked before every product", method="simulated")
    packed = dataclasses.replace(
        record(time=(), energy=()), time=none, energy=none, integrity=Integrity("simulated", "codes")
    )
    row = next(line for line in text(packed).splitlines() if line.startswith("1  "))
    assert 2 == row.count("simulated")
    assert "0.140" in row


def test_the_pace_of_the_reference_is_that_of_a_record_with_times():
    """A simulated candidate is not timed, and with it alone there is no time to show."""
    plain = record()
    still = dataclasses.replace(plain.reference, time_s=unmeasured("s", "none", "only quality was measured"))
    best = named("fast", time=blocks(0.1), reference=still)
    assert "perplexity 34.20, 12.3 ms a window (process cpu time)\n" in text(best, plain)
    assert "perplexity 34.20\n" in text(best)


def test_the_floor_is_shown_where_it_is_known():
    """Perplexity over the grammar's own."""
    table = text(record(floor=30.0))
    assert "floor 30.00" in table
    assert "34.88 (+16.3 % floor)" in table


def test_models_have_tables_of_their_own():
    """Numbers of two models are never ranked against each other."""
    other = record(key=Key("s", "t", "embedded:llama", "int4"))
    table = text(record(), other)
    assert table.count("1  int4") == 2
    assert "embedded:gpt2: 124,000 parameters, 500 kB in float32" in table
    assert "embedded:llama: 124,000 parameters" in table


def test_the_protocol_is_shown():
    """Text, hash, tokens, windows, BOS and the score's formula."""
    shown = text(record())
    assert "text embedded (sha256 abababababab), 6,120 tokens scored in 24 windows of BOS + 255\n" in shown
    assert "profile balanced: opt = Q (0.5 T + 0.5 E), Q = ratio^1.5, lower is better\n" in shown


def test_what_did_not_pass_is_said_in_its_own_sentence():
    """Failures first, then what is undecided, then what cannot be compared."""
    table = text(
        named("a", verdicts=(verdict("not comparable", "C."),)),
        named("b", verdicts=(verdict("failed", "A."),)),
        named("c", verdicts=(verdict("inconclusive", "B."), verdict("passed", "unsaid"))),
    )
    found = [line for line in table.split("\n") if line.endswith((" A.", " B.", " C."))]
    assert found == ["failed: A.", "inconclusive: B.", "not comparable: int4 on embedded:gpt2: C."]
    assert "unsaid" not in table


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("new", "baselines in baselines: 0 compared, 1 new, 0 not comparable in part"),
        ("passed", "baselines in baselines: 1 compared, 0 new, 0 not comparable in part"),
        ("not comparable", "baselines in baselines: 0 compared, 0 new, 1 not comparable in part"),
    ],
)
def test_what_was_compared_is_always_said(outcome, expected):
    """And the next command where nothing is stored yet."""
    table = text(record(verdicts=(verdict(outcome, against="baseline"),)))
    assert expected in table
    assert ("next: add --llm-update" in table) == (outcome == "new")


def test_what_was_held_against_the_anchor_was_compared():
    """On whatever axis, wall time too; a record counts once."""
    wall = verdict("passed", against="anchor", axis="wall")
    both = (wall, verdict("passed", against="baseline"))
    far = verdict("not comparable", against="anchor", axis="wall")
    table = text(named("a", verdicts=(wall,)), named("b", verdicts=both), named("c", verdicts=(far,)))
    assert "baselines in baselines: 2 compared, 0 new, 1 not comparable in part" in table


def test_an_update_prints_what_it_wrote():
    """One line a change."""
    table = text(record(), changes=["int4 on m: perplexity ratio 1.02 -> 1.01"], update=True)
    assert "baselines written to baselines: 1 changes" in table
    assert "  int4 on m: perplexity ratio 1.02 -> 1.01" in table


def test_what_was_not_measured_and_what_could_not_be_written_is_said():
    """A skip or an error is a line, not a gap."""
    table = text(
        skipped=[("gpt2-ah90", "no head qualifies")],
        missing=["int8 has a baseline and no test."],
        troubles=["disk full"],
    )
    assert table.split("\n") == [
        "not measured: gpt2-ah90: no head qualifies",
        "int8 has a baseline and no test.",
        "disk full",
    ]
    shown = Shown((), (), (), (), "b", "r", False, False, missing=("m",))
    assert lines(shown) == [("m", ("yellow",))]


# Cost of compressing ----------------------------------------------------------------------------------------


def test_the_winner_comes_with_what_building_it_cost_and_when_that_is_paid():
    """1.5 s at 9.77 us a token; and joules, where all are of one kind."""
    assert (
        "  building int4: pays for its 1.50 s after 154,000 tokens [154,000, 154,000]; energy unmeasured (no meter)\n"
    ) in text(record())
    paid = "pays for its 60.0 J after 148,000 tokens [148,000, 148,000]\n"
    assert paid in text(record(build=built(joules(60.0))))


def test_a_cost_that_is_never_paid_is_said_to_be():
    """Slower than the reference; the energy is saved all the same."""
    line = text(record(time=blocks(1.1), build=built(joules(60.0))))
    assert "building int4: never pays for its 1.50 s: it saves no time; pays for its 60.0 J after" in line


def test_a_saving_that_is_not_shown_pays_for_nothing_yet():
    """The interval of the ratio holds 1; by wall time where that is what counts."""
    assert (
        "not sure to pay for its 1.50 s: the time ratio 0.990 [0.974, 1.006] may be no saving, "
        "and it takes at least 1,180,000 tokens;"
    ) in text(record(time=blocks(0.99, 0.03)))
    threads = record(sampling=Sampling(wall_over_cpu=0.5), time=blocks(0.9))
    wall = dataclasses.replace(threads.wall, value=0.99, low=0.9, high=1.1)
    assert "the time ratio 0.990 [0.900, 1.100] may be no saving" in text(
        dataclasses.replace(threads, wall=wall)
    )


def test_estimated_joules_of_building_are_marked():
    """In the cost and in the tokens."""
    plain = record(energy_method="estimated", energy_source="codecarbon")
    guess = joules(9.0, "codecarbon", "estimated")
    sides = {
        name: dataclasses.replace(getattr(plain, name), energy_j=guess) for name in ("reference", "candidate")
    }
    table = text(dataclasses.replace(plain, build=built(guess), **sides))
    assert "pays for its ~9.00 J after ~853 tokens [853, 853]" in table


def test_joules_of_two_kinds_pay_for_nothing():
    """The reason stands in place of a number."""
    assert (
        "took ^9.00 J, and whether that pays is unknown: its joules are sampled by nvml-power and measured by rapl"
    ) in text(record(build=built(joules(9.0, "nvml-power", "sampled"))))


def test_details_say_when_building_is_paid_and_by_which_ratio():
    """For every record; a simulated one saves nothing."""
    shown = details(record(build=built(joules(60.0))))
    assert "pays for its 1.50 s after 154,000 tokens [154,000, 154,000] (process cpu time)" in shown
    assert "pays for its 60.0 J after 148,000 tokens [148,000, 148,000] (rapl)" in shown
    simulated = record(integrity=Integrity("simulated", "zeros"))
    assert "nothing pays for building: the compression is only simulated" in details(simulated)


# Sampling and metering --------------------------------------------------------------------------------------

QUIET = Sampling(per_block=4, looks=(8, 12), planned=5, level=0.0004, wall_over_cpu=1.02)
LOUD = dataclasses.replace(
    QUIET,
    replaced=3,
    disturbed=2,
    disturbances=("other load 4", "steal time 1"),
    movable=False,
    wall_over_cpu=1.43,
)


def test_details_say_how_the_times_were_sampled():
    """Pairs, blocks, looks, level; what disturbed them; layout; wall against CPU time."""
    quiet, loud = details(record(sampling=QUIET)), details(record(sampling=LOUD))
    assert "48 pairs in 12 blocks, 2 of 5 looks (at 8, 12 blocks), each at a level of 0.0004" in quiet
    assert "no pair was disturbed" in quiet
    assert "both models were moved to new memory before each block" in quiet
    assert "wall / CPU time of the reference 1.02: they agree" in quiet
    assert "pairs disturbed: 3 replaced, 2 kept (other load 4, steal time 1)" in loud
    assert "the models stayed where they were in memory, so layout is not averaged out" in loud
    assert "wall / CPU time of the reference 1.43: over 1.1, so wall time is not gated" in loud
    assert not any("pair" in line for line in details(record(time=(), sampling=Sampling())))


def test_disturbed_pairs_are_counted_once_for_the_run():
    """Of all pairs that were run, replaced ones included."""
    more = dataclasses.replace(QUIET, replaced=1, disturbances=("steal time 7",))
    table = text(named("a", sampling=LOUD), named("b", sampling=more))
    assert (
        "6 of 100 pairs were disturbed from outside (steal time 8, other load 4): 4 measured again, 2 kept"
    ) in table
    assert "disturbed" not in text(record(sampling=QUIET))


def test_details_say_how_energy_was_metered():
    """The policy, the idle power under net, and the second source."""
    assert "energy is gross" in details(record())
    net = Metering("net", Reading(12.3, "W", "rapl", "measured"), "codecarbon", 1.1)
    assert "energy is net, less idle power of 12.3 W; codecarbon read 1.10 times what rapl did" in details(
        record(metering=net)
    )
    apart = dataclasses.replace(net, policy="gross", second_ratio=1.34)
    assert "energy is gross; codecarbon read 1.34 times what rapl did: they disagree" in details(
        record(metering=apart)
    )
    assert not any("energy is" in line for line in details(record(energy=(), metering=net)))


def test_energy_sources_that_disagree_are_said_once():
    """Further than 20 % from 1, in either direction."""
    rows = [
        named(name, metering=Metering(second_source="codecarbon", second_ratio=ratio))
        for name, ratio in (("a", 1.34), ("b", 0.5), ("c", 1.19))
    ]
    table = text(*rows)
    assert (
        "energy sources disagree: codecarbon read 0.50 to 1.34 times what rapl did, further than 20 % from 1; "
        "find out which is right before you rely on the joules"
    ) in table
    assert "energy sources disagree" not in text(rows[2])
    assert "codecarbon read 1.34 times what rapl did, further" in text(rows[0])


def test_net_energy_is_said_to_be():
    """With the watts that were subtracted, once."""
    net = Metering("net", Reading(12.3, "W", "rapl", "measured"))
    table = text(named("a", metering=net), named("b", metering=net))
    assert table.count("energy is net: idle power of 12.3 W, measured before, is subtracted") == 1
    assert "energy is net" not in text(record())


def test_details_give_the_interval_of_the_divergence():
    """Over windows of text."""
    shown = details(record(divergence=Divergence(0.0123, 0.97, 0.0111, 0.0135)))
    assert "KL 0.0123 [0.0111, 0.0135] nats a token" in shown
    assert "KL 0 [0, 0] nats a token" in details(record(divergence=Divergence(0.0, 1.0, 0.0, 0.0)))
    assert "KL 0.0120 nats a token" in details(record())


def test_details_give_what_the_mean_of_the_divergence_hides():
    """Median and upper tail of KL, and the change of the true token's probability; nothing for old records."""
    shown = details(record(divergence=Divergence(0.0123, 0.97, 0.0111, 0.0135, 0.0041, 0.321, 0.0256)))
    assert (
        "KL 0.0123 [0.0111, 0.0135] nats a token, median 0.00410, 99.9 % 0.321; "
        "probability of the true token changed by 0.0256 (RMS)"
    ) in shown
    assert "median" not in details(record())


# Carbon -----------------------------------------------------------------------------------------------------

FRANCE = Carbon("FRA", 56.04, "codecarbon, 2023")


def test_carbon_is_an_estimate_for_reference_and_winner():
    """0.345 J a window of 256 tokens are 374 mWh a million tokens; at 56 g/kWh 21 mg."""
    side = dataclasses.replace(record().candidate, energy_j=joules(0.2415))
    table = text(record(carbon=FRANCE, candidate=side), named("slow", time=blocks(2.0), carbon=FRANCE))
    assert (
        "carbon, estimated for FRA at 56.0 g a kWh (codecarbon, 2023): reference 21.0 mg, int4 14.7 mg CO2e "
        "per million tokens in windows of 256\n"
    ) in table
    assert table.count("carbon, estimated") == 1
    assert "carbon" not in text(record())


def test_carbon_without_joules_is_none():
    """With the reason, and no grams."""
    table = text(record(carbon=FRANCE, energy=()))
    assert "(codecarbon, 2023): none, since energy is unmeasured\n" in table


def test_details_give_the_provenance_of_every_number():
    """With -v: steps, build cost, sources, per-word and per-byte perplexity, all verdicts."""
    shown = "\n".join(details(record(verdicts=(verdict("passed", "fine."),))))
    assert "built in 1.50 s, energy unmeasured (no meter)" in shown
    assert "(process cpu time)" in shown
    assert "peak memory unmeasured (the peak did not move)" in shown
    assert "passed: fine." in shown
    guess = joules(9.0, "codecarbon", "estimated")
    assert "built in 1.50 s, energy 9.00 J (estimated by codecarbon)" in details(record(build=built(guess)))
    assert "      built in" in text(record(), verbose=True)


def test_the_summary_file_is_json_with_every_figure():
    """Infinity is written as a word, absent numbers as null with their reason."""
    endless = record(perplexity=quality(math.inf, math.inf, math.inf))
    data = json.loads(json.dumps(summary([endless, record(energy=())], [("x", "why")]), allow_nan=False))
    assert data["outcomes"] == {"passed": 2}
    assert data["rows"][0]["perplexity_ratio"]["value"] == "inf"
    assert data["rows"][1]["energy_ratio"]["reason"] == "no energy meter"
    assert data["unmeasured"] == [{"label": "x", "reason": "why"}]
    assert row(record())["time_ratio"]["value"] == pytest.approx(0.8)


def test_the_summary_file_has_what_stands_behind_the_figures():
    """Readings with their method and reason; break-even, sampling, metering, carbon and intervals."""
    shown = record(
        carbon=FRANCE,
        sampling=LOUD,
        metering=Metering(second_source="codecarbon", second_ratio=1.34),
        divergence=Divergence(0.0123, 0.97, 0.0111, 0.0135, 0.0041, 0.321, 0.0256),
    )
    data = json.loads(json.dumps(row(shown), allow_nan=False))
    assert data["build"]["time_s"] == {
        "value": 1.5,
        "unit": "s",
        "source": "perf_counter",
        "method": "measured",
        "resolution": None,
        "reason": "",
    }
    assert data["build"]["energy_j"]["reason"] == "no meter"
    assert data["break_even"]["time"]["tokens"] == pytest.approx(153_600)
    assert data["break_even"]["energy"]["outcome"] == "unknown"
    assert {name: data["sampling"][name] for name in ("blocks", "per_block", "replaced", "disturbed")} == {
        "blocks": 12,
        "per_block": 4,
        "replaced": 3,
        "disturbed": 2,
    }
    assert data["metering"]["policy"] == "gross"
    assert data["metering"]["second_ratio"] == 1.34
    assert (data["mean_kl_low"], data["mean_kl_high"]) == (0.0111, 0.0135)
    assert (data["median_kl"], data["kl_999"], data["rms_dp"]) == (0.0041, 0.321, 0.0256)
    assert data["carbon"]["reference_g_per_million_tokens"] == pytest.approx(0.345 / 256 / 3.6 * 56.04)
    assert data["carbon"]["method"] == "estimated"
    blank = row(record(carbon=FRANCE, energy=()))["carbon"]
    assert (blank["method"], blank["reason"]) == ("unmeasured", "no energy meter")
    assert blank["candidate_g_per_million_tokens"] is None
    assert row(record())["carbon"] is None


def test_a_narrow_terminal_gets_time_and_energy_without_intervals():
    """The perplexity ratio keeps its interval: it is what is gated first."""
    narrow = "\n".join(
        line for line, _ in lines(Shown((record(),), (), (), (), "b", "r", False, False, columns=80))
    )
    assert "1.020 [1.015, 1.025] 0.800 0.700 0.140" in " ".join(narrow.split())


def test_another_machine_is_said_once():
    """Every cost of a run is incomparable for the same reason: one line, and quality's verdict stays in the row."""
    reason = "time is not comparable with the baseline: fingerprint cpu is A now and B there."
    rows = [
        named(
            name,
            label=f"{name} on m",
            verdicts=(
                verdict("passed", against="baseline"),
                verdict("not comparable", f"{name} on m: {reason}", "baseline", "time"),
            ),
        )
        for name in ("int4", "int8")
    ]
    table = text(*rows)
    assert f"not comparable: 2 candidates: {reason}" in table
    assert table.count(reason) == 1
    assert table.count("passed, cost not comparable") == 2
