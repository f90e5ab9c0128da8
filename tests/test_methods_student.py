"""Who learns from whom: truncated, narrowed, loaded, or the module itself."""

from __future__ import annotations

import pytest
import torch
from distilling import context, deep, logits, reloaded
from tiny_models import FAMILIES, save_tiny, tiny_model

from pytest_llmslim.errors import CompressionError, ModelError, RecipeError
from pytest_llmslim.methods.student import check_student, in_float32, pair
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.shapes import keep_layers
from pytest_llmslim.models.storage import copy_model, parameter_count, weights_hash


def made(student, model, *, reference=True):
    """The pair for a copy of `model`, which is the reference, too."""
    return pair(student, copy_model(model), context(model if reference else None), "kd")


@pytest.mark.parametrize("family", FAMILIES)
def test_half_keeps_every_other_layer(family, tmp_path):
    """Layers 0, 2 and 4 of 5 with their weights, everything else copied; smaller, and saved it reloads equal."""
    model = deep(family, 5)
    before = weights_hash(model)
    found = made("half", model)
    wanted = copy_model(model)
    keep_layers(wanted, [0, 2, 4])
    kept = [layer.module for layer in Blocks(found.student).layers]
    originals = [Blocks(model).layers[index].module for index in (0, 2, 4)]

    assert model is found.teacher
    assert before == weights_hash(model)
    for one, other in zip(kept, originals, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(logits(wanted), logits(found.student))
    assert 3 == found.student.config.num_hidden_layers
    sizes = parameter_count(found.student), parameter_count(model)
    assert sizes[0] < sizes[1]
    assert "student of 3 of 5 layers, {} of {} parameters".format(*sizes) == found.sentence
    assert torch.allclose(logits(found.student), logits(reloaded(found.student, tmp_path)), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_keeps_the_strongest_channels(family):
    """`inner=64` keeps those channels whose weights have the largest product of norms, in their order."""
    model = tiny_model(family)
    found = made("inner=64", model)
    names = Blocks(model).layers[1].feed_forward
    strength = model.get_submodule(names.outer).weight.double().square().sum(0).sqrt()
    for name in names.inner:
        strength = strength * model.get_submodule(name).weight.double().square().sum(1).sqrt()
    strongest = sorted(strength.argsort(descending=True)[:64].tolist())

    wanted = model.get_submodule(names.outer).weight[:, strongest]
    assert torch.equal(wanted, found.student.get_submodule(names.outer).weight)
    for name in names.inner:
        assert torch.equal(
            model.get_submodule(name).weight[strongest], found.student.get_submodule(name).weight
        )
    assert torch.isfinite(logits(found.student)).all()


@pytest.mark.parametrize(
    ("shape", "layers"),
    [("layers=2", [0, 2]), ("layers=3", [0, 1, 3]), ("layers=4", [0, 1, 2, 3]), ("layers=1", [0])],
)
def test_layers_of_a_shape_are_spread_evenly(shape, layers):
    """From the first one on; half as many are those of `half`."""
    model = deep("llama", 5)
    found = made(shape, model)
    wanted = copy_model(model)
    keep_layers(wanted, layers)

    assert torch.equal(logits(wanted), logits(found.student))


def test_a_shape_may_have_both():
    """Fewer layers, each of them narrower, and a config that says so."""
    config = made("layers=1,inner=64", tiny_model("llama")).student.config

    assert (1, 64) == (config.num_hidden_layers, config.intermediate_size)


def test_auto_is_half_of_an_unchanged_model_and_the_model_itself_after_another_step():
    """One weight that an earlier step changed, or one layer less, and the module itself learns."""
    model = deep("llama", 4)
    changed, shorter = copy_model(model), copy_model(model)
    changed.model.layers[3].mlp.up_proj.weight.data[0, 0] = 0
    keep_layers(shorter, [0, 1, 2])

    assert 2 == len(Blocks(made("auto", model).student).layers)
    for module in (changed, shorter):
        before = weights_hash(module)
        found = pair("auto", module, context(model), "kd")
        assert module is found.student
        assert model is found.teacher
        assert before == weights_hash(module)


def test_half_after_another_step_is_half_of_what_that_left():
    """What the earlier step did to the layers that stay is kept; the teacher is the uncompressed model."""
    model = deep("llama", 4)
    changed = copy_model(model)
    changed.model.layers[2].mlp.up_proj.weight.data[0] = 0
    found = pair("half", changed, context(model), "kd")

    assert model is found.teacher
    assert not found.student.model.layers[1].mlp.up_proj.weight[0].any()


def test_without_a_reference_the_teacher_is_a_copy_of_the_module():
    """A method used by itself learns from the module as it came."""
    model = deep("llama", 4)
    module = copy_model(model)
    found = pair("auto", module, context(), "kd")

    assert module is found.student
    assert weights_hash(model) == weights_hash(found.teacher)
    shared = {p.data_ptr() for p in found.student.parameters()} & {
        p.data_ptr() for p in found.teacher.parameters()
    }
    assert set() == shared


@pytest.mark.parametrize(("family", "student"), [("llama", "gpt2"), ("gpt2", "gpt2"), ("opt", "qwen3")])
def test_a_folder_is_loaded(family, student, tmp_path):
    """A model of any known family with the same vocabulary, in the module's dtype."""
    folder = save_tiny(student, tmp_path / "student", seed=3)
    model = tiny_model(family).to(torch.bfloat16)
    found = made(str(folder), model)

    assert weights_hash(load_model(str(folder), dtype="bfloat16").module) == weights_hash(found.student)
    assert model is found.teacher


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (
            {"vocab_size": 160},
            "teacher and student share a vocabulary, got 128 and 160 tokens; choose a student with the teacher's "
            "tokenizer",
        ),
        (
            {"n_positions": 16},
            "a student reads windows of 32 tokens, got 16 positions in FOLDER; choose another student or a smaller "
            "--llm-window",
        ),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(options, rule, tmp_path):
    """Another vocabulary, or too few positions for the text."""
    folder = str(save_tiny("gpt2", tmp_path / "student", **options))
    model = tiny_model("llama")
    with pytest.raises(CompressionError) as refusal:
        pair(folder, copy_model(model), context(model, length=32), "kd")

    assert f"kd on tiny: {rule}".replace("FOLDER", folder) == str(refusal.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """As wherever a model is named."""
    with pytest.raises(ModelError, match="nowhere"):
        made(str(tmp_path / "nowhere"), tiny_model("llama"))


@pytest.mark.parametrize(("student", "layers"), [("same", 2), ("half", 1), ("layers=2", 2), ("inner=128", 2)])
def test_a_student_that_is_its_teacher_is_refused(student, layers):
    """There is nothing to learn; prune before, or choose a smaller one."""
    with pytest.raises(
        CompressionError,
        match=r"^kd on tiny: a student differs from its teacher, got the unchanged model for both; prune it in a "
        r"step before, or choose student=half$",
    ):
        made(student, deep("llama", layers))


@pytest.mark.parametrize(
    ("student", "rule"),
    [
        ("layers=3", "a student has 1 to 2 layers, as it is cut out of the model, got 3"),
        ("layers=0", "a student has 1 to 2 layers, as it is cut out of the model, got 0"),
        ("inner=129", "a student has 1 to 128 inner, as it is cut out of the model, got 129"),
    ],
)
def test_a_shape_larger_than_the_model_is_refused(student, rule):
    """It would have to be made up; a folder may hold any shape."""
    with pytest.raises(
        CompressionError, match=f"^kd on tiny: {rule}; for another shape give the folder of a model$"
    ):
        made(student, tiny_model("llama"))


@pytest.mark.parametrize(
    "value", ["", " ", 2, None, True, "layers=", "layers=two", "inner=-1", "layers=2,", "layers=2 inner=3"]
)
def test_what_names_no_student_is_refused(value):
    """The parameter, what it may be, and what it was."""
    with pytest.raises(
        RecipeError,
        match=r"^kd: student is auto, half, same, a shape like layers=2 or layers=2,inner=128, a folder or a "
        r"Hugging Face id, got ",
    ):
        check_student("kd", value)


@pytest.mark.parametrize("value", ["auto", "half", "same", "layers=2", "inner=3", "layers=1,inner=2", "a/b"])
def test_words_shapes_and_ids_name_students(value):
    """They are not looked up before the model is there."""
    check_student("kd", value)


def test_quantized_weights_and_nan_are_refused():
    """A student starts from float weights that are finite."""
    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"^kd on tiny: weights are finite, got NaN or infinity in"):
        made("half", model)


def test_weights_are_float32_while_they_are_trained():
    """Afterwards each has its own type again, also when the training fails, and buffers never change."""
    model = tiny_model("llama").to(torch.bfloat16)
    model.model.norm.float()
    types = {name: p.dtype for name, p in model.named_parameters()}
    buffers = {name: b.dtype for name, b in model.named_buffers()}
    during = set()

    def fails():
        with in_float32(model):
            during.update(p.dtype for p in model.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert {torch.float32} == during
    assert types == {name: p.dtype for name, p in model.named_parameters()}
    assert buffers == {name: b.dtype for name, b in model.named_buffers()}
