"""What a sentence of the made-up language still owes: a stack of slots, and how a word serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pytest_llmslim.embedded.words import Vocabulary


class Determiner(NamedTuple):
    """A determiner is due; `giver` and `verb` (stems, or -1) decide which noun will follow."""

    giver: int
    verb: int
    role: str
    depth: int


class Noun(NamedTuple):
    """A noun of the determiner's number is due."""

    giver: int
    verb: int
    role: str
    depth: int
    plural: int


class Modifier(NamedTuple):
    """An adjective, once, or a relative clause may follow the noun."""

    noun: int
    plural: int
    depth: int
    adjective: bool


class Clause(NamedTuple):
    """A relative clause has begun: a verb of its noun follows, or a subject of its own."""

    noun: int
    plural: int
    depth: int


class Verb(NamedTuple):
    """A verb that agrees with the noun is due; with a `gap` its object stands before it."""

    noun: int
    plural: int
    gap: bool
    depth: int


class Adverb(NamedTuple):
    """An adverb may close the main clause."""

    verb: int


class Period(NamedTuple):
    """The sentence ends; its `topic` (a noun's stem, or -1) decides on the subject of the next."""

    topic: int


Slot = Determiner | Noun | Modifier | Clause | Verb | Adverb | Period
Stack = tuple[Slot, ...]  # the last one is served first
START: Stack = (Period(-1), Determiner(-1, -1, "subject", 0))


def after(stack: Stack, word: int, vocabulary: Vocabulary, transitives: int) -> Stack:
    """The stack once `word`, which the grammar must allow there, has been written."""
    rest, slot = stack[:-1], stack[-1]
    while not _serves(slot, word, vocabulary):
        rest, slot = rest[:-1], rest[-1]
    match slot:
        case Determiner(giver, verb, role, depth):
            plural = int(vocabulary.determiners[1].holds(word))
            return (*rest, Noun(giver, verb, role, depth, plural))
        case Noun():
            return _after_noun(rest, slot, word - vocabulary.nouns[slot.plural].start)
        case Modifier(noun, plural, depth, _) if word == vocabulary.relative:
            return (*rest, Clause(noun, plural, depth + 1))
        case Modifier():
            return (*rest, slot._replace(adjective=False))
        case Clause(noun, _, depth) if not vocabulary.verbs[slot.plural].holds(word):
            plural = int(vocabulary.determiners[1].holds(word))
            return (*rest, Noun(noun, -1, "inner", depth, plural))
        case Clause() | Verb():
            verb = word - vocabulary.verbs[slot.plural].start
            gap = isinstance(slot, Verb) and slot.gap
            return _after_verb(rest, slot, verb, takes_object=verb < transitives and not gap)
        case Adverb():
            return rest
        case Period(topic):
            return (Period(topic), Determiner(topic, -1, "subject", 0))


def _serves(slot: Slot, word: int, vocabulary: Vocabulary) -> bool:
    """Whether the word is for this slot; only slots that may stay empty are ever passed over."""
    if isinstance(slot, Modifier):
        return word == vocabulary.relative or vocabulary.adjectives.holds(word)
    return not isinstance(slot, Adverb) or vocabulary.adverbs.holds(word)


def _after_noun(rest: Stack, slot: Noun, noun: int) -> Stack:
    if slot.depth == 0:
        rest = (Period(noun), *rest[1:])
    modifier = Modifier(noun, slot.plural, slot.depth, True)
    if slot.role == "object":
        return (*rest, modifier)
    return (*rest, Verb(noun, slot.plural, slot.role == "inner", slot.depth), modifier)


def _after_verb(rest: Stack, slot: Clause | Verb, verb: int, *, takes_object: bool) -> Stack:
    if slot.depth == 0:
        rest = (*rest, Adverb(verb))
    if takes_object:
        rest = (*rest, Determiner(slot.noun, verb, "object", slot.depth))
    return rest
