"""What is known to be better is better: methods against each other on trained models, on like text.

Both losses of a comparison are of the same windows of text, so the margin is the interval of their difference.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from conftest import SHARED
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.evals import text as texts
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.linears import effective_weight
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.loading import LoadedModel, load_model
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.recipe import instantiate, parse
from pytest_llmslim.registry import Registry
from pytest_llmslim.statistics import mean_interval

STORIES = SHARED / "data" / "stories260K"
STORIES_TEXT = SHARED / "data" / "tinystories" / "tinystories.sample.txt"
REGISTRY = Registry(BUILTIN_METHODS)
WINDOWS, WINDOW = 64, 256


class Subject(NamedTuple):
    """A trained model and text that is like what it was trained on."""

    model: LoadedModel
    passage: texts.Passage


@cache
def subject(name: str) -> Subject:
    stories = name == "stories260K"
    model = load_model(str(STORIES) if stories else name)
    source = texts.read_text(Path(STORIES_TEXT)) if stories else texts.grammar_text(WINDOWS + 1)
    passage = texts.cut(
        source,
        model.tokenizer,
        tokens=WINDOWS * (WINDOW - 1),
        window=WINDOW,
        stride=None,
        bos="always",
        dtype="float32",
        longest=512,
    )
    return Subject(model, passage)


@cache
def compressed(name: str, recipe: str) -> torch.nn.Module:
    model, passage = subject(name)
    context = Context(passage.calibration, 0, "cpu", model.family, name, model.module, draw=passage.rest)
    module = copy_model(model.module)
    for step in parse(recipe, REGISTRY).steps:
        module = instantiate(step, REGISTRY).compress(module, context).module
    return module


@cache
def losses(name: str, recipe: str) -> tuple[float, ...]:
    """Mean negative log probability of a token, one a window."""
    return measured(compressed(name, recipe) if recipe else subject(name).model.module, name)


def measured(module: torch.nn.Module, name: str) -> tuple[float, ...]:
    with torch.no_grad():
        return tuple(float(module(w, labels=w, use_cache=False).loss) for w in subject(name).passage.windows)


def least_gain(worse: tuple[float, ...], better: tuple[float, ...]) -> float:
    """The lower end of the interval (95 %) of what `worse` loses more, in nats a token."""
    return mean_interval([a - b for a, b in zip(worse, better, strict=True)], [WINDOW] * len(worse))[1]


MODELS = [
    "embedded:gpt2",
    "embedded:llama",
    pytest.param(
        "stories260K",
        marks=pytest.mark.skipif(not STORIES.exists(), reason=f"the trained model {STORIES} is not here"),
    ),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("", "rtn(bits=4,group=64)"),
        ("rtn(bits=8,group=64)", "rtn(bits=4,group=64)"),
        ("rtn(bits=4,group=64)", "rtn(bits=3,group=64)"),
        ("rtn(bits=3,group=32)", "rtn(bits=3,granularity=row)"),
        ("rtn(bits=3,granularity=row)", "rtn(bits=3,granularity=tensor)"),
        ("gptq(bits=4,group=64)", "rtn(bits=4,group=64)"),
        ("gptq(bits=3,group=64)", "rtn(bits=3,group=64)"),
        ("wanda", "magnitude"),
        ("sparsegpt", "wanda"),
        ("sparsegpt(pattern=2:4)", "wanda(pattern=2:4)"),
        ("wanda(pattern=2:4)", "magnitude(pattern=2:4)"),
        ("magnitude", "magnitude(pattern=4:8)"),
        ("magnitude(pattern=4:8)", "magnitude(pattern=2:4)"),
        ("wanda", "wanda(pattern=4:8)"),
        ("wanda(pattern=4:8)", "wanda(pattern=2:4)"),
        ("sparsegpt", "sparsegpt(pattern=4:8)"),
        ("sparsegpt(pattern=4:8)", "sparsegpt(pattern=2:4)"),
        ("rtn(bits=3,group=64)+eora(rank=8)", "rtn(bits=3,group=64)"),
        ("wanda(pattern=2:4)+eora(rank=8)", "wanda(pattern=2:4)"),
        ("wanda(pattern=2:4)+lora(steps=20)", "wanda(pattern=2:4)"),
        ("depth(layers=1)+kd(steps=80)", "depth(layers=1)"),
    ],
    ids=lambda recipe: recipe or "original",
)
def test_the_better_is_better(model, better, worse):
    """The loss of the one is lower than the other's by more than the windows of text leave open."""
    assert least_gain(losses(model, worse), losses(model, better)) > 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("step", ["rtn(bits=3,group=64)", "wanda(pattern=2:4)"])
def test_eora_is_better_than_plain_low_rank(model, step):
    """Terms of equal rank that know the inputs make up for more than those that only know the weights."""
    plain = copy.deepcopy(compressed(model, step))
    original = Blocks(subject(model).model.module).linears()
    for name, linear in Blocks(plain).linears().items():
        weight = effective_weight(linear)
        left, sizes, right = torch.linalg.svd(original[name].weight - weight, full_matrices=False)
        dense = torch.nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
        dense.weight.data = weight + left[:, :8] * sizes[:8] @ right[:8]
        dense.bias = linear.bias
        plain.set_submodule(name, dense)

    assert least_gain(measured(plain, model), losses(model, f"{step}+eora(rank=8)")) > 0
