"""torchao's and torch's own 8-bit linears against integer arithmetic by hand; what they store, copied and hashed."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim import integrity
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.errors import CompressionError, RecipeError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.linears import effective_weight
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.storage import copy_model, parameter_count, stored_bytes, weights_hash
from pytest_llmslim.recipe import Step, instantiate
from pytest_llmslim.registry import Registry

# torch announces that torch.ao moves to torchao, and that the quantized tensors that it unpacks go
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:.*torch.ao")
TORCHAO = ("int8-dynamic", "int8-weight")


def method(name):
    if name in (*TORCHAO, "smoothquant"):
        pytest.importorskip("torchao", reason="the extra torchao is not installed")
    elif torch.backends.quantized.engine not in ("fbgemm", "x86", "onednn"):
        pytest.skip("torch has no such kernels for this processor")
    return instantiate(Step(name), Registry(BUILTIN_METHODS))


def context(device="cpu"):
    return Context(calibration=None, seed=0, device=device, family="llama", label="tiny")


def logits(model):
    with torch.no_grad():
        return model(tiny_tokens(2, 40)).logits


def relative(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


@pytest.fixture(params=[*TORCHAO, "int8-fbgemm"])
def name(request):
    return request.param


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_the_blocks_is_in_8_bits(family, name):
    """All weights are within half a step of the original, logits within a seventh; the head stays as it was."""
    reference = tiny_model(family)
    applied = method(name).compress(copy_model(reference), context())
    before, after = Blocks(reference).linears(), Blocks(applied.module).linears()

    assert before.keys() == after.keys()
    for each, linear in after.items():
        old = before[each].weight
        step = old.abs().amax(dim=1, keepdim=True) / 127
        assert bool(((effective_weight(linear) - old).abs() <= step * 0.51).all()), each
    assert type(applied.module.lm_head) is nn.Linear
    assert torch.equal(reference.lm_head.weight, applied.module.lm_head.weight)
    assert 1e-4 < relative(logits(applied.module), logits(reference)) < 0.15
    assert applied.simulated == ""


def test_bytes_and_parameters_are_counted(name):
    """A quarter of float32 and one scale a row (and torchao's zero points); as many parameters as before."""
    reference = tiny_model("llama")
    model = method(name).compress(copy_model(reference), context()).module
    weights = sum(linear.weight.numel() for linear in Blocks(reference).linears().values())
    rows = sum(linear.out_features for linear in Blocks(reference).linears().values())
    saved = stored_bytes(reference) - stored_bytes(model)

    assert parameter_count(reference) == parameter_count(model)
    assert 3 * weights - 16 * rows <= saved <= 3 * weights


def test_integrity_names_what_was_replaced(name):
    """Real bytes, other kernels."""
    reference = tiny_model("llama")
    model = method(name).compress(copy_model(reference), context()).module
    found = integrity.check(reference, model, control=False, simulated=())
    label = {"int8-fbgemm": "DynamicQuantizedLinear"}.get(name, "Linear with Int8Tensor of 8.")

    assert ("compressed", "other") == (found.status, found.kernels)
    assert found.sentence.startswith(f"14 modules are now {label}")


def test_copies_are_whole_and_independent(name):
    """A copy has the same hash and logits; writing to it changes its own hash alone."""
    model = method(name).compress(tiny_model("qwen2"), context()).module
    twin = copy_model(model)
    digest = weights_hash(model)

    assert digest == weights_hash(twin)
    assert stored_bytes(model) == stored_bytes(twin)
    assert torch.equal(logits(model), logits(twin))
    if name in (*TORCHAO, "smoothquant"):
        twin.model.layers[0].mlp.up_proj.weight.qdata[0, 0] ^= 1
        assert digest != weights_hash(twin)
        assert digest == weights_hash(model)


def test_twice_is_the_same(name):
    """Nothing is drawn."""
    one, other = (method(name).compress(tiny_model("gemma3"), context()).module for _ in range(2))

    assert weights_hash(one) == weights_hash(other)
    assert torch.equal(logits(one), logits(other))


def test_exact_zeros_stay(name):
    """A pruned weight is still zero after rounding."""
    model = tiny_model("llama")
    masks = {}
    for each, linear in Blocks(model).linears().items():
        linear.weight.data[linear.weight.abs() < 0.1] = 0
        masks[each] = linear.weight == 0
    after = Blocks(method(name).compress(model, context()).module).linears()

    assert not any(bool(effective_weight(linear)[masks[each]].any()) for each, linear in after.items())


def test_dynamic_products_are_those_of_integers():
    """Inputs on 8 bits a token, products summed as integers, then both scales and the bias."""
    made = method("int8-dynamic")
    model = made.compress(tiny_model("opt"), context()).module
    linear = model.model.decoder.layers[0].fc1
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    steps = inputs.abs().amax(dim=1, keepdim=True) / 127.5
    codes = (inputs * (1 / steps)).round().clamp(-128, 127).long()
    products = (codes @ linear.weight.qdata.long().T).double()

    torch.testing.assert_close(
        linear(inputs), (products * steps * linear.weight.scale.flatten() + linear.bias).float()
    )


def test_sentences_say_how_many_and_by_whom(name):
    """With the version or the engine that decides on the kernel."""
    said = method(name).compress(tiny_model("gpt2"), context()).sentence
    if name in (*TORCHAO, "smoothquant"):
        import torchao

        assert f"{name}: 8 linears by torchao {torchao.__version__}" == said
    else:
        assert f"int8-fbgemm: 8 linears by torch.ao, engine {torch.backends.quantized.engine}" == said


def test_a_compressed_model_is_not_compressed_again(name):
    """Its weights are no plain floats any more; torchao's say they are of a float dtype."""
    model = method(name).compress(tiny_model("llama"), context()).module
    got = "Linear" if name == "int8-fbgemm" else "Linear with Int8Tensor in torch.float32"
    with pytest.raises(
        CompressionError, match=rf"q_proj is a plain float nn.Linear, got {got}; start from the float"
    ):
        method(name).compress(model, context())


def test_fbgemm_is_for_float32_on_a_cpu():
    """Another dtype or device is refused before anything is touched."""
    made = method("int8-fbgemm")
    with pytest.raises(
        CompressionError,
        match=r"^int8-fbgemm on tiny: the model is in float32, got torch.bfloat16 in model.layers.0",
    ):
        made.compress(tiny_model("llama").to(torch.bfloat16), context())
    with pytest.raises(
        CompressionError,
        match=r"^int8-fbgemm on tiny: torch's quantized kernels run on a CPU with one of the engines fbgemm, x86, "
        r"onednn, got cuda:0; use int8-dynamic$",
    ):
        made.compress(tiny_model("llama"), context(device="cuda:0"))


@pytest.mark.parametrize("name", TORCHAO)
def test_a_missing_torchao_is_told(monkeypatch, name):
    """With the extra that brings it, before anything is compressed."""

    class Absent:
        @staticmethod
        def find_spec(wanted, path=None, target=None):
            if wanted == "torchao":
                raise ModuleNotFoundError("No module named 'torchao'", name="torchao")

    monkeypatch.delitem(sys.modules, "torchao", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    with pytest.raises(RecipeError) as caught:
        instantiate(Step(name), Registry(BUILTIN_METHODS))

    assert str(caught.value) == (
        f"method {name!r} needs the Python package torchao, which is not installed; "
        "run: pip install 'pytest-llmslim[torchao]'"
    )


def test_imports_are_quiet():
    """Loading imports torchao with the first model; neither that nor the method's import says a word."""
    pytest.importorskip("torchao", reason="the extra torchao is not installed")
    code = (
        "from pytest_llmslim.models.loading import load_model; load_model('embedded:llama');"
        "from pytest_llmslim.methods.torchao_linear import Int8Dynamic; Int8Dynamic();"
        "import sys; assert 'torchao' in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )

    assert ("", "", 0) == (done.stdout, done.stderr, done.returncode)


@pytest.mark.parametrize("name", [*TORCHAO, "smoothquant"])
def test_linears_of_one_input_are_refused(name):
    """They fail in torchao; no model of use has one."""
    windows = tiny_tokens(2, 16)
    asked = Context(calibration=windows, seed=0, device="cpu", family="llama", label="tiny")
    with pytest.raises(
        CompressionError,
        match=rf"^{name} on tiny: torchao takes linears of 2 inputs or more, got 1 in .*down_proj; use rtn",
    ):
        method(name).compress(tiny_model("llama", intermediate_size=1), asked)
