"""Losses a token in pieces: the logits, loss and gradients that the whole would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch.nn import functional

from pytest_llmslim.methods.token_loss import LOGITS, cross_entropy, kl, logits_of, mean_loss

TOKENS = tiny_tokens(3, 12)


def reverse(piece):
    return kl(piece.student.log_softmax(-1), piece.teacher.log_softmax(-1)) + cross_entropy(piece)


def gradients(module, **options):
    """The loss and the gradients of all weights."""
    module.requires_grad_(True)
    loss = mean_loss(reverse, module, TOKENS, **options)
    loss.backward()
    found = [parameter.grad.clone() for parameter in module.parameters()]
    module.requires_grad_(False).zero_grad(set_to_none=True)
    return loss.detach(), found


@pytest.mark.parametrize("prompt", [1, 5, 11])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_mean_over_predictions_behind_the_prompt(family, prompt):
    """Cross entropy is what transformers' logits give for the tokens from `prompt` on."""
    module = tiny_model(family)
    with torch.no_grad():
        logits = module(input_ids=TOKENS).logits[:, prompt - 1 : -1]
        wanted = functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, prompt:].flatten())
        got = mean_loss(cross_entropy, module, TOKENS, prompt=prompt)

    assert float(wanted) == pytest.approx(float(got), rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 3 * 128, 10 * 128, 10**6])
@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_change_neither_loss_nor_gradients(family, at_once):
    """One prediction at a time, three, ten, or all give the same gradient of every weight."""
    student, teacher = tiny_model(family), tiny_model(family, seed=1)
    wanted, ours = gradients(student, teacher=teacher, prompt=2)
    got, theirs = gradients(student, teacher=teacher, prompt=2, at_once=at_once)

    assert float(wanted) == pytest.approx(float(got), rel=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


def test_pieces_hold_no_more_logits_than_they_may():
    """For a vocabulary of 128, 200 logits are two predictions; together they are all, in order."""
    sizes, rows = [], []

    def measure(piece):
        sizes.append(tuple(piece.student.shape) + tuple(piece.teacher.shape))
        rows.append((piece.rows.start, piece.rows.stop))
        return cross_entropy(piece)

    with torch.no_grad():
        mean_loss(measure, tiny_model("llama"), TOKENS, at_once=200)

    assert [(2, 128, 2, 128)] * 16 + [(1, 128, 1, 128)] == sizes
    assert [(n, min(n + 2, 33)) for n in range(0, 33, 2)] == rows
    assert 2**23 == LOGITS


def test_capped_logits_are_capped():
    """Gemma's config may bound its logits; the head alone does not."""
    module = tiny_model("gemma3", final_logit_softcapping=2.0)
    with torch.no_grad():
        wanted = module(input_ids=TOKENS).logits
        got = logits_of(module, module.base_model(input_ids=TOKENS).last_hidden_state)

    assert float(got.abs().max()) <= 2
    assert torch.allclose(wanted, got, atol=1e-5)


def test_the_teacher_is_the_student_where_there_is_none():
    """Its logits are then without gradient, so a divergence from it is zero."""
    module = tiny_model("llama").requires_grad_(True)
    loss = mean_loss(lambda piece: kl(piece.student, piece.teacher), module, TOKENS)

    assert 0 == float(loss.detach())


def test_kl_is_its_sum():
    """Sum of p log(p / q), in nats."""
    p, q = np.array([[0.5, 0.3, 0.2]]), np.array([[0.2, 0.2, 0.6]])
    wanted = 0.5 * np.log(2.5) + 0.3 * np.log(1.5) + 0.2 * np.log(1 / 3)

    assert [pytest.approx(wanted)] == kl(torch.tensor(p).log(), torch.tensor(q).log()).tolist()
