"""Texts that models go on with, beside transformers' own loop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import FAMILIES, POSITIONS, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.models.decoding import Reader, greedy, positions


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_transformers(family):
    """Token for token what `generate` writes without sampling, when it may not end either."""
    module, prompts = tiny_model(family), tiny_tokens(3, 20)
    written, finite = greedy(module, prompts, 24, [2])
    theirs = module.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        min_new_tokens=24,
        max_new_tokens=24,
    )

    assert torch.equal(theirs[:, 20:], written)
    assert finite


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_piece_by_piece_is_reading_at_once(family):
    """The cache takes pieces of any length, and gives the logits behind each of their last tokens."""
    module, tokens = tiny_model(family), tiny_tokens(2, 40)
    reader = Reader(module)
    with torch.no_grad():
        pieces = [reader.next(tokens[:, :end], keep=keep) for end, keep in ((9, 4), (10, 1), (40, 30))]
        whole = module(input_ids=tokens, use_cache=False).logits

    for piece, (begin, end) in zip(pieces, ((5, 9), (9, 10), (10, 40)), strict=True):
        assert torch.allclose(whole[:, begin:end], piece, atol=1e-4)


class Forgetful(nn.Module):
    """The next token is the number of tokens read; it knows no cache, and gives all logits."""

    def __init__(self, vocabulary=50, bad=None):
        super().__init__()
        self.vocabulary, self.bad = vocabulary, bad

    def forward(self, input_ids, past_key_values=None, use_cache=True, logits_to_keep=0):
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for position in range(input_ids.shape[1]):
            logits[:, position, position + 1] = 2.0
            logits[:, position, 0] = 1.0
        if self.bad is not None and input_ids.shape[1] > 4:
            logits[:, -1, 7] = self.bad
        return SimpleNamespace(logits=logits)


def test_a_model_without_a_cache_reads_again():
    """All of the text each time, so that it writes what it would write with one."""
    written, finite = greedy(Forgetful(), torch.zeros(2, 3, dtype=torch.long), 4)
    assert [[3, 4, 5, 6]] * 2 == written.tolist()
    assert finite


class Plain(Forgetful):
    """A module of somebody's own, that takes tokens and nothing else."""

    def forward(self, input_ids):
        return super().forward(input_ids)


def test_a_forward_pass_may_take_tokens_alone():
    """What it does not know is not passed on."""
    written, _ = greedy(Plain(), torch.tensor([[3, 4]]), 3)

    assert [[2, 3, 4]] == written.tolist()


def test_tokens_beyond_the_vocabulary_cannot_be_barred():
    """A tokenizer may know more tokens than the model has logits."""
    written, _ = greedy(Forgetful(), torch.tensor([[3, 4]]), 2, [2, 50])

    assert [[0, 3]] == written.tolist()


def test_what_may_not_be_written_is_not():
    """The next likeliest token is taken, and counted among what was read."""
    written, _ = greedy(Forgetful(), torch.zeros(1, 3, dtype=torch.long), 4, [4, 6])
    assert [[3, 0, 5, 0]] == written.tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_seen(bad):
    """From the first one on; minus infinity, a token that cannot be, is none of them."""
    assert not greedy(Forgetful(bad=bad), torch.zeros(1, 3, dtype=torch.long), 4)[1]
    assert greedy(Forgetful(bad=-torch.inf), torch.zeros(1, 3, dtype=torch.long), 4)[1]


def test_progress_counts_tokens():
    """One call a step."""
    told = []
    greedy(Forgetful(), torch.zeros(1, 3, dtype=torch.long), 3, progress=told.append)
    assert [1, 2, 3] == told


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_those_of_the_config(family):
    """Under whatever name a family has them; a model without a config does not say."""
    assert POSITIONS == positions(tiny_model(family))
    assert positions(Forgetful()) is None
