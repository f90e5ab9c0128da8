"""Training windows with their soft targets, and held-out windows with their floor."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pytest_llmslim.embedded.grammar import WORD_OFFSET, Grammar

if TYPE_CHECKING:
    from pytest_llmslim.embedded.grammar import Choice


class Batch(NamedTuple):
    """Windows that begin with `<bos>`, and for every later token what the grammar would have drawn.

    Attributes:
        ids: token ids, shape (windows, 1 + words).
        targets: next-token probabilities, shape (windows * words, tokens).
    """

    ids: torch.Tensor
    targets: torch.Tensor


class HeldOut(NamedTuple):
    """Windows that no training step has drawn, and how surprising the grammar itself finds them.

    Attributes:
        ids: token ids, shape (windows, 1 + words), the first one `<bos>`.
        surprises: exact negative log probabilities of the words, nats, shape (windows, words).
    """

    ids: torch.Tensor
    surprises: torch.Tensor

    @property
    def floor(self) -> float:
        """Mean surprise, nats a word."""
        return self.surprises.mean().item()

    def beginning(self, words: int) -> HeldOut:
        """The first words of every window."""
        return HeldOut(self.ids[:, : 1 + words], self.surprises[:, :words])


class BatchMaker:
    """Draws the batch of any step of a seeded training run, so that a run can go on at any step."""

    def __init__(self, seed: str) -> None:
        self._grammar = Grammar()
        self._seed = seed
        self._tokens = len(self._grammar.words) + WORD_OFFSET
        self._rows = {name: row for row, name in enumerate(self._grammar.backgrounds)}
        self._table = self._background_table()

    def batch(self, step: int, windows: int, words: int) -> Batch:
        """The first `words` words of new documents, drawn for this step."""
        rng = random.Random(f"{self._seed} {step}")
        drawn = [pair for _ in range(windows) for pair in self._grammar.draws(rng, words)]
        ids = _with_bos([word for word, _ in drawn], windows)
        return Batch(ids, self._targets([choices for _, choices in drawn]))

    def _targets(self, places: list[list[Choice]]) -> torch.Tensor:
        """Mix the distributions of each place; backgrounds are few and dense, favourites many and short."""
        rows = [row for row, choices in enumerate(places) for _ in choices]
        choices = [choice for choices in places for choice in choices]
        backgrounds = [self._rows[choice.background] for choice in choices]
        strays = torch.tensor([choice.weight * choice.stray for choice in choices])
        mixture = torch.zeros(len(places), len(self._rows))
        mixture.index_put_((torch.tensor(rows), torch.tensor(backgrounds)), strays, accumulate=True)
        targets = mixture @ self._table
        facts = [(row, choice) for row, choice in zip(rows, choices, strict=True) if choice.favourites]
        return self._add_favourites(targets, facts)

    def _add_favourites(self, targets: torch.Tensor, facts: list[tuple[int, Choice]]) -> torch.Tensor:
        favourites = [choice.favourites for _, choice in facts if choice.favourites]
        lengths = torch.tensor([len(shares.words) for shares in favourites])
        rows = torch.tensor([row for row, _ in facts]).repeat_interleave(lengths)
        weights = torch.tensor([choice.weight * (1 - choice.stray) for _, choice in facts])
        columns = torch.tensor([word for shares in favourites for word in shares.words]) + WORD_OFFSET
        values = torch.tensor([p for shares in favourites for p in shares.probabilities])
        values *= weights.repeat_interleave(lengths)
        return targets.index_put_((rows, columns), values, accumulate=True)

    def _background_table(self) -> torch.Tensor:
        table = torch.zeros(len(self._rows), self._tokens)
        for name, shares in self._grammar.backgrounds.items():
            columns = torch.tensor(shares.words) + WORD_OFFSET
            table[self._rows[name], columns] = torch.tensor(shares.probabilities)
        return table


def held_out(seed: int, windows: int) -> HeldOut:
    """The first documents of `Grammar.text(seed, ...)`, tokenised, and their floor."""
    grammar, rng = Grammar(), random.Random(seed)
    documents = [grammar.document(rng) for _ in range(windows)]
    surprises = np.stack([-grammar.log_probabilities(document) for document in documents])
    words = [word for document in documents for word in document]
    return HeldOut(_with_bos(words, windows), torch.from_numpy(surprises))


def _with_bos(words: list[int], windows: int) -> torch.Tensor:
    ids = torch.tensor(words).view(windows, -1) + WORD_OFFSET
    return torch.nn.functional.pad(ids, (1, 0), value=0)
