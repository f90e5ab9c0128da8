"""The walk over blocks: what enters each is what the model would compute, after the blocks before it changed."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.layerwise import calibration, visits, watching
from pytest_llmslim.models.blocks import Blocks

WINDOWS = tiny_tokens(3, 12)


def context(family="llama", **fields):
    return Context(WINDOWS, 0, "cpu", family, "tiny", **fields)


def hidden_states(model, windows):
    """What enters each block, [windows, window, hidden], as transformers itself reports it."""
    with torch.no_grad():
        return model(windows, output_hidden_states=True, use_cache=False).hidden_states


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny_model(request.param)


def test_inputs_are_the_models_own(model):
    """Every block is handed out with the hidden states that enter it, one tensor a window."""
    expected = hidden_states(model, WINDOWS)
    for visit in visits(model, WINDOWS, context(), "test"):
        assert 3 == len(visit.inputs)
        assert torch.equal(expected[visit.layer.index], torch.cat(visit.inputs))


def test_a_changed_block_changes_what_enters_the_next(model):
    """Blocks are calibrated on what the compressed blocks before them give, as the changed model computes it."""
    seen = []
    for visit in visits(model, WINDOWS, context(), "test"):
        seen.append(torch.cat(visit.inputs))
        for linear in visit.layer.linears.values():
            linear.weight.data.mul_(0.5)
    after = hidden_states(model, WINDOWS)

    assert torch.equal(after[0], seen[0])
    assert torch.equal(after[1], seen[1])


def test_a_replaced_linear_is_run_too(model):
    """Modules that took the place of linears compute the next block's inputs."""
    seen = []
    for visit in visits(model, WINDOWS, context(), "test"):
        seen.append(torch.cat(visit.inputs))
        for name, linear in visit.layer.linears.items():
            other = torch.nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
            model.set_submodule(name, other.requires_grad_(False))

    assert torch.equal(hidden_states(model, WINDOWS)[1], seen[1])


def test_the_watcher_sees_what_enters_each_linear(model):
    """Every linear of the block is seen once a window, with all its tokens, and its output follows from them."""
    visit = next(visits(model, WINDOWS, context(), "test"))
    seen: dict[str, list[torch.Tensor]] = {}
    visit.watch(lambda name, inputs: seen.setdefault(name, []).append(inputs))

    assert list(visit.layer.linears) == [name for name in visit.layer.linears if len(seen[name]) == 3]
    for name, linear in visit.layer.linears.items():
        assert (12, linear.in_features) == seen[name][0].shape
        assert not seen[name][0].requires_grad
    name = visit.layer.feed_forward.inner[0]
    norm = model.get_submodule(visit.layer.norms[1].name)
    outputs = []
    handle = norm.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        visit.run(visit.inputs[0])
    handle.remove()
    assert torch.equal(outputs[0].reshape(-1, 64), seen[name][0])


def test_no_hook_is_left(model):
    """Neither after the walk, nor when a watcher fails, nor when the walk is left half way."""
    walk = visits(model, WINDOWS, context(), "test")
    visit = next(walk)
    with pytest.raises(ZeroDivisionError):
        visit.watch(lambda name, inputs: 1 / 0)
    walk.close()
    for _ in visits(model, WINDOWS, context(), "test"):
        pass

    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def test_what_is_watched_is_told():
    """Progress names the method and the layer."""
    told = []
    for _ in visits(tiny_model("llama"), WINDOWS, context(progress=told.append), "gptq"):
        pass

    assert ["gptq: layer 1 of 2", "gptq: layer 2 of 2"] == told


def test_watching_names_linears():
    """The name is the key that was given."""
    model, seen = tiny_model("gpt2"), []
    linears = Blocks(model).layers[0].linears
    with watching({"mine": linears["transformer.h.0.mlp.c_fc"]}, lambda name, _inputs: seen.append(name)):
        hidden_states(model, WINDOWS)

    assert ["mine"] == seen


def test_more_windows_begin_with_fewer():
    """A method that asks for more text than the run calibrates with gets it from the run."""
    drawn = tiny_tokens(20, 12)
    more = context(draw=lambda count: drawn[:count])

    assert torch.equal(drawn[:16], calibration(more, "gptq", 16))
    assert torch.equal(WINDOWS[:2], calibration(context(), "gptq", 2))


@pytest.mark.parametrize(
    ("windows", "got"),
    [(None, "none"), (WINDOWS[:0], r"shape \[0, 12\]"), (WINDOWS[:, :1], r"shape \[3, 1\]")],
)
def test_no_text_is_refused(windows, got):
    """Nothing can be learnt from no text."""
    with pytest.raises(
        CompressionError,
        match=rf"^gptq on tiny: the method learns from calibration windows of two tokens or more, got {got}; give",
    ):
        calibration(Context(windows, 0, "cpu", "llama", "tiny"), "gptq", 8)
