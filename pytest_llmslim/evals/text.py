"""The text on which quality is measured, cut into windows of tokens.

The text is read byte for byte: line ends, its sha256 and the use of BOS decide the perplexity (on Gemma 3 270M
and WikiText-2: 28.02 with BOS, 72.5 without, 27.50 with CRLF line ends), so all three are part of the protocol.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pytest_llmslim.errors import TextError
from pytest_llmslim.records import Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CALIBRATION_WINDOWS = 8
CHARACTERS_A_TOKEN = 16
"""More than any tokenizer needs on running text: how much of a long file is read through the tokenizer."""

REFERENCE_MANUAL = "python-reference"


@dataclass(frozen=True)
class Source:
    """A text before it is tokenised.

    Args:
        calibration: a text of its own, or empty: the rest of `text` is used.
        more: writes a calibration text of at least so many tokens that begins with `calibration`.
    """

    name: str
    text: str
    sha256: str
    calibration: str = ""
    notes: tuple[str, ...] = ()
    more: Callable[[int], str] | None = None


@dataclass
class Rest:
    """Keeps the most windows that were ever asked of `draw`: fewer of them are their beginning."""

    draw: Callable[[int], torch.Tensor | None]
    _asked: int = 0
    _drawn: torch.Tensor | None = None

    def __call__(self, count: int) -> torch.Tensor | None:
        """At most `count` windows [n, window], or `None`."""
        if count > self._asked:
            self._asked, self._drawn = count, self.draw(count)
        return None if self._drawn is None or count < 1 else self._drawn[:count]


@dataclass(frozen=True)
class Passage:
    """A text cut into windows for one tokenizer.

    Args:
        windows: token ids, one tensor of shape (1, length) a forward pass.
        scored_from: for each window the position of the first token whose probability counts.
        calibration: token ids of shape (n, window), apart from the scored ones, or `None` without text left.
        rest: gives up to so many windows like `calibration`, or `None`; a larger number begins with a smaller one's.
        words: words that start inside the scored text; `scored_bytes` its bytes in UTF-8. `None`: not known.
        floor: perplexity of the distribution that wrote the text, where that is known.
    """

    protocol: Protocol
    windows: tuple[torch.Tensor, ...]
    scored_from: tuple[int, ...]
    calibration: torch.Tensor | None
    words: int | None
    scored_bytes: int | None
    floor: float | None = None
    notes: tuple[str, ...] = ()
    rest: Callable[[int], torch.Tensor | None] | None = None


def read_text(path: Path) -> Source:
    """The text of a file, its line ends untouched.

    Raises:
        TextError: no such file, a folder, not UTF-8, or empty.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TextError(
            f"--llm-text {path} cannot be read ({error.strerror}); give the path of a UTF-8 file."
        ) from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"--llm-text {path} is not UTF-8 (byte {error.start}); convert it, e.g. with iconv -t utf-8."
        ) from None
    if not text.strip():
        raise TextError(f"--llm-text {path} is empty; give a file with some thousand words.")
    notes = ("the text has CRLF line ends, which change the perplexity",) if "\r\n" in text else ()
    return Source(path.name, text, hashlib.sha256(raw).hexdigest(), notes=notes)


def reference_manual() -> Source:
    """English prose that every Python installation has: its own language reference.

    It makes a real model measurable with nothing but the wheel. The text differs between Python versions,
    and its sha256 says so.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Source(
        REFERENCE_MANUAL,
        text,
        sha256,
        notes=("the text is Python's reference manual; give --llm-text for text like that of your users",),
    )


def grammar_text(documents: int) -> Source:
    """Held-out text of the embedded language, written with the evaluation and calibration seeds."""
    from pytest_llmslim.embedded.grammar import CALIBRATION_SEED, EVALUATION_SEED, Grammar

    grammar = Grammar()
    text = grammar.text(EVALUATION_SEED, documents)
    calibration = grammar.text(CALIBRATION_SEED, CALIBRATION_WINDOWS)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Source("embedded", text, sha256, calibration, more=partial(_written, grammar))


def _written(grammar: Any, tokens: int) -> str:  # noqa: ANN401  # Grammar, whose import costs
    from pytest_llmslim.embedded.grammar import CALIBRATION_SEED, DOCUMENT_TOKENS

    return str(grammar.text(CALIBRATION_SEED, -(-tokens // DOCUMENT_TOKENS)))


def cut(
    source: Source,
    tokenizer: Any,  # noqa: ANN401  # transformers is read as Any
    *,
    tokens: int,
    window: int,
    stride: int | None,
    bos: str,
    dtype: str,
    longest: int | None,
) -> Passage:
    """Tokenise a text and cut it into windows.

    Args:
        source: the text.
        tokenizer: a Hugging Face tokenizer.
        tokens: how many tokens of the text are scored (or, without BOS, passed); the last window may be shorter.
        window: tokens in a forward pass, BOS included.
        stride: `None` for disjoint windows (protocol `window`), else the fresh tokens of a window.
        bos: `always`, `never` or `auto`: as the tokenizer itself does.
        dtype: recorded in the protocol.
        longest: positions that the model has, or `None`.

    Raises:
        TextError: window longer than the model's positions, stride longer than a window, a text shorter than
            one window, or BOS asked of a tokenizer that has none.
    """
    _check_window(window, stride, longest)
    start = _bos(tokenizer, bos)
    body = window - len(start)  # tokens of text in a window
    step = body if stride is None else stride
    ids, offsets = _encode(tokenizer, source.text[: tokens * CHARACTERS_A_TOKEN])
    if len(ids) < min(tokens, body):
        raise TextError(
            f"The text {source.name} has {len(ids)} tokens, fewer than one window of {window}; "
            f"give a longer text or a smaller --llm-window."
        )
    notes = list(source.notes)
    if len(ids) < tokens:
        notes.append(f"the text {source.name} holds {len(ids)} tokens, fewer than the {tokens} asked for")
    total = min(tokens, len(ids))
    pieces = _pieces(total, body, step, context=len(start))
    windows = tuple(torch.tensor([start + ids[piece.begin : piece.end]]) for piece in pieces)
    spans = [(piece.first, piece.end) for piece in pieces]
    words, scored_bytes = _count(source.text, offsets, spans)
    rest = Rest(partial(_rest, source, tokenizer, total, start, body))
    calibration = rest(CALIBRATION_WINDOWS)
    if calibration is None:
        notes.append("no text was left for calibration")
    scored_from = tuple(len(start) + piece.first - piece.begin for piece in pieces)
    protocol = Protocol(
        name="window" if stride is None else "stride",
        window=window,
        stride=step,
        bos=bool(start),
        tokens=sum(b - a for a, b in spans),
        windows=len(windows),
        text=source.name,
        text_sha256=source.sha256,
        dtype=dtype,
    )
    return Passage(
        protocol, windows, scored_from, calibration, words, scored_bytes, notes=tuple(notes), rest=rest
    )


class Piece(NamedTuple):
    """A window as positions in the text's tokens: from `begin` to `end`, scored from `first`."""

    begin: int
    first: int
    end: int


def _pieces(total: int, body: int, step: int, *, context: int) -> list[Piece]:
    """Windows over `total` tokens, each token scored at most once.

    Args:
        total: tokens of text.
        body: tokens of text in a window.
        step: tokens between the starts of two windows.
        context: 1 with BOS. Without it the first token of a window has nothing before it and is not scored.
    """
    pieces = []
    for begin in range(0, max(1, total - (body - step)), step):
        fresh = begin + body - step if begin else 0
        piece = Piece(begin, max(fresh, begin + 1 - context), min(begin + body, total))
        pieces += [piece] if piece.first < piece.end else []
    return pieces


def _check_window(window: int, stride: int | None, longest: int | None) -> None:
    if longest is not None and window > longest:
        raise TextError(
            f"--llm-window {window} is longer than the model's {longest} positions; use at most {longest}."
        )
    if stride is not None and stride >= window:
        raise TextError(
            f"--llm-stride {stride} is not smaller than the window of {window}; use at most {window // 2}."
        )


def _bos(tokenizer: Any, when: str) -> list[int]:  # noqa: ANN401
    """The BOS token as a list, empty when windows start without it."""
    own = tokenizer.bos_token_id
    if when == "always" and own is None:
        raise TextError(
            "--llm-bos always needs a tokenizer with a BOS token, and this one has none; use auto."
        )
    if own is None or when == "never":
        return []
    return [own] if when == "always" or tokenizer("a")["input_ids"][:1] == [own] else []


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:  # noqa: ANN401
    """Token ids without special tokens, and the characters that each came from (fast tokenizers only)."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    # verbose=False: a text longer than the model's positions is what we want, windows come later.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    return list(encoded["input_ids"]), list(encoded["offset_mapping"]) if fast else None


def _count(
    text: str, offsets: Sequence[tuple[int, int]] | None, spans: Sequence[tuple[int, int]]
) -> tuple[int | None, int | None]:
    """Words that start in, and bytes of, the text behind some runs of tokens."""
    if offsets is None:
        return None, None
    word_starts = [match.start() for match in re.finditer(r"\S+", text[: offsets[spans[-1][1] - 1][1]])]
    words = scored_bytes = 0
    for first, end in spans:
        # Blank space between two tokens belongs to the later one, so that adjacent runs add up to the whole.
        a, b = offsets[first - 1][1] if first else 0, offsets[end - 1][1]
        words += bisect_left(word_starts, b) - bisect_left(word_starts, a)
        scored_bytes += len(text[a:b].encode())
    return words, scored_bytes


def _rest(
    source: Source,
    tokenizer: Any,  # noqa: ANN401  # transformers is read as Any
    scored: int,
    start: list[int],
    body: int,
    count: int,
) -> torch.Tensor | None:
    """At most `count` windows [n, window] of text after the first `scored` tokens, or of the calibration text."""
    wanted = count * body
    if source.more is not None:
        ids = _encode(tokenizer, source.more(wanted))[0]
    elif source.calibration:
        ids = _encode(tokenizer, source.calibration)[0]
    else:
        ids = _encode(tokenizer, source.text[: (scored + wanted) * CHARACTERS_A_TOKEN])[0][scored:]
    n = min(count, len(ids) // body)
    return torch.tensor([start + ids[i * body : (i + 1) * body] for i in range(n)]) if n > 0 else None


def with_floor(passage: Passage, source: Source) -> Passage:
    """The passage with the perplexity of the grammar that wrote it.

    Each window holds BOS and one document, a line of the text, so the grammar's probability of every scored
    token given the window is exact; the floor is exp of their mean negative logarithm.
    """
    from pytest_llmslim.embedded.grammar import Grammar, floor_perplexity

    grammar = Grammar()
    lines = source.text.split("\n")[: len(passage.windows)]
    documents = [
        grammar.read(line)[0][: window.shape[1] - 1]
        for line, window in zip(lines, passage.windows, strict=True)
    ]
    return replace(passage, floor=floor_perplexity(documents))
