"""Classifiers load, show their blocks, are compressed and saved like causal language models."""

from __future__ import annotations

import json

import pytest
import torch
from classifying import save_classifier, tiny_classifier
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, save_tiny, tiny_model, tiny_tokens
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from pytest_llmslim.errors import ModelError
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.bitsandbytes_linear import Int8
from pytest_llmslim.methods.depth import Depth
from pytest_llmslim.methods.gptq import GPTQ
from pytest_llmslim.methods.hidden import Hidden
from pytest_llmslim.methods.kd import KD
from pytest_llmslim.methods.lora import LoRA
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.methods.rtn import RTN
from pytest_llmslim.methods.wanda import Wanda
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.classifiers import is_classifier, label_names, tell_padding
from pytest_llmslim.models.conv1d import from_conv1d
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.saving import save
from pytest_llmslim.models.storage import copy_model

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = tiny_tokens(3, 20)


def logits(module):
    with torch.no_grad():
        return module(input_ids=TOKENS).logits


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_classifier_loads_as_it_was(family, tmp_path):
    """Logits [batch, labels] equal transformers' own; labels keep their names; Conv1D are gone."""
    original = tiny_classifier(family)
    loaded = load_model(str(save_classifier(original, tmp_path / family)))
    original.config.pad_token_id = 3

    assert logits(loaded.module).shape == (3, 2)
    torch.testing.assert_close(logits(loaded.module), logits(original), atol=1e-6, rtol=1e-6)
    assert is_classifier(loaded.module)
    assert label_names(loaded.module) == ("ham", "spam")
    assert not any(isinstance(part, Conv1D) for part in loaded.module.modules())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_classifiers(family):
    """The same linears as in the causal language model of the family; the head is none of them."""
    module = tiny_classifier(family)
    from_conv1d(module)
    assert list(Blocks(module).linears()) == list(Blocks(tiny_model(family)).linears())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "method", [Magnitude(), RTN(), Int8(), Wanda(), GPTQ()], ids=lambda each: type(each).__name__
)
def test_methods_compress_classifiers_and_what_they_made_can_be_saved(method, family, tmp_path):
    """Also those that run calibration text; the folder loads to equal logits, with transformers, too."""
    reference = load_model(str(save_classifier(tiny_classifier(family), tmp_path / "plain")))
    context = Context(tiny_tokens(8, 24), 0, "cpu", family, "tiny", reference.module)
    module = method.compress(copy_model(reference.module), context).module
    save(module, reference.tokenizer, tmp_path / "candidate", {"recipe": "any"})

    with quiet():
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "candidate").eval()
    ours = load_model(str(tmp_path / "candidate")).module
    assert not torch.equal(logits(module), logits(reference.module))
    for loaded in (theirs, ours):
        torch.testing.assert_close(logits(loaded), logits(module), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("own", "pad", "eos", "told"), [(7, 3, 2, 7), (None, 3, 2, 3), (None, None, 2, 2), (None, 0, 2, 0)]
)
def test_padding_is_that_of_the_checkpoint_then_of_the_tokenizer_then_the_end(own, pad, eos, told):
    """So that a batch can be padded; the token 0 is one, too."""
    module = tiny_classifier("llama")
    module.config.pad_token_id = own
    tell_padding(module, Tokens(pad, eos), "here")
    assert told == module.config.pad_token_id


class Tokens:
    def __init__(self, pad, eos):
        self.pad_token_id, self.eos_token_id = pad, eos


def test_a_classifier_without_any_padding_is_refused():
    """A batch would be read at its padding."""
    with pytest.raises(
        ModelError, match=r"here needs a token for padding, got .*; set pad_token_id in its config"
    ):
        tell_padding(tiny_classifier("llama"), Tokens(None, None), "here")


def test_a_regression_is_refused(tmp_path):
    """It has one label, and no accuracy."""
    folder = save_classifier(tiny_classifier("llama", labels=("how good",)), tmp_path / "one")
    with pytest.raises(ModelError, match=r"two labels or more apart, got 1, which is a regression"):
        load_model(str(folder))


def test_a_classifier_without_its_head_is_refused(tmp_path):
    """Transformers would make a random one: a causal checkpoint whose config names a classifier, or a cut file."""
    folder = save_tiny("llama", tmp_path / "causal")
    change_config(folder, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ModelError, match=r"got none for 1, first 'score.weight'; save the whole model"):
        load_model(str(folder))


def test_only_safetensors_are_read(tmp_path):
    """A pickle of a classifier is refused like any other."""
    folder = save_classifier(tiny_classifier("gpt2"), tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"got the pickle pytorch_model.bin"):
        load_model(str(folder))


def test_weights_of_the_head_have_to_be_finite(tmp_path):
    """They are looked at like all others."""
    folder = save_classifier(tiny_classifier("gpt2"), tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"got NaN or infinity in 'score.weight'"):
        load_model(str(folder))


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "LlamaForTokenClassification"])
def test_other_classifiers_are_refused(kind, tmp_path):
    """Encoders, and labels for each token."""
    folder = save_tiny("llama", tmp_path / "other")
    change_config(folder, architectures=[kind], **({"model_type": "bert"} if "Bert" in kind else {}))
    with pytest.raises(
        ModelError, match=f"is a causal language model or a classifier made of one, got {kind}; name"
    ):
        load_model(str(folder))


@pytest.mark.parametrize(
    "method",
    [KD(steps=1), LoRA(steps=1), Depth(by="perplexity"), Hidden()],
    ids=lambda each: type(each).__name__,
)
def test_methods_that_need_next_tokens_refuse_classifiers(method):
    """In one sentence, with methods that do not."""
    module = tiny_classifier("llama", pad_token_id=3)
    context = Context(tiny_tokens(8, 24), 0, "cpu", "llama", "tiny", module)
    with pytest.raises(
        ModelError, match=r"needs a model that predicts next tokens, got LlamaForSeq.*; take a method"
    ):
        method.compress(copy_model(module), context)
