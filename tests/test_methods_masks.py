"""Choosing what goes, against sorting and exhaustive search."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pytest_llmslim.methods.masks import counted, smallest, smallest_of_groups, smallest_of_rows, zeros_first

SCORES = st.integers(1, 5).flatmap(
    lambda rows: st.integers(1, 9).flatmap(
        lambda columns: st.lists(
            st.lists(st.integers(0, 4), min_size=columns, max_size=columns), min_size=rows, max_size=rows
        )
    )
)
PATTERNS = [(1, 2), (2, 4), (1, 4), (3, 4), (4, 6), (4, 8)]


def by_sorting(scores: list[float], count: int) -> list[bool]:
    """The `count` smallest, of equal ones the last."""
    order = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
    return [i in order[:count] for i in range(len(scores))]


@given(scores=SCORES, share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_smallest_of_all_go(scores, share):
    """Exactly so many as asked, as sorting says, also among equals."""
    flat = [score for row in scores for score in row]
    count = round(share * len(flat))
    found = smallest(torch.tensor(scores, dtype=torch.float32), count)

    assert by_sorting(flat, count) == found.flatten().tolist()
    assert torch.Size([len(scores), len(scores[0])]) == found.shape


@given(scores=SCORES, share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_smallest_of_every_row_go(scores, share):
    """Rows are not compared with each other."""
    count = round(share * len(scores[0]))
    found = smallest_of_rows(torch.tensor(scores, dtype=torch.float32), count)

    assert [by_sorting(row, count) for row in scores] == found.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_can_be_a_score(dtype):
    """Infinity is a score like any other."""
    scores = torch.tensor([[3.0, 1.0, float("inf"), float("inf")]], dtype=dtype)

    assert [[True, True, False, True]] == smallest(scores, 3).tolist() == smallest_of_rows(scores, 3).tolist()


@pytest.mark.parametrize(("kept", "group"), PATTERNS)
def test_what_stays_of_a_group_is_optimal(kept, group):
    """No other choice keeps more of the score, and exactly N of M stay, also among equals."""
    scores = torch.randint(0, 4, (40, 2 * group), generator=torch.Generator().manual_seed(group)).float()
    stays = ~smallest_of_groups(scores, kept, group)
    for row, mask in zip(scores, stays, strict=True):
        for part, inside in zip(row.split(group), mask.split(group), strict=True):
            choices = combinations(range(group), kept)
            best = max(sum(float(part[i]) for i in chosen) for chosen in choices)

            assert kept == int(inside.sum())
            assert best == float((part * inside).sum())


def test_columns_that_fill_no_group_stay():
    """Groups start at the first column; what is left over at the end is dense, and so is all that is too narrow."""
    scores = torch.tensor([[1.0, 2, 3, 4, 0.1, 0.2]])

    assert [[True, True, False, False, False, False]] == smallest_of_groups(scores, 2, 4).tolist()
    assert not smallest_of_groups(scores, 2, 8).any()


def test_zeros_go_before_weights_that_are_never_used():
    """A score of 0 is more than that of a weight that is zero already."""
    weight = torch.tensor([[0.0, 5.0, 0.0, 1.0]])
    score = zeros_first(weight.abs() * torch.tensor([1.0, 0.0, 1.0, 1.0]), weight == 0)

    assert [[True, False, True, False]] == smallest_of_rows(score, 2).tolist()
    assert [[True, True, True, False]] == smallest_of_rows(score, 3).tolist()


def test_what_was_zeroed_is_counted():
    """All linears together; with a pattern the odd ones are named."""
    linears = {"a": nn.Linear(4, 2), "b": nn.Linear(6, 2)}
    for linear in linears.values():
        nn.init.ones_(linear.weight)
    linears["a"].weight.data[:, :3] = 0

    assert counted("wanda", linears, None) == "wanda: 30.0% of 20 weights in 2 linears are zero"
    assert counted("wanda", linears, "2:4") == (
        "wanda: 30.0% of 20 weights in 2 linears are zero; 1 are not a multiple of 2:4 wide and keep a dense rest"
    )
