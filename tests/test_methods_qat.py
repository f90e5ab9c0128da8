"""QAT: rounded forwards, straight through backwards, and better than plain rounding afterwards."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_methods_eora import perplexity_of
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.evals import text as texts
from pytest_llmslim.methods import Context, training
from pytest_llmslim.methods.grid import Grid
from pytest_llmslim.methods.packed import SIMULATED, PackedLinear
from pytest_llmslim.methods.qat import QAT, Rounded, rounding
from pytest_llmslim.methods.rtn import RTN
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.storage import copy_model, weights_hash

TEXT = tiny_tokens(8, 24)
QUICK = {"bits": 3, "group": 32, "steps": 6, "batch": 8, "rate": 2e-3}


def context(reference: nn.Module | None, **changes: object) -> Context:
    return dataclasses.replace(Context(TEXT, 0, "cpu", "llama", "tiny", reference), **changes)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TEXT).logits


def divergence(reference: nn.Module, candidate: nn.Module) -> float:
    """Mean KL(reference || candidate) over the text, in nats."""
    wanted, got = (logits(model).log_softmax(-1) for model in (reference, candidate))
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())


def entropy(model: nn.Module) -> float:
    """Mean cross entropy of the text, in nats."""
    return float(nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), TEXT[:, 1:].flatten()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family):
    """After six steps the divergence is well below plain rounding's; all linears are packed, nothing else moved."""
    reference = tiny_model(family)
    digest = weights_hash(reference)
    plain = RTN(bits=3, group=32).compress(copy_model(reference), context(reference)).module
    applied = QAT(**QUICK).compress(copy_model(reference), context(reference))
    linears = Blocks(applied.module).linears()

    assert divergence(reference, applied.module) < 0.9 * divergence(reference, plain)
    assert all(type(linear) is PackedLinear for linear in linears.values())
    assert not any(parameter.requires_grad for parameter in applied.module.parameters())
    assert digest == weights_hash(reference)
    others = dict(reference.named_parameters())
    for name, parameter in applied.module.named_parameters():
        assert torch.equal(others[name], parameter), name


def test_rounding_goes_straight_through():
    """Forwards the nearest level, backwards as if there were no rounding."""
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    upstream = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    rounded = Rounded(Grid(3, 16))(weight)
    (rounded * upstream).sum().backward()

    torch.testing.assert_close(rounded, Grid(3, 16).round_to(weight.detach()))
    assert torch.equal(upstream, weight.grad)


def test_linears_are_plain_again_afterwards():
    """Also after an error; what they held is theirs."""
    linear = nn.Linear(32, 4)
    weight = linear.weight
    with rounding([linear], Grid(2, 16)):
        assert 3 >= len(linear.weight[0, :16].unique())
    with pytest.raises(ZeroDivisionError), rounding([linear], Grid(2, 16)):
        _ = 1 / 0

    assert type(linear) is nn.Linear
    assert weight is linear.weight


def test_without_movement_it_is_plain_rounding():
    """With a rate of almost nothing the codes are those of rtn."""
    reference = tiny_model("qwen2")
    plain = RTN(bits=3, group=32).compress(copy_model(reference), context(reference)).module
    still = QAT(**{**QUICK, "rate": 1e-12}).compress(copy_model(reference), context(reference)).module

    for name, linear in Blocks(still).linears().items():
        assert torch.equal(Blocks(plain).linears()[name].codes, linear.codes)


def test_what_was_trained_is_what_is_stored():
    """The last loss of the training is the divergence of the packed model, if the last step moves nothing."""
    reference, losses = tiny_model("opt"), []
    told = context(reference, progress=lambda what: losses.append(float(what.rpartition(" ")[2])))
    method = QAT(**{**QUICK, "steps": 1, "rate": 1e-12})
    applied = method.compress(copy_model(reference), told)
    wanted, got = (logits(model)[:, :-1].log_softmax(-1) for model in (reference, applied.module))

    assert losses[-1] == pytest.approx(float((wanted.exp() * (wanted - got)).sum(-1).mean()), rel=0.01)


def test_without_a_reference_it_learns_from_the_text():
    """Then the cross entropy falls below that of plain rounding."""
    model = tiny_model("gpt2")
    plain = RTN(bits=3, group=32).compress(copy_model(model), context(None)).module
    applied = QAT(**QUICK).compress(copy_model(model), context(None))

    assert entropy(applied.module) < entropy(plain) - 0.1
    assert "; learnt from the text, loss " in applied.sentence


def test_what_is_said():
    """Grid, bytes, what it learnt from and how it went; speed is simulated."""
    reference = tiny_model("llama")
    applied = QAT(**QUICK).compress(copy_model(reference), context(reference))

    assert applied.sentence.startswith("qat: 14 linears with 3-bit symmetric codes")
    assert " bits a weight stored; learnt from the uncompressed model, loss " in applied.sentence
    assert applied.sentence.endswith(" in 6 steps")
    assert (SIMULATED, "") == (applied.simulated, applied.resumed)


def test_exact_zeros_stay():
    """A pruned weight is still zero after training and rounding, and the others learnt."""
    reference = tiny_model("llama")
    pruned = copy_model(reference)
    masks = {}
    for name, linear in Blocks(pruned).linears().items():
        linear.weight.data[linear.weight.abs() < 0.1] = 0
        masks[name] = linear.weight == 0
    after = Blocks(QAT(**QUICK).compress(pruned, context(reference)).module).linears()

    assert not any(bool(linear.dequantized()[masks[name]].any()) for name, linear in after.items())


def test_half_precision_models_keep_their_dtype():
    """Trained in float32, then everything is bfloat16 again."""
    reference = tiny_model("gemma3").to(torch.bfloat16)
    module = QAT(**QUICK).compress(copy_model(reference), context(reference)).module

    assert {torch.bfloat16} == {parameter.dtype for parameter in module.parameters()}
    assert {torch.bfloat16} == {linear.dequantized().dtype for linear in Blocks(module).linears().values()}
    assert divergence(reference, module) < 2


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    """With the same weights as one that did not stop, and it says so."""
    reference = tiny_model("llama")
    monkeypatch.setattr(training, "EVERY_S", 0.0)

    def stop(what):
        if what.startswith("qat: step 4"):
            raise KeyboardInterrupt

    around = context(reference, checkpoints=tmp_path)
    whole = QAT(**QUICK).compress(copy_model(reference), context(reference)).module
    with pytest.raises(KeyboardInterrupt):
        QAT(**QUICK).compress(copy_model(reference), dataclasses.replace(around, progress=stop))
    resumed = QAT(**QUICK).compress(copy_model(reference), around)

    assert weights_hash(whole) == weights_hash(resumed.module)
    assert resumed.resumed == "training went on at step 3 of 6 after an interruption"


def test_a_seed_decides():
    """Equal seeds give equal weights, other seeds other ones."""
    reference = tiny_model("qwen3")
    method = QAT(**{**QUICK, "batch": 2})
    hashes = [
        weights_hash(method.compress(copy_model(reference), context(reference, seed=seed)).module)
        for seed in (1, 1, 2)
    ]

    assert hashes[0] == hashes[1] != hashes[2]


def test_better_than_plain_rounding_on_text():
    """On the embedded Llama at 3 bits half of what plain rounding loses comes back in 48 steps, on unseen text."""
    loaded = load_model("embedded:llama")
    shape = {"tokens": 1024, "window": 65, "stride": None, "bos": "auto", "dtype": "float32", "longest": None}
    passage = texts.cut(texts.grammar_text(20), loaded.tokenizer, **shape)
    around = context(loaded.module, calibration=passage.calibration, draw=passage.rest)
    plain = RTN(bits=3).compress(copy_model(loaded.module), around).module
    trained = QAT(bits=3, steps=48, rate=5e-4).compress(copy_model(loaded.module), around).module
    best, none, got = (perplexity_of(model, passage) for model in (loaded.module, plain, trained))

    assert best < got < best + 0.5 * (none - best)


def test_without_text_it_is_refused():
    """There is nothing to learn from."""
    with pytest.raises(CompressionError, match=r"^qat on tiny: the method learns from calibration windows"):
        QAT().compress(tiny_model("llama"), context(None, calibration=None))


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"bits": 9}, "bits is a whole number from 2 to 8, got 9"),
        ({"group": 1}, "group is a whole number from 2 to 65536, got 1"),
        ({"symmetric": "no"}, "symmetric is one of true, false, got 'no'"),
        ({"steps": 0}, "steps is a whole number from 1 to 1000000, got 0"),
        ({"rate": 0}, "rate is a number above 0 and at most 1, got 0"),
    ],
)
def test_bad_parameters_are_refused(bad, rule):
    """By name."""
    with pytest.raises(RecipeError, match=rf"^qat: {rule}$"):
        QAT(**bad)
