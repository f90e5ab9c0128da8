"""MiniLLM's policy gradient against the exact gradient of the reverse KL, by enumeration of all continuations."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from distilling import check_step, context, deep
from tiny_models import FAMILIES, tiny_model

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import minillm
from pytest_llmslim.methods.generation import Sample, sample
from pytest_llmslim.methods.minillm import MiniLLM, later, policy
from pytest_llmslim.methods.token_loss import Piece, mean_loss
from pytest_llmslim.models.storage import copy_model

WORDS = 4
PROMPT = [1, 2, 0]


def models():
    """A student and a teacher of a vocabulary of four that differ a lot."""
    options = {"vocab_size": WORDS, "initializer_range": 0.4, "pad_token_id": None}
    return tiny_model("llama", **options), tiny_model("llama", seed=1, **options)


def every(length):
    """The prompt with all continuations [WORDS ** length, prompt + length]."""
    return torch.tensor([[*PROMPT, *rest] for rest in product(range(WORDS), repeat=length)])


def chances(module, tokens):
    """Log-probabilities of the tokens behind the prompt, [all, length]."""
    logs = module(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    return logs[:, len(PROMPT) - 1 : -1].gather(2, tokens[:, len(PROMPT) :, None])[..., 0]


def gradient(module, loss):
    module.requires_grad_(True)
    found = torch.autograd.grad(loss(), list(module.parameters()))
    module.requires_grad_(False)
    return torch.cat([part.flatten() for part in found])


def exact(student, teacher, length):
    """The gradient of KL(student || teacher) over all continuations."""
    tokens = every(length)
    with torch.no_grad():
        theirs = chances(teacher, tokens).sum(1)

    def divergence():
        own = chances(student, tokens).sum(1)
        return (own.exp() * (own - theirs)).sum()

    return gradient(student, divergence)


def expected(student, teacher, length, *, mix=0.0, weights=True, **options):
    """The expectation of our estimator: each continuation as often as it is drawn."""
    tokens = every(length)
    with torch.no_grad():
        own, theirs = chances(student, tokens), chances(teacher, tokens)
        drawn = ((1 - mix) * own.exp() + mix * theirs.exp()).log()
    often = drawn.sum(1).exp()
    cost = policy(Sample(tokens, own, theirs, drawn if weights else own), **options)

    def weighted(piece: Piece) -> torch.Tensor:
        return cost(piece) * often.repeat_interleave(length)[piece.rows]

    rows = tokens.shape[0] * length
    prompt = len(PROMPT)
    return gradient(
        student, lambda: rows * mean_loss(weighted, student, tokens, teacher=teacher, prompt=prompt)
    )


def off(one, other):
    """The relative error of a gradient."""
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("length", [1, 2, 4])
def test_the_gradient_is_that_of_the_reverse_kl(length):
    """Without teacher in the mixture and without length normalisation the expectation is exact, in every weight."""
    student, teacher = models()

    assert off(expected(student, teacher, length, normalised=False), exact(student, teacher, length)) < 1e-4


@pytest.mark.parametrize("mix", [0.2, 0.7])
def test_for_one_token_the_mixture_is_exact(mix):
    """The single-step part knows the whole distribution, and the weight of the drawn token is 1 in the mean."""
    student, teacher = models()
    wanted = exact(student, teacher, 1)

    assert off(expected(student, teacher, 1, mix=mix, normalised=False), wanted) < 1e-4


def test_the_weights_of_the_paper_are_near_for_a_few_tokens():
    """Only the last ratio of the product is used, so some bias is left: half of that without weights, or less."""
    student, teacher = models()
    wanted = exact(student, teacher, 3)
    with_weights, without = (
        off(expected(student, teacher, 3, mix=0.2, weights=weights, normalised=False), wanted)
        for weights in (True, False)
    )

    assert 1e-3 < with_weights < 0.5 * without


def test_a_weight_is_the_ratio_of_probabilities():
    """The ratio q / p~ multiplies both parts, the rewards behind a token the second, and neither has a gradient."""
    own, theirs, drawn = (torch.tensor([[a, b]]).log() for a, b in ((0.5, 0.1), (0.2, 0.4), (0.4, 0.2)))
    student = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log().requires_grad_(True)
    teacher = torch.tensor([[0.2, 0.8], [0.6, 0.4]]).log()
    targets = torch.tensor([0, 1])
    cost = policy(Sample(targets[None], own, theirs, drawn))
    got = cost(Piece(student, teacher, targets, slice(0, 2)))
    divergence = [
        0.5 * torch.tensor(2.5).log() + 0.5 * torch.tensor(0.625).log(),
        0.9 * torch.tensor(1.5).log() + 0.1 * torch.tensor(0.25).log(),
    ]
    behind = torch.tensor(4.0).log()  # log(0.4 / 0.1), the reward of the second token

    wanted = [1.25 * (divergence[0] - behind * torch.tensor(0.5).log()), 0.5 * divergence[1]]
    assert [pytest.approx(float(each)) for each in wanted] == got.tolist()


def test_the_rewards_behind_a_token():
    """Their sum, or their mean whatever their number; none are behind the last."""
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.0, -1.0, 1.0, 5.0]])

    assert [[14, 12, 8, 0], [5, 6, 5, 0]] == later(rewards, normalised=False).tolist()
    wanted = torch.tensor([[14 / 3, 6, 8, 0], [5 / 3, 3, 5, 0]])
    assert torch.allclose(wanted, later(rewards, normalised=True))


def test_length_normalisation_keeps_the_single_steps():
    """For one token there is nothing to normalise."""
    student, teacher = models()

    assert off(expected(student, teacher, 1, normalised=True), exact(student, teacher, 1)) < 1e-4
    assert off(expected(student, teacher, 4, normalised=True), exact(student, teacher, 4)) > 0.01


def test_training_by_the_gradient_lowers_the_reverse_kl():
    """A hundred plain steps along sampled gradients bring the student nearer, as enumeration says."""
    student, teacher = models()
    tokens = every(2)

    def divergence():
        with torch.no_grad():
            own, theirs = (chances(each, tokens).sum(1) for each in (student, teacher))
        return float((own.exp() * (own - theirs)).sum())

    before = divergence()
    generator = torch.Generator().manual_seed(0)
    prompts = torch.tensor([PROMPT]).expand(8, 3)
    student.requires_grad_(True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    for _ in range(60):
        written = sample(student, prompts, 2, generator, teacher=teacher, mix=0.2)
        loss = mean_loss(policy(written), student, written.tokens, teacher=teacher, prompt=3)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    assert divergence() < 0.3 * before


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family, tmp_path):
    """One step: a student of half the layers that loads again."""
    check_step(MiniLLM(steps=1), family, tmp_path)


def test_the_student_writes_after_most_steps(monkeypatch):
    """Seven of ten steps learn from the text alone; then prompts are the beginnings of the windows of that step."""
    asked = []
    monkeypatch.setattr(
        minillm, "sample", lambda *args, **more: asked.append((args, more)) or sample(*args, **more)
    )
    model = deep("llama", 4)
    applied = MiniLLM(steps=10, batch=3, mix=0.25).compress(copy_model(model), context(model))
    (student, prompts, length, _), options = asked[0]

    assert 3 == len(asked)
    assert (3, 4) == tuple(prompts.shape)
    assert 12 == length
    assert {"teacher": model, "mix": 0.25} == options
    assert student is applied.module
    assert applied.sentence.endswith(" after 10 steps, the first 7 by cross entropy")
    assert applied.sentence.startswith("minillm: student of 2 of 4 layers, ")
    texts = {tuple(row) for row in context().windows(30)[:, :4].tolist()}
    assert {tuple(row) for row in prompts.tolist()} <= texts


def test_the_text_is_learnt_along(monkeypatch):
    """The loss of a step that writes is the policy's plus the cross entropy of the text, the paper's L_PT."""

    def known(measure, student, tokens, **_):
        nothing = 0 * sum(parameter.sum() for parameter in student.parameters())
        return nothing + (1 if measure is minillm.cross_entropy else 10)

    monkeypatch.setattr(minillm, "mean_loss", known)
    model, told = deep("llama", 4), []
    MiniLLM(steps=4).compress(copy_model(model), context(model, progress=told.append))

    assert [f"minillm: step {n} of 4, loss {loss}" for n, loss in ((1, 1), (2, 1), (3, 1), (4, 11))] == told


def test_parameters_are_checked():
    """The share of the teacher leaves the student some."""
    for value in (-0.1, 0.95, True, "much"):
        with pytest.raises(RecipeError, match=r"^minillm: mix is a number from 0 to 0.9, got"):
            MiniLLM(mix=value)
    with pytest.raises(RecipeError, match=r"^minillm: steps is a whole number from 1 to 1000000, got 0$"):
        MiniLLM(steps=0)
    with pytest.raises(RecipeError, match=r"^minillm: student is auto"):
        MiniLLM(student="")


def test_text_is_needed():
    """Prompts come from it."""
    model = deep("llama", 4)
    with pytest.raises(CompressionError, match=r"^minillm on tiny: a student learns from windows of text"):
        MiniLLM().compress(copy_model(model), context(model, length=1))
