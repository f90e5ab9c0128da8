"""The generalised JSD against its closed form, and what a step of GKD learns from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from distilling import check_step, context, deep
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES

from pytest_llmslim.errors import RecipeError
from pytest_llmslim.methods import gkd
from pytest_llmslim.methods.generation import sample
from pytest_llmslim.methods.gkd import GKD, jsd
from pytest_llmslim.methods.token_loss import Piece, cross_entropy, kl
from pytest_llmslim.models.storage import copy_model

SHARES = st.lists(st.integers(1, 100), min_size=3, max_size=3).map(lambda n: np.array(n) / sum(n))


def logs(*shares):
    return (torch.tensor(np.array([each]), dtype=torch.float64).log() for each in shares)


def divergence(p, q):
    return float((p * np.log(p / q)).sum())


@given(p=SHARES, q=SHARES, beta=st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None)
def test_it_is_the_divergence_of_the_paper(p, q, beta):
    """With M = beta P + (1 - beta) Q it is beta KL(P || M) + (1 - beta) KL(Q || M), P the teacher."""
    mixture = beta * p + (1 - beta) * q
    wanted = beta * divergence(p, mixture) + (1 - beta) * divergence(q, mixture)

    assert [pytest.approx(wanted, abs=1e-12)] == jsd(*logs(p, q), beta).tolist()


@given(p=SHARES, q=SHARES)
@settings(max_examples=60, deadline=None)
def test_its_ends_are_forward_and_reverse_kl(p, q):
    """beta=0 is KL(teacher || student), beta=1 KL(student || teacher): the limits of JSD over beta, or 1 - beta."""
    teacher, student = logs(p, q)
    near = 1e-7
    forward, backward = divergence(p, q), divergence(q, p)

    assert [pytest.approx(forward, abs=1e-12)] == jsd(teacher, student, 0.0).tolist()
    assert [pytest.approx(backward, abs=1e-12)] == jsd(teacher, student, 1.0).tolist()
    assert float(jsd(teacher, student, near)) / near == pytest.approx(forward, abs=1e-3)
    assert float(jsd(teacher, student, 1 - near)) / near == pytest.approx(backward, abs=1e-3)


@given(p=SHARES, q=SHARES, beta=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_it_is_a_divergence(p, q, beta):
    """Never negative, zero between equals, and at one half symmetric and at most log 2."""
    teacher, student = logs(p, q)

    assert float(jsd(teacher, student, beta)) >= -1e-12
    assert float(jsd(teacher, teacher, beta)) == pytest.approx(0, abs=1e-12)
    assert float(jsd(teacher, student, 0.5)) == pytest.approx(float(jsd(student, teacher, 0.5)))
    assert float(jsd(teacher, student, 0.5)) <= math.log(2)


def test_gradients_go_to_those_of_forward_and_reverse_kl():
    """What the paper takes beta near its ends for."""
    teacher = next(logs(np.array([0.7, 0.2, 0.1])))
    raw = torch.tensor([[0.3, -0.5, 0.4]], dtype=torch.float64, requires_grad=True)

    def slope(beta, scale):
        (found,) = torch.autograd.grad(jsd(teacher, raw.log_softmax(-1), beta).sum() / scale, raw)
        return found

    assert torch.allclose(slope(0.0, 1), slope(1e-6, 1e-6), atol=1e-4)
    assert torch.allclose(slope(1.0, 1), slope(1 - 1e-6, 1e-6), atol=1e-4)


def test_the_temperature_softens_both():
    """Logits of teacher and student are divided by it."""
    teacher, student = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    piece = Piece(student, teacher, torch.zeros(4, dtype=torch.int64), slice(0, 4))
    wanted = kl((teacher / 3).log_softmax(-1), (student / 3).log_softmax(-1))

    assert torch.allclose(wanted, GKD(beta=0.0, temperature=3.0).cost(piece))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family, tmp_path):
    """One step on its own text: a student of half the layers that loads again."""
    check_step(GKD(steps=1, on_policy=1.0), family, tmp_path)


@pytest.mark.parametrize(("on_policy", "least", "most"), [(0.0, 0, 0), (0.5, 6, 24), (1.0, 30, 30)])
def test_as_many_steps_as_asked_learn_from_the_students_own_text(monkeypatch, on_policy, least, most):
    """Of the 30 steps after the first 70, about this share; the student writes behind beginnings of windows."""
    asked, learnt = [], []

    def watched(*args):
        asked.append(args)
        return sample(*args)

    def seen(measure, student, tokens, *, teacher=None, prompt=1):
        learnt.append((measure is cross_entropy, teacher is model, prompt))
        return sum(p.sum() for p in student.parameters()) * 0

    monkeypatch.setattr(gkd, "sample", watched)
    monkeypatch.setattr(gkd, "mean_loss", seen)
    model = deep("llama", 4)
    applied = GKD(steps=100, on_policy=on_policy).compress(copy_model(model), context(model))

    assert least <= len(asked) <= most
    assert [(True, False, 1)] * 70 == learnt[:70]
    assert {(False, True, 1)} >= set(learnt[70:]) - {(False, True, 4)}
    assert len(asked) == sum(prompt == 4 for _, _, prompt in learnt)
    assert all(args[0] is applied.module and (2, 4) == tuple(args[1].shape) for args in asked)
    assert {12} >= {args[2] for args in asked}
    assert applied.sentence.endswith(" after 100 steps, the first 70 by cross entropy")


def test_parameters_are_checked():
    """Shares are shares, temperatures are above zero."""
    for parameter, value, rule in (
        ("beta", -0.1, "a number from 0 to 1"),
        ("on_policy", 2, "a number from 0 to 1"),
        ("temperature", 0, "a number from 0.01 to 100"),
    ):
        with pytest.raises(RecipeError, match=rf"^gkd: {parameter} is {rule}, got {value}$"):
            GKD(**{parameter: value})
