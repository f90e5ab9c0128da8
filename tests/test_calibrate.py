"""`--llm-calibrate`: figures of noise, limits that hold under it, and what is printed."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from sample_records import record

from pytest_llmslim import noise
from pytest_llmslim.gate import Limits, Thresholds, decide
from pytest_llmslim.judging import Edges
from pytest_llmslim.noise import GATES, Calibration, Figures, Proposal, Replays, Series, Shares, Spread
from pytest_llmslim.planning import detectable_by_blocks
from pytest_llmslim.records import Estimate, Reading, Sampling
from pytest_llmslim.reports.calibration import model_lines, proposal_lines
from pytest_llmslim.sequential import LOOKS, Family
from pytest_llmslim.statistics import block_medians, hodges_lehmann

CPU = "process cpu time"


def drawn(sd, blocks=40, seed=1):
    """Log ratios of pairs of equal models, four a block."""
    return tuple(np.random.default_rng(seed).normal(0, sd, 4 * blocks).tolist())


def series(sd, axis="time", excluded="", **how):
    pairs = drawn(sd, **how)
    return Series(axis, CPU, "measured", pairs, 4, block_medians(pairs, 4), excluded)


# Spread ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pair", "between", "per_block"), [(0.04, 0.03, 4), (0.02, 0.05, 2), (0.1, 0.1, 3)])
def test_the_spread_of_pairs_and_of_blocks_is_recovered(pair, between, per_block):
    """Both standard deviations of a nested normal sample come back."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, between, (500, 1)) + rng.normal(0, pair, (500, per_block))
    found = noise.spread(values.ravel().tolist(), per_block)
    assert found.pair == pytest.approx(pair, rel=0.1)
    assert found.between == pytest.approx(between, rel=0.15)


def test_spikes_hardly_move_the_spread():
    """One pair in twelve takes ten times as long."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.05, (400, 4))
    values[::3, 1] += math.log(10)
    assert noise.spread(values.ravel().tolist(), 4).pair == pytest.approx(0.05, rel=0.3)
    assert np.std(values) > 0.5


def test_blocks_of_one_have_one_spread_and_equal_pairs_none():
    """Windows of an energy meter are not taken apart; a clock that always agrees has a spread of 0."""
    values = drawn(0.05, blocks=100)
    found = noise.spread(values, 1)
    assert found.pair == pytest.approx(np.std(values), rel=0.05)
    assert found.between is None
    assert noise.spread([0.1] * 8, 4) == Spread(0.0, 0.0)


@pytest.mark.parametrize(("pairs", "per_block"), [([0.1], 1), ([0.1] * 10, 5), ([0.1] * 6, 4)])
def test_a_spread_takes_pairs_in_full_blocks(pairs, per_block):
    """One pair has no spread, and a block that is not full no median."""
    with pytest.raises(ValueError, match=r"blocks of"):
        noise.spread(pairs, per_block)


# Replays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("increase", [0.0, 0.05, 0.1])
def test_a_replay_ends_as_the_gate_itself_decides(gates, increase):
    """Every measurement drawn is given to `gate.decide`, look by look, against a stored ratio of 1."""
    blocks, count = series(0.12).blocks, 60
    limits = Limits()
    level, draw = Family(gates).level() / len(LOOKS), random.Random(0)
    exact = record(time=(0.0,) * 40, energy=())
    ended = []
    for _ in range(count):
        values = [value + math.log1p(increase) for value in draw.choices(blocks, k=40)]
        for look in LOOKS:
            now = record(time=tuple(values[:look]), energy=())
            verdicts = decide(now, Thresholds(), exact, alpha=level, limits=limits)
            outcome = next(verdict.outcome for verdict in verdicts if verdict.axis == "time")
            if outcome != "inconclusive":
                break
        ended.append(outcome)
    shares = Replays(blocks, LOOKS, gates, count).shares(Edges(1.02, 1.10), increase)
    got = (shares.failed, shares.inconclusive, shares.passed)
    assert got == tuple(ended.count(word) / count for word in ("failed", "inconclusive", "passed"))
    assert len(set(ended)) > 1 or increase == 0


def test_the_smallest_increase_found_is_a_boundary():
    """A little more fails in 80 % of the replays, a little less does not."""
    replays = Replays(series(0.1).blocks, (18,), 1, 200)
    edges = Edges(1.02, 1.02)
    smallest = replays.smallest_found(edges.fail_above)
    assert (
        replays.shares(edges, smallest + 1e-6).failed >= 0.8 > replays.shares(edges, smallest - 1e-6).failed
    )


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("blocks", [18, 40])
def test_for_normal_noise_the_smallest_increase_is_that_of_the_planner(gates, blocks):
    """The planner knows the noise's law, a replay its values; both have the same 40 blocks."""
    values = tuple(np.random.default_rng(3).normal(0, 0.03, 40).tolist())
    replayed = Replays(values, (blocks,), gates).smallest_found(1.0)
    planned = detectable_by_blocks(hodges_lehmann(values), Family(gates).level(), blocks)
    assert replayed - math.expm1(np.mean(values)) == pytest.approx(planned, rel=0.25)


def test_so_few_blocks_find_nothing():
    """With eight blocks and 20 gates nothing can fail."""
    assert Replays(series(0.01).blocks, (8,), 20, 50).smallest_found(1.02) == math.inf


def test_figures_of_a_gated_series():
    """More blocks find less, more gates find more, and equal models pass."""
    figures = noise.figures(series(0.04, blocks=18), Limits())
    assert figures.ratio.low < 1 < figures.ratio.high
    assert figures.blocks == (8, 12, 18)
    alone = [row[0] for row in figures.found]
    assert alone == sorted(alone, reverse=True)
    assert all(row[0] < row[1] for row in figures.found)
    assert [shares.passed for shares in figures.equal] == [1.0, 1.0]


def test_a_series_that_is_not_gated_has_no_decisions():
    """Its spread and ratio are shown, what the gate makes of it is not."""
    figures = noise.figures(series(0.04, excluded="estimated, not measured"), Limits())
    assert figures.ratio.known
    assert (figures.found, figures.blocks, figures.equal) == ((), (), ())


# Limits ---------------------------------------------------------------------------------------------------


def test_a_quiet_machine_gets_the_defaults():
    """Never less, however little noise there is."""
    proposal = noise.propose([series(0.001)], 160, count=50)
    assert (proposal.regression, proposal.resolve, proposal.max_rounds) == (0.02, 0.10, 160)
    assert proposal.passed == proposal.found == 1.0


def test_limits_grow_with_noise():
    """Of the same noise, scaled: in whole percents, `resolve` always above `regression`."""
    proposals = [noise.propose([series(sd)], 160, count=100) for sd in (0.02, 0.1, 0.2, 0.4, 0.8)]
    for name in ("regression", "resolve"):
        limits = [getattr(proposal, name) for proposal in proposals]
        assert limits == sorted(limits)
        assert limits[0] < limits[-1]
        assert all(limit == round(limit, 2) for limit in limits)
    assert all(proposal.resolve > proposal.regression for proposal in proposals)


def test_the_limits_are_the_smallest_that_hold():
    """By the replays: one percent less passes or finds too little, with a stored run as wide as the recording."""
    noisy = series(0.3)
    proposal = noise.propose([noisy], 160, count=100)
    stored = hodges_lehmann(noisy.blocks)
    half = math.log(stored.high / stored.low) / 2
    alone, many = (Replays(noisy.blocks, LOOKS, gates, 100) for gates in GATES)

    def decided(regression, resolve):
        edges = Edges((1 + regression) * math.exp(half), (1 + resolve) * math.exp(-half))
        return alone.shares(edges).passed, many.shares(edges, resolve).failed

    assert decided(proposal.regression, proposal.resolve) == (proposal.passed, proposal.found)
    assert proposal.passed >= 0.99
    assert proposal.found >= 0.8
    passed, found = decided(proposal.regression, proposal.resolve - 0.01)
    assert passed < 0.99 or found < 0.8


def test_equal_models_must_never_fail_under_the_proposed_limit():
    """A recording in which the copy takes 4 % more needs a limit above that."""
    pairs = tuple(pair + 0.04 for pair in drawn(0.01))
    off = Series("time", CPU, "measured", pairs, 4, block_medians(pairs, 4))
    assert noise.propose([off], 160, count=50).regression >= 0.04


def test_the_noisiest_series_decides():
    """Limits hold for all models."""
    alone = noise.propose([series(0.3)], 160, count=50)
    assert noise.propose([series(0.01), series(0.3)], 160, count=50).resolve == alone.resolve


@pytest.mark.parametrize("shift", [0.06, -0.06])
def test_wall_time_has_no_say_in_what_passes(shift):
    """Undecided wall time has no verdict; but where it fails, it fails, whichever model is called the copy."""
    quiet = series(0.01)
    assert noise.propose([quiet, series(0.3, axis="wall")], 160, count=50).resolve == 0.10
    pairs = tuple(pair + shift for pair in drawn(0.01))
    off = Series("wall", "perf_counter", "measured", pairs, 4, block_medians(pairs, 4))
    assert noise.propose([quiet, off], 160, count=50).regression >= 0.06


def test_excluded_series_have_no_say():
    """Estimated energy is no ground for a limit; of nothing else, there is none."""
    excluded = series(0.8, axis="energy", excluded="estimated, not measured")
    assert noise.propose([series(0.01), excluded], 160, count=50).resolve == 0.10
    assert noise.propose([excluded], 160, count=50) is None


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_no_limit_holds_in_too_much_noise(shift):
    """Beyond 100 % nothing is proposed, be it spread or bias."""
    pairs = tuple(pair + shift for pair in drawn(0.01 if shift else 4.0))
    wild = Series("time", CPU, "measured", pairs, 4, block_medians(pairs, 4))
    assert noise.propose([wild], 160, count=50) is None


# Text -----------------------------------------------------------------------------------------------------

RATIO = Estimate(1.001, 0.998, 1.004, 40, "measured", CPU)
FIGURES = Figures(
    Spread(0.041, 0.008),
    RATIO,
    ((0.045, math.inf), (0.031, 0.039)),
    (8, 12),
    (Shares(0.0, 0.001, 0.999), Shares(0.0, 0.002, 0.998)),
)
TIME = Series("time", CPU, "measured", (), 4, ())


def calibration(**fields):
    plain = {
        "model": "embedded:gpt2",
        "sampling": Sampling(per_block=4, looks=(8, 12), wall_over_cpu=1.02),
        "seconds": (8.04, 9.5),
        "series": (TIME,),
        "figures": (FIGURES,),
    }
    return Calibration(**plain | fields)


def shown(lines):
    return "\n".join(text for text, _ in lines)


def test_the_figures_of_a_model_as_text():
    """Spread, ratio, what is found with how many blocks in which time, and how equal models end."""
    assert shown(model_lines(calibration(), Limits())).split("\n") == [
        "embedded:gpt2: 12 blocks of 4 pairs against a copy of itself in 9.50 s",
        "                    sd of a pair  sd between blocks  copy / reference [95 %]",
        "  process cpu time  4.1 %         0.80 %             1.001 [0.998, 1.004]",
        "  wall / process CPU time of the reference 1.02; none of 48 pairs was disturbed from outside",
        "",
        "  smallest increase found, in 80 % of replays, with a limit of 2 %",
        "  blocks  pairs  takes   process cpu time, 1 gate  process cpu time, 20 gates",
        "  8       32     8.04 s  +4.5 %                    -",
        "  12      48     9.50 s  +3.1 %                    +3.9 %",
        "  -: so few blocks can fail no gate",
        "",
        "  equal models in 1000 replays, with limits of 2 % and 10 %",
        "                              failed  inconclusive  passed",
        "  process cpu time, 1 gate    0.0 %   0.10 %        99.9 %",
        "  process cpu time, 20 gates  0.0 %   0.20 %        99.8 %",
        "",
    ]


def test_disturbances_are_named_and_counted():
    """As words with counts, and what became of the pairs."""
    sampling = Sampling(4, (8,), replaced=3, disturbed=2, disturbances=("other load 4", "steal time 1"))
    text = shown(model_lines(calibration(sampling=sampling, seconds=(8.0,)), Limits()))
    assert (
        "  5 of 35 pairs were disturbed from outside (other load 4, steal time 1): 3 measured again, 2 kept"
        in text.split("\n")
    )


def test_what_is_not_gated_is_said_and_not_replayed():
    """Estimated energy has its mark, and no row among the decisions; notes and missing energy are told."""
    energy = Series("energy", "codecarbon", "estimated", (), 1, (), "estimated, not measured")
    figures = Figures(Spread(0.1, None), RATIO)
    text = shown(model_lines(calibration(series=(energy,), figures=(figures,), notes=("A note.",)), Limits()))
    assert "  ~energy by codecarbon  10.0 %        -                  1.001 [0.998, 1.004]" in text
    assert "  ~energy by codecarbon: estimated, not measured; no limit is proposed from it" in text
    assert "  A note." in text
    assert "replays" not in text
    text = shown(model_lines(calibration(unmeasured="no meter"), Limits()))
    assert "  energy: unmeasured (no meter)" in text


def test_an_interval_beside_1_is_said():
    """In words that leave room for chance, and of what is gated only."""
    off = replace(FIGURES, ratio=Estimate(1.01, 1.002, 1.02, 40, "measured", CPU))
    lines = model_lines(calibration(figures=(off,)), Limits())
    assert (
        "  process cpu time: the interval does not hold 1. Chance alone does that to one in 20; where it happens "
        "again, something favours one of two equal models.",
        ("yellow",),
    ) in lines
    lines = model_lines(calibration(figures=(off,), series=(replace(TIME, excluded="too large"),)), Limits())
    assert "does not hold" not in shown(lines)


def test_the_snippet_says_why():
    """One comment above each value, since pytest takes a comment behind one for a part of it."""
    proposal = Proposal(0.02, 0.10, 0.999, 0.97, 160)
    assert shown(proposal_lines(proposal, [calibration()], 1)).split("\n") == [
        "Limits that hold here, for pytest.ini:",
        "",
        "[pytest]",
        "# None of 1000 replays of equal models failed.",
        "llm_regression = 2%",
        "# Equal models passed in 99.9 % of replays, and 10 % more was found in 97.0 %.",
        "llm_resolve = 10%",
        "# So many pairs were measured here, in at most 9.50 s a model.",
        "llm_max_rounds = 160",
    ]


@pytest.mark.parametrize("limits", [(0.03, 0.10), (0.02, 0.11)])
def test_a_machine_too_noisy_for_the_defaults_is_told_so(limits):
    """With the disturbances of all models, and what helps."""
    sampling = Sampling(4, (8, 12), replaced=9, disturbances=("other load 4", "steal time 5"))
    both = [calibration(sampling=sampling), calibration(sampling=sampling)]
    lines = proposal_lines(Proposal(*limits, 1.0, 1.0, 48), both, 2)
    assert lines[:3] == [
        ("This machine is too noisy for the default limits of 2 % and 10 %.", ("yellow",)),
        ("  disturbed by: steal time 10, other load 8", ()),
        (
            "  what helps: one thread (--llm-threads 1, now 2), fewer neighbours on the machine, longer windows "
            "(--llm-window), more rounds (--llm-max-rounds 96); then calibrate again",
            (),
        ),
    ]
    assert f"llm_resolve = {limits[1]:.0%}" in shown(lines)


def test_without_limits_there_is_no_snippet():
    """Too much noise, or nothing that is gated."""
    lines = proposal_lines(None, [calibration()], 1)
    assert lines[:2] == [
        ("No limit up to 100 % holds on this machine.", ("red",)),
        ("  no disturbance from outside was noticed", ()),
    ]
    assert "llm-threads" not in shown(lines)
    excluded = Series("time", CPU, "measured", (), 4, (), "too large")
    lines = proposal_lines(None, [calibration(series=(excluded,))], 1)
    assert lines == [("Nothing that was measured is gated here, so no limits are proposed.", ("yellow",))]


# Measuring ------------------------------------------------------------------------------------------------


def measured(clock=CPU, energy=(), method="measured", joules=(), per_block=4, **sampling):
    """What a duet of 18 blocks leaves behind, with times that say which clock they are of."""
    from pytest_llmslim.pairs import Measured, Tally

    n = 18 * per_block

    def tally(factor):
        readings = [Reading(factor * value, "J", "rapl", method) if value else NO_JOULES for value in joules]
        times = ([round(factor * unit)] * n for unit in (1e6, 2e6, 4e6))
        return Tally(0.0, *times, energy=readings)

    sampling = Sampling(per_block=per_block, looks=(18,), **{"wall_over_cpu": 1.05} | sampling)
    return Measured(
        tally(1),
        tally(1.5),
        (0.4,) * 18,
        (0.4,) * 18,
        tuple(energy),
        method,
        "no meter",
        clock,
        (0.0,),
        (1,),
        (0.0,),
        1.0,
        n,
        1.0,
        sampling,
    )


NO_JOULES = Reading(None, "J", "rapl", "unmeasured", None, "it failed")


def series_of(**how):
    from pytest_llmslim.calibrate import _series

    return list(_series(measured(**how)))


def test_series_are_those_that_the_gate_judges():
    """Pairs from the clock of the device, energy by window or by block of pairs."""
    time, wall = series_of()
    assert (time.axis, time.source, time.excluded, len(time.pairs)) == ("time", CPU, "", 72)
    assert (wall.axis, wall.excluded) == ("wall", "")
    assert time.pairs[0] == pytest.approx(math.log(1.5))
    *_, energy = series_of(energy=[0.4] * 18, joules=[2.0] * 18)
    assert (energy.source, energy.per_block, len(energy.pairs), energy.excluded) == ("rapl", 1, 18, "")
    *_, energy = series_of(energy=[0.4] * 18, joules=[2.0] * 72)
    assert (energy.per_block, len(energy.pairs)) == (4, 72)


@pytest.mark.parametrize(
    ("how", "reasons"),
    [
        ({"wall_over_cpu": 1.43}, ["", "1.43 times process CPU time, so it is not gated"]),
        ({"clock": "cuda events", "wall_over_cpu": None}, ["", "not gated on a GPU"]),
        ({"movable": False}, ["too large to be moved in memory, so what layout adds does not show"] * 2),
        (
            {"energy": [0.4] * 8, "joules": [2.0] * 8, "method": "estimated"},
            ["", "", "estimated, not measured"],
        ),
        ({"energy": [0.4] * 9, "joules": [2.0, 0] * 9}, ["", "", "9 readings, where it takes 18"]),
    ],
)
def test_no_limit_comes_from_what_is_not_gated(how, reasons):
    """Each with its reason."""
    assert [one.excluded for one in series_of(**how)] == reasons


# Runs -----------------------------------------------------------------------------------------------------

FAILING = "def test_never_run(): assert False"


def test_a_calibration_writes_limits_that_a_run_accepts(pytester, run):
    """No test is run; the snippet is a whole ini file; the file holds all that the figures rest on."""
    pytester.makepyfile(test_own=FAILING)
    result = run("--llm-calibrate", rounds=72)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "noise of this machine, cpu, 1 thread",
            "tiny-gpt2: 18 blocks of 4 pairs against a copy of itself in *",
            "  energy: unmeasured (switched off in this test)",
            "  18 * 72 *",
            "blocks and figures: llm-results/calibration.json",
        ]
    )
    result.stdout.no_fnmatch_line("*test_never_run*")
    stored = json.loads((pytester.path / "llm-results/calibration.json").read_text())
    assert (pytester.path / "llm-results/.gitignore").read_text() == "*\n"
    (model,) = stored["models"]
    time = model["series"][0]
    assert time["blocks"] == list(block_medians(time["pairs"], 4))
    assert model["figures"][0]["ratio"]["value"] == hodges_lehmann(time["blocks"]).value
    assert len(model["seconds"]) == len(model["sampling"]["looks"]) == 3

    lines = result.stdout.lines
    if stored["proposal"] is None:  # a machine so noisy has no snippet, and says so
        result.stdout.fnmatch_lines(["No limit up to 100 % holds on this machine."])
        return
    start = lines.index("[pytest]")
    pytester.makefile(".ini", pytest="\n".join(lines[start : start + 7]))
    pytester.makepyfile(test_own="def test_plain(): pass")
    following = pytester.runpytest("-p", "no:benchmark")
    following.assert_outcomes(passed=1)
    resolve = stored["proposal"]["resolve"]
    following.stdout.fnmatch_lines([f"llmslim: *resolve: {resolve} (ini)*"])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["--llm-rounds=8"],
            "ERROR: --llm-calibrate takes at least 72 pairs, got --llm-rounds 8; leave --llm-rounds out, or give more.",
        ),
        (
            ["--llm-max-rounds=8"],
            "ERROR: --llm-calibrate takes at least 72 pairs, got --llm-max-rounds 8; leave --llm-max-rounds out, "
            "or give more.",
        ),
        (
            ["--llm-resolve=1%"],
            "ERROR: --llm-resolve is above --llm-regression, got 1 % and 2 %; a loss between the two may pass",
        ),
        (["--llm-model=no-such-folder/model"], "ERROR: *no-such-folder*"),
    ],
)
def test_what_cannot_be_calibrated_is_a_usage_error(pytester, heavy, args, sentence):
    """Exit code 4 and one sentence."""
    result = pytester.runpytest("-p", "no:benchmark", "--llm-calibrate", "--llm-device=cpu", *args)
    assert result.ret == 4
    result.stderr.fnmatch_lines([sentence])
    assert len([line for line in result.stderr.lines if line]) == 1


def test_results_that_cannot_be_written_are_a_usage_error(pytester, run, monkeypatch):
    """After figures and limits were shown."""
    from pytest_llmslim import calibrate

    done = calibration(series=(series(0.01, blocks=18),))
    monkeypatch.setattr(calibrate, "calibrate", lambda session, model, pairs: done)
    (pytester.path / "taken").write_text("a file")
    result = run("--llm-calibrate", "--llm-results=taken", rounds=72)
    assert result.ret == 4
    result.stdout.fnmatch_lines(["embedded:gpt2: 12 blocks *", "llm_resolve = 10%"])
    result.stderr.fnmatch_lines(
        ["ERROR: *taken/calibration.json cannot be written (*); give another folder with --llm-results."]
    )


def test_ctrl_c_leaves_cleanly(pytester, run, monkeypatch):
    """Exit code 2, one line, the meter closed, and no file."""
    from pytest_llmslim import calibrate, session

    closed = []
    monkeypatch.setattr(session.Session, "close", lambda self: closed.append(self))

    def interrupted(self, undecided):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate.Duet, "run", interrupted)
    result = run("--llm-calibrate", rounds=72)
    assert result.ret == 2
    result.stdout.fnmatch_lines(["interrupted: no limits are proposed"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert len(closed) == 1
    assert not (pytester.path / "llm-results").exists()
