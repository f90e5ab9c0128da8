"""Texts of one kind each, had offline: from Python's own library, from a generator, or written for this project."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_llmslim.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pytest_llmslim.embedded.grammar import Grammar

MODULES: Final = (
    "argparse", "calendar", "configparser", "csv", "dataclasses", "difflib", "fractions", "heapq",
    "inspect", "json.decoder", "shlex", "statistics", "textwrap", "tokenize", "typing", "urllib.parse",
)  # fmt: skip
"""Of the standard library: written in Python, by many hands, on many things."""
DOCUMENTS: Final = 256
"""Documents of the embedded language from which those of one kind are chosen."""
SLICE_SEED: Final = 44


class Section(NamedTuple):
    """A part of a text that is cut into windows by itself: a module, a language."""

    name: str
    text: str


class SliceText(NamedTuple):
    """A text of one kind; `sha256` is of all of it."""

    sections: tuple[Section, ...]
    sha256: str


@lru_cache(maxsize=1)
def code() -> SliceText:
    """Modules of the Python that runs this, each from its first function or class on.

    Raises:
        EvaluationError: they are installed without their source.
    """
    return _slice_text(Section(name, _without_head(_source(name))) for name in MODULES)


@lru_cache(maxsize=1)
def mathematics() -> SliceText:
    """Worked problems."""
    from pytest_llmslim.evals.slice_texts import problems

    return _slice_text([Section("", problems.text())])


@lru_cache(maxsize=1)
def languages() -> SliceText:
    """A few paragraphs in each of some languages other than English, written for this project."""
    raw = files(__package__).joinpath("languages.txt").read_text(encoding="utf-8")
    parts = re.split(r"^\[(\w+)\] .*\n", raw, flags=re.MULTILINE)[1:]
    return _slice_text(
        Section(name, text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)
    )


@lru_cache(maxsize=1)
def nested() -> SliceText:
    """Documents of the embedded language with the most relative clauses."""
    grammar = _grammar()
    return _chosen({grammar.words[grammar.vocabulary.relative]: 1.0})


@lru_cache(maxsize=1)
def rare() -> SliceText:
    """Documents of the embedded language with the rarest words."""
    return _chosen(_rarity(_grammar()))


def from_file(path: Path) -> SliceText:
    """A file of the user's.

    Raises:
        EvaluationError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise EvaluationError(
            f"{path} cannot be read ({error.strerror}); give the path of a UTF-8 file, or a kind of text"
        ) from None
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8"
        ) from None
    if not text.strip():
        raise EvaluationError(f"{path} is empty; give a file with some thousand words")
    return SliceText((Section("", text),), hashlib.sha256(raw).hexdigest())


def _slice_text(sections: Iterable[Section]) -> SliceText:
    listed = tuple(sections)
    whole = "\n\n".join(section.text for section in listed)
    return SliceText(listed, hashlib.sha256(whole.encode()).hexdigest())


def _source(name: str) -> str:
    """A module's source, which is read and not run."""
    spec = importlib.util.find_spec(name)
    found = getattr(spec.loader, "get_source", None) if spec else None
    text = found(name) if found else None
    if not text:
        raise EvaluationError(
            f"the text of code is the source of Python's own library, and {name} is installed without it; "
            "give --llm-slices a file of code instead"
        )
    return str(text)


def _without_head(source: str) -> str:
    """From the first function or class on: imports and long docstrings are hardly code."""
    start = re.search(r"^(?:@|def |class )", source, re.MULTILINE)
    return source[start.start() :] if start else source


# The embedded language ---------------------------------------------------------------------------------------


def speaks(tokenizer: Any) -> bool:  # noqa: ANN401  # transformers is read as Any
    """Whether a tokenizer is of the embedded language, a token a word."""
    from pytest_llmslim.embedded.grammar import WORD_OFFSET

    words = _grammar().words
    ids = tokenizer(" ".join(words), add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids) == list(range(WORD_OFFSET, WORD_OFFSET + len(words)))


@lru_cache(maxsize=1)
def _grammar() -> Grammar:
    from pytest_llmslim.embedded.grammar import Grammar

    return Grammar()


def _chosen(weights: dict[str, float]) -> SliceText:
    """Documents in the order of the weight of their words, the heaviest first; the tokenizer passes over line ends."""
    lines = _grammar().text(SLICE_SEED, DOCUMENTS).split("\n")
    lines.sort(key=lambda line: -math.fsum(weights.get(word, 0.0) for word in line.split()))
    return _slice_text([Section("", "\n".join(lines))])


def _rarity(grammar: Grammar) -> dict[str, float]:
    """How surprising each word is among those of its class, in nats."""
    return {
        grammar.words[word]: -math.log(probability)
        for shares in grammar.backgrounds.values()
        for word, probability in zip(shares.words, shares.probabilities, strict=True)
    }
