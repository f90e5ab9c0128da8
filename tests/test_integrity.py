"""Whether something was compressed, and whether it is real."""

from __future__ import annotations

import pytest
import torch
from test_rounding import absmax, pruned
from tiny_models import tiny_model
from torch import nn

from pytest_llmslim.errors import CompressionError, NothingCompressedError
from pytest_llmslim.integrity import check
from pytest_llmslim.methods.magnitude import zero_smallest
from pytest_llmslim.models.storage import copy_model, stored_bytes


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return tiny_model("llama")


@pytest.fixture
def candidate(reference) -> nn.Module:
    return copy_model(reference)


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear) and name != "lm_head"
    }


def rewrite(module: nn.Module, change) -> None:
    for linear in linears(module).values():
        linear.weight.data = change(linear.weight.data)


def judge(reference, candidate, *simulated: str):
    return check(reference, candidate, control=False, simulated=simulated)


def test_an_equal_copy_is_no_compression(reference, candidate):
    """A method that silently passed over the model is an error."""
    with pytest.raises(
        NothingCompressedError, match=r"nothing was compressed: all \d+ tensors and all modules equal"
    ):
        judge(reference, candidate)


def test_pruning_nothing_is_no_compression(reference, candidate):
    """A share that rounds to no weight is noticed, although pruning registers the parameters anew."""
    for linear in linears(candidate).values():
        zero_smallest(linear, 1e-9)
    with pytest.raises(NothingCompressedError):
        judge(reference, candidate, "zeros are stored")


def test_the_reference_itself_is_no_candidate(reference):
    """A function that changed or returned the reference in place cannot be compared with it."""
    with pytest.raises(
        NothingCompressedError, match=r"the candidate is the very object of the reference; compress"
    ):
        judge(reference, reference)


def test_a_reason_does_not_excuse_a_no_op(reference, candidate):
    """Nothing changed is an error also where the method calls itself simulated."""
    with pytest.raises(NothingCompressedError):
        judge(reference, candidate, "zeros are stored")


def test_the_control_equals_its_reference(reference, candidate):
    """The identity is a control, and says so."""
    found = check(reference, candidate, control=True, simulated=())

    assert "control" == found.status
    assert found.sentence.startswith("control: all ")


def test_a_control_that_differs_is_an_error(reference, candidate):
    """One changed value spoils an A/A run."""
    next(iter(linears(candidate).values())).weight.data[0, 0] += 1
    with pytest.raises(
        CompressionError, match=r"identity is a control and has to equal its reference, got another"
    ):
        check(reference, candidate, control=True, simulated=())


def test_one_value_is_a_change(reference, candidate):
    """Other weights of the same size are changed, not compressed."""
    next(iter(linears(candidate).values())).weight.data[0, 0] += 1
    found = judge(reference, candidate)
    size = f"{stored_bytes(reference) / 1e3:.0f} kB"

    assert "changed" == found.status
    assert f"1 weights have other values and none is smaller: {size} of {size} stored" == found.sentence


def test_a_changed_norm_is_a_change(reference, candidate):
    """Vectors count as well as matrices."""
    candidate.model.norm.weight.data += 1

    assert "changed" == judge(reference, candidate).status


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [None, 32])
def test_fake_quantization_is_simulated(bits, group, reference, candidate):
    """Weights that were quantized and stored in full again are seen, whatever their method said."""
    rewrite(candidate, lambda weight: absmax(weight, bits, group))
    found = judge(reference, candidate)

    assert "simulated" == found.status
    assert found.sentence.startswith("14 weights are rounded to few levels but stored in full: ")


def test_fake_quantization_in_bfloat16_is_simulated(reference, candidate):
    """Half of the bytes do not make fake 4-bit weights real."""
    rewrite(candidate, lambda weight: absmax(weight, 4))

    assert "simulated" == judge(reference, candidate.bfloat16()).status


def test_a_rounded_reference_is_not_held_against_the_candidate(reference, candidate):
    """A reference out of a quantized file keeps its levels, and that is not the candidate's doing."""
    rewrite(candidate, lambda weight: absmax(weight, 8))
    noisy = copy_model(candidate)
    noisy.model.norm.weight.data += 1

    assert "changed" == judge(candidate, noisy).status


def test_pruning_in_place_is_simulated(reference, candidate):
    """Zeros that are stored and multiplied save nothing."""
    rewrite(candidate, lambda weight: pruned(weight, 0.5))
    found = judge(reference, candidate)

    assert "simulated" == found.status
    assert found.sentence.startswith(
        "50.0% of the values in 14 weights are zeroed but stored and multiplied in full"
    )


def test_what_a_method_says_comes_first(reference, candidate):
    """A method that calls its saving simulated is believed, and its reason is passed on."""
    next(iter(linears(candidate).values())).weight.data[0, 0] += 1
    found = judge(reference, candidate, "heads are masked", "zeros are stored")

    assert "simulated" == found.status
    assert found.sentence.startswith("heads are masked; zeros are stored; ")


def test_another_dtype_is_compressed(reference, candidate):
    """bfloat16 takes half of the bytes, and the sentence has both numbers."""
    found = judge(reference, candidate.bfloat16())

    assert "compressed" == found.status
    assert found.sentence.startswith("weights stored in bfloat16: ")
    assert f"of {stored_bytes(reference) / 1e3:.0f} kB stored" in found.sentence


def test_fewer_layers_are_compressed(reference, candidate):
    """A model of other depth is compared by its parameters."""
    del candidate.model.layers[1]
    found = judge(reference, candidate)

    assert "compressed" == found.status
    assert "the same kinds of modules, fewer or smaller: " in found.sentence
    assert found.sentence.endswith(" parameters")


def test_another_architecture_is_compared_by_size(reference):
    """A candidate of another family that is smaller is compressed; a larger one is changed."""
    small = tiny_model("opt", num_hidden_layers=1)
    large = tiny_model("llama", num_hidden_layers=3)

    assert "compressed" == judge(reference, small).status
    found = judge(reference, large)
    assert "changed" == found.status
    assert found.sentence.startswith("the model got larger: ")


def test_wrapped_models_are_not_made_smaller(reference, candidate):
    """A module under another class that stores more, such as an adapter, is changed."""
    for linear in linears(candidate).values():
        linear.__class__ = Doubled
        linear.adapter = torch.randn(4, 64)

    assert "changed" == judge(reference, candidate).status


class Doubled(nn.Linear):
    """A kernel of the user's own."""


def test_other_kernels_are_compressed(reference, candidate):
    """Equal weights under another kernel are a compression of time, if any."""
    for linear in linears(candidate).values():
        linear.__class__ = Doubled
    found = judge(reference, candidate)

    assert "compressed" == found.status
    assert found.sentence.startswith("14 modules are now Doubled of 32.0 bits a weight: ")


def test_fake_quantization_behind_another_kernel_is_simulated(reference, candidate):
    """A fake-quantizing module is not a faster kernel."""
    rewrite(candidate, lambda weight: absmax(weight, 8))
    for linear in linears(candidate).values():
        linear.__class__ = Doubled

    assert "simulated" == judge(reference, candidate).status


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_packed_integers_are_compressed(reference, candidate):
    """Weights really stored in 8 bits are not taken for rounded floats."""
    torch.ao.quantization.quantize_dynamic(candidate, {nn.Linear}, dtype=torch.qint8, inplace=True)

    assert "compressed" == judge(reference, candidate).status
