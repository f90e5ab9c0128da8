"""The made-up language: its probabilities are exact, and it keeps its own rules."""

from __future__ import annotations

import collections
import hashlib
import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llmslim.embedded import grammar as language
from pytest_llmslim.embedded.grammar import (
    CALIBRATION_SEED,
    DOCUMENT_TOKENS,
    EVALUATION_SEED,
    TRAINING_SEED,
    Grammar,
    floor_perplexity,
)
from pytest_llmslim.embedded.slots import START, Adverb, Modifier, Noun, Verb, after
from pytest_llmslim.errors import TextError


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return Grammar()


@pytest.fixture(scope="module")
def documents(grammar: Grammar) -> list[list[int]]:
    rng = random.Random(7)
    return [grammar.document(rng) for _ in range(300)]


def stacks(grammar: Grammar, document: list[int]):
    """Yield (stack, word) along a document."""
    stack = START
    for word in document:
        yield stack, word
        stack = after(stack, word, grammar.vocabulary, language.TRANSITIVES)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(0, DOCUMENT_TOKENS - 1))
def test_probabilities_sum_to_one_after_any_prefix(seed: int, length: int) -> None:
    """After every prefix the distribution is non-negative and sums to one."""
    grammar = Grammar()
    distribution = grammar.distribution(grammar.document(random.Random(seed))[:length])
    assert distribution.shape == (len(grammar.words),)
    assert distribution.min() >= 0
    assert distribution.sum() == pytest.approx(1, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 60))
def test_both_views_of_the_probabilities_agree(seed: int, length: int) -> None:
    """The log probability of each word is that word's entry in the distribution before it."""
    grammar = Grammar()
    document = grammar.document(random.Random(seed))[:length]
    looked_up = [grammar.distribution(document[:place])[word] for place, word in enumerate(document)]
    np.testing.assert_allclose(np.exp(grammar.log_probabilities(document)), looked_up, rtol=1e-12)


def test_drawn_words_are_as_frequent_as_stated(grammar: Grammar, documents: list[list[int]]) -> None:
    """Summed over many places, each word is drawn as often as its probabilities promise."""
    drawn, promised, variance = (np.zeros(len(grammar.words)) for _ in range(3))
    for document in documents[:60]:
        stack = START
        for word in document:
            distribution = np.zeros(len(grammar.words))
            for choice in grammar._choices(stack):
                for shares, part in grammar._parts(choice):
                    distribution[list(shares.words)] += part * np.array(shares.probabilities)
            drawn[word] += 1
            promised += distribution
            variance += distribution * (1 - distribution)
            stack = after(stack, word, grammar.vocabulary, language.TRANSITIVES)
    often = promised > 20
    deviations = (drawn - promised)[often] / np.sqrt(variance[often] + 1e-9)
    assert np.abs(deviations[variance[often] > 1]).max() < 5
    assert drawn[promised == 0].sum() == 0


def test_first_words_are_as_frequent_as_stated(grammar: Grammar) -> None:
    """The empirical distribution of a document's first word is the stated one, within five sigma."""
    rng = random.Random(3)
    draws = 4000
    counts = collections.Counter(next(grammar.draws(rng))[0] for _ in range(draws))
    stated = grammar.distribution([])
    for word in np.flatnonzero(stated):
        sigma = math.sqrt(draws * stated[word] * (1 - stated[word]))
        assert abs(counts[int(word)] - draws * stated[word]) < 5 * sigma


def test_an_oracle_measures_exactly_the_floor(grammar: Grammar, documents: list[list[int]]) -> None:
    """Perplexity scored with the true distributions equals the floor to rounding."""
    some = [document[:40] for document in documents[:5]]
    surprises = [
        -math.log(grammar.distribution(document[:place])[word])
        for document in some
        for place, word in enumerate(document)
    ]
    assert math.exp(np.mean(surprises)) == pytest.approx(floor_perplexity(some), rel=1e-12)


def test_verbs_agree_with_their_noun_over_any_distance(grammar: Grammar, documents: list[list[int]]) -> None:
    """A verb has its subject's number, even when a relative clause stands between them."""
    distances: collections.Counter[int] = collections.Counter()
    for document in documents:
        places: dict[int, int] = {}
        for place, (stack, word) in enumerate(stacks(grammar, document)):
            due = next(slot for slot in reversed(stack) if not isinstance(slot, Modifier | Adverb))
            if isinstance(due, Noun):
                places[len(stack)] = place
            is_verb = any(verbs.holds(word) for verbs in grammar.vocabulary.verbs)
            if is_verb and isinstance(due, Verb):
                assert grammar.vocabulary.verbs[due.plural].holds(word)
                distances[place - places[stack.index(due) + 1]] += 1
    assert sum(count for distance, count in distances.items() if distance >= 5) > 100


def test_the_wrong_number_is_impossible(grammar: Grammar, documents: list[list[int]]) -> None:
    """Replacing any verb by its other number gives probability zero from there on."""
    singular, plural = grammar.vocabulary.verbs
    document = documents[0]
    place = next(place for place, word in enumerate(document) if singular.holds(word) or plural.holds(word))
    shift = plural.start - singular.start
    other = document[place] + (shift if singular.holds(document[place]) else -shift)
    logs = grammar.log_probabilities([*document[:place], other, *document[place + 1 :]])
    assert np.isfinite(logs[:place]).all()
    assert np.isneginf(logs[place:]).all()


def test_clauses_nest(grammar: Grammar, documents: list[list[int]]) -> None:
    """Relative clauses open inside relative clauses, up to the bound and never past it."""
    depths = {
        slot.depth
        for document in documents
        for stack, _ in stacks(grammar, document)
        for slot in stack
        if isinstance(slot, Verb)
    }
    assert depths == set(range(len(language.RELATIVE)))


def test_nouns_select_their_verbs(grammar: Grammar) -> None:
    """A noun's favourite verbs hold all but the stray share, the same stems in either number."""
    singular = grammar._ways(Verb(3, 0, False, 0))[0][0].favourites
    plural = grammar._ways(Verb(3, 1, False, 0))[0][0].favourites
    shift = grammar.vocabulary.verbs[1].start - grammar.vocabulary.verbs[0].start
    assert singular is not None
    assert plural is not None
    assert [word + shift for word in singular.words] == list(plural.words)
    assert sum(singular.probabilities) == pytest.approx(1)


def test_word_frequencies_fall_like_zipf(grammar: Grammar, documents: list[list[int]]) -> None:
    """A few words make up most of the text, and most words are rare but do occur."""
    counts = collections.Counter(itertools.chain.from_iterable(documents))
    ranked = sorted(counts.values(), reverse=True)
    assert sum(ranked[:50]) > 0.6 * sum(ranked)
    assert len(ranked) > 0.9 * len(grammar.words)


def test_same_seed_same_text(grammar: Grammar) -> None:
    """Two grammars write the same text from the same seed."""
    assert Grammar().text(EVALUATION_SEED, 2) == grammar.text(EVALUATION_SEED, 2)


def test_the_text_never_changes(grammar: Grammar) -> None:
    """The language is frozen: committed models and baselines know these very words."""
    text = grammar.text(EVALUATION_SEED, 4)
    assert text.startswith("sizal soze savit sizal giku ke sizalin fomuni nunask difont .")
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "aee5c946402fb58e"


def test_other_seeds_give_other_text(grammar: Grammar) -> None:
    """Training, calibration and evaluation never read the same document."""
    seeds = (TRAINING_SEED, CALIBRATION_SEED, EVALUATION_SEED)
    lines = [line for seed in seeds for line in grammar.text(seed, 3).split("\n")]
    assert len(set(lines)) == 9


def test_text_is_documents_of_fixed_length(grammar: Grammar) -> None:
    """Each line holds `DOCUMENT_TOKENS` known words with one space between them."""
    for line in grammar.text(1, 3).split("\n"):
        words = line.split(" ")
        assert len(words) == DOCUMENT_TOKENS
        assert set(words) <= set(grammar.words)


def test_longer_text_begins_with_the_shorter(grammar: Grammar) -> None:
    """Asking for more documents of a seed only adds lines."""
    assert grammar.text(5, 3).startswith(grammar.text(5, 2) + "\n")


def test_reading_undoes_writing(grammar: Grammar) -> None:
    """The word ids of a text are those it was spelt from, line by line."""
    rng = random.Random(8)
    assert grammar.read(grammar.text(8, 3)) == [grammar.document(rng) for _ in range(3)]


def test_text_of_another_language_is_refused(grammar: Grammar) -> None:
    """The error names the first unknown word and what to do."""
    with pytest.raises(TextError, match=r"must hold its words only, but it holds 'hello'\. Take the text"):
        grammar.read("ke hello world")


def test_words_are_distinct_and_without_space(grammar: Grammar) -> None:
    """Every word can be told apart after splitting at white space."""
    assert len(set(grammar.words)) == len(grammar.words) > 1000
    assert not any(character.isspace() for word in grammar.words for character in word)


def test_a_prefix_from_elsewhere_is_refused(grammar: Grammar) -> None:
    """The error names the word, its place and what to use."""
    with pytest.raises(TextError, match=r"but word 1209 at place 0 cannot stand there\. Take the"):
        grammar.distribution([1209])
