"""Prefill and decode timed apart, by a clock that only the models move."""

from __future__ import annotations

import gc
import math
from types import SimpleNamespace

import pytest
import torch
from own_tests import own_test
from tiny_models import tiny_model
from torch import nn

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import Comparator, EvalContext, timed_requests
from pytest_llmslim.evals.latency import Clock, Latency, sign_flips
from pytest_llmslim.evals.text import Passage
from pytest_llmslim.evals.timed_requests import BUDGET_S, LEAST, MOST, Cell
from pytest_llmslim.meters.clock import Ticks
from pytest_llmslim.meters.disturbance import BACKWARDS
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.readings import Estimate, Reading, no_estimate, unmeasured
from pytest_llmslim.records import Figure, Protocol

PREFILL_NS, DECODE_NS = 1_000, 50_000
"""What a position of a prompt, and what a step behind it costs on the fake clock."""
NO_METER = NullMeter("no meter here")


class FakeClock:
    """Stands for every stopwatch: time passes only in the models, and half of it on the CPU."""

    def __init__(self):
        self.now = 0

    def __call__(self, device):
        return Hand(self)


class Hand:
    def __init__(self, clock):
        self.clock = clock

    def start(self):
        self.began = self.clock.now

    def stop(self):
        passed = self.clock.now - self.began
        return Ticks(passed, passed // 2)


class FakeWatch:
    """Says of each pair, in order, what disturbed it; of later ones `always`."""

    def __init__(self, *seen, always=()):
        self.seen, self.always, self.laps, self.closed = list(seen), always, 0, False

    def __call__(self, device):
        return self

    def begin(self):
        pass

    def lap(self, ticks):
        self.laps += 1

    def end(self):
        return self.seen.pop(0) if self.seen else self.always

    def close(self):
        self.closed = True


class Worker(nn.Module):
    """Moves the clock as long as `cost(batch, positions)` says, and notes what it is asked.

    A first reading costs `PREFILL_NS` a position and text; a step behind it `DECODE_NS`, whatever the batch.
    """

    def __init__(self, clock, log, name, cost=None, longest=None):
        super().__init__()
        self.clock, self.log, self.name = clock, log, name
        self.cost = cost or usual
        if longest:
            self.config = SimpleNamespace(max_position_embeddings=longest)

    def forward(self, input_ids, past_key_values, use_cache, logits_to_keep):
        batch, length = input_ids.shape
        self.clock.now += int(self.cost(batch, length))
        self.log.append((self.name, batch, length, gc.isenabled()))
        return SimpleNamespace(logits=torch.zeros(batch, 1, 4), past_key_values=object())


def usual(batch, length):
    return DECODE_NS if length == 1 else PREFILL_NS * batch * length


@pytest.fixture
def clock(monkeypatch):
    fake = FakeClock()
    monkeypatch.setattr(timed_requests, "Stopwatch", fake)
    monkeypatch.setattr(timed_requests, "Watch", FakeWatch())
    return fake


@pytest.fixture
def workers(clock):
    """Makes a reference of usual cost and a candidate, and the log of what both were asked."""

    def make(cost, **options):
        log = []
        return Worker(clock, log, "r"), Worker(clock, log, "c", cost, **options), log

    return make


def context_of(**changes):
    windows = (torch.arange(20)[None], torch.arange(20, 35)[None])
    protocol = Protocol("window", 20, 20, False, 35, 2, "t", "0" * 64, "float32")
    passage = Passage(protocol, windows, (1, 1), None, None, None)
    given = {"tokenizer": None, "device": "cpu", "label": "int4 on tiny", "seed": 3, "passage": passage}
    return EvalContext(**(given | changes))


def named(figures):
    return {figure.name: figure for figure in figures}


def test_a_candidate_that_does_all_twice_takes_twice_as_long(workers):
    """In every cell, and writes half as many tokens a second; seconds are wall time, by the fake clock exactly."""
    reference, candidate, _ = workers(lambda batch, length: 2 * usual(batch, length))
    figures = Latency("1/4", "8/32", 5).compare(reference, candidate, context_of(), NO_METER)
    found = named(figures)

    assert [
        f"{m} batch {b} prompt {p}" for b in (1, 4) for p in (8, 32) for m in ("ttft", "tpot", "throughput")
    ] == [*found]
    for batch in (1, 4):
        for prompt in (8, 32):
            first = PREFILL_NS * batch * prompt / 1e9
            cell = f"batch {batch} prompt {prompt}"
            assert pytest.approx((first, 2 * first)) == values(found[f"ttft {cell}"])
            assert pytest.approx((DECODE_NS / 1e9, 2 * DECODE_NS / 1e9)) == values(found[f"tpot {cell}"])
            rate = batch * 5 / (first + 4 * DECODE_NS / 1e9)
            assert pytest.approx((rate, rate / 2)) == values(found[f"throughput {cell}"])
    for figure in figures:
        factor = 0.5 if figure.name.startswith("throughput") else 2.0
        assert (factor,) * 3 == pytest.approx((figure.ratio.value, figure.ratio.low, figure.ratio.high))
        assert ("measured", "process cpu time") == (figure.ratio.method, figure.ratio.source)
    assert {"s", "tokens/s"} == {figure.unit for figure in figures}


def values(figure):
    return figure.reference, figure.candidate


def test_prefill_and_decode_are_apart(workers):
    """A candidate that only reads prompts slower has a ratio of 1 behind them."""
    reference, candidate, _ = workers(lambda batch, length: usual(batch, length) * (3 if length > 1 else 1))
    found = named(Latency(2, 16, 4).compare(reference, candidate, context_of(), NO_METER))
    assert found["ttft batch 2 prompt 16"].ratio.value == pytest.approx(3)
    assert found["tpot batch 2 prompt 16"].ratio.value == pytest.approx(1)


def test_a_sign_that_flips_with_the_batch_is_said(workers):
    """As 4-bit weights on a GPU: faster for one text, slower for eight."""
    reference, candidate, _ = workers(
        lambda batch, length: usual(batch, length) * (0.61 if batch == 1 else 1.3)
    )
    figures = Latency("1/8", 16, 4).compare(reference, candidate, context_of(), NO_METER)
    assert (
        "time to first token of nf4: faster at batch 1, prompt 16 (0.61), and slower at batch 8, prompt 16 (1.30)",
        "time per output token of nf4: faster at batch 1, prompt 16 (0.61), and slower at batch 8, prompt 16 (1.30)",
    ) == sign_flips(figures, "nf4")


@pytest.mark.parametrize(
    ("low", "high", "flips"), [(1.2, 1.4, 1), (0.99, 1.6, 0), (0.0, math.inf, 0), (None, None, 0)]
)
def test_only_what_is_sure_flips(low, high, flips):
    """An interval that holds 1 has no sign; nor have figures without ratio, throughput or other names."""
    ratio = no_estimate("nothing") if low is None else Estimate(1.3, low, high, 6, "measured", "cpu")
    sure = Estimate(0.6, 0.5, 0.7, 6, "measured", "cpu")
    figures = [
        Figure("tpot batch 1 prompt 32", "s", 1.0, 0.6, sure),
        Figure("tpot batch 4 prompt 32", "s", 1.0, 1.3, ratio),
        Figure("ttft batch 4 prompt 32", "s", 1.0, 0.6, sure),
        Figure("throughput batch 4 prompt 32", "tokens/s", 1.0, 1.3, sure),
        Figure("ttft batch 1 prompt 32", "s", None, None),
        Figure("something else", "s", 1.0, 1.0, sure),
    ]
    assert flips == len(sign_flips(figures, "nf4"))


def test_runs_stand_next_to_each_other_in_balanced_order(workers):
    """Each model is as often first, and each timed run stands behind an untimed one of the same model."""
    reference, candidate, log = workers(usual)
    Latency(2, 8, 5).compare(reference, candidate, context_of(), NO_METER)
    settled = 2 * 5  # both once, untimed
    run = 2 + 5  # an untimed run of two tokens, a timed one of five
    turns = [log[at : at + run] for at in range(settled, len(log), run)]

    assert all(len({name for name, *_ in turn}) == 1 for turn in turns)
    assert all([8, 1, 8, 1, 1, 1, 1] == [length for _, _, length, _ in turn] for turn in turns)
    first = [turns[i][0][0] for i in range(0, len(turns), 2)]
    second = [turns[i][0][0] for i in range(1, len(turns), 2)]
    assert first.count("r") == first.count("c") == MOST / 2
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert {"rc", "cr"} == {a + b for a, b in zip(first[::2], first[1::2], strict=True)}
    assert not any(enabled for *_, enabled in log[settled:])
    assert gc.isenabled()


@pytest.mark.parametrize(("share", "rounds"), [(2, 6), (1 / 6.5, 8), (1 / 9.5, 10), (1 / 1000, 20)])
def test_rounds_fit_into_the_time(workers, share, rounds):
    """At least six pairs however slow a model is, no more than twenty, and even: both models are as often first."""
    prompt_ns = BUDGET_S * 1e9 * share / 2  # a round reads the prompt twice, once of it untimed
    reference, candidate, _ = workers(lambda batch, length: prompt_ns if length > 1 else 1)
    figures = Latency(1, 8, 2).compare(reference, candidate, context_of(), NO_METER)
    assert {rounds} == {figure.ratio.n for figure in figures}


def test_the_least_number_of_rounds_has_an_interval(workers):
    """Six equal pairs: 2 ** -6 is less than 2.5 %."""
    reference, candidate, _ = workers(lambda batch, length: 1.5 * usual(batch, length) * 1e6)
    ratio = Latency(1, 8, 2).compare(reference, candidate, context_of(), NO_METER)[0].ratio
    assert LEAST == ratio.n
    assert 0 < ratio.low <= ratio.value <= ratio.high < math.inf


def test_cells_without_positions_are_left_out_with_the_reason(workers):
    """By the model that has fewer; the others are measured."""
    reference, candidate, log = workers(usual, longest=20)
    found = named(Latency(1, "16/17", 4).compare(reference, candidate, context_of(), NO_METER))
    gone = found["tpot batch 1 prompt 17"]
    assert (None, None) == values(gone)
    assert "it takes 21 positions, and the model has 20" == gone.ratio.reason
    assert not gone.ratio.known
    assert found["tpot batch 1 prompt 16"].ratio.known
    assert 17 not in {length for _, _, length, _ in log}


def test_no_cell_that_fits_is_an_error(workers):
    """With the way out."""
    reference, candidate, _ = workers(usual, longest=20)
    message = (
        r"int4 on tiny: 4 tokens behind a prompt fit into the model's 20 positions, got prompts=32/128; "
        r"give shorter ones"
    )
    with pytest.raises(EvaluationError, match=message):
        Latency("1/4", "32/128", 4).compare(reference, candidate, context_of(), NO_METER)


def test_a_disturbed_pair_is_measured_once_more(workers, monkeypatch):
    """One in a round, then it is kept: a machine that stays busy is not waited for."""
    watch = FakeWatch(("other load",), ("other load",), ("other load",))
    monkeypatch.setattr(timed_requests, "Watch", watch)
    reference, candidate, _ = workers(usual)
    figures = Latency("1/2", 8, 4).compare(reference, candidate, context_of(), NO_METER)
    assert {MOST} == {figure.ratio.n for figure in figures}
    # of two phases of two models: in the first round the pair of the first cell twice
    assert 4 * (2 * MOST + 1) == watch.laps
    assert watch.closed


def test_a_clock_that_goes_backwards_gives_no_pair(workers, monkeypatch):
    """Nor a figure, when it always does."""
    monkeypatch.setattr(timed_requests, "Watch", FakeWatch(*[(BACKWARDS,)] * 2))
    reference, candidate, _ = workers(usual)
    figures = Latency(1, 8, 4).compare(reference, candidate, context_of(), NO_METER)
    assert {MOST - 1} == {figure.ratio.n for figure in figures}

    monkeypatch.setattr(timed_requests, "Watch", FakeWatch(always=(BACKWARDS,)))
    figures = Latency(1, 8, 4).compare(reference, candidate, context_of(), NO_METER)
    assert ["the clock of this machine went backwards in every pair"] * 3 == [
        figure.ratio.reason for figure in figures
    ]


def test_on_a_gpu_the_ratio_is_of_cuda_events():
    """And seconds are wall time there, too."""
    sides = [[Ticks(2_000_000_000, 5, 100)] * 6, [Ticks(3_000_000_000, 5, 50)] * 6]
    figure = Clock(cuda=True).figure(Cell(1, 8), "ttft", sides, lambda seconds: seconds)
    assert (2.0, 3.0) == values(figure)
    assert (pytest.approx(0.5), "cuda events") == (figure.ratio.value, figure.ratio.source)


# Energy -----------------------------------------------------------------------------------------------------


class CountingMeter:
    """A joule a forward pass of the reference, half of one for the candidate."""

    source, description, because = "fake", "a fake", ()

    def __init__(self, log, least=0.0, method="measured", fails=False):
        self.log, self.min_window_s, self.method, self.fails, self.windows = log, least, method, fails, 0

    def start(self):
        self.began = len(self.log)

    def stop(self):
        self.windows += 1
        if self.fails:
            return unmeasured("J", self.source, "the meter is gone")
        names = [name for name, *_ in self.log[self.began :]]
        assert 1 == len(set(names))
        return Reading(
            sum(0.5 if name == "c" else 1.0 for name in names), "J", self.source, self.method, 0.001
        )


def energy(workers, **options):
    reference, candidate, log = workers(usual)
    meter = CountingMeter(log, **options)
    figures = Latency("1/2", 8, 4).compare(reference, candidate, context_of(), meter)
    return {name: figure for name, figure in named(figures).items() if "energy" in name}, meter


@pytest.mark.parametrize("least", [0.0, 0.01])
def test_joules_are_those_of_a_new_token(workers, least):
    """Four forward passes for four tokens of each text, however many requests a window holds."""
    found, meter = energy(workers, least=least)
    assert pytest.approx((1.0, 0.5)) == values(found["energy batch 1 prompt 8"])
    assert pytest.approx((0.5, 0.25)) == values(found["energy batch 2 prompt 8"])
    ratio = found["energy batch 2 prompt 8"].ratio
    assert (pytest.approx(0.5), MOST, "measured", "fake") == (
        ratio.value,
        ratio.n,
        ratio.method,
        ratio.source,
    )
    assert 2 * 2 * MOST == meter.windows


def test_windows_that_take_too_long_are_not_begun(workers):
    """With the reason: 2 cells of 2 models at 2.2 s are more than 8 s."""
    found, meter = energy(workers, least=2.0)
    reason = "the meter needs windows of 2.2 s, 8.8 s over 2 cells, and 8 s are given to energy; ask for fewer cells"
    assert [reason] * 2 == [figure.ratio.reason for figure in found.values()]
    assert 0 == meter.windows


def test_of_long_windows_there_are_few(workers, monkeypatch):
    """One round fits, which gives a ratio without bounds."""
    monkeypatch.setattr(timed_requests, "BUDGET_S", 0.008)
    found, _ = energy(workers, least=0.0015)
    ratio = found["energy batch 1 prompt 8"].ratio
    assert (1, 0.0, math.inf) == (ratio.n, ratio.low, ratio.high)
    assert ratio.value == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["estimated", "unmeasured"])
def test_an_estimate_is_no_energy_of_a_phase(workers, method):
    """It is a constant times the time, which is there already."""
    found, meter = energy(workers, method=method)
    assert {} == found
    assert 0 == meter.windows


def test_a_meter_that_fails_leaves_a_reason(workers):
    """Never a zero."""
    found, _ = energy(workers, fails=True)
    assert ["the meter is gone"] * 2 == [figure.ratio.reason for figure in found.values()]
    assert (None, None) == values(found["energy batch 1 prompt 8"])


# Parameters and real models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1/4", "1,4", " 1 , 4 ", "1/4/1"])
def test_sizes_are_a_list(text, workers):
    """With either sign between, each size once."""
    reference, candidate, _ = workers(usual)
    found = Latency(text, 8, 2).compare(reference, candidate, context_of(), NO_METER)
    assert ["ttft batch 1 prompt 8", "ttft batch 4 prompt 8"] == [
        each.name for each in found if "ttft" in each.name
    ]


@pytest.mark.parametrize("value", ["", "0", "1/", "1;4", "1/x", "-1", True, 1.5, None, "01"])
def test_what_is_no_list_of_sizes_is_refused(value):
    """Of both kinds, with an example."""
    for name in ("batches", "prompts"):
        with pytest.raises(
            EvaluationError, match=rf'{name} is a list of numbers from 1 on, as 1/4 or "1,4", got'
        ):
            Latency(**{name: value})


@pytest.mark.parametrize("value", [1, 0, 2.0, "16", True])
def test_two_tokens_are_the_least(value):
    """The first is the prompt's; only behind it is there a time per token."""
    with pytest.raises(EvaluationError, match="tokens is a whole number of at least 2, got"):
        Latency(tokens=value)


def test_the_recipe_grammar_spells_it_unquoted():
    """`latency(batches=1/8,prompts=64)`, where a single size is a number."""
    from pytest_llmslim.eval_catalogue import BUILTIN_EVALUATIONS
    from pytest_llmslim.evaluations import instantiate, parse
    from pytest_llmslim.registry import Registry

    registry = Registry(BUILTIN_EVALUATIONS, "evaluation")
    step = parse("latency(batches=1/8,prompts=64)", registry)
    made = instantiate(step, registry)
    assert Latency("1/8", 64) == made
    assert isinstance(made, Comparator)
    assert "latency(batches=1/8,prompts=64)" == step.text


def test_who_failed_is_said(workers):
    """By name, with the cell."""

    def broken(batch, length):
        raise ValueError("no kernel")

    reference, candidate, _ = workers(broken)
    message = r"^int4 on tiny failed at batch 1, prompt 8 \(ValueError: no kernel\); run the model by itself"
    with pytest.raises(EvaluationError, match=message):
        Latency(1, 8, 2).compare(reference, candidate, context_of(), NO_METER)
    with pytest.raises(EvaluationError, match=r"^The reference of int4 on tiny failed at batch 1, prompt 8"):
        Latency(1, 8, 2).compare(candidate, reference, context_of(), NO_METER)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_real_models_keep_their_weights(family, monkeypatch):
    """Moved in memory, every round, and equal to the last bit; real clocks give some number for every figure."""
    torch.set_num_threads(1)
    monkeypatch.setattr(timed_requests, "MOST", LEAST)
    reference = tiny_model(family)
    candidate = copy_model(reference)
    before = [parameter.clone() for parameter in candidate.parameters()]
    places = [parameter.data_ptr() for parameter in candidate.parameters()]
    figures = Latency("1/3", "5/40", 4).compare(reference, candidate, context_of(), NO_METER)

    assert 4 * 3 == len(figures)
    assert all(figure.ratio.value > 0 and min(values(figure)) > 0 for figure in figures)
    assert all(torch.equal(a, b) for a, b in zip(before, candidate.parameters(), strict=True))
    assert places != [parameter.data_ptr() for parameter in candidate.parameters()]


def test_progress_is_told(workers):
    """Round by round, and wiped at the end."""
    told = []
    reference, candidate, _ = workers(usual)
    Latency(1, 8, 2).compare(reference, candidate, context_of(progress=told.append), NO_METER)
    assert [f"round {i}" for i in range(1, MOST + 1)] + [""] == told


def test_a_whole_run_with_generation(pytester, run, monkeypatch):
    """Both from the command line: the cell without positions is named, and the table shows the others."""
    monkeypatch.setattr(timed_requests, "MOST", LEAST)
    own_test(pytester, recipe="int8")
    result = run(
        "--llm-eval=latency(batches=2,prompts=16/128,tokens=4)", "--llm-eval=generation(tokens=16,prompt=8)"
    )

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "*latency*: candidate / reference*",
            "*ttft batch 2 prompt 16 *s *",
            "*generation*: agreement, higher is better, n = 8*",
        ]
    )
    (line,) = (pytester.path / "llm-results/results.jsonl").read_text().splitlines()[-1:]
    assert "it takes 132 positions, and the model has 128" in line
    assert "repeated tokens" in line
