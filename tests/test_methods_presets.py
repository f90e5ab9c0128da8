"""Minitron and Sheared: they are their parts in turn, they recover, and what comes out is a whole model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from reloading import check_whole, logits
from test_methods_shear import deep, shape
from tiny_models import FAMILIES, GROUPED, tiny_model, tiny_tokens
from trained import nats, trained, trained_context

from pytest_llmslim.errors import CompressionError, NothingCompressedError, RecipeError
from pytest_llmslim.methods import Applied, Context, presets, training
from pytest_llmslim.methods.depth import Depth
from pytest_llmslim.methods.hidden import Hidden
from pytest_llmslim.methods.kd import KD
from pytest_llmslim.methods.presets import Minitron, OnText, Sheared, in_turn
from pytest_llmslim.methods.shear import Shear
from pytest_llmslim.methods.width import Width
from pytest_llmslim.models.storage import copy_model

WINDOWS = tiny_tokens(4, 24)


def context(windows: torch.Tensor | None = WINDOWS, **more: object) -> Context:
    return Context(calibration=windows, seed=0, device="cpu", family="gpt2", label="tiny", **more)


def short_context() -> Context:
    """Of the trained model, with windows of 64 tokens, to be fast."""
    whole = trained_context()
    return replace(
        whole, calibration=whole.calibration[:, :64], draw=lambda count: whole.windows(count)[:, :64]
    )


@pytest.fixture
def few_steps(monkeypatch):
    """Masks of `sheared` are learnt in two steps."""
    monkeypatch.setattr(presets, "Shear", partial(Shear, steps=2, batch=2))


def test_presets_name_their_parts():
    """What goes is pruned in the order layers, width, hidden; then the papers' losses follow."""
    course = {"steps": 7, "batch": 3, "rate": 0.01}
    learnt = KD(student="same", temperature=1.0, alpha=1.0, **course)

    assert [Width(0.25), learnt] == Minitron(**course).parts
    assert [Depth(2), Width(0.5, 0.25), Hidden(0.125), learnt] == Minitron(
        0.5, heads=0.25, hidden=0.125, layers=2, **course
    ).parts
    assert [Depth(1), learnt] == Minitron(0, layers=1, **course).parts
    assert [Shear(2, 4, 96, 48), OnText(7, 3, 0.01)] == Sheared(2, 4, 96, 48, **course).parts


@pytest.mark.parametrize("family", FAMILIES)
def test_minitron_prunes_and_learns(family, tmp_path):
    """The same as its parts by hand, learning from the unpruned model, which stays as it was."""
    method = Minitron(hidden=0.25, layers=1, steps=2, batch=2)
    whole = deep(family)
    before = logits(whole)
    applied = method.compress(copy_model(whole), context())
    module, sentences = copy_model(whole), []
    for part in method.parts:
        by_hand = part.compress(module, context(reference=whole))
        module, sentences = by_hand.module, [*sentences, by_hand.sentence]

    assert {"layers": 2, "heads": 4 if family in GROUPED else 3, "inner": 96, "hidden": 48} == shape(
        applied.module
    )
    assert applied.sentence == "minitron: " + "; ".join(sentences)
    assert torch.equal(logits(module), logits(applied.module))
    assert torch.equal(before, logits(whole))
    assert not applied.simulated
    assert not any(parameter.requires_grad for parameter in applied.module.parameters())
    check_whole(applied.module, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("few_steps")
def test_sheared_cuts_and_learns(family, tmp_path):
    """The same as its parts by hand; shape, sentence, checkpoint and the uncut model are as they should be."""
    wanted = {"layers": 2, "heads": 2 if family in GROUPED else 3, "inner": 96, "hidden": 48}
    method, whole = Sheared(**wanted, steps=3, batch=2), deep(family)
    before = logits(whole)
    applied = method.compress(copy_model(whole), context())
    cut = Shear(**wanted, steps=2, batch=2).compress(copy_model(whole), context())
    by_hand = OnText(3, 2, 1e-3).compress(cut.module, context())

    assert wanted == shape(applied.module)
    assert applied.sentence == f"sheared: {cut.sentence}; {by_hand.sentence}"
    assert by_hand.sentence.startswith("training on text: loss ")
    assert by_hand.sentence.endswith(" in 3 steps")
    assert torch.equal(logits(by_hand.module), logits(applied.module))
    assert torch.equal(before, logits(whole))
    check_whole(applied.module, tmp_path)


def test_minitron_recovers():
    """Two dozen steps of distillation make up for two fifths or more of what half the channels were worth."""
    whole, method = nats(trained()), Minitron(0.5, steps=24, batch=2)
    pruned = nats(method.parts[0].compress(trained(), trained_context()).module)
    healed = nats(method.compress(trained(), trained_context()).module)

    assert healed - whole < 0.6 * (pruned - whole)


def test_sheared_recovers():
    """So does training on text after shearing to half the channels and heads: a quarter at least."""
    whole, method = nats(trained()), Sheared(heads=4, inner=128, steps=30, batch=4)
    cut = method.parts[0].compress(trained(), short_context())
    pruned = nats(cut.module)
    healed = nats(method.parts[1].compress(cut.module, short_context()).module)

    assert healed - whole < 0.75 * (pruned - whole)


def test_training_on_text_lowers_its_loss():
    """Next-token cross entropy of the same text is lower afterwards, and zeros of pruned weights stay."""
    model = tiny_model("llama")
    weight = model.model.layers[0].mlp.up_proj.weight
    weight[:, ::2] = 0
    text = tiny_tokens(2, 24)

    def loss() -> float:
        return float(
            torch.nn.functional.cross_entropy(
                model(input_ids=text).logits[:, :-1].flatten(0, 1), text[:, 1:].flatten()
            )
        )

    before = loss()
    OnText(10, 2, 0.01).compress(model, context(text))

    assert loss() < before - 0.5
    assert (model.model.layers[0].mlp.up_proj.weight[:, ::2] == 0).all()


@dataclass(frozen=True)
class Says:
    """A step that only says what it is given."""

    sentence: str
    simulated: str = ""
    resumed: str = ""

    def compress(self, module: torch.nn.Module, _context: Context) -> Applied:
        return Applied(torch.nn.Sequential(module), self.sentence, self.simulated, self.resumed)


def test_parts_are_told_as_one():
    """Sentences are joined; what is simulated is said once, what was resumed for each; modules are handed on."""
    parts = [Says("a", "slow"), Says("b", "slow", "at 1"), Says("c", "", "at 2"), Says("d", "fake")]
    inner = torch.nn.Identity()
    applied = in_turn("all", parts, inner, context())

    assert ("all: a; b; c; d", "slow; fake", "at 1; at 2") == (
        applied.sentence,
        applied.simulated,
        applied.resumed,
    )
    assert inner is applied.module[0][0][0][0]


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(
    ("method", "step"),
    [(Minitron(steps=3, batch=2), "kd: step 3"), (Sheared(inner=96, steps=3), "sheared: step 3")],
)
def test_an_interrupted_preset_goes_on(method, step, tmp_path, monkeypatch):
    """The training goes on where it was; the weights are those of a run in one go."""
    monkeypatch.setattr(training, "EVERY_S", 0.0)
    model = tiny_model("llama")
    whole = method.compress(copy_model(model), context())

    def interrupt(what: str) -> None:
        if what.startswith(step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.compress(copy_model(model), context(checkpoints=tmp_path, progress=interrupt))
    resumed = method.compress(copy_model(model), context(checkpoints=tmp_path))

    assert "training went on at step 2 of 3 after an interruption" == resumed.resumed
    assert not whole.resumed
    assert torch.equal(logits(whole.module), logits(resumed.module))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Minitron, {"ratio": 1}, r"^minitron: ratio is a number from 0 and below 1, got 1"),
        (Minitron, {"heads": -0.1}, r"^minitron: heads is a number from 0 and below 1, got -0.1"),
        (Minitron, {"hidden": "0.5"}, r"^minitron: hidden is a number from 0 and below 1, got '0.5'"),
        (Minitron, {"layers": 0.5}, r"^minitron: layers is a whole number from 0, got 0.5"),
        (Minitron, {"ratio": 0}, r"^minitron: ratio is above 0 where heads, hidden and layers are 0, got 0"),
        (Minitron, {"steps": 0}, r"^minitron: steps is a whole number from 1 to 1000000, got 0"),
        (Sheared, {}, r"^sheared: a shape names one or more of layers, heads, inner, hidden, got none; give"),
        (Sheared, {"inner": 0}, r"^sheared: inner is a whole number from 1, got 0"),
        (
            Sheared,
            {"inner": 8, "batch": True},
            r"^sheared: batch is a whole number from 1 to 1000000, got True",
        ),
    ],
)
def test_bad_parameters(kind, arguments, message):
    """Refused by the preset's name."""
    with pytest.raises(RecipeError, match=message):
        kind(**arguments)


def test_parts_refuse_in_their_own_words():
    """No text, nothing to remove, and heads that GPT-2 cannot lose twice."""
    with pytest.raises(CompressionError, match=r"^width on tiny: .* calibration windows .* got none"):
        Minitron().compress(tiny_model("llama"), context(None))
    with pytest.raises(NothingCompressedError, match=r"^shear on tiny: .*, got the model's own"):
        Sheared(inner=128).compress(tiny_model("llama"), context())
    with pytest.raises(CompressionError, match=r"^hidden on tiny: the heads of gpt2 fill .*; take no heads"):
        Minitron(heads=0.25, hidden=0.25).compress(tiny_model("gpt2"), context())
    with pytest.raises(CompressionError, match=r"^sheared on tiny: .* calibration windows .* got none"):
        OnText(1, 1, 1e-3).compress(tiny_model("llama"), context(None))
