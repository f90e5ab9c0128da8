"""Shearing: gates against closed forms and against cutting, masks against planted irrelevance and random cuts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reloading import check_whole, logits
from tiny_models import FAMILIES, GROUPED, tiny_model, tiny_tokens
from torch import nn
from trained import nats, trained, trained_context

from pytest_llmslim.errors import CompressionError, ModelError, NothingCompressedError, RecipeError
from pytest_llmslim.methods import Context, training
from pytest_llmslim.methods.gated import HEADS, HIDDEN, INNER, LAYERS, gated, sizes
from pytest_llmslim.methods.hard_concrete import constraint, open_probability, raised, sample
from pytest_llmslim.methods.shear import Shear
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.hidden_shape import hidden_norms, keep_hidden
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.shapes import keep_channels, keep_kv_groups, keep_layers
from pytest_llmslim.models.storage import copy_model

DEPTH = 3
WINDOWS = tiny_tokens(6, 24)
FILLED = [family for family in FAMILIES if family not in GROUPED]
SMALLER = {"layers": 2, "inner": 96, "steps": 3, "batch": 2}


def context(windows: torch.Tensor | None = WINDOWS, **more: object) -> Context:
    return Context(calibration=windows, seed=0, device="cpu", family="gpt2", label="tiny", **more)


def deep(family: str, **overrides: object) -> nn.Module:
    """A tiny model of three layers."""
    told = {"n_layer" if family == "gpt2" else "num_hidden_layers": DEPTH}
    if family == "gpt2":
        told["n_inner"] = 128
    if family == "gemma3":
        told["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return tiny_model(family, **told, **overrides)


def shape(module: nn.Module) -> dict[str, int]:
    """What the config says, by the names of the parameters."""
    config, inner = module.config, {"gpt2": "n_inner", "opt": "ffn_dim"}
    return {
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "inner": getattr(config, inner.get(config.model_type, "intermediate_size")),
        "hidden": config.hidden_size,
    }


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 2.0])
def test_gates_are_hard_concrete(log_alpha):
    """Drawn gates follow the formula for the same noise; as many are open as the closed form says."""
    count = 40_000
    found = sample(torch.full((count,), log_alpha), torch.Generator().manual_seed(3))
    noise = (
        torch.rand(count, generator=torch.Generator().manual_seed(3)).double().clamp(1e-6, 1 - 1e-6).numpy()
    )
    concrete = 1 / (1 + np.exp(-(np.log(noise) - np.log(1 - noise) + log_alpha) / (2 / 3)))
    expected = np.clip(concrete * 1.2 - 0.1, 0, 1)
    chance = 1 / (1 + math.exp(-(log_alpha + 2 / 3 * math.log(11))))

    assert pytest.approx(expected, abs=1e-4) == found.numpy()
    assert pytest.approx(chance, abs=1e-6) == float(open_probability(torch.tensor(log_alpha)))
    assert pytest.approx(chance, abs=0.01) == float((found > 0).double().mean())


def test_multipliers_climb_and_gates_descend():
    """The constraint by hand; while too many gates are open, a descent lowers log_alpha and raises both multipliers."""
    log_alpha = torch.tensor([[0.0, 1.0], [2.0, -1.0]], requires_grad=True)
    multipliers = torch.tensor([[1.0, 2.0], [0.5, 0.0]], requires_grad=True)
    value = constraint(log_alpha, 0.25, multipliers)
    value.backward()
    excess = [
        sum(1 / (1 + math.exp(-(a + 2 / 3 * math.log(11)))) for a in row) / 2 - 0.25
        for row in log_alpha.tolist()
    ]
    by_hand = [1.0 * excess[0] + 2.0 * excess[0] ** 2, 0.5 * excess[1]]

    assert pytest.approx(sum(by_hand) / 2) == float(value.detach())
    assert (log_alpha.grad > 0).all()
    gradients = [gradient for e in excess for gradient in (-e / 2, -e * e / 2)]
    assert pytest.approx(gradients) == multipliers.grad.flatten().tolist()
    assert [3.0] == raised(torch.tensor([3.0])).tolist()


def closed(module: nn.Module, kind: str, kept: list[list[int]]) -> dict[str, torch.Tensor]:
    """Gates for the two windows of the test's tokens, open where `kept` says so."""
    rows, count = sizes(module)[kind]
    gates = torch.zeros(2, rows, count)
    for row, indices in enumerate(kept):
        gates[:, row, indices] = 1
    return {kind: gates}


def gate_logits(module: nn.Module, gates: dict[str, torch.Tensor]) -> torch.Tensor:
    with gated(module, gates):
        return logits(module)


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_gates_are_cut_parts(family):
    """Layers, groups and channels behind closed gates compute nothing, exactly as when they are cut out."""
    model = deep(family)
    groups, channels = [[0], [1], [1]], [list(range(i, 128, 2)) for i in (0, 1, 0)]
    cuts = {
        LAYERS: ([[0, 2]], lambda m: keep_layers(m, [0, 2])),
        HEADS: (groups, lambda m: keep_kv_groups(m, dict(enumerate(groups)))),
        INNER: (channels, lambda m: keep_channels(m, dict(enumerate(channels)))),
    }
    for kind, (kept, cut) in cuts.items():
        smaller = copy_model(model)
        cut(smaller)
        torch.testing.assert_close(
            gate_logits(model, closed(model, kind, kept)), logits(smaller), rtol=0, atol=1e-5
        )
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("family", GROUPED)
def test_closed_hidden_gates_are_cut_channels(family):
    """Under RMSNorm a model behind closed hidden gates is the narrower one, but for the epsilon of its norms."""
    model = deep(family, rms_norm_eps=1e-20)
    kept = [channel for channel in range(64) if channel % 4]
    expected = gate_logits(model, closed(model, HIDDEN, [kept]))
    keep_hidden(model, kept)

    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FILLED)
def test_nothing_reads_closed_hidden_channels_behind_layer_norm(family):
    """The bias of LayerNorm does not get through a closed gate."""
    model = deep(family)
    seen = []
    gates = closed(model, HIDDEN, [list(range(48))])
    with gated(model, gates):
        norms = hidden_norms(model)
        handles = [norm.register_forward_hook(lambda _m, _i, output: seen.append(output)) for norm in norms]
        logits(model)
        for handle in handles:
            handle.remove()

    assert 2 * DEPTH + 1 == len(seen)
    assert all((output[..., 48:] == 0).all() and (output[..., :48] != 0).any() for output in seen)


def test_every_window_has_its_own_gates_and_none_stays():
    """Open gates for one window, closed ones for the other; hooks go also when the model fails."""
    model = deep("llama")
    gates = {LAYERS: torch.tensor([[[1.0, 1, 1]], [[0.0, 0, 0]]])}
    found, whole = gate_logits(model, gates), logits(model)

    torch.testing.assert_close(found[0], whole[0])
    assert not torch.allclose(found[1], whole[1])
    with pytest.raises(IndexError), gated(model, gates):
        model(input_ids=torch.full((2, 4), 10**6))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_is_exactly_the_wanted_one(family, tmp_path):
    """All four numbers come out as asked for; the model generates and reloads; twice the same."""
    wanted = {"layers": 2, "heads": 3 if family in FILLED else 2, "inner": 96, "hidden": 48}
    method = Shear(**wanted, steps=3, batch=2)
    reference = deep(family)
    applied = method.compress(copy_model(reference), context())
    again = method.compress(copy_model(reference), context())

    assert wanted == shape(applied.module)
    assert {"layers": DEPTH, "heads": 4, "inner": 128, "hidden": 64} == shape(reference)
    assert applied.sentence == (
        f"shear: 2 of 3 layers, {wanted['heads']} of 4 heads, 96 of 128 feed-forward channels, 48 of 64 hidden "
        "channels kept, by masks learnt in 3 steps"
    )
    assert not applied.simulated
    assert not applied.resumed
    assert torch.equal(logits(applied.module), logits(again.module))
    assert not any(parameter.requires_grad for parameter in applied.module.parameters())
    check_whole(applied.module, tmp_path)


def test_half_precision_stays():
    """Masks are learnt in float32 beside weights in bfloat16, which stay what they were."""
    model = deep("gemma3").to(torch.bfloat16)
    applied = Shear(heads=2, hidden=48, steps=2, batch=2).compress(copy_model(model), context())

    assert {torch.bfloat16} == {parameter.dtype for parameter in applied.module.parameters()}
    assert (2, 48) == (applied.module.config.num_attention_heads, applied.module.config.hidden_size)


def own_text(model: nn.Module) -> torch.Tensor:
    """Windows that the model itself writes, so that everything it computes with helps to predict them."""
    arguments = {"max_new_tokens": 23, "min_new_tokens": 23, "do_sample": True, "pad_token_id": 3}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(1)
        return model.generate(tiny_tokens(96, 1), **arguments)


def plant(model: nn.Module, silent: dict[str, set[int]]) -> None:
    """Zero what these parts give to the model, in all layers."""
    for layer in Blocks(model).layers:
        outer, output = model.get_submodule(layer.feed_forward.outer), layer.attention.projection_output
        outer.weight[:, sorted(silent.get(INNER, ()))] = 0
        size = layer.attention.groups
        heads = {group * size + member for group in silent.get(HEADS, ()) for member in range(size)}
        layer.attention.mask_heads(heads)
        if layer.index in silent.get(LAYERS, ()):
            for linear in (outer, output):
                linear.weight.zero_()
                if linear.bias is not None:
                    linear.bias.zero_()


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_find_what_is_irrelevant(family):
    """The layer that gives nothing goes, and three quarters or more of the channels that do; 8 of 32 by chance."""
    model = deep(family)
    plant(model, {LAYERS: {1}, INNER: set(range(0, 128, 4))})
    method = Shear(layers=2, inner=96, steps=40, batch=8)
    found = method.compress(copy_model(model), context(own_text(model))).module
    outers = [found.get_submodule(layer.feed_forward.outer).weight for layer in Blocks(found).layers]

    assert 2 == len(outers)
    assert all(int((outer == 0).all(dim=0).sum()) <= 8 for outer in outers)


@pytest.mark.parametrize("family", GROUPED)
def test_masks_find_irrelevant_heads(family):
    """Silent groups go from every layer; one of six stays in Gemma, whose norm hides how far a gate is open."""
    model = deep(family, num_key_value_heads=4)
    plant(model, {HEADS: {0, 3}})
    found = Shear(heads=2, steps=30, batch=8).compress(copy_model(model), context(own_text(model))).module
    columns = [layer.attention.projection_output.weight for layer in Blocks(found).layers]
    silent = sum(int((weight == 0).all(dim=0).sum()) for weight in columns)

    assert silent <= (32 if family == "gemma3" else 0)


def test_masks_are_better_than_chance_on_a_trained_model():
    """After 20 steps the loss of half the heads and channels is more than a nat below the mean of random ones."""
    learnt = Shear(heads=4, inner=128, steps=20, batch=2).compress(trained(), trained_context())
    chance = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        model = trained()
        keep_kv_groups(model, {i: torch.randperm(4, generator=generator)[:2].tolist() for i in range(4)})
        keep_channels(model, {i: torch.randperm(256, generator=generator)[:128].tolist() for i in range(4)})
        chance.append(nats(model))

    assert nats(learnt.module) < sum(chance) / 4 - 1


@pytest.mark.parametrize(
    ("family", "wanted", "message"),
    [
        (
            "gpt2",
            {"heads": 3},
            r"the heads of gpt2 fill its .*, 16 channels each, got heads=3 and hidden=64; ask",
        ),
        (
            "opt",
            {"hidden": 48},
            r"fill its hidden state, 16 channels each, got heads=4 and hidden=48; ask for both",
        ),
        ("llama", {"heads": 3}, r"stay in whole groups of 2, got heads=3; ask for 2"),
        ("llama", {"heads": 1}, r"stay in whole groups of 2, got heads=1; ask for 2"),
        (
            "llama",
            {"hidden": 50},
            r"hidden is a multiple of heads, .* got hidden=50 and heads=4; ask for numbers",
        ),
        ("llama", {"layers": 4}, r"cuts to a smaller shape, got layers=4 for a model of 3; ask for fewer"),
        ("llama", {"inner": 129, "heads": 2}, r"got inner=129 for a model of 128"),
    ],
)
def test_shapes_that_cannot_be(family, wanted, message):
    """What the model lacks, or no checkpoint could tell, is refused before anything is learnt."""
    with pytest.raises(CompressionError, match=rf"^shear on tiny: .*{message}"):
        Shear(**wanted).compress(deep(family), context())


def test_nothing_to_do_and_nothing_to_learn_from():
    """The model's own shape, no text, uneven layers and a hidden state that cannot be cut are refused."""
    with pytest.raises(
        NothingCompressedError, match=r"^shear on tiny: .*, got the model's own; ask for less"
    ):
        Shear(layers=3, hidden=64).compress(deep("llama"), context())
    with pytest.raises(
        CompressionError, match=r"^shear on tiny: .* learns from calibration windows .* got none"
    ):
        Shear(**SMALLER).compress(deep("llama"), context(None))
    uneven = deep("gpt2")
    Blocks(uneven).layers[1].attention.remove_kv_groups({0})
    with pytest.raises(
        CompressionError,
        match=r"^shear on tiny: layers have equal .*, got \[\(3, 128\), \(4, 128\)\]; shear before",
    ):
        Shear(**SMALLER).compress(uneven, context())
    with pytest.raises(ModelError, match=r"embeddings are as wide as it is \(64\), got 32"):
        Shear(heads=3, hidden=48).compress(deep("opt", word_embed_proj_dim=32), context())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"^shear: a shape names one or more of layers, heads, inner, hidden, got none; give"),
        ({"layers": 0}, r"^shear: layers is a whole number from 1, got 0"),
        ({"heads": 1.5}, r"^shear: heads is a whole number from 1, got 1.5"),
        ({"inner": True}, r"^shear: inner is a whole number from 1, got True"),
        ({"hidden": -4}, r"^shear: hidden is a whole number from 1, got -4"),
        ({"layers": 1, "steps": 0}, r"^shear: steps is a whole number from 1 to 1000000, got 0"),
        ({"layers": 1, "rate": 2}, r"^shear: rate is a number above 0 and at most 1, got 2"),
    ],
)
def test_bad_parameters(arguments, message):
    """Refused by name."""
    with pytest.raises(RecipeError, match=message):
        Shear(**arguments)


def test_an_interrupted_search_goes_on(tmp_path, monkeypatch):
    """The same model comes out, and it is said that the time is not all that it took."""
    monkeypatch.setattr(training, "EVERY_S", 0.0)
    model, method = deep("llama"), Shear(**SMALLER)
    whole = method.compress(copy_model(model), context())

    def interrupt(what: str) -> None:
        if "step 3 of 3" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.compress(copy_model(model), context(checkpoints=tmp_path, progress=interrupt))
    resumed = method.compress(copy_model(model), context(checkpoints=tmp_path))

    assert "training went on at step 2 of 3 after an interruption" == resumed.resumed
    assert torch.equal(logits(whole.module), logits(resumed.module))
