"""Training of the embedded models: exact targets, seeded batches, resuming, heads at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pytest_llmslim.embedded import train
from pytest_llmslim.embedded.answers import magnitude_pruned, rounded
from pytest_llmslim.embedded.batches import BatchMaker, held_out
from pytest_llmslim.embedded.grammar import WORD_OFFSET, Grammar
from pytest_llmslim.embedded.resting import restlessness

if TYPE_CHECKING:
    from pathlib import Path

MODELS = ("gpt2", "llama")


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SHORT", train.Windows(2, 7, "eager"))
    monkeypatch.setattr(train, "LONG", train.Windows(1, 15, "sdpa"))
    monkeypatch.setattr(train, "LONG_AT_REST", train.Windows(1, 15, "eager"))
    monkeypatch.setattr(train, "HELD_OUT_WINDOWS", 2)
    monkeypatch.setattr(train, "REPORT_STEPS", 1)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_soft_targets_are_the_true_distributions() -> None:
    """Every row of the targets is what the grammar would draw from at that place."""
    grammar = Grammar()
    ids, targets = BatchMaker("any").batch(3, windows=2, words=25)
    places = targets.view(2, 25, -1)
    for window, row in zip(ids[:, 1:] - WORD_OFFSET, places, strict=True):
        for place in range(25):
            true = grammar.distribution(window[:place].tolist())
            np.testing.assert_allclose(row[place, WORD_OFFSET:], true, atol=1e-7)
    assert targets[:, :WORD_OFFSET].sum() == 0


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    """Asking again, in any order, gives the same batch; another step gives another."""
    maker = BatchMaker("any")
    later, first = maker.batch(5, 2, 10), maker.batch(4, 2, 10)
    assert torch.equal(BatchMaker("any").batch(5, 2, 10).ids, later.ids)
    assert not torch.equal(first.ids, later.ids)
    assert not torch.equal(BatchMaker("other").batch(5, 2, 10).ids, later.ids)


def test_the_beginning_of_held_out_windows_keeps_its_own_floor() -> None:
    """Cutting windows cuts their surprises at the same word."""
    held = held_out(3, 2)
    beginning = held.beginning(10)
    assert beginning.ids.shape == (2, 11)
    assert beginning.floor == pytest.approx(held.surprises[:, :10].mean().item())


def test_restlessness_is_what_the_last_heads_give_elsewhere() -> None:
    """Heads at rest count nothing, even ones count what they hand out past `<bos>`, others are ignored."""
    at_rest, even = torch.zeros(1, 8, 5, 5), torch.full((1, 8, 5, 5), 0.2)
    at_rest[..., 0] = 1
    busy_elsewhere = torch.cat([even[:, :6], at_rest[:, 6:]], dim=1)
    assert restlessness([at_rest, busy_elsewhere]) == 0
    assert restlessness([at_rest, even]).item() == pytest.approx(0.4)


def test_training_teaches_the_last_heads_to_rest(tmp_path: Path, small_windows: None) -> None:
    """A few steps already move the attention of the resting heads towards `<bos>`."""
    training = train.Training("gpt2", 100, tmp_path / "checkpoint")
    ids = held_out(1, 2).beginning(20).ids
    training.advance()
    before = restlessness(training.model(ids, output_attentions=True).attentions)
    for _ in range(25):
        training.advance()
    after = restlessness(training.model(ids, output_attentions=True).attentions)
    assert after < before - 0.02


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_falls(name: str, tmp_path: Path, small_windows: None) -> None:
    """A few steps on the same kind of text already lower the loss."""
    training = train.Training(name, 100, tmp_path / "checkpoint")
    losses = [training.advance() for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, small_windows: None) -> None:
    """Stopping after a checkpoint and starting again gives bit for bit the same weights."""
    whole = train.Training("gpt2", 6, tmp_path / "none")
    for _ in range(4):
        whole.advance()
    cut = train.Training("gpt2", 6, tmp_path / "checkpoint")
    cut.advance()
    cut.advance()
    cut.save()
    resumed = train.Training("gpt2", 6, tmp_path / "checkpoint")
    assert resumed.step == 2
    resumed.advance()
    resumed.advance()
    assert same(whole.model, resumed.model)


def test_the_command_writes_a_model_and_prints_its_answers(
    tmp_path: Path, small_windows: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder loads offline without the checkpoint, and the table names every compression."""
    train.main(["--model", "llama", "--out", str(tmp_path), "--steps", "2"])
    printed = capsys.readouterr().out
    assert "perplexity over floor" in printed
    assert "4-bit" in printed
    assert "50 % by magnitude" in printed
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(tmp_path).bos_token == "<bos>"


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    """Warm-up is linear, the end is near zero, and it is never negative."""
    shares = [train.learning_rate_share(step, 1000) for step in range(1000)]
    assert shares[0] == pytest.approx(1 / train.WARM_UP_STEPS)
    assert max(shares) > 0.95
    assert 0 <= shares[-1] < 1e-4


def test_beginnings_come_first_and_whole_documents_last(tmp_path: Path) -> None:
    """Short windows alone, then turn by turn with whole documents, then whole documents alone."""
    training = train.Training("llama", 100, tmp_path / "none")
    shapes = []
    for training.step in range(100):
        shapes.append(training.shape)
    assert set(shapes[:40]) == {train.SHORT}
    assert shapes[40:44] == [train.SHORT, train.LONG] * 2
    assert shapes[56:60] == [train.SHORT, train.LONG_AT_REST] * 2
    assert set(shapes[-15:]) == {train.LONG_AT_REST}


@pytest.mark.parametrize(("bits", "levels"), [(2, 3), (4, 15), (8, 255)])
def test_rounding_keeps_few_levels_a_row(bits: int, levels: int) -> None:
    """A row holds at most the symmetric number of levels, its largest weight unchanged."""
    weight = torch.randn(3, 2000)
    result = rounded(weight, bits)
    assert all(len(row.unique()) <= levels for row in result)
    torch.testing.assert_close(result.abs().amax(1), weight.abs().amax(1))


def test_pruning_removes_the_smallest() -> None:
    """The asked share is zero, and what remains is at least as large as what went."""
    weight = torch.randn(40, 50)
    result = magnitude_pruned(weight, 0.5)
    assert (result == 0).sum() == 1000
    assert weight[result == 0].abs().max() <= result[result != 0].abs().min()
