"""Seeded sampling with a cache, from one model or a mixture of two."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens

from pytest_llmslim.methods.generation import sample


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def chances(module, tokens, prompt):
    """Log-probability of each token behind the prompt, from one pass without a cache."""
    with torch.no_grad():
        logs = module(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    return logs[:, prompt - 1 : -1].gather(2, tokens[:, prompt:, None])[..., 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_go_on_from_their_prompts_with_the_models_probabilities(family):
    """The cache tells what a pass over the whole text tells, of both models and of the mixture."""
    student, teacher = tiny_model(family), tiny_model(family, seed=1)
    prompts = tiny_tokens(3, 40)
    written = sample(student, prompts, 12, generator(), teacher=teacher, mix=0.3)
    own, other = (chances(each, written.tokens, 40) for each in (student, teacher))

    assert (3, 52) == tuple(written.tokens.shape)
    assert torch.equal(prompts, written.tokens[:, :40])
    assert torch.allclose(own, written.student, atol=1e-4)
    assert torch.allclose(other, written.teacher, atol=1e-4)
    assert torch.allclose((0.7 * own.exp() + 0.3 * other.exp()).log(), written.drawn, atol=1e-4)


def test_a_seed_gives_one_text():
    """Whatever the global generator holds; another seed gives another text."""
    module, prompts = tiny_model("llama"), tiny_tokens(4, 3)
    made = []
    for seed, shake in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(shake)
        made.append(sample(module, prompts, 8, generator(seed)).tokens)

    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("mix", [0.0, 0.5, 1.0])
def test_tokens_come_as_often_as_they_should(mix):
    """Of 20000 draws from eight tokens each is within five standard deviations of its share in the mixture."""
    options = {"vocab_size": 8, "initializer_range": 0.5}
    student, teacher = tiny_model("llama", **options), tiny_model("llama", seed=1, **options)
    prompts = torch.tensor([[4, 5]]).expand(20000, 2)
    drawn = sample(student, prompts, 1, generator(), teacher=teacher, mix=mix).tokens[:, 2]
    with torch.no_grad():
        own, other = (each(input_ids=prompts[:1]).logits[0, -1].softmax(-1) for each in (student, teacher))
    wanted = (1 - mix) * own + mix * other
    shares = torch.bincount(drawn, minlength=8) / 20000

    assert float((own - other).abs().max()) > 0.1  # otherwise the mixture would not show
    assert ((shares - wanted).abs() <= 5 * (wanted * (1 - wanted) / 20000).sqrt()).all()


def test_without_a_teacher_all_probabilities_are_the_students():
    """Then an importance weight is one."""
    written = sample(tiny_model("llama"), tiny_tokens(2, 3), 4, generator())

    assert torch.equal(written.student, written.teacher)
    assert torch.allclose(written.student, written.drawn, atol=1e-6)


def test_writing_leaves_no_graph():
    """A student that is being trained writes without gradients."""
    module = tiny_model("llama").requires_grad_(True)
    written = sample(module, tiny_tokens(2, 3), 4, generator())

    assert not any(each.requires_grad for each in (written.student, written.teacher, written.drawn))
