"""Texts, and how they are cut into windows."""

from __future__ import annotations

import hashlib

import pytest
import torch

from conftest import SHARED
from pytest_llmslim.errors import TextError
from pytest_llmslim.evals import text as texts
from pytest_llmslim.models.loading import load_model


class Letters:
    """A tokenizer of one token a character, with offsets; BOS is 0 where there is one."""

    is_fast = True

    def __init__(self, bos=0, prepends=True):
        self.bos_token_id, self.prepends = bos, prepends

    def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False, verbose=True):
        ids = [ord(character) for character in text]
        start = [self.bos_token_id] if add_special_tokens and self.prepends else []
        return {"input_ids": start + ids, "offset_mapping": [(i, i + 1) for i in range(len(ids))]}


def cut(text, tokenizer=None, *, tokens=16, window=5, stride=None, bos="auto", longest=None, calibration=""):
    source = texts.Source("here", text, "0" * 64, calibration)
    return texts.cut(
        source,
        tokenizer or Letters(),
        tokens=tokens,
        window=window,
        stride=stride,
        bos=bos,
        dtype="float32",
        longest=longest,
    )


def shown(passage):
    """Windows as text, BOS as `^`, what is scored in capitals."""
    rows = []
    for window, first in zip(passage.windows, passage.scored_from, strict=True):
        letters = ["^" if i == 0 else chr(i) for i in window[0].tolist()]
        rows.append("".join(c.upper() if n >= first else c for n, c in enumerate(letters)))
    return rows


ALPHABET = "abcdefghijklmnopqrstuvwxyz" * 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["^ABCD", "^EFGH", "^IJKL", "^MNOP"]),
        ({"bos": "never"}, ["aBCDE", "fGHIJ", "kLMNO"]),
        ({"tokenizer": Letters(prepends=False), "tokens": 17}, ["aBCDE", "fGHIJ", "kLMNO", "pQ"]),
        ({"tokenizer": Letters(prepends=False), "bos": "always"}, ["^ABCD", "^EFGH", "^IJKL", "^MNOP"]),
        (
            {"tokenizer": Letters(bos=None, prepends=False), "tokens": 20},
            ["aBCDE", "fGHIJ", "kLMNO", "pQRST"],
        ),
        ({"stride": 2, "tokens": 11}, ["^ABCD", "^cdEF", "^efGH", "^ghIJ", "^ijK"]),
        ({"stride": 2, "bos": "never", "tokens": 11}, ["aBCDE", "cdeFG", "efgHI", "ghiJK"]),
        ({"tokens": 2}, ["^AB"]),
        ({"tokens": 6}, ["^ABCD", "^EF"]),
        ({"tokens": 6, "bos": "never"}, ["aBCDE"]),
    ],
)
def test_windows(options, expected):
    """Disjoint or overlapping windows, with and without BOS; every token is scored at most once."""
    assert shown(cut(ALPHABET, **options)) == expected


def test_the_protocol_says_how_the_text_was_cut():
    """Name, window, stride, BOS, scored tokens, text and its hash."""
    protocol = cut(ALPHABET).protocol
    assert (protocol.name, protocol.window, protocol.stride, protocol.bos) == ("window", 5, 4, True)
    assert (protocol.tokens, protocol.windows, protocol.text) == (16, 4, "here")
    assert cut(ALPHABET, bos="never").protocol.tokens == 12
    assert cut(ALPHABET, stride=2, tokens=11).protocol.name == "stride"


def test_calibration_follows_what_is_scored():
    """Methods see other text than the score: the rest of the file, with BOS in front of each window."""
    passage = cut(ALPHABET)
    assert [chr(i) for i in passage.calibration[0].tolist()[1:]] == ["q", "r", "s", "t"]
    assert passage.calibration.shape == (8, 5)
    assert passage.calibration[:, 0].tolist() == [0] * 8


def test_calibration_may_be_a_text_of_its_own():
    """Then the scored text is not touched."""
    passage = cut("abcdefgh", tokens=8, calibration="zyxwvuts")
    assert [chr(i) for i in passage.calibration[0].tolist()[1:]] == ["z", "y", "x", "w"]
    assert passage.notes == ()


@pytest.mark.parametrize(("count", "windows"), [(0, None), (1, 1), (8, 8), (12, 12), (99, 22)])
def test_more_text_can_be_asked_for(count, windows):
    """As many windows as there is text after the scored part; more begin with fewer."""
    passage = cut(ALPHABET)
    rest = passage.rest(count)

    assert windows == (None if rest is None else len(rest))
    if rest is not None:
        same = min(len(rest), len(passage.calibration))
        assert torch.equal(passage.calibration[:same], rest[:same])
        assert "qrst" == "".join(chr(i) for i in rest[0].tolist()[1:])


def test_text_is_drawn_once():
    """Again only for more of it, so that the methods of a run do not tokenise the same text in turn."""
    asked = []

    def draw(count):
        asked.append(count)
        return torch.arange(count)[:, None] if count < 9 else None

    rest = texts.Rest(draw)
    assert [len(rest(count)) for count in (4, 2, 4, 6)] == [4, 2, 4, 6]
    assert torch.equal(rest(3), torch.tensor([[0], [1], [2]]))
    assert rest(9) is None
    assert [4, 6, 9] == asked


def test_the_embedded_language_never_runs_out():
    """Text to learn from is written as it is asked for, and is never the text that is scored."""
    tokenizer = load_model("embedded:gpt2").tokenizer
    source = texts.grammar_text(2)
    passage = texts.cut(
        source, tokenizer, tokens=510, window=256, stride=None, bos="auto", dtype="float32", longest=512
    )
    rest = passage.rest(40)

    assert (40, 256) == rest.shape
    assert torch.equal(passage.calibration, rest[:8])
    scored = {tuple(window[0].tolist()) for window in passage.windows}
    assert not scored & {tuple(window) for window in rest.tolist()}


def test_without_text_left_there_is_no_calibration():
    """And the record says so."""
    passage = cut("abcdefghij", tokens=10)
    assert passage.calibration is None
    assert passage.notes == ("no text was left for calibration",)


def test_a_short_text_is_scored_as_far_as_it_goes():
    """Nothing is repeated to fill up."""
    passage = cut("abcdefghijkl", tokens=100)
    assert len(passage.windows) == 3
    assert passage.notes[0] == "the text here holds 12 tokens, fewer than the 100 asked for"


@pytest.mark.parametrize(
    ("text", "options", "words", "size"),
    [
        ("aa bb cc ddd eee", {"tokens": 20}, 5, 16),
        ("aa bb cc ddd eee", {"tokens": 10}, 4, 10),
        ("aaaa aaaa aaaa", {"tokens": 10}, 2, 10),
        ("é é é é é é é é ", {"tokens": 10}, 5, 15),
    ],
)
def test_words_and_bytes_of_the_scored_text(text, options, words, size):
    """A word counts where it starts, bytes are UTF-8, and adjacent windows add up to the whole."""
    passage = cut(text, **options)
    assert (passage.words, passage.scored_bytes) == (words, size)


def test_a_slow_tokenizer_has_no_words():
    """Per-word perplexity is absent, not wrong."""
    slow = Letters()
    slow.is_fast = False
    passage = cut(ALPHABET, slow)
    assert (passage.words, passage.scored_bytes) == (None, None)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("abc", {}, r"The text here has 3 tokens, fewer than one window of 5; give a longer text"),
        (ALPHABET, {"longest": 4}, r"--llm-window 5 is longer than the model's 4 positions; use at most 4\."),
        (ALPHABET, {"stride": 5}, r"--llm-stride 5 is not smaller than the window of 5"),
        (
            ALPHABET,
            {"bos": "always", "tokenizer": Letters(bos=None, prepends=False)},
            r"--llm-bos always needs a tokenizer with a BOS token",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(text, options, message):
    """Each in one sentence with the way out."""
    with pytest.raises(TextError, match=message):
        cut(text, **options)


def test_the_bytes_of_a_file_are_its_hash(tmp_path):
    """Line ends are not translated, and CRLF is pointed out."""
    path = tmp_path / "crlf.txt"
    path.write_bytes(b"one\r\ntwo\r\n")
    source = texts.read_text(path)
    assert source.text == "one\r\ntwo\r\n"
    assert source.sha256 == hashlib.sha256(b"one\r\ntwo\r\n").hexdigest()
    assert source.notes == ("the text has CRLF line ends, which change the perplexity",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\); give the path of a UTF-8 file"),
        (b"\xff\xfe", r"is not UTF-8 \(byte 0\); convert it"),
        (b" \n", r"is empty; give a file with some thousand words"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    """Missing, binary or empty."""
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        texts.read_text(path)


def test_a_folder_is_no_text(tmp_path):
    """The system's reason is passed on."""
    with pytest.raises(TextError, match=r"cannot be read \(Is a directory\)"):
        texts.read_text(tmp_path)


def test_every_python_has_a_text():
    """The language reference that comes with the interpreter, long enough for real windows."""
    source = texts.reference_manual()
    assert len(source.text) > 300_000
    assert source.notes[0].startswith("the text is Python's reference manual")


def test_the_grammar_writes_one_document_a_window():
    """The floor is that of the documents which the windows hold."""
    source = texts.grammar_text(3)
    assert [len(line.split()) for line in source.text.split("\n")] == [255, 255, 255]
    assert source.calibration
    assert source.calibration[:200] != source.text[:200]


@pytest.mark.skipif(
    not (SHARED / "data/wikitext-2-raw/wiki.test.raw").exists(), reason="WikiText-2 is not there"
)
def test_wikitext_has_its_published_hash():
    """The file is read byte for byte."""
    source = texts.read_text(SHARED / "data/wikitext-2-raw/wiki.test.raw")
    assert source.sha256.startswith("173c87a5")
