from __future__ import annotations

import itertools
import math
import random
import statistics as reference
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.errors import MeasurementError
from pytest_llmslim.statistics import (
    Interval,
    accuracy_difference,
    block_estimate,
    block_medians,
    hodges_lehmann,
    holm,
    mcnemar,
    mean_interval,
    minimum_blocks,
    needed_samples,
    signed_rank_p_greater,
    window_estimate,
    window_interval,
)

INF, NAN = math.inf, math.nan
values_without_ties = st.lists(
    st.integers(1, 10**6).map(lambda i: i / 1e6), min_size=1, max_size=14, unique=True
).flatmap(lambda xs: st.tuples(*[st.sampled_from([x, -x]) for x in xs]))
values = st.lists(st.floats(-1, 1), min_size=1, max_size=14)


def enumerated_p(signed: tuple[float, ...]) -> float:
    """The p-value by listing all 2 ** n signs of the ranks of the magnitudes."""
    ranks = scipy.stats.rankdata(np.abs(signed))
    observed = sum(r for r, v in zip(ranks, signed, strict=True) if v > 0)
    signs = itertools.product((0, 1), repeat=len(signed))
    sums = [float(np.dot(s, ranks)) for s in signs]
    return sum(s >= observed - 1e-9 for s in sums) / len(sums)


# Signed rank ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(values_without_ties.filter(lambda v: len(v) <= 10))
def test_p_is_that_of_all_sign_flips(signed: tuple[float, ...]) -> None:
    """Without ties, p is the share of all sign patterns that are at least as extreme."""
    assert signed_rank_p_greater(signed) == pytest.approx(enumerated_p(signed), abs=1e-12)


@given(values_without_ties)
def test_p_equals_scipy(signed: tuple[float, ...]) -> None:
    """Without ties and zeros, p equals scipy's exact one to 1e-12."""
    expected = scipy.stats.wilcoxon(signed, alternative="greater", method="exact").pvalue
    assert signed_rank_p_greater(signed) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, math.log(1.02), -0.3])
def test_p_equals_scipy_up_to_the_last_look(shift: float) -> None:
    """From one block to forty, and fifty, with and without a limit, p equals scipy's exact one to 1e-12."""
    for n in [*range(1, 41), 50]:
        drawn = np.random.default_rng(n).normal(0.1, 0.3, n)
        expected = scipy.stats.wilcoxon(drawn - shift, alternative="greater", method="exact").pvalue
        assert signed_rank_p_greater(drawn.tolist(), shift) == pytest.approx(float(expected), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=9))
def test_p_is_conservative_with_ties_and_zeros(tied: list[float]) -> None:
    """However ties are broken and zeros get a sign, p is at most what is reported."""
    p = signed_rank_p_greater(tied)
    generator = random.Random(0)
    for _ in range(5):
        broken = tuple(v + generator.uniform(-1e-6, 1e-6) for v in tied)
        assert enumerated_p(broken) <= p + 1e-12


def test_p_of_a_shift() -> None:
    """Shifting the claim is shifting the values."""
    drawn = [0.01, 0.05, 0.03, 0.12, -0.02]
    assert signed_rank_p_greater(drawn, 0.02) == signed_rank_p_greater([v - 0.02 for v in drawn])


@pytest.mark.parametrize(
    ("alpha", "blocks"), [(0.5, 1), (0.05, 5), (0.01, 7), (1 / 128, 7), (0.01 / 20, 11), (0.001, 10)]
)
def test_minimum_blocks(alpha: float, blocks: int) -> None:
    """Fewer blocks than log2(1 / alpha) cannot decide anything, and that many can."""
    assert minimum_blocks(alpha) == blocks
    assert signed_rank_p_greater([1.0 + i for i in range(blocks)]) <= alpha
    assert hodges_lehmann([1.0] * blocks, miss_low=alpha).low > 1
    assert blocks == 1 or signed_rank_p_greater([1.0 + i for i in range(blocks - 1)]) > alpha


# Hodges-Lehmann ------------------------------------------------------------------------------------------


@given(values)
def test_the_estimate_is_the_median_of_pairwise_means(drawn: list[float]) -> None:
    """The ratio is the exponential of the median of all means of two values, each with itself included."""
    means = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(drawn, 2)]
    assert hodges_lehmann(drawn).value == pytest.approx(math.exp(reference.median(means)))


@given(values_without_ties, st.sampled_from([0.001, 0.01, 0.025, 0.05, 0.2]), st.floats(-1, 1))
def test_bounds_invert_the_test(drawn: tuple[float, ...], alpha: float, shift: float) -> None:
    """The low bound lies above a shift exactly when the test rejects it, and the high bound mirrors it."""
    shift += 1e-9 / 3  # between the values
    interval = hodges_lehmann(drawn, miss_low=alpha, miss_high=alpha)
    assert (interval.low > math.exp(shift)) == (signed_rank_p_greater(drawn, shift) <= alpha)
    mirrored = hodges_lehmann([-v for v in drawn], miss_low=alpha, miss_high=alpha)
    assert interval.low == pytest.approx(1 / mirrored.high if mirrored.high < INF else 0.0)
    assert interval.high == pytest.approx(1 / mirrored.low if mirrored.low else INF)


@given(values)
def test_bounds_hold_the_estimate(drawn: list[float]) -> None:
    """The estimate lies inside its interval, and the order of blocks is of no matter."""
    interval = hodges_lehmann(drawn)
    assert interval.low <= interval.value <= interval.high
    assert interval == hodges_lehmann(sorted(drawn))


@pytest.mark.parametrize(("n", "bounded"), [(6, False), (7, True)])
def test_too_few_blocks_have_no_bounds(n: int, bounded: bool) -> None:
    """Bounds that miss 1.25 % each need seven blocks; with fewer the interval is everything."""
    interval = hodges_lehmann([0.1 * i for i in range(n)])
    assert ((interval.low, interval.high) != (0.0, INF)) == bounded


@pytest.mark.parametrize("noise", ["normal", "spikes", "laplace"])
def test_the_interval_covers_the_truth(noise: str) -> None:
    """In 600 simulated runs the 95 % interval holds the truth in at least 93 % (three standard errors)."""
    generator = np.random.default_rng(20250202)
    draws = {
        "normal": lambda: generator.normal(0, 0.05, 12),
        "spikes": lambda: (
            generator.normal(0, 0.02, 12) + generator.choice([-0.5, 0, 0.5], 12, p=[0.1, 0.8, 0.1])
        ),
        "laplace": lambda: generator.laplace(0, 0.05, 12),
    }[noise]
    intervals = [hodges_lehmann((math.log(1.05) + draws()).tolist()) for _ in range(600)]
    assert sum(i.low <= 1.05 <= i.high for i in intervals) >= 0.93 * 600


def test_false_alarms_keep_their_level() -> None:
    """In 3000 runs of noise alone the low bound at 1 % passes the truth in about 1 % at most."""
    generator = np.random.default_rng(7)
    runs = [hodges_lehmann(generator.normal(0, 0.1, 12).tolist(), miss_low=0.01) for _ in range(3000)]
    assert sum(i.low > 1.0 for i in runs) <= 46  # 30 expected at most, three standard errors


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_block_that_is_no_number_is_an_error(bad: float) -> None:
    """A NaN or infinite log ratio stops the estimate instead of spreading."""
    with pytest.raises(MeasurementError, match=r"a log ratio is finite, got .*; a reading was zero"):
        hodges_lehmann([0.1, bad])
    with pytest.raises(MeasurementError, match="a log ratio is finite"):
        signed_rank_p_greater([0.1, bad])


def test_no_block_is_an_error() -> None:
    """An estimate of nothing is refused, and as a record says why it has no number."""
    with pytest.raises(MeasurementError, match="at least one log ratio, got none"):
        hodges_lehmann([])
    assert block_estimate([], "measured", "rapl").reason == "no block was measured"


def test_block_estimate() -> None:
    """A record's estimate is a ratio with its interval, count, method and source."""
    estimate = block_estimate([math.log(2.0)] * 8, "sampled", "nvml")
    assert (estimate.value, estimate.n, estimate.method, estimate.source) == (
        pytest.approx(2),
        8,
        "sampled",
        "nvml",
    )
    assert (estimate.low, estimate.high) == (pytest.approx(2), pytest.approx(2))


# Blocks, families, sizes ---------------------------------------------------------------------------------


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.integers(1, 6))
def test_block_medians(pairs: list[float], per_block: int) -> None:
    """Each full block gives its median."""
    full = pairs[: len(pairs) // per_block * per_block]
    chunks = [full[i : i + per_block] for i in range(0, len(full), per_block)]
    assert block_medians(full, per_block) == tuple(reference.median(c) for c in chunks)


@pytest.mark.parametrize(("count", "per_block"), [(5, 4), (3, 0)])
def test_blocks_are_full(count: int, per_block: int) -> None:
    """A block that is not full is refused."""
    with pytest.raises(ValueError, match=f"pairs come in full blocks of {per_block}, got {count}"):
        block_medians([0.1] * count, per_block)


def test_holm_by_hand() -> None:
    """The smallest p is multiplied by the number of gates, the next by one less, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_lies_between_raw_and_bonferroni(p_values: list[float]) -> None:
    """An adjusted p is at least the raw one and at most Bonferroni's, in the same order."""
    adjusted = holm(p_values)
    for raw, new in zip(p_values, adjusted, strict=True):
        assert raw <= new <= min(1.0, raw * len(p_values)) + 1e-15
    assert [a for _, a in sorted(zip(p_values, adjusted, strict=True))] == sorted(adjusted)


@pytest.mark.parametrize(
    ("interval", "fail_above", "pass_below", "needed"),
    [
        (Interval(1.05, 1.01, 1.09, 10), 1.03, 1.03, 41),  # 4 % wide, 2 % to go
        (Interval(1.01, 0.97, 1.05, 10), 1.03, 1.03, 40),  # the same from below
        (Interval(1.05, 1.01, 1.09, 10), 1.02, 1.10, 11),  # between two limits the nearer one, and one more
        (Interval(1.03, 1.0, 1.06, 10), 1.03, 1.03, None),  # on the limit
        (Interval(1.030001, 0.9, 1.2, 10), 1.03, 1.03, None),  # as good as on it
        (Interval(1.05, 0.0, INF, 5), 1.03, 1.03, 7),  # too few for a bound
        (Interval(INF, INF, INF, 5), 1.03, 1.03, None),
        (Interval(0.0, 0.0, 0.0, 5), 1.03, 1.03, None),
    ],
)
def test_needed_samples(interval: Interval, fail_above: float, pass_below: float, needed: int | None) -> None:
    """The number grows with the square of interval over distance; on the limit no number settles it."""
    assert (
        needed_samples(interval, fail_above=fail_above, pass_below=pass_below, fail_minimum=7, pass_minimum=7)
        == needed
    )


# Windows of text -----------------------------------------------------------------------------------------


def by_matrices(values: np.ndarray, tokens: np.ndarray, bandwidth: int) -> float:
    """Half of the 95 % interval of a mean from its definition: A with variance = values' A values."""
    n, shares = len(values), tokens / tokens.sum()
    distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    kernel = np.diag(shares) @ np.maximum(0, 1 - distance / bandwidth) @ np.diag(shares)
    residuals = np.eye(n) - shares
    form = residuals.T @ kernel @ residuals
    # Of independent tokens with variance 1 the window means have 1 / tokens, and the mean 1 / all tokens.
    seen = form @ np.diag(1 / tokens)
    form /= np.trace(seen) * tokens.sum()
    degrees = np.trace(seen) ** 2 / np.trace(seen @ seen)
    centred = values - values @ shares  # changes nothing but the rounding
    return scipy.stats.t.ppf(0.975, degrees) * math.sqrt(max(0.0, centred @ form @ centred))


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 500)), min_size=2, max_size=20))
def test_the_interval_of_a_mean_is_what_its_formula_says(windows: list[tuple[float, int]]) -> None:
    """Both variances are unbiased for independent tokens, both quantiles Satterthwaite's; the wider one holds."""
    values, tokens = np.array([w[0] for w in windows]), np.array([w[1] for w in windows])
    interval = mean_interval(values.tolist(), tokens.tolist())
    expected = max(
        by_matrices(values, tokens, 1), by_matrices(values, tokens, math.ceil(1.3 * len(values) ** 0.5))
    )
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert interval.high - interval.value == pytest.approx(interval.value - interval.low, abs=1e-12)


def test_windows_that_alternate_are_a_paired_t_interval() -> None:
    """Where neighbours do not resemble each other, the interval is that of a paired t test."""
    drawn = np.random.default_rng(3).normal(0.04, 0.01, 24)
    drawn = np.where(np.arange(24) % 2, np.sort(drawn), np.sort(drawn)[::-1])
    interval = window_interval(drawn.tolist(), [255] * 24)
    expected = scipy.stats.ttest_1samp(drawn, 0).confidence_interval(0.95)
    assert interval == pytest.approx(
        (math.exp(drawn.mean()), math.exp(expected.low), math.exp(expected.high), 24)
    )


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_never_narrower_than_independent_windows(values: list[float]) -> None:
    """Whatever the order of the text, the interval holds that of a t test on the windows."""
    interval = mean_interval(values, [255] * len(values))
    deviation = np.std(values, ddof=1)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
    assert interval.high - interval.value >= half * (1 - 1e-9) - 1e-12


def test_a_text_that_changes_slowly_has_a_wider_interval() -> None:
    """The same differences are known worse when neighbours resemble each other than when shuffled."""
    drawn = np.sort(np.random.default_rng(8).normal(0.04, 0.01, 32))
    widths = [i.high - i.low for i in (mean_interval(d.tolist(), [255] * 32) for d in (drawn, drawn[::-1]))]
    shuffled = mean_interval(np.random.default_rng(9).permutation(drawn).tolist(), [255] * 32)
    assert widths[0] == pytest.approx(widths[1])
    assert widths[0] > 2 * (shuffled.high - shuffled.low)


@pytest.mark.parametrize(
    ("correlation", "held"),
    [
        (0.0, {8: 0.977, 16: 0.976, 32: 0.970, 64: 0.970}),
        (0.3, {8: 0.942, 16: 0.946, 32: 0.945, 64: 0.945}),
        (0.6, {8: 0.859, 16: 0.888, 32: 0.907, 64: 0.921}),
    ],
)
def test_coverage_where_neighbours_resemble_each_other(correlation: float, held: dict[int, float]) -> None:
    """The shares in the docstring, which 20,000 texts gave, come out again of 500 within 3.5 standard errors."""
    runs = 500
    for n, expected in held.items():
        texts = np.random.default_rng(n).normal(size=(runs, n))
        for i in range(1, n):
            texts[:, i] = correlation * texts[:, i - 1] + math.sqrt(1 - correlation**2) * texts[:, i]
        intervals = [mean_interval(text, [255] * n) for text in texts.tolist()]
        found = np.mean([i.low <= 0 <= i.high for i in intervals])
        assert found == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / runs)), n


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 500)), min_size=2, max_size=12))
def test_windows_weigh_by_their_tokens(windows: list[tuple[float, int]]) -> None:
    """The ratio is that of the two perplexities over all tokens, whatever the windows' sizes."""
    differences, tokens = [w[0] for w in windows], [w[1] for w in windows]
    interval = window_interval(differences, tokens)
    assert interval.value == pytest.approx(math.exp(np.average(differences, weights=tokens)))
    assert interval.low <= interval.value <= interval.high


def test_windows_of_unequal_size_cover_the_truth() -> None:
    """In 600 simulated texts the 95 % interval holds the truth in at least 92 %."""
    generator = np.random.default_rng(11)
    tokens = [255] * 20 + [100, 60, 30]
    held = 0
    for _ in range(600):
        differences = [0.04 + generator.normal(0, 0.2 / math.sqrt(t)) for t in tokens]
        interval = window_interval(differences, tokens)
        held += interval.low <= math.exp(0.04) <= interval.high
    assert held >= 0.92 * 600


@pytest.mark.parametrize(
    ("differences", "interval"),
    [
        ([0.0, 0.0, 0.0], Interval(1.0, 1.0, 1.0, 3)),
        ([0.0], Interval(1.0, 0.0, INF, 1)),
        ([0.1, INF], Interval(INF, INF, INF, 2)),
        ([800.0, 800.0], Interval(INF, INF, INF, 2)),
        ([-800.0, -800.0], Interval(0.0, 0.0, 0.0, 2)),
    ],
)
def test_edges_of_windows(differences: list[float], interval: Interval) -> None:
    """Equal models have no error, one window no bounds, and an impossible token an infinite perplexity."""
    assert window_interval(differences, [255] * len(differences)) == interval


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        ([0.2], Interval(0.2, 0.0, INF, 1)),
        ([0.0, 0.0], Interval(0.0, 0.0, 0.0, 2)),
        ([0.1, INF], Interval(INF, INF, INF, 2)),
    ],
)
def test_edges_of_a_mean(values: list[float], interval: Interval) -> None:
    """A divergence is never below 0, and one window says nothing of what it might be."""
    assert mean_interval(values, [255] * len(values), least=0.0) == interval


def test_a_divergence_is_not_below_nothing() -> None:
    """The low bound is cut where the quantity ends, and nothing else changes."""
    values = [0.001, 0.0, 0.0, 0.02]
    plain, cut = mean_interval(values, [255] * 4), mean_interval(values, [255] * 4, least=0.0)
    assert plain.low < 0 == cut.low
    assert (plain.value, plain.high) == (cut.value, cut.high)
    assert mean_interval(values, [255] * 4, 0.5).low > plain.low


@pytest.mark.parametrize(
    ("differences", "tokens", "message"),
    [
        ([], [], "at least one log ratio"),
        ([0.1, NAN], [1, 1], "a log ratio is finite, got nan"),
        ([INF, NAN], [1, 1], "a log ratio is finite, got inf"),
        ([-INF, 0.1], [1, 1], "a log ratio is finite, got -inf"),
        ([0.1, 0.2], [5, 0], "every window has tokens"),
        ([0.1, 0.2], [5], r"every window has tokens, got 2 windows and \[5\] tokens"),
    ],
)
def test_unusable_windows(differences: list[float], tokens: list[int], message: str) -> None:
    """No window, an empty window, NaN and a reference of infinite loss are refused."""
    with pytest.raises(MeasurementError, match=message):
        window_interval(differences, tokens)


def test_pairing_beats_two_intervals() -> None:
    """The published shape of llama.cpp: a paired difference is known far better than either perplexity."""
    generator = np.random.default_rng(5)
    reference_nll = generator.normal(3.0, 0.4, 100)
    differences = generator.normal(0.02, 0.01, 100)
    paired = window_estimate(differences.tolist(), [255] * 100)
    assert paired.low is not None
    assert paired.high is not None
    unpaired = 2 * 1.98 * math.hypot(reference_nll.std(), (reference_nll + differences).std()) / 10
    assert math.log(paired.high / paired.low) < unpaired / 20
    assert paired.source == "windows of text"


# Right and wrong answers ---------------------------------------------------------------------------------

answers = st.integers(0, 300)


@given(answers, answers)
def test_mcnemar_equals_scipy(lost: int, won: int) -> None:
    """Both p-values are those of a binomial test with a fair coin."""
    found = mcnemar(lost, won)
    if lost + won == 0:
        assert found == (1.0, 1.0)
        return
    assert found.differs == pytest.approx(scipy.stats.binomtest(lost, lost + won).pvalue, rel=1e-9)
    worse = scipy.stats.binomtest(lost, lost + won, alternative="greater").pvalue
    assert found.worse == pytest.approx(worse, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    """Five questions lost and none won: one coin pattern in 32."""
    assert mcnemar(5, 0) == pytest.approx((2 / 32, 1 / 32))
    assert mcnemar(0, 5) == pytest.approx((2 / 32, 1.0))
    assert mcnemar(7, 7).differs == 1.0
    expected = sum(math.comb(900, k) for k in range(480, 901)) / 2**900
    assert mcnemar(480, 420).worse == pytest.approx(expected, rel=1e-10)


def test_impossible_answers() -> None:
    """A count is a whole number of at least 0, and all questions are at least those that differ."""
    with pytest.raises(ValueError, match="a count of answers is 0 or more, got -1"):
        mcnemar(3, -1)
    with pytest.raises(TypeError):
        mcnemar(3, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are at least 5 questions, got 4"):
        accuracy_difference(3, 2, 4)
    with pytest.raises(ValueError, match="there are at least 1 questions, got 0"):
        accuracy_difference(0, 0, 0)


@given(answers, answers, st.integers(0, 300))
def test_the_accuracy_difference_agrees_with_mcnemar(lost: int, won: int, same: int) -> None:
    """0 is outside the interval exactly when the test finds a difference at 4 %; losing mirrors winning."""
    questions = max(1, lost + won + same)
    interval = accuracy_difference(lost, won, questions)
    assert interval.low <= interval.value == (won - lost) / questions <= interval.high
    assert (interval.low > 0 or interval.high < 0) == (mcnemar(lost, won).differs <= 0.04)
    mirrored = accuracy_difference(won, lost, questions)
    assert (-mirrored.value, -mirrored.high, -mirrored.low) == pytest.approx(interval[:3], abs=1e-12)


def test_the_accuracy_difference_covers_every_truth() -> None:
    """Over all outcomes of 15 questions, for many true rates: the interval never misses in more than 5 %."""
    n = 15
    outcomes = [(lost, won) for lost in range(n + 1) for won in range(n + 1 - lost)]
    intervals = np.array([accuracy_difference(*outcome, n)[1:3] for outcome in outcomes])
    counts = np.array([(lost, won, n - lost - won) for lost, won in outcomes])
    for lost in np.arange(0, 1.01, 0.05):
        for won in np.arange(0, 1.01 - lost, 0.05):
            rates = [lost, won, max(0.0, 1 - lost - won)]
            held = (intervals[:, 0] <= won - lost + 1e-12) & (won - lost - 1e-12 <= intervals[:, 1])
            assert scipy.stats.multinomial.pmf(counts, n, rates / np.sum(rates))[held].sum() >= 0.95


# Recorded noise ------------------------------------------------------------------------------------------

NOISE = Path(__file__).parents[2] / "shared" / "noise" / "blocks"


@pytest.mark.skipif(not NOISE.is_dir(), reason="recorded noise is not here: shared/noise/blocks")
def test_recorded_noise_of_a_loaded_machine() -> None:
    """On recorded blocks, equal models are never above 2 %, and +20 % is found in nearly every decision."""
    found: dict[int, list[bool]] = {0: [], 3: []}
    for path in sorted(NOISE.glob("*.npz")):
        pairs = np.load(path)["T"][..., 1]  # [block, round, effect, who], process CPU time
        logs = np.log(pairs[..., 1] / pairs[..., 0])
        for effect, decisions in found.items():
            medians = [block_medians(block[:4].tolist(), 4)[0] for block in logs[:, :, effect]]
            for start in range(0, len(medians) - 29, 30):
                interval = hodges_lehmann(medians[start : start + 30], miss_low=0.01)
                decisions.append(interval.low > 1.02)
    assert sum(found[0]) == 0
    assert sum(found[3]) >= 0.99 * len(found[3])
