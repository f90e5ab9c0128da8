"""A made-up language whose exact probabilities are known, so that a model's perplexity has a floor.

A document is written from left to right by a stack of slots. What may come next, and how likely it
is, follows from the words so far and from nothing else, so that `Grammar.log_probabilities` is exact.
The language has what makes real language hard to store: agreement in number over a relative clause
of any length, clauses nested in clauses, and thousands of arbitrary facts (which verbs a noun takes,
which objects a noun has under a verb, which adjectives it has, which noun follows it in the next
sentence), more of them than the embedded models have room for.

Randomness is `random.Random.random()` alone, the one stream that Python promises never to change.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pytest_llmslim.embedded.slots import (
    START,
    Adverb,
    Clause,
    Determiner,
    Modifier,
    Noun,
    Period,
    Slot,
    Stack,
    Verb,
    after,
)
from pytest_llmslim.embedded.words import WordClass, make_vocabulary
from pytest_llmslim.errors import TextError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

DOCUMENT_TOKENS = 255
WORD_OFFSET = 2  # token id = word id + 2: `<bos>` and `<unk>` come first
LANGUAGE_SEED = 2601
TRAINING_SEED = 11
CALIBRATION_SEED = 22
EVALUATION_SEED = 33

NOUNS, TRANSITIVES, INTRANSITIVES, ADJECTIVES, ADVERBS, DETERMINERS = 300, 150, 60, 120, 60, 4
PLURAL = 0.4
ADJECTIVE, ADVERB = 0.3, 0.3
RELATIVE = (0.25, 0.15, 0.05, 0.0)  # by the number of relative clauses already open
SUBJECT_RELATIVE = 0.6
STRAY = 0.03  # share of a fact's probability that goes to the whole word class
ZIPF = 0.8  # the i-th word of a class has weight i ** -ZIPF
# How many favourite words a fact has, and their steepness: the i-th has weight i ** -steepness.
VERB_OF_NOUN = (6, 1.0)
OBJECT_OF_PAIR = (4, 1.0)
NOUN_AFTER_NOUN = (6, 1.0)
ADJECTIVE_OF_NOUN = (5, 1.0)
ADVERB_OF_VERB = (3, 1.2)


class Shares(NamedTuple):
    """Some words and their probabilities, with the running sum for drawing one of them."""

    words: tuple[int, ...]
    probabilities: tuple[float, ...]
    cumulative: tuple[float, ...]

    def draw(self, uniform: float) -> int:
        """The word at a point between 0 and 1 of the running sum."""
        return self.words[min(bisect_right(self.cumulative, uniform), len(self.words) - 1)]

    def probability(self, word: int) -> float:
        """Probability of one word; 0 when it is not among them."""
        return self.probabilities[self.words.index(word)] if word in self.words else 0.0


class Choice(NamedTuple):
    """One way to go on, of probability `weight`: mostly a favourite, now and then any word of a class."""

    weight: float
    background: str
    favourites: Shares | None
    stray: float


class Grammar:
    """The language; any two instances are equal in every probability.

    Attributes:
        words: spelling of every word, by word id.
        backgrounds: for every word class by name, its words and their Zipf probabilities.
    """

    def __init__(self) -> None:
        self.vocabulary = make_vocabulary(
            LANGUAGE_SEED,
            determiners=DETERMINERS,
            nouns=NOUNS,
            verbs=TRANSITIVES + INTRANSITIVES,
            adjectives=ADJECTIVES,
            adverbs=ADVERBS,
        )
        self.words = list(self.vocabulary.spelling)
        self._ids = {word: index for index, word in enumerate(self.words)}
        self.backgrounds = {name: _zipf(range(*of), ZIPF) for name, of in self._classes().items()}
        # typed: a Verb and a Modifier of the same four values are equal as tuples.
        self._ways = lru_cache(maxsize=None, typed=True)(self._find_ways)

    def document(self, rng: random.Random) -> list[int]:
        """Draw one document of `DOCUMENT_TOKENS` word ids; its last sentence is cut."""
        return [word for word, _ in self.draws(rng)]

    def draws(self, rng: random.Random, words: int = DOCUMENT_TOKENS) -> Iterator[tuple[int, list[Choice]]]:
        """Draw the first words of a document, each with the choices it was drawn from."""
        stack = START
        for _ in range(words):
            choices = self._choices(stack)
            word = self._draw(choices, rng)
            yield word, choices
            stack = self._after(stack, word)

    def text(self, seed: int, documents: int) -> str:
        """Spell `documents` documents, one a line, words separated by one space."""
        rng = random.Random(seed)
        drawn = (self.document(rng) for _ in range(documents))
        return "\n".join(" ".join(self.words[word] for word in document) for document in drawn)

    def read(self, text: str) -> list[list[int]]:
        """The word ids of each line of a text; the inverse of `text`.

        Raises:
            TextError: a word is not of the language.
        """
        unknown = next((word for word in text.split() if word not in self._ids), None)
        if unknown is not None:
            raise TextError(
                f"A text in the embedded language must hold its words only, but it holds {unknown!r}. "
                "Take the text from Grammar.text, or measure another model on it."
            )
        return [[self._ids[word] for word in line.split()] for line in text.splitlines()]

    def log_probabilities(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Natural logarithm of each word's exact probability given the words before it.

        Args:
            tokens: word ids of one document from its beginning.

        Returns:
            One value a word, nats; `-inf` from the first word on that the grammar forbids.
        """
        result = np.full(len(tokens), -np.inf)
        stack = START
        for index, word in enumerate(tokens):
            probability = self._probability(self._choices(stack), word)
            if probability == 0:
                break
            result[index] = math.log(probability)
            stack = self._after(stack, word)
        return result

    def distribution(self, prefix: Sequence[int]) -> NDArray[np.float64]:
        """Exact probability of every word after a prefix of a document, shape (words,).

        Raises:
            TextError: the prefix is no beginning of a document.
        """
        result = np.zeros(len(self.words))
        for choice in self._choices(self._read(prefix)):
            for shares, part in self._parts(choice):
                result[list(shares.words)] += part * np.array(shares.probabilities)
        return result

    def _read(self, prefix: Sequence[int]) -> Stack:
        stack = START
        for index, word in enumerate(prefix):
            if self._probability(self._choices(stack), word) == 0:
                raise TextError(
                    f"A prefix in the embedded language must be a beginning of a document, but word {word} "
                    f"at place {index} cannot stand there. Take the prefix from Grammar.document."
                )
            stack = self._after(stack, word)
        return stack

    def _after(self, stack: Stack, word: int) -> Stack:
        return after(stack, word, self.vocabulary, TRANSITIVES)

    def _choices(self, stack: Stack) -> list[Choice]:
        """The ways to go on: optional slots first, down to the first slot that must be served."""
        choices: list[Choice] = []
        weight = 1.0
        for slot in reversed(stack):
            ways, remaining = self._ways(slot)
            if weight == 1.0:
                choices.extend(ways)
            else:
                choices.extend(way._replace(weight=way.weight * weight) for way in ways)
            weight *= remaining
            if remaining == 0:
                break
        return choices

    def _draw(self, choices: list[Choice], rng: random.Random) -> int:
        point = rng.random()
        for choice in choices:
            point -= choice.weight
            if point < 0:
                break
        shares = choice.favourites
        if shares is None or rng.random() < choice.stray:
            shares = self.backgrounds[choice.background]
        return shares.draw(rng.random())

    def _probability(self, choices: list[Choice], word: int) -> float:
        parts = (part for choice in choices for part in self._parts(choice))
        return sum(part * shares.probability(word) for shares, part in parts)

    def _parts(self, choice: Choice) -> Iterator[tuple[Shares, float]]:
        """The distributions that a choice mixes, each with its weight."""
        yield self.backgrounds[choice.background], choice.weight * choice.stray
        if choice.favourites is not None:
            yield choice.favourites, choice.weight * (1 - choice.stray)

    def _find_ways(self, slot: Slot) -> tuple[list[Choice], float]:
        """A slot's own choices, and the share that leaves it empty."""
        match slot:
            case Determiner():
                return self._determiner(1.0), 0.0
            case Noun(giver, verb, _, _, plural):
                kind, favourites = ("object", OBJECT_OF_PAIR) if verb >= 0 else ("kin", NOUN_AFTER_NOUN)
                key = None if giver < 0 else f"{kind} {giver} {verb}"
                return [self._fact(1.0, f"nouns {plural}", key, favourites)], 0.0
            case Verb():
                return [self._verb(slot, 1.0)], 0.0
            case Clause(noun, plural, depth):
                verb_choice = self._verb(Verb(noun, plural, False, depth), SUBJECT_RELATIVE)
                return [verb_choice, *self._determiner(1 - SUBJECT_RELATIVE)], 0.0
            case Adverb(verb):
                return [self._fact(ADVERB, "adverbs", f"adverb {verb}", ADVERB_OF_VERB)], 1 - ADVERB
            case Modifier():
                return self._modifier(slot)
            case Period():
                return [Choice(1.0, "period", None, 1.0)], 0.0

    def _determiner(self, weight: float) -> list[Choice]:
        numbers = enumerate((1 - PLURAL, PLURAL))
        return [Choice(weight * share, f"determiners {plural}", None, 1.0) for plural, share in numbers]

    def _verb(self, slot: Verb, weight: float) -> Choice:
        kind = "transitives" if slot.gap else "verbs"
        return self._fact(weight, f"{kind} {slot.plural}", f"{kind} {slot.noun}", VERB_OF_NOUN)

    def _modifier(self, slot: Modifier) -> tuple[list[Choice], float]:
        relative = RELATIVE[slot.depth]
        ways = [Choice(relative, "relative", None, 1.0)] if relative else []
        if not slot.adjective:
            return ways, 1 - relative
        adjective = self._fact(ADJECTIVE, "adjectives", f"adjective {slot.noun}", ADJECTIVE_OF_NOUN)
        return [adjective, *ways], 1 - relative - ADJECTIVE

    def _fact(self, weight: float, background: str, key: str | None, favourites: tuple[int, float]) -> Choice:
        """Draw the favourites that belong to a key; the same key gives the same stems in either number."""
        if key is None:
            return Choice(weight, background, None, 1.0)
        rng = random.Random(f"{LANGUAGE_SEED} {key}")
        shares = self.backgrounds[background]
        chosen: dict[int, None] = {}
        count, steepness = favourites
        while len(chosen) < count:
            chosen[shares.draw(rng.random())] = None
        return Choice(weight, background, _zipf(chosen, steepness), STRAY)

    def _classes(self) -> dict[str, tuple[int, int]]:
        vocabulary = self.vocabulary
        classes: dict[str, tuple[int, int]] = {
            "adjectives": vocabulary.adjectives,
            "adverbs": vocabulary.adverbs,
            "relative": WordClass(vocabulary.relative, vocabulary.relative + 1),
            "period": WordClass(vocabulary.period, vocabulary.period + 1),
        }
        for plural in (0, 1):
            classes[f"determiners {plural}"] = vocabulary.determiners[plural]
            classes[f"nouns {plural}"] = vocabulary.nouns[plural]
            verbs = vocabulary.verbs[plural]
            classes[f"verbs {plural}"] = verbs
            classes[f"transitives {plural}"] = WordClass(verbs.start, verbs.start + TRANSITIVES)
        return classes


def _zipf(words: Iterable[int], steepness: float) -> Shares:
    """Give the i-th word the weight `i ** -steepness`."""
    listed = tuple(words)
    weights = [rank**-steepness for rank in range(1, len(listed) + 1)]
    total = math.fsum(weights)
    probabilities = tuple(weight / total for weight in weights)
    return Shares(listed, probabilities, tuple(accumulate(probabilities)))


def floor_perplexity(documents: Iterable[Sequence[int]]) -> float:
    """Perplexity of the grammar itself on documents of word ids: no model can be expected to go below."""
    grammar = Grammar()
    logs = [grammar.log_probabilities(document) for document in documents]
    return math.exp(-float(np.mean(np.concatenate(logs))))
