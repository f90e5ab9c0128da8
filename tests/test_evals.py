"""Perplexity and divergence, against closed forms and the grammar's own probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_llmslim.embedded.grammar import EVALUATION_SEED, Grammar, floor_perplexity
from pytest_llmslim.evals import divergence as room
from pytest_llmslim.evals.divergence import divergence, quantiles, rms
from pytest_llmslim.evals.perplexity import perplexity, token_nll


def logits_of(probabilities):
    """Logits of shape (1, length, vocabulary) for given next-token probabilities."""
    return torch.tensor([probabilities]).log()


def compared(a, b, tokens=None, first=1):
    """Divergence, of any tokens where they do not matter."""
    return divergence(a, b, torch.zeros(1, a.shape[1], dtype=torch.long) if tokens is None else tokens, first)


def test_token_nll_is_minus_the_log_probability_of_the_next_token():
    """Row i predicts token i + 1, and the last row predicts nothing that is scored."""
    logits = logits_of([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    nll = token_nll(logits, torch.tensor([[0, 1, 2]]), 1)
    assert nll.tolist() == pytest.approx([-math.log(0.25), -math.log(0.1)])
    assert token_nll(logits, torch.tensor([[0, 1, 2]]), 2).tolist() == pytest.approx([-math.log(0.1)])


@pytest.mark.parametrize("length", [2, 63, 64, 65, 66, 129, 200])
def test_chunks_of_positions_change_nothing(length):
    """Working on 64 rows at a time equals working on all at once."""
    torch.manual_seed(length)
    a, b = torch.randn(1, length, 11), torch.randn(1, length, 11)
    tokens = torch.randint(0, 11, (1, length))
    whole = torch.nn.functional.cross_entropy(a[0, :-1], tokens[0, 1:], reduction="none")
    assert token_nll(a, tokens, 1).tolist() == pytest.approx(whole.tolist(), rel=1e-6)
    p, q = torch.log_softmax(a[0, :-1], -1), torch.log_softmax(b[0, :-1], -1)
    expected = float((p.exp() * (p - q)).sum())
    found = compared(a, b)
    assert found.total == pytest.approx(expected, rel=1e-5)
    assert found.same == int((p.argmax(-1) == q.argmax(-1)).sum())


def test_divergence_of_a_known_pair():
    """KL of a fair coin from a loaded one is ln 2 / 2 + ln(2/3) / 2 ... by hand."""
    found = compared(logits_of([[0.5, 0.5], [1.0, 1.0]]), logits_of([[0.25, 0.75], [1.0, 1.0]]))
    assert found.total == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))
    assert found.same == 0


def test_what_rounds_to_nothing_adds_nothing():
    """exp(-200) is 0 in float32: it adds nothing even where the candidate says never."""
    reference, candidate = (
        torch.tensor([[[0.0, -200.0], [0.0, 0.0]]]),
        torch.tensor([[[0.0, -torch.inf], [0.0, 0.0]]]),
    )
    assert divergence(reference, candidate, torch.tensor([[0, 0]]), 1).kl.tolist() == [0.0]


def test_divergence_of_equal_logits_is_zero():
    """No rounding leaves a tiny number where nothing differs."""
    logits = torch.randn(1, 70, 50)
    found = compared(logits, logits.clone())
    assert (found.total, found.same) == (0.0, 69)
    assert not found.change.any()


def test_what_the_reference_never_says_adds_nothing():
    """A token of probability 0 is no NaN."""
    found = compared(logits_of([[1.0, 0.0], [0.5, 0.5]]), logits_of([[0.5, 0.5], [0.5, 0.5]]))
    assert found.total == pytest.approx(math.log(2))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 20))
def test_divergence_is_never_negative(seed, length, vocabulary):
    """Gibbs' inequality, whatever the logits."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(1, length, vocabulary, generator=generator) * 3 for _ in range(2))
    found = compared(a, b)
    assert (found.kl >= 0).all()
    assert 0 <= found.same <= length - 1


def test_every_token_keeps_its_own_divergence(monkeypatch):
    """KL, change of the true token's probability and agreement of each token equal float64 by brute force."""
    monkeypatch.setattr(room, "PIECE", 5 * 37)  # pieces of five rows, the last one shorter
    torch.manual_seed(5)
    a, noise = torch.randn(1, 50, 37) * 3, torch.randn(1, 50, 37)
    tokens = torch.randint(0, 37, (1, 50))
    found = divergence(a, a + noise, tokens, 7)
    p, q = (torch.softmax(logits[0].double(), -1).numpy() for logits in (a, a + noise))
    kl = [sum(x * math.log(x / y) for x, y in zip(p[i], q[i], strict=True)) for i in range(6, 49)]
    change = [q[i][tokens[0, i + 1]] - p[i][tokens[0, i + 1]] for i in range(6, 49)]
    assert found.kl.tolist() == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert found.change.tolist() == pytest.approx(change, rel=1e-4, abs=1e-6)
    assert found.same == sum(p[i].argmax() == q[i].argmax() for i in range(6, 49))
    assert rms(found.change) == pytest.approx(math.sqrt(sum(x * x for x in change) / 43), rel=1e-4)
    assert quantiles(found.kl, (0.5, 0.999)) == pytest.approx(np.quantile(kl, (0.5, 0.999)), rel=1e-4)


def test_rms_dp_of_a_known_pair():
    """The true token goes from 1/2 to 3/4 and from 1/2 to 1/4: a quarter either way, which a mean would not see."""
    fair = logits_of([[0.5, 0.5]] * 3)
    loaded = logits_of([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5]])
    change = divergence(fair, loaded, torch.tensor([[0, 1, 1]]), 1).change
    assert change.tolist() == pytest.approx([0.25, -0.25])
    assert rms(change) == pytest.approx(0.25)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40),
    st.lists(st.floats(0, 1), min_size=1, max_size=3),
)
def test_quantiles_are_those_of_numpy(values, shares):
    """Linear interpolation between order statistics."""
    values = np.array(values, np.float32)
    expected = np.quantile(values.astype(np.float64), shares)
    assert quantiles(values, shares) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_quantiles_of_few_and_of_infinite_values():
    """Up to 1000 values the 0.999 quantile lies between the two largest; infinity is no NaN."""
    assert quantiles(np.array([3.0], np.float32), (0.5, 0.999)) == (3, 3)
    values = np.arange(1000, dtype=np.float32)
    assert 998 < quantiles(values, (0.999,))[0] < 999
    assert quantiles(np.arange(1001, dtype=np.float32), (0.999,)) == pytest.approx((999,))
    assert quantiles(np.array([1, 2, np.inf], np.float32), (0.5, 0.999)) == (2, math.inf)
    assert quantiles(np.array([1, np.inf, np.inf], np.float32), (0.5, 0.999)) == (math.inf, math.inf)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes; views of what was `given` do not count."""

    def __init__(self, *given):
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in self.given:
            self.numel = max(self.numel, made.numel())
        return made


def test_memory_is_bounded_for_a_large_vocabulary():
    """With 262144 words no tensor is larger than a piece, however many rows there are."""
    a = torch.randn(1, 21, 262_144)
    b = a.clone()
    with Largest(a, b) as seen:
        found = compared(a, b)
    assert len(found.kl) == 20
    assert 0 < seen.numel <= room.PIECE < a.numel() / 4
    with Largest(a, b) as seen:
        compared(a[..., :1000], b[..., :1000])
    assert seen.numel == 20 * 1000


def test_perplexity_of_a_uniform_model_is_the_vocabulary():
    """exp(ln V) = V, whatever is counted."""
    nll = token_nll(torch.zeros(1, 9, 50), torch.randint(0, 50, (1, 9)), 1)
    assert perplexity(float(nll.sum()), len(nll)) == pytest.approx(50)


def test_perplexity_beyond_a_float_is_infinite():
    """No overflow error reaches the user."""
    assert perplexity(1e9, 1) == math.inf


def test_the_oracle_measures_exactly_the_floor():
    """A model that emits the grammar's true distribution has the grammar's own perplexity."""
    grammar = Grammar()
    lines = grammar.text(EVALUATION_SEED, 3).split("\n")
    ids = {word: i for i, word in enumerate(grammar.words)}
    documents = [[ids[word] for word in line.split()] for line in lines]
    nll, count = 0.0, 0
    for document in documents:
        # The word after a prefix is predicted at the prefix's last position; position 0 stands for BOS.
        rows = np.array([grammar.distribution(document[:i]) for i in range(len(document))])
        rows = torch.from_numpy(rows).log()[None]
        rows = torch.cat([rows, rows[:, -1:]], 1).float()
        scored = token_nll(rows, torch.tensor([[0, *document]]), 1)
        nll, count = nll + float(scored.sum()), count + len(scored)
    assert perplexity(nll, count) == pytest.approx(floor_perplexity(documents), rel=1e-6)
