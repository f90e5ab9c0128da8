"""Pairs of reference and candidate: what is run, in which order, and what comes out."""

from __future__ import annotations

import dataclasses
import gc
import math
import random
import time

import pytest
import torch
from tiny_models import tiny_model

from pytest_llmslim import measure, pairs
from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.evals.text import Passage
from pytest_llmslim.measure import Duet, Plan
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.pairs import energy_pairs, log_ratios
from pytest_llmslim.records import Protocol, Reading, unmeasured
from pytest_llmslim.statistics import window_estimate

WINDOWS = 6


@pytest.fixture(scope="module")
def passage():
    """Six windows of 16 tokens for the tiny vocabulary."""
    generator = torch.Generator().manual_seed(0)
    windows = tuple(torch.randint(4, 128, (1, 16), generator=generator) for _ in range(WINDOWS))
    protocol = Protocol("window", 16, 15, True, 15 * WINDOWS, WINDOWS, "t", "0" * 64, "float32")
    return Passage(protocol, windows, (1,) * WINDOWS, None, None, None)


class Watched(torch.nn.Module):
    """Notes every forward pass; can be made to fail."""

    def __init__(self, inner, name, log, spoil=None):
        super().__init__()
        self.inner, self.name, self.log, self.spoil = inner, name, log, spoil

    def forward(self, input_ids, use_cache):
        self.log.append((self.name, input_ids.shape[1], gc.isenabled()))
        out = self.inner(input_ids=input_ids, use_cache=use_cache)
        return self.spoil(out) if self.spoil else out


class FakeWatch:
    """Says of each pair, in order, what disturbed it."""

    def __init__(self, *seen):
        self.seen, self.laps, self.closed = list(seen), 0, False

    def __call__(self, device):
        return self

    def begin(self):
        pass

    def lap(self, ticks):
        self.laps += 1

    def end(self):
        return self.seen.pop(0) if self.seen else ()

    def close(self):
        self.closed = True


@pytest.fixture
def duet(passage, monkeypatch):
    """Makes a duet of a tiny model and a changed copy on a machine at rest, and the log of their forward passes."""
    torch.set_num_threads(1)
    monkeypatch.setattr(measure, "Watch", FakeWatch())

    def make(spoil=None, meter=None, rounds=8, change=True, progress=None, **plan):
        log = []
        reference = tiny_model("gpt2")
        candidate = copy_model(reference)
        if change:
            with torch.no_grad():
                for parameter in candidate.parameters():
                    parameter.mul_(1.01)
        pair = Watched(reference, "r", log), Watched(candidate, "c", log, spoil)
        return Duet(
            *pair,
            passage,
            Plan(rounds, 3, "cpu", **plan),
            meter or NullMeter("no meter here"),
            "int4 on tiny",
            progress,
        ), log

    return make


class CountingMeter:
    """One joule a forward pass of the reference, `factor` for the candidate; windows of at least `least` seconds."""

    source, method, description = "fake", "measured", "a fake"

    def __init__(self, log, least=0.01, factor=0.5, fails=()):
        self.log, self.min_window_s, self.factor, self.fails, self.stops = log, least, factor, fails, 0

    def start(self):
        self.began = len(self.log)

    def stop(self):
        self.stops += 1
        if self.fails == "all" or self.stops in self.fails:
            return unmeasured("J", self.source, "the meter is gone")
        joules = sum(self.factor if name == "c" else 1.0 for name, _, _ in self.log[self.began :])
        return Reading(joules, "J", self.source, "measured", 0.001)


def test_quality_is_that_of_running_each_model_once(duet, passage):
    """Perplexity, differences and divergence equal a plain evaluation of both models, to the last bit that counts."""
    pair, _ = duet()
    measured = pair.run()
    with torch.inference_mode():
        for side, tally in enumerate((measured.reference, measured.candidate)):
            expected = 0.0
            for window in passage.windows:
                logits = pair.models[side].inner(input_ids=window).logits
                expected += float(
                    torch.nn.functional.cross_entropy(logits[0, :-1], window[0, 1:], reduction="sum")
                )
            assert tally.nll == pytest.approx(expected, rel=1e-6)
    total = sum(d * n for d, n in zip(measured.nll_difference, measured.window_tokens, strict=True))
    assert total == pytest.approx(measured.candidate.nll - measured.reference.nll, rel=1e-9)
    assert measured.window_tokens == (15,) * WINDOWS
    assert measured.mean_kl > 0


def test_an_equal_candidate_differs_in_nothing_but_noise(duet):
    """A/A: every difference in quality is exactly 0 although both models were moved in memory many times."""
    measured = duet(change=False)[0].run()
    assert measured.nll_difference == (0.0,) * WINDOWS
    assert measured.mean_kl == 0
    assert measured.top1 == 1


def test_divergence_is_outside_the_timed_windows(duet, monkeypatch):
    """It is worked out once a window, never between the clock's start and stop of a run."""
    pair, _ = duet()
    seen, timed = [], pair._timed

    def watched(side, window):
        seen.append("start")
        try:
            return timed(side, window)
        finally:
            seen.append("stop")

    monkeypatch.setattr(pair, "_timed", watched)
    plain = pairs.divergence
    monkeypatch.setattr(pairs, "divergence", lambda *args: seen.append("divergence") or plain(*args))
    measured = pair.run()
    assert seen.count("divergence") == WINDOWS
    assert {seen[i - 1] for i, what in enumerate(seen) if what == "divergence"} <= {"stop", "divergence"}
    assert 0 < measured.median_kl <= measured.kl_999
    assert 0 < measured.rms_dp < 1


def test_both_models_run_equally_often_and_garbage_collection_is_off(duet):
    """Each timed run follows an untimed one of the same model, and each model goes first equally often."""
    pair, log = duet(rounds=8)
    pair.run()
    timed = log[4:]  # two first runs of each model
    names = "".join(name for name, _, _ in timed)
    assert len(timed) == 8 * 4
    assert {names[i : i + 4] for i in range(0, len(names), 4)} == {"rrcc", "ccrr"}
    for block in (names[:16], names[16:]):
        assert [block[i] for i in range(0, 16, 4)].count("r") == 2
    assert not any(enabled for _, _, enabled in timed)
    assert gc.isenabled()


def test_every_window_is_scored_even_with_few_rounds(duet):
    """Windows beyond the pairs are run once by each model, untimed: quality needs the whole text."""
    pair, log = duet(rounds=2)
    measured = pair.run()
    assert measured.pairs == 2
    assert len(measured.nll_difference) == WINDOWS
    assert [name for name, _, _ in log[4 + 2 * 4 :]] == ["r", "c"] * (WINDOWS - 2)


def test_more_rounds_than_windows_go_round_the_text_again(duet):
    """Quality is taken once from each window; rounds are raised to whole blocks."""
    measured = duet(rounds=9)[0].run()
    assert measured.pairs == 12
    assert len(measured.time) == len(measured.wall) == 3
    assert len(measured.nll_difference) == WINDOWS


def test_quality_alone_is_one_pass_of_each_model(duet):
    """Where no cost will be shown nothing is timed, moved or repeated, and quality is the same."""
    timed = duet()[0].run()
    pair, log = duet(timed=False)
    measured = pair.run()
    assert [name for name, _, _ in log[4:]] == ["r", "c"] * WINDOWS
    assert (measured.time, measured.wall, measured.energy, measured.pairs) == ((), (), (), 0)
    assert measured.sampling.per_block == 0
    assert measured.nll_difference == pytest.approx(timed.nll_difference, abs=1e-12)


# Looks ----------------------------------------------------------------------------------------------------


def test_blocks_are_added_until_nothing_is_undecided(duet):
    """Each look sees all blocks so far, whole text included, and the first that decides is the last."""
    seen = []

    def undecided(measured):
        seen.append((len(measured.time), len(measured.nll_difference)))
        return {"time"} if len(seen) < 3 else set()

    measured = duet(rounds=None)[0].run(undecided)
    assert seen == [(8, WINDOWS), (12, WINDOWS), (18, WINDOWS)]
    assert measured.sampling.looks == (8, 12, 18)
    assert measured.sampling.planned == 5
    assert measured.pairs == 72


def test_undecided_to_the_end_stops_at_the_most_rounds(duet):
    """`--llm-max-rounds` is the last look; rounds that are fixed are the only one."""
    assert duet(rounds=None, max_rounds=40)[0].run(lambda measured: {"time"}).sampling.looks == (8, 10)
    assert duet(rounds=None, max_rounds=8)[0].run(lambda measured: {"time"}).sampling.looks == (2,)
    assert duet(rounds=8)[0].run(lambda measured: {"time"}).sampling.looks == (2,)


def test_without_anything_to_decide_one_look_is_enough(duet):
    """Eight blocks."""
    assert duet(rounds=None)[0].run().sampling.looks == (8,)


def test_only_what_is_undecided_is_measured_further(duet):
    """An open energy gate gets energy windows and no more pairs; an open time gate the other way round."""
    for wanted, blocks, windows in (("energy", 8, 12), ("time", 12, 8), ("wall", 12, 8), ("opt", 12, 12)):
        pair, log = duet(rounds=None, max_rounds=48)
        pair.meter = CountingMeter(log, least=0.005)
        measured = pair.run(lambda measured, wanted=wanted: {wanted})
        assert (len(measured.time), len(measured.energy)) == (blocks, windows)


# Disturbances ---------------------------------------------------------------------------------------------


def test_a_disturbed_pair_is_measured_again_and_counted(duet, monkeypatch):
    """One of a block is replaced, another is kept; both are counted with their causes, and no block is short."""
    steal, load = ("steal time",), ("other load", "steal time")
    watch = FakeWatch((), steal, (), load, (), (), load, (), ())
    monkeypatch.setattr(measure, "Watch", watch)
    measured = duet(rounds=8)[0].run()
    sampling = measured.sampling
    # First block: the second pair is replaced, then the third (spare used) is kept; second block: one replaced.
    assert (sampling.replaced, sampling.disturbed) == (2, 1)
    assert sampling.disturbances == ("other load 2", "steal time 3")
    assert measured.pairs == len(measured.reference.wall_ns) == len(measured.candidate.cpu_ns) == 8
    assert len(measured.nll_difference) == WINDOWS
    assert watch.laps == 2 * (8 + 2)
    assert watch.closed


def test_a_replaced_pair_takes_its_energy_along(duet, monkeypatch):
    """Where each run is an energy window, times and joules stay in step."""
    monkeypatch.setattr(measure, "Watch", FakeWatch(("other load",)))
    pair, log = duet(rounds=8)
    pair.meter = CountingMeter(log, least=1e-6)
    measured = pair.run()
    assert len(measured.reference.energy) == len(measured.reference.wall_ns) == 8
    assert pair.meter.stops == 2 * 9


def test_a_machine_that_is_always_busy_costs_a_quarter_more(duet, monkeypatch):
    """Every pair disturbed: one of each block is replaced, the rest is kept and counted."""
    monkeypatch.setattr(measure, "Watch", FakeWatch(*[("steal time",)] * 100))
    sampling = duet(rounds=8)[0].run().sampling
    assert (sampling.replaced, sampling.disturbed) == (2, 8)


def test_a_pair_without_a_clock_is_never_kept(duet, monkeypatch):
    """A clock that steps back now and then costs its pairs; one that always does ends the measurement."""
    back = ("clock went backwards",)
    monkeypatch.setattr(measure, "Watch", FakeWatch(back, back, back, (), (), back, ()))
    sampling = duet(rounds=8)[0].run().sampling
    assert (sampling.replaced, sampling.disturbed) == (4, 0)
    monkeypatch.setattr(measure, "Watch", FakeWatch(*[back] * 50))
    with pytest.raises(
        MeasurementError, match="int4 on tiny: the clock of this machine went backwards in 10 pairs"
    ):
        duet()[0].run()


def test_the_watch_is_closed_after_a_failure(duet, monkeypatch):
    """Nothing stays open when a candidate crashes."""
    watch = FakeWatch()
    monkeypatch.setattr(measure, "Watch", watch)
    with pytest.raises(MeasurementError):
        duet(crash)[0].run()
    assert watch.closed


def test_a_shorter_last_window_is_scored_and_not_timed(duet, passage):
    """Its tokens count for quality; its forward pass is no pair."""
    rest = torch.randint(4, 128, (1, 5))
    protocol = dataclasses.replace(passage.protocol, windows=WINDOWS + 1, tokens=15 * WINDOWS + 4)
    longer = dataclasses.replace(
        passage, protocol=protocol, windows=(*passage.windows, rest), scored_from=(1,) * (WINDOWS + 1)
    )
    pair, log = duet()
    pair = Duet(*pair.models, longer, pair.plan, pair.meter, pair.label)
    measured = pair.run()
    assert measured.window_tokens == (15,) * WINDOWS + (4,)
    assert [name for name, length, _ in log if length == 5] == ["r", "c"]


def test_a_model_without_room_to_move_is_measured_where_it_is(duet, monkeypatch):
    """Nothing is moved, and the record says that layout may show."""
    monkeypatch.setattr("pytest_llmslim.measure.free_bytes", lambda device: 1000)
    pair, _ = duet()
    before = [parameter.data_ptr() for parameter in pair.models[1].parameters()]
    measured = pair.run()
    assert before == [parameter.data_ptr() for parameter in pair.models[1].parameters()]
    assert measured.notes[0].startswith("int4 on tiny: too large to be moved in memory between blocks")


def test_the_same_seed_gives_the_same_order(duet):
    """Nothing random but by the seed."""
    runs = []
    for _ in range(2):
        pair, log = duet()
        random.seed()
        pair.run()
        runs.append([name for name, _, _ in log])
    assert runs[0] == runs[1]


def test_progress_counts_pairs_and_shows_the_ratio(duet, monkeypatch):
    """Called after a pair with what the next look needs, and at the end with the whole, which wipes the line."""
    monkeypatch.setattr("pytest_llmslim.measure.TOLD_EVERY_S", 0.0)
    monkeypatch.setattr("pytest_llmslim.measure.TOLD_SHARE", math.inf)
    calls = []
    measured = duet(progress=calls.append)[0].run()
    assert [call[:2] for call in calls] == [*((i, 8) for i in range(1, 8)), (8, 8)]
    assert calls[-1].perplexity == window_estimate(measured.nll_difference, measured.window_tokens)
    widths = [call.perplexity.high - call.perplexity.low for call in calls if call.done > 1]
    assert widths[-1] < widths[0]


def test_progress_takes_little_of_the_time(duet, monkeypatch):
    """However long one call takes, all of them take a hundredth of the time."""
    monkeypatch.setattr("pytest_llmslim.measure.TOLD_EVERY_S", 0.0)
    calls = []

    def slow(progress):
        calls.append(progress.done)
        time.sleep(0.02)

    duet(progress=slow)[0].run()
    assert calls == [1, 8]


def nan(out):
    out.logits = out.logits * math.nan
    return out


def narrow(out):
    out.logits = out.logits[..., :100]
    return out


def crash(out):
    raise RuntimeError("shape mismatch")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            nan,
            r"int4 on tiny gives no finite probabilities on window 0 \(NaN or inf in the logits\); check the weights",
        ),
        (
            narrow,
            r"int4 on tiny returns logits of shape \(1, 16, 100\), the reference \(1, 16, 128\); a candidate keeps",
        ),
        (
            crash,
            r"int4 on tiny failed in a forward pass \(RuntimeError: shape mismatch\); run the model by itself",
        ),
    ],
)
def test_a_candidate_that_cannot_be_measured_is_named(duet, spoil, message):
    """One sentence with the subject; garbage collection is on again afterwards."""
    pair, _ = duet(spoil)
    with pytest.raises(MeasurementError, match=message):
        pair.run()
    assert gc.isenabled()


# Energy ---------------------------------------------------------------------------------------------------


def test_short_runs_are_gathered_into_energy_windows(duet):
    """A meter that cannot resolve one forward pass gets windows of many, and the result is joules a pass."""
    pair, log = duet(rounds=32)
    pair.meter = CountingMeter(log, least=0.02)
    measured = pair.run()
    assert len(measured.energy) == 8
    assert measured.energy == pytest.approx([math.log(0.5)] * 8)
    assert measured.energy_method == "measured"
    assert [reading.value for reading in measured.reference.energy] == [1.0] * 8


def test_long_runs_are_energy_windows_themselves(duet):
    """One pass gives everything when it is long enough for the meter."""
    pair, log = duet(rounds=8)
    pair.meter = CountingMeter(log, least=1e-6)
    measured = pair.run()
    assert pair.meter.stops == 2 * 8
    assert measured.energy == pytest.approx([math.log(0.5)] * len(measured.energy))


def test_passes_that_turn_out_too_short_for_the_meter_are_gathered_after_all(duet):
    """Slow first passes promise windows that later ones do not keep."""
    pair, log = duet(rounds=32)
    pair.meter = CountingMeter(log, least=1e-6, fails=range(1, 65))
    measured = pair.run()
    assert len(measured.reference.wall_ns) == 32
    assert len(measured.energy) == 8
    assert measured.energy_method == "measured"


def test_without_a_meter_energy_is_unmeasured_with_the_reason(duet):
    """Never 0."""
    measured = duet()[0].run()
    assert measured.energy == ()
    assert measured.energy_method == "unmeasured"
    assert "no meter here" in measured.energy_reason


def test_a_meter_that_fails_now_and_then_costs_its_pairs_only(duet):
    """The pairs of failed readings are left out."""
    pair, log = duet(rounds=32)
    pair.meter = CountingMeter(log, least=0.005, fails=(1, 4))
    assert len(pair.run().energy) == 8 - 2


def test_a_meter_that_vanishes_leaves_energy_unmeasured(duet):
    """More failures than readings: no number is made of the rest."""
    pair, log = duet()
    pair.meter = CountingMeter(log, least=0.005, fails="all")
    measured = pair.run()
    assert (measured.energy, measured.energy_method, measured.energy_reason) == (
        (),
        "unmeasured",
        "the meter is gone",
    )


def test_readings_of_unlike_sources_never_meet():
    """A ratio of a measured and an estimated joule is refused."""
    measured, estimated = Reading(2.0, "J", "rapl", "measured"), Reading(1.0, "J", "codecarbon", "estimated")
    assert energy_pairs([measured], [estimated]) == (
        (),
        "unmeasured",
        "the energy source changed during the measurement",
    )
    assert energy_pairs([measured], [measured]) == ((0.0,), "measured", "")
    assert energy_pairs([], []) == ((), "unmeasured", "")


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [([1, 4], [2, 1], [math.log(2), -math.log(4)]), ([0], [10], [math.log(10)]), ([], [], [])],
)
def test_log_ratios_of_adjacent_runs(reference, candidate, expected):
    """A clock that did not tick counts as one nanosecond."""
    assert log_ratios(reference, candidate) == pytest.approx(expected)
