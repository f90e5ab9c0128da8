"""The two embedded models: small, offline, close to the floor, and as fragile as real models."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_llmslim.embedded import answers
from pytest_llmslim.embedded.batches import HeldOut, held_out
from pytest_llmslim.embedded.grammar import EVALUATION_SEED, WORD_OFFSET, Grammar, floor_perplexity

FOLDER = Path(answers.__file__).parent
MODELS = ("gpt2", "llama")


@pytest.fixture(scope="module")
def held() -> HeldOut:
    return held_out(EVALUATION_SEED, 24)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest):
    loaded = AutoModelForCausalLM.from_pretrained(
        FOLDER / request.param, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return loaded.eval()


@pytest.fixture(scope="module")
def rises(model, held: HeldOut) -> dict[str, float]:
    """Rise of perplexity in percent, by compression."""
    return dict(answers.compression_answers(model, held.ids))


def test_both_fit_into_four_megabytes() -> None:
    """All data files of the two models are together under 4 MB."""
    files = [file for name in MODELS for file in (FOLDER / name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_perplexity_is_just_over_the_floor(model, held: HeldOut) -> None:
    """No model beats the grammar, and these come within the stated factor of it."""
    over = math.exp(answers.surprise(model, held.ids) - held.floor)
    assert 1.0 < over < 1.25


def test_eight_bits_are_harmless(rises: dict[str, float]) -> None:
    """Rounding to 8 bits costs under 1 % of perplexity."""
    assert abs(rises["8-bit"]) < 1


def test_four_bits_are_felt(rises: dict[str, float]) -> None:
    """Plain rounding to 4 bits costs at least 2 %, and is no ruin."""
    assert 2 <= rises["4-bit"] < 50


def test_two_bits_are_ruinous(rises: dict[str, float]) -> None:
    """Rounding to 2 bits more than doubles perplexity."""
    assert rises["2-bit"] > 100


def test_half_of_the_weights_are_missed(rises: dict[str, float]) -> None:
    """Removing the smaller half of the weights costs at least 5 %, removing less costs less."""
    assert rises["50 % by magnitude"] >= 5
    assert rises["30 % by magnitude"] < rises["50 % by magnitude"]


def test_measuring_leaves_the_model_as_it_was(model, held: HeldOut, rises: dict[str, float]) -> None:
    """After all compressions the weights are the original ones."""
    fresh = AutoModelForCausalLM.from_pretrained(model.config._name_or_path, dtype=torch.float32)
    for (name, ours), theirs in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_some_heads_rest_on_one_position(model, held: HeldOut) -> None:
    """Each layer's last quarter of the heads gives one position most of its attention, the others do not."""
    concentration = answers.head_concentration(model, held.ids[:4])
    assert concentration.shape == (model.config.num_hidden_layers, model.config.num_attention_heads)
    assert concentration[:, -2:].min() > 0.9
    assert concentration[:, :-2].max() < 0.8


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_maps_words_one_to_one(name: str) -> None:
    """A text is `<bos>` and one token a word, at a fixed offset, and decodes to itself."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / name, local_files_only=True)
    grammar = Grammar()
    text = grammar.text(5, 2)
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 0
    assert [grammar.words[token - WORD_OFFSET] for token in ids[1:]] == text.split()
    assert tokenizer.decode(ids[1:]) == text.replace("\n", " ")
    assert tokenizer("nosuchword", add_special_tokens=False).input_ids == [tokenizer.unk_token_id]


def test_windows_are_documents_after_bos(held: HeldOut) -> None:
    """A held-out window is `<bos>` and one whole document, and its floor is the grammar's."""
    documents = [[token - WORD_OFFSET for token in window] for window in held.ids[:, 1:].tolist()]
    assert (held.ids[:, 0] == 0).all()
    assert math.exp(held.floor) == pytest.approx(floor_perplexity(documents))
