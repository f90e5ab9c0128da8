"""The vocabulary of the made-up language: word classes as ranges of word ids, and their spelling."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


class WordClass(NamedTuple):
    """A range of word ids whose words can stand in the same place; `stop` is past the last."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of words."""
        return self.stop - self.start

    def holds(self, word: int) -> bool:
        """Whether a word id is of this class."""
        return self.start <= word < self.stop


class Vocabulary(NamedTuple):
    """All word classes; those with two forms are pairs (singular, plural) in the same order of stems."""

    determiners: tuple[WordClass, WordClass]
    nouns: tuple[WordClass, WordClass]
    verbs: tuple[WordClass, WordClass]
    adjectives: WordClass
    adverbs: WordClass
    relative: int
    period: int
    spelling: tuple[str, ...]


def _stems(rng: random.Random, count: int) -> Iterator[str]:
    """Two-syllable stems without repetition, short ones and function words left out by their length."""
    syllables = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]
    seen: set[str] = set()
    while len(seen) < count:
        stem = "".join(syllables[int(rng.random() * len(syllables))] for _ in range(2))
        if stem not in seen:
            seen.add(stem)
            yield stem


def make_vocabulary(
    seed: int, *, determiners: int, nouns: int, verbs: int, adjectives: int, adverbs: int
) -> Vocabulary:
    """Spell a vocabulary with so many stems of each class; plural forms double the first three."""
    stems = _stems(random.Random(seed), determiners + nouns + verbs + adjectives + adverbs)
    spelling: list[str] = []

    def add(count: int, *endings: str) -> list[WordClass]:
        ours = [next(stems) for _ in range(count)]
        classes = []
        for ending in endings:
            classes.append(WordClass(len(spelling), len(spelling) + count))
            spelling.extend(stem + ending for stem in ours)
        return classes

    singular_determiners, plural_determiners = add(determiners, "l", "lin")
    singular_nouns, plural_nouns = add(nouns, "", "ni")
    singular_verbs, plural_verbs = add(verbs, "t", "nt")
    (adjective_class,) = add(adjectives, "sk")
    (adverb_class,) = add(adverbs, "rum")
    spelling += ["ke", "."]
    return Vocabulary(
        (singular_determiners, plural_determiners),
        (singular_nouns, plural_nouns),
        (singular_verbs, plural_verbs),
        adjective_class,
        adverb_class,
        len(spelling) - 2,
        len(spelling) - 1,
        tuple(spelling),
    )
