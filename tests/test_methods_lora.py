"""LoRA: trains beside what is quantized, merges under the zeros of what is pruned, and recovers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_methods_eora import perplexity_of
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.evals import text as texts
from pytest_llmslim.methods import Context, requantize
from pytest_llmslim.methods.bitsandbytes_linear import FP4, NF4, Int8
from pytest_llmslim.methods.linears import effective_weight
from pytest_llmslim.methods.lora import LoRA
from pytest_llmslim.methods.low_rank import LowRank, merge
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.methods.packed import PackedLinear
from pytest_llmslim.methods.rtn import RTN
from pytest_llmslim.methods.torchao_linear import Int8Fbgemm
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.storage import copy_model, stored_bytes, weights_hash

TEXT = tiny_tokens(8, 24)
QUICK = {"rank": 4, "steps": 6, "batch": 8, "rate": 0.01}


def context(reference: nn.Module | None, **changes: object) -> Context:
    return dataclasses.replace(Context(TEXT, 0, "cpu", "llama", "tiny", reference), **changes)


def compressed(reference: nn.Module, step: object) -> nn.Module:
    return step.compress(copy_model(reference), context(reference)).module


def divergence(reference: nn.Module, candidate: nn.Module) -> float:
    """Mean KL(reference || candidate) over the text, in nats."""
    with torch.no_grad():
        wanted, got = (model(TEXT).logits.log_softmax(-1) for model in (reference, candidate))
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: effective_weight(linear).clone() for name, linear in Blocks(model).linears().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_models_heal_and_keep_their_zeros(family):
    """After a few steps nearer to the reference; plain linears, each exact zero where it was, nothing else touched."""
    reference = tiny_model(family)
    given_hash = weights_hash(reference)
    candidate = compressed(reference, Magnitude(sparsity=0.5))
    pruned, lost, size = weights(candidate), divergence(reference, candidate), stored_bytes(candidate)
    before = {name: tensor.clone() for name, tensor in candidate.named_parameters()}
    applied = LoRA(**QUICK).compress(candidate, context(reference))
    linears = Blocks(applied.module).linears()

    assert divergence(reference, applied.module) < 0.8 * lost
    assert all(type(linear) is nn.Linear for linear in linears.values())
    assert all(torch.equal(pruned[name] == 0, linear.weight == 0) for name, linear in linears.items())
    assert size == stored_bytes(applied.module)
    assert given_hash == weights_hash(reference)
    for name, tensor in applied.module.named_parameters():
        assert not tensor.requires_grad
        assert (name.removesuffix(".weight") in linears) != torch.equal(before[name], tensor)
    assert applied.sentence.startswith(
        f"lora: terms of rank 4 merged into {len(linears)} linears, learnt from the uncompressed model, loss "
    )
    assert applied.sentence.endswith(" in 6 steps")
    assert ("", "") == (applied.simulated, applied.resumed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", [NF4(), RTN(bits=3, group=32)], ids=["nf4", "rtn"])
def test_quantized_models_heal_beside_their_codes(step, family):
    """Terms stay beside, the codes are those of before, and logits are nearer to the reference."""
    reference = tiny_model(family)
    candidate = compressed(reference, step)
    codes, lost = weights(candidate), divergence(reference, candidate)
    applied = LoRA(**QUICK).compress(candidate, context(reference))
    linears = Blocks(applied.module).linears()

    assert divergence(reference, applied.module) < 0.9 * lost
    assert all(isinstance(linear, LowRank) and not linear.masked for linear in linears.values())
    assert all(torch.equal(codes[name], effective_weight(linear.base)) for name, linear in linears.items())
    assert f"rank 4 beside {len(linears)} linears" in applied.sentence


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Int8(threshold=3.0), "Linear8bitLt"),
        (NF4(double_quant=False), "Linear4bit"),
        (FP4(compute_dtype="bfloat16"), "Linear4bit"),
        (RTN(bits=3, group=32), "PackedLinear"),
        (RTN(bits=4, symmetric=False), "PackedLinear"),
    ],
    ids=["int8", "nf4", "fp4", "rtn3", "rtn4 asymmetric"],
)
def test_merging_into_quantized_weights_rounds_them_anew(step, kind):
    """Asked for, the sum is on the same grid as before, in as many bytes; zeros stay zero."""
    reference = tiny_model("llama")
    candidate = compressed(reference, step)
    before, size = weights(candidate), stored_bytes(candidate)
    first = next(iter(Blocks(candidate).linears().values()))
    applied = LoRA(**QUICK, merge=True).compress(candidate, context(reference))
    after = weights(applied.module)
    made = next(iter(Blocks(applied.module).linears().values()))

    assert {kind} == {type(linear).__name__ for linear in Blocks(applied.module).linears().values()}
    assert size == pytest.approx(stored_bytes(applied.module), rel=0.01)
    assert all(bool((after[name][zeros == 0] == 0).all()) for name, zeros in before.items())
    assert any(not torch.equal(after[name], before[name]) for name in before)
    if kind == "Linear4bit":
        kept = ("quant_type", "compress_statistics")
        assert [getattr(first.weight, each) for each in kept] == [getattr(made.weight, each) for each in kept]
        assert first.compute_dtype == made.compute_dtype
    elif kind == "Linear8bitLt":
        assert first.state.threshold == made.state.threshold
    else:
        assert first.grid == made.grid


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [Int8(), NF4(), FP4(double_quant=False), RTN(bits=4, group=32)])
def test_rounding_anew_is_what_the_quantizer_does(step):
    """The same weights as those that the method itself makes of a float linear."""
    linear = nn.Linear(64, 96).requires_grad_(False)
    base, other = (quantized_by(step, copied(linear, factor)) for factor in (1.0, 0.7))
    made = requantize.requantized(base, linear.weight * 0.7)

    assert type(base) is type(made)
    assert torch.equal(effective_weight(other), effective_weight(made))
    assert torch.equal(linear.bias, made.bias)


def copied(linear: nn.Linear, factor: float) -> nn.Linear:
    twin = nn.Linear(linear.in_features, linear.out_features).requires_grad_(False)
    twin.weight.copy_(linear.weight * factor)
    twin.bias.copy_(linear.bias)
    return twin


def quantized_by(step: object, linear: nn.Linear) -> nn.Module:
    if isinstance(step, RTN):
        return PackedLinear.rounded(linear, step.grid)
    new = step._quantized(linear)
    new.bias = linear.bias
    return new.to("cpu").eval()


def test_merge_false_leaves_terms_beside_pruned_weights():
    """The base keeps its zeros; the sum may fill them."""
    reference = tiny_model("llama")
    candidate = compressed(reference, Magnitude(pattern="2:4"))
    applied = LoRA(**QUICK, merge=False).compress(candidate, context(reference))
    linear = applied.module.model.layers[0].mlp.up_proj

    assert 0.5 == float((linear.base.weight == 0).float().mean())
    assert 0 < int((effective_weight(linear) != 0).sum()) - linear.base.weight.numel() // 2
    assert "rank 4 beside 14 linears" in applied.sentence


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["attention", "feed-forward"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_target_leaves_the_other_linears_as_they_are(target, family):
    """Only the chosen ones have terms; the others are the very modules of before, quantized as they were."""
    reference = tiny_model(family)
    candidate = compressed(reference, NF4())
    before = Blocks(candidate).linears()
    after = Blocks(LoRA(**QUICK, target=target).compress(candidate, context(reference)).module).linears()
    attention = {name for name in before if ".attn." in name or ".self_attn." in name}
    chosen = attention if target == "attention" else set(before) - attention

    assert list(before) == list(after)
    assert chosen == {name for name, linear in after.items() if isinstance(linear, LowRank)}
    assert all(before[name] is after[name] for name in set(before) - chosen)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "step", [NF4(), Int8(threshold=0.0), Int8Fbgemm(), RTN()], ids=lambda step: type(step).__name__
)
def test_terms_learn_as_beside_the_equal_float_weights(step):
    """Gradients pass quantized linears with and without a term: the first step is that on the dequantized model."""
    reference = tiny_model("llama")
    quantized = compressed(reference, step)
    dense = copy_model(reference)
    for name, linear in Blocks(dense).linears().items():
        linear.weight.data = effective_weight(quantized.get_submodule(name)).float()
    course = {"rank": 4, "steps": 1, "rate": 0.01, "target": "attention", "merge": False}
    terms = [
        Blocks(LoRA(**course).compress(model, context(None)).module).layers[0].attention.module.q_proj
        for model in (quantized, dense)
    ]
    # the first step of AdamW is the sign of the gradient, and down gets none while up is zero
    signs = [term.up.sign() for term in terms]

    assert torch.equal(terms[0].down, terms[1].down)
    assert float((signs[0] == signs[1]).float().mean()) > 0.93
    assert int((signs[1] != 0).sum()) == signs[1].numel()


def test_without_a_reference_it_learns_from_the_text():
    """By cross entropy, and the sentence says so; likewise where the vocabulary is another one."""
    for reference in (None, tiny_model("llama", vocab_size=140)):
        applied = LoRA(**QUICK).compress(compressed(tiny_model("llama"), Magnitude()), context(reference))
        assert ", learnt from the text, loss " in applied.sentence


def test_a_seed_decides():
    """Equal seeds give equal weights, another one gives others."""
    reference = tiny_model("llama")
    hashes = [
        weights_hash(
            LoRA(**QUICK).compress(compressed(reference, Magnitude()), context(reference, seed=seed)).module
        )
        for seed in (1, 1, 2)
    ]

    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_half_precision_models_keep_their_dtype():
    """Terms are trained in float32 and stored as the model is."""
    reference = tiny_model("llama").to(torch.bfloat16)
    for merging, kinds in (("auto", {nn.Linear}), (False, {LowRank})):
        candidate = compressed(reference, Magnitude())
        made = LoRA(**QUICK, merge=merging).compress(candidate, context(reference)).module
        assert kinds == {type(linear) for linear in Blocks(made).linears().values()}
        assert {torch.bfloat16} == {tensor.dtype for tensor in made.parameters()}


def test_ranks_end_at_the_smaller_side():
    """A rank above it would only store more."""
    reference = tiny_model("llama")
    applied = LoRA(rank=4096, steps=1, merge=False).compress(compressed(reference, RTN()), context(reference))

    assert {64} == {linear.rank for linear in Blocks(applied.module).linears().values()} - {32}


@pytest.mark.filterwarnings("ignore")
def test_merging_into_what_cannot_be_rounded_anew_is_refused():
    """torch.ao's layers, and terms of an earlier step; left at auto both get terms beside."""
    reference = tiny_model("llama")
    candidate = compressed(reference, Int8Fbgemm())
    with pytest.raises(
        CompressionError,
        match=r"^lora on tiny: terms are merged into float weights and into those of rtn, gptq, awq, qat, int8, int4 "
        r"and fp4, got Linear in model.layers.0.self_attn.q_proj; leave merge at auto$",
    ):
        LoRA(**QUICK, merge=True).compress(candidate, context(reference))
    twice = LoRA(**QUICK).compress(
        LoRA(**QUICK).compress(candidate, context(reference)).module, context(reference)
    )

    assert isinstance(twice.module.model.layers[0].mlp.up_proj.base, LowRank)
    with pytest.raises(
        CompressionError, match=r"^weights are rounded anew by the quantizers of .* got Linear; leave"
    ):
        requantize.requantized(nn.Linear(2, 2), torch.zeros(2, 2))


def test_without_text_it_is_refused():
    """Training needs windows."""
    with pytest.raises(CompressionError, match=r"^lora on tiny: the method learns from calibration windows"):
        LoRA().compress(tiny_model("llama"), context(None, calibration=None))


@pytest.mark.parametrize(
    ("parameters", "rule"),
    [
        ({"rank": 0}, "rank is a whole number from 1 to 4096, got 0"),
        ({"rank": True}, "rank is a whole number from 1 to 4096, got True"),
        ({"target": "mlp"}, "target is one of all, attention, feed-forward, got 'mlp'"),
        ({"merge": "yes"}, "merge is one of auto, true, false, got 'yes'"),
        ({"merge": 1}, "merge is one of auto, true, false, got 1"),
        ({"steps": 0}, "steps is a whole number from 1 to 1000000, got 0"),
        ({"batch": 1.5}, "batch is a whole number from 1 to 1000000, got 1.5"),
        ({"rate": 0}, "rate is a number above 0 and at most 1, got 0"),
    ],
)
def test_bad_parameters_are_refused_by_name(parameters, rule):
    """Method, parameter, rule, got."""
    with pytest.raises(RecipeError) as caught:
        LoRA(**parameters)
    assert f"lora: {rule}" == str(caught.value)


@pytest.fixture(scope="module")
def embedded() -> tuple[nn.Module, texts.Passage]:
    """The embedded Llama and its text."""
    loaded = load_model("embedded:llama")
    shape = {"tokens": 1024, "window": 65, "stride": None, "bos": "auto", "dtype": "float32", "longest": None}
    return loaded.module, texts.cut(texts.grammar_text(20), loaded.tokenizer, **shape)


@pytest.mark.parametrize("step", [Magnitude(sparsity=0.5), RTN(bits=3, group=64)], ids=["magnitude", "rtn"])
def test_recovery_is_better_than_none_on_text(step, embedded):
    """On the embedded Llama: at least a third of the lost perplexity comes back in 24 steps, on unseen text."""
    reference, passage = embedded
    around = context(reference, calibration=passage.calibration, draw=passage.rest)
    candidate = step.compress(copy_model(reference), around).module
    best, none = perplexity_of(reference, passage), perplexity_of(candidate, passage)
    healed = LoRA(steps=24, batch=4, rate=0.01).compress(candidate, around).module

    assert best < perplexity_of(healed, passage) < best + 0.67 * (none - best)


def test_peft_computes_the_same_term():
    """With alpha equal to the rank, peft's layer gives what ours does, alone and merged into a dense weight."""
    peft = pytest.importorskip("peft")
    holder = nn.Sequential(nn.Linear(16, 8))
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"])
    theirs = peft.get_peft_model(holder, config).eval()
    layer = theirs.base_model.model[0]
    layer.lora_B["default"].weight.data.normal_()
    ours = LowRank(layer.base_layer, layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data)
    inputs = torch.randn(3, 16)

    torch.testing.assert_close(ours(inputs), theirs(inputs))
    torch.testing.assert_close(merge(ours).weight, theirs.merge_and_unload()[0].weight)
