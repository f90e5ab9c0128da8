"""Distillation by the teacher's distribution and by the teacher's text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from distilling import check_step, context, deep, embedded, surprise
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch.nn import functional

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import distillation, kd, training
from pytest_llmslim.methods.distillation import course_for, prompt_and_response, steps_before
from pytest_llmslim.methods.gkd import GKD
from pytest_llmslim.methods.kd import KD, SeqKD, write
from pytest_llmslim.methods.minillm import MiniLLM
from pytest_llmslim.methods.student import pair
from pytest_llmslim.methods.token_loss import Piece
from pytest_llmslim.methods.training import Course
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, weights_hash

ALL = (KD, SeqKD, GKD, MiniLLM)


def piece(rows=5, words=7):
    made = np.random.default_rng(0).normal(size=(2, rows, words)) * 2
    student, teacher = (torch.tensor(each, dtype=torch.float64) for each in made)
    return Piece(student.requires_grad_(True), teacher, torch.arange(rows), slice(0, rows))


def softmax(values):
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.0, 0.5), (5.0, 0.3), (2.0, 0.0)])
def test_the_loss_is_hintons(temperature, alpha):
    """It is alpha T^2 KL(teacher || student) at temperature T, and the rest cross entropy of the text."""
    found = piece()
    student, teacher = found.student.detach().numpy(), found.teacher.numpy()
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    soft = (p * np.log(p / q)).sum(-1)
    hard = -np.log(softmax(student)[range(5), range(5)])
    wanted = alpha * temperature**2 * soft + (1 - alpha) * hard

    assert wanted.tolist() == pytest.approx(KD(temperature=temperature, alpha=alpha).cost(found).tolist())


def test_the_gradient_does_not_vanish_with_the_temperature():
    """At a high temperature it is that of half the squared distance of the centred logits, a word (Hinton, eq. 4)."""
    found = piece()
    KD(temperature=100.0, alpha=1.0).cost(found).sum().backward()
    student, teacher = (
        each - each.mean(-1, keepdim=True) for each in (found.student.detach(), found.teacher)
    )

    assert torch.allclose((student - teacher) / 7, found.student.grad, atol=2e-2)


def test_a_student_that_agrees_has_no_soft_loss():
    """KL is zero between equals, and so is its gradient."""
    found = piece()
    found = replace(found, teacher=found.student.detach())
    cost = KD(alpha=1.0).cost(found)
    cost.sum().backward()

    assert torch.allclose(torch.zeros(5, dtype=torch.float64), cost.detach())
    assert torch.allclose(torch.zeros_like(found.student), found.student.grad, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [KD(steps=1), SeqKD(steps=1)], ids=["kd", "seqkd"])
def test_every_family_learns(method, family, tmp_path):
    """One step: a student of half the layers that loads again; the teacher is untouched."""
    check_step(method, family, tmp_path)


def test_the_first_step_follows_the_gradient_of_the_loss():
    """One step of KD on a batch of all windows is one step of AdamW on the loss written out with whole logits."""
    model = deep("llama", 4)
    where = context(model)
    applied = KD(steps=1, batch=8, rate=1e-3).compress(copy_model(model), where)
    student = pair("half", copy_model(model), where, "kd").student.requires_grad_(True)
    tokens = where.windows(8)
    own, theirs = student(input_ids=tokens).logits[:, :-1], model(input_ids=tokens).logits[:, :-1]
    soft = functional.kl_div((own / 2).log_softmax(-1), (theirs / 2).softmax(-1), reduction="sum") / (8 * 15)
    hard = functional.cross_entropy(own.flatten(0, 1), tokens[:, 1:].flatten())
    (0.5 * 4 * soft + 0.5 * hard).backward()
    weight = student.model.layers[1].mlp.up_proj.weight
    moved = applied.module.model.layers[1].mlp.up_proj.weight - weight.detach()
    clear = weight.grad.abs() > 1e-3 * weight.grad.abs().max()

    assert clear.float().mean() > 0.9
    assert torch.equal(-weight.grad.sign()[clear], moved.sign()[clear])


def test_the_sentence_says_what_was_learnt():
    """Layers and parameters of student and teacher, the loss, the steps."""
    model = deep("llama", 4)
    said = KD(steps=3).compress(copy_model(model), context(model)).sentence

    assert said.startswith("kd: student of 2 of 4 layers, ")
    assert " parameters, loss " in said
    assert said.endswith(" in 3 steps")


@pytest.mark.parametrize("method", [KD(steps=4), SeqKD(steps=4), GKD(steps=4), MiniLLM(steps=4)], ids=repr)
def test_a_seed_gives_one_student(method):
    """The same weights again, and others under another seed."""
    model = deep("llama", 4)
    made = [
        weights_hash(method.compress(copy_model(model), context(model, seed=seed)).module)
        for seed in (0, 0, 1)
    ]

    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("method", [KD(steps=8), SeqKD(steps=8), GKD(steps=8), MiniLLM(steps=8)], ids=repr)
def test_an_interrupted_distillation_goes_on(method, tmp_path, monkeypatch):
    """The student is bit for bit that of a course that did not stop, and what it took is said not to be all."""
    monkeypatch.setattr(training, "EVERY_S", 0.0)
    model = deep("llama", 4)
    whole = method.compress(copy_model(model), context(model))

    def stop(what):
        if "step 7 of 8" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.compress(copy_model(model), context(model, checkpoints=tmp_path, progress=stop))
    again = method.compress(copy_model(model), context(model, checkpoints=tmp_path))

    assert weights_hash(whole.module) == weights_hash(again.module)
    assert "training went on at step 6 of 8 after an interruption" == again.resumed
    assert whole.sentence == again.sentence


def test_another_teacher_begins_anew(tmp_path, monkeypatch):
    """The student is the same, and a checkpoint of it is of no use with another teacher."""
    monkeypatch.setattr(training, "EVERY_S", 0.0)
    model, other = deep("llama", 4), deep("llama", 4, seed=1)
    module = deep("llama", 2)

    def stop(what):
        if "step 3 of 4" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        KD(steps=4).compress(copy_model(module), context(model, checkpoints=tmp_path, progress=stop))

    assert "" == KD(steps=4).compress(copy_model(module), context(other, checkpoints=tmp_path)).resumed


def test_exact_zeros_stay_zero():
    """What an earlier step pruned is zero afterwards, while all else learns from the unpruned model."""
    model = deep("llama", 2)
    module = copy_model(model)
    zeros = {name: torch.rand(linear.weight.shape) < 0.5 for name, linear in Blocks(module).linears().items()}
    for name, linear in Blocks(module).linears().items():
        linear.weight.data[zeros[name]] = 0
    before = weights_hash(module)
    applied = KD(steps=3).compress(module, context(model))

    assert module is applied.module
    assert before != weights_hash(module)
    for name, linear in Blocks(module).linears().items():
        assert torch.equal(zeros[name], linear.weight == 0)


def test_a_model_in_bfloat16_stays_in_bfloat16():
    """It is trained in float32, where small steps count, and rounded once, at the end."""
    model = deep("llama", 4).to(torch.bfloat16)
    method = KD(student="half", steps=6, rate=1e-4)
    rounded = method.compress(copy_model(model), context(model)).module
    full = method.compress(copy_model(model).float(), context(model)).module

    assert {torch.bfloat16} == {p.dtype for p in rounded.parameters()}
    for one, other in zip(rounded.parameters(), full.parameters(), strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))


def test_a_method_by_itself_needs_no_reference():
    """The teacher is the module as it came."""
    applied = KD(steps=1).compress(deep("llama", 4), context())

    assert applied.sentence.startswith("kd: student of 2 of 4 layers, ")


def test_the_teacher_writes_from_the_beginnings_of_the_windows():
    """The prompts are text, the rest is drawn; parts of a batch come one after another and are told."""
    model, windows, told = tiny_model("llama"), tiny_tokens(70, 16), []
    written = write(model, windows, 2, context(progress=told.append))

    assert (70, 16) == tuple(written.shape)
    assert torch.equal(windows[:, :2], written[:, :2])
    assert not torch.equal(windows[:, 2:], written[:, 2:])
    assert ["seqkd: the teacher writes text 1 of 70"] == told[:1]
    assert 3 == len(told)
    assert torch.equal(written, write(model, windows, 2, context()))
    assert not torch.equal(written, write(model, windows, 2, context(seed=1)))


def test_seqkd_learns_what_the_teacher_wrote(monkeypatch):
    """Its loss is the cross entropy of the written tokens alone, on no more texts than the teacher writes."""
    monkeypatch.setattr(kd, "WRITTEN", 4)
    model = deep("llama", 4)
    where = context(model, seed=3)
    applied = SeqKD(steps=1, batch=4).compress(copy_model(model), where)
    written = write(model, where.windows(4), 2, where)
    student = pair("half", copy_model(model), where, "kd").student
    with torch.no_grad():
        own = student(input_ids=written).logits[:, 1:-1]
    wanted = functional.cross_entropy(own.flatten(0, 1), written[:, 2:].flatten())

    assert applied.sentence.endswith(f"loss {wanted:.3g} to {wanted:.3g} in 1 steps")


@pytest.mark.parametrize(
    ("method", "name"),
    [*((kind(steps=20), "llama") for kind in ALL), (KD(steps=20), "gpt2")],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_training_recovers_what_truncation_lost(method, name):
    """After a short course less than half of the nats a token that half an embedded model lost are still lost."""
    model, where, held_out = embedded(name)
    teacher = surprise(model, held_out)
    untrained = surprise(pair("half", copy_model(model), where, "kd").student, held_out)
    trained = surprise(method.compress(copy_model(model), where).module, held_out)

    assert trained - teacher < 0.5 * (untrained - teacher), (teacher, untrained, trained)


@pytest.mark.parametrize("kind", ALL)
def test_a_course_has_a_rate_by_width(kind):
    """2e-3 at a width of 128 and in proportion to 1 / width, unless one is given."""
    student = tiny_model("llama")

    assert 0.25 / 64 == course_for(kind(), student).rate
    assert 0.01 == course_for(kind(rate=0.01), student).rate


def test_prompts_and_responses_fit_the_window():
    """A quarter is given, at most 32 tokens are written, and both have at least one."""
    lengths = (2, 3, 16, 256, 1024)

    assert [(1, 1), (1, 2), (4, 12), (64, 32), (256, 32)] == [
        prompt_and_response(torch.zeros(1, length)) for length in lengths
    ]
    assert 32 == distillation.RESPONSE


def test_a_student_that_writes_learns_to_write_first():
    """Seven tenths of the steps come before, and at least one step after."""
    assert [0, 1, 7, 140] == [steps_before(Course(steps, 1, 0.1)) for steps in (1, 2, 10, 200)]


@pytest.mark.parametrize(
    "windows", [None, torch.zeros(0, 8, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)]
)
@pytest.mark.parametrize("kind", ALL)
def test_text_is_needed(kind, windows):
    """No text, or windows in which no token comes next, is refused."""
    where = replace(context(), draw=None, calibration=windows)
    got = "none" if windows is None else f"shape {list(windows.shape)}"
    with pytest.raises(CompressionError) as refusal:
        kind().compress(deep("llama", 4), where)

    name = kind.__name__.lower()
    assert str(refusal.value) == (
        f"{name} on tiny: a student learns from windows of text of two tokens or more, got {got}; give a longer text"
    )


@pytest.mark.parametrize("kind", ALL)
def test_parameters_that_all_have_are_checked(kind):
    """By the method's name, the parameter's, the rule and the value."""
    name = kind.__name__.lower()
    for parameter, value in (("steps", 0), ("batch", 1.5), ("rate", 0), ("rate", 2), ("student", "")):
        with pytest.raises(RecipeError, match=rf"^{name}: {parameter} is .*, got {value!r}"):
            kind(**{parameter: value})


def test_kds_own_parameters_are_checked():
    """A temperature above zero, and a share."""
    for parameter, value, rule in (
        ("temperature", 0, "a number from 0.01 to 100"),
        ("temperature", True, "a number from 0.01 to 100"),
        ("alpha", 1.1, "a number from 0 to 1"),
        ("alpha", "half", "a number from 0 to 1"),
    ):
        with pytest.raises(RecipeError, match=rf"^kd: {parameter} is {rule}, got {value!r}"):
            KD(**{parameter: value})
