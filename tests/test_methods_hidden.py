"""Cutting the hidden state: against masking, against the importance computed from transformers' own outputs."""

from __future__ import annotations

import pytest
import torch
from reloading import check_whole, logits
from tiny_models import FAMILIES, GROUPED, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError, ModelError, NothingCompressedError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.hidden import Hidden, kept_width, norm_scores
from pytest_llmslim.methods.layerwise import visits
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.hidden_shape import hidden_step, keep_hidden
from pytest_llmslim.models.shapes import keep_kv_groups
from pytest_llmslim.models.storage import copy_model, parameter_count

WINDOWS = tiny_tokens(3, 24)
LAYER_NORM = ("gpt2", "opt")
KEPT = sorted(torch.randperm(64, generator=torch.Generator().manual_seed(5))[:48].tolist())
GONE = [channel for channel in range(64) if channel not in KEPT]


def context(windows: torch.Tensor | None = WINDOWS) -> Context:
    return Context(calibration=windows, seed=0, device="cpu", family="llama", label="tiny")


def ready(family: str, **overrides: object) -> nn.Module:
    """A tiny model whose heads fill 48 channels where they have to."""
    model = tiny_model(family, **overrides)
    if family in LAYER_NORM:
        keep_kv_groups(model, {0: [0, 1, 3], 1: [1, 2, 3]})
    return model


def norms(model: nn.Module) -> list[nn.Module]:
    """All norms of the hidden state."""
    return [part for name, part in model.named_modules() if "norm" in name.lower() or "ln_" in name]


def masked(model: nn.Module, family: str) -> nn.Module:
    """A copy in which nothing is written to, or read from, the channels that are to go.

    What is written to the others has no mean under LayerNorm, which would take it away over all channels.
    """
    model = copy_model(model)
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.clone())  # not tied: only what is written is centred
    writes = [part.weight.T for part in model.modules() if isinstance(part, nn.Embedding)]
    for layer in Blocks(model).layers:
        for linear in (layer.attention.projection_output, model.get_submodule(layer.feed_forward.outer)):
            writes += [linear.weight] if linear.bias is None else [linear.weight, linear.bias]
    for written in writes:  # views [hidden, ...]
        written[GONE] = 0
        if family in LAYER_NORM:
            written[KEPT] -= written[KEPT].mean(dim=0)
    for norm in norms(model):
        if norm.weight.shape == (64,):
            norm.weight[GONE] = -1.0 if family == "gemma3" else 0.0
            if hasattr(norm, "bias"):
                norm.bias[GONE] = 0
    return model


def without_epsilon(model: nn.Module) -> nn.Module:
    """The model with norms that only divide by the mean."""
    for norm in norms(model):
        for name in ("eps", "variance_epsilon"):
            if hasattr(norm, name):
                setattr(norm, name, 1e-20)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrower_model_computes_what_the_masked_one_does(family):
    """Equal logits, without the epsilons of the norms."""
    model = without_epsilon(ready(family))
    expected = logits(masked(model, family))
    keep_hidden(model, KEPT)

    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrower_model_reloads_and_generates(family, tmp_path):
    """Config and shapes agree; ties stay; the checkpoint gives equal logits."""
    model = ready(family)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    head_dim = Blocks(model).layers[0].attention.head_dim
    keep_hidden(model, KEPT)

    assert (48, 48) == (model.config.hidden_size, model.get_input_embeddings().embedding_dim)
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    if family in GROUPED:
        assert (4, head_dim) == (model.config.num_attention_heads, model.config.head_dim)
    else:
        assert 3 == model.config.num_attention_heads
    check_whole(model, tmp_path)


def test_untied_and_tied_heads_are_told_apart(tmp_path):
    """A Llama that ties its head stores one matrix before and after; GPT-2's inner width is written down."""
    tied = tiny_model("llama", tie_word_embeddings=True)
    keep_hidden(tied, KEPT)
    gpt2 = ready("gpt2")
    keep_hidden(gpt2, KEPT)

    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert 256 == gpt2.config.n_inner
    check_whole(tied, tmp_path)


def reference_scores(model: nn.Module) -> list[float]:
    """The importance by definition, from norm outputs that hooks of its own see."""
    total = torch.zeros(64, dtype=torch.float64)
    for layer in Blocks(model).layers:
        for norm in layer.norms:
            squares = torch.zeros(64, dtype=torch.float64)
            for window in WINDOWS:
                seen = []
                handle = model.get_submodule(norm.name).register_forward_hook(
                    lambda _module, _inputs, output, seen=seen: seen.append(output)
                )
                model(input_ids=window[None], use_cache=False)
                handle.remove()
                squares += seen[0].reshape(-1, 64).double().abs().mean(dim=0) ** 2
            total += squares.sqrt()
    return total.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_is_that_of_the_paper(family):
    """Mean over tokens, L2 norm over windows, sum over norms; the highest stay, and no hook is left."""
    model = tiny_model(family)
    expected = reference_scores(model)
    found = sum(norm_scores(visit) for visit in visits(model, WINDOWS, context(), "hidden"))
    embeddings = model.get_input_embeddings().weight.clone()
    applied = Hidden().compress(model, context())
    order = sorted(range(64), key=lambda channel: expected[channel], reverse=True)
    kept = sorted(order[:48])

    assert pytest.approx(expected, rel=1e-4) == found.tolist()
    assert torch.equal(embeddings[:, kept], applied.module.get_input_embeddings().weight)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_said_and_done(family, tmp_path):
    """A quarter goes from every family, with heads where they fill the hidden state; the reference stays."""
    reference = tiny_model(family)
    before = [parameter.clone() for parameter in reference.parameters()]
    applied = Hidden().compress(copy_model(reference), context())
    again = Hidden().compress(copy_model(reference), context())
    said = "hidden: 16 of 64 channels of the hidden state removed everywhere"

    assert said + ("" if family in GROUPED else ", with 1 of 4 heads in each layer") == applied.sentence
    assert not applied.simulated
    assert parameter_count(applied.module) < 0.8 * parameter_count(reference)
    assert torch.equal(logits(applied.module), logits(again.module))
    assert all(torch.equal(a, b) for a, b in zip(before, reference.parameters(), strict=True))
    check_whole(applied.module, tmp_path)


def test_the_heads_that_carry_least_go_with_the_channels():
    """In GPT-2 and OPT the silent head of each layer is the one that goes."""
    model = tiny_model("gpt2")
    for layer, silent in zip(Blocks(model).layers, (2, 0), strict=True):
        layer.attention.mask_heads({silent})
    expected = [Blocks(model).layers[i].attention.module.c_attn.bias.clone() for i in (0, 1)]
    Hidden().compress(model, context())

    for layer, bias, silent in zip(Blocks(model).layers, expected, (2, 0), strict=True):
        heads = torch.cat([head for i, head in enumerate(bias.reshape(12, 16)) if i % 4 != silent])
        assert torch.equal(heads, layer.attention.module.c_attn.bias)


@pytest.mark.parametrize(
    ("family", "shape", "ratio", "step", "stays"),
    [
        ("llama", {}, 0.25, 4, 48),
        ("llama", {}, 0.3, 4, 44),
        ("mistral", {}, 0.3, 1, 44),
        ("llama", {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}, 0.25, 9, 27),
        ("gpt2", {}, 0.3, 16, 48),
        ("opt", {}, 0.99, 16, 16),
    ],
)
def test_widths_that_a_config_can_tell(family, shape, ratio, step, stays):
    """Multiples of the heads for Llama, of a head for GPT-2; else round ones where they are near."""
    model = tiny_model(family, **shape)

    assert (step, stays) == (hidden_step(model), kept_width(model, ratio))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([], r"some of 0 to 63, each once, got \[\]; name"),
        ([0, 0], r"got \[0, 0\]"),
        ([64], r"got \[64\]"),
        ([-1], r"got \[-1\]"),
    ],
)
def test_channels_that_are_not_there(channels, message):
    """Repeated, missing or no channels are refused."""
    with pytest.raises(ModelError, match=message):
        keep_hidden(tiny_model("llama"), channels)


def test_models_whose_hidden_state_cannot_be_cut():
    """Heads that do not fill the width, other embeddings (opt-350m), norms without a scale, quantized linears."""
    with pytest.raises(
        ModelError, match=r"heads of gpt2 fill the hidden state, got 4 heads of 16 for 48 channels in layer 0"
    ):
        keep_hidden(tiny_model("gpt2"), KEPT)
    with pytest.raises(ModelError, match=r"embeddings are as wide as it is \(64\), got 32; cut the width"):
        keep_hidden(ready("opt", word_embed_proj_dim=32), KEPT)
    with pytest.raises(ModelError, match=r"norms have a scale to correct, got a norm without; cut the width"):
        keep_hidden(ready("opt", layer_norm_elementwise_affine=False), KEPT)
    quantized = tiny_model("llama")
    quantized.model.layers[1].mlp.up_proj = nn.Bilinear(2, 2, 2)
    quantized.model.layers[1].mlp.up_proj.in_features = quantized.model.layers[1].mlp.up_proj.out_features = 2
    with pytest.raises(ModelError, match=r"hidden channels of model.layers.1.mlp.up_proj are cut from plain"):
        keep_hidden(quantized, KEPT)


def test_what_cannot_be_pruned():
    """No text; a share that rounds to nothing; a GPT-2 that has lost heads before."""
    with pytest.raises(CompressionError, match=r"^hidden on tiny: .*calibration windows.* got none; give"):
        Hidden().compress(tiny_model("llama"), context(None))
    with pytest.raises(
        NothingCompressedError,
        match=r"^hidden on tiny: removes a share of 64 channels by steps of 16, got ratio=0.05, which .*; raise",
    ):
        Hidden(0.05).compress(tiny_model("gpt2"), context())
    with pytest.raises(
        CompressionError,
        match=r"^hidden on tiny: the heads of llama fill its hidden state of 64, got heads of 48 in layer 0; ",
    ):
        Hidden().compress(ready("gpt2"), context())


@pytest.mark.parametrize("value", [0, 1, -0.5, float("nan"), True, "0.5"])
def test_ratio_is_a_share(value):
    """A share that keeps all or nothing, or is no number, is refused."""
    with pytest.raises(RecipeError, match=r"^hidden: ratio is a number above 0 and below 1, got"):
        Hidden(ratio=value)


def test_samples_are_counted():
    """Half a window is none."""
    with pytest.raises(RecipeError, match=r"^hidden: samples is a whole number from 1, got 0.5"):
        Hidden(samples=0.5)
