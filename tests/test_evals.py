"""Perplexity and divergence, against closed forms and the grammar's own probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.embedded.grammar import EVALUATION_SEED, Grammar, floor_perplexity
from pytest_llmslim.evals.divergence import divergence
from pytest_llmslim.evals.perplexity import perplexity, token_nll


def logits_of(probabilities):
    """Logits of shape (1, length, vocabulary) for given next-token probabilities."""
    return torch.tensor([probabilities]).log()


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
    kl, same = divergence(a, b, 1)
    assert kl == pytest.approx(expected, rel=1e-5)
    assert same == int((p.argmax(-1) == q.argmax(-1)).sum())


def test_divergence_of_a_known_pair():
    """KL of a fair coin from a loaded one is ln 2 / 2 + ln(2/3) / 2 ... by hand."""
    kl, same = divergence(logits_of([[0.5, 0.5], [1.0, 1.0]]), logits_of([[0.25, 0.75], [1.0, 1.0]]), 1)
    assert kl == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75))
    assert same == 0


def test_divergence_of_equal_logits_is_zero():
    """No rounding leaves a tiny number where nothing differs."""
    logits = torch.randn(1, 70, 50)
    assert divergence(logits, logits.clone(), 1) == (0.0, 69)


def test_what_the_reference_never_says_adds_nothing():
    """A token of probability 0 is no NaN."""
    kl, _ = divergence(logits_of([[1.0, 0.0], [0.5, 0.5]]), logits_of([[0.5, 0.5], [0.5, 0.5]]), 1)
    assert kl == pytest.approx(math.log(2))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 20))
def test_divergence_is_never_negative(seed, length, vocabulary):
    """Gibbs' inequality, whatever the logits."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(1, length, vocabulary, generator=generator) * 3 for _ in range(2))
    kl, same = divergence(a, b, 1)
    assert kl >= 0
    assert 0 <= same <= length - 1


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
