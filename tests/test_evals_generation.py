"""Greedy text: agreement, repetition and what means nothing, against models that write by a script."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer, tiny_tokens
from torch import nn

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import EvalContext, Evaluator
from pytest_llmslim.evals import generation as written_texts
from pytest_llmslim.evals.cache import Cache
from pytest_llmslim.evals.generation import Generation, agreed, distinct, garbled, probabilities, repeated
from pytest_llmslim.evals.pairing import paired
from pytest_llmslim.evals.text import Passage
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.records import Protocol

WINDOW = 16


class Bytes:
    """A tokenizer of one token a byte, as byte-level vocabularies have them."""

    eos_token_id = 0

    def decode(self, tokens, skip_special_tokens=False):
        return bytes(tokens).decode("utf-8", errors="replace")


class Script(nn.Module):
    """Writes a given text behind each prompt: the next token is likely, all others are equally unlikely.

    Args:
        texts: tokens to write, by the first token of the prompt.
        prompt: tokens of a prompt.
    """

    def __init__(self, texts, prompt=4, vocabulary=256, likely=20.0, longest=None):
        super().__init__()
        self.texts, self.prompt, self.vocabulary, self.likely = texts, prompt, vocabulary, likely
        self.asked = 0
        if longest is not None:
            self.config = SimpleNamespace(max_position_embeddings=longest)

    def forward(self, input_ids, past_key_values, use_cache, logits_to_keep):
        self.asked += 1
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, tokens in enumerate(input_ids.tolist()):
            for position in range(self.prompt - 1, len(tokens)):
                text = self.texts[tokens[0]]
                token = text[min(position - self.prompt + 1, len(text) - 1)]
                logits[row, position, token] = self.likely
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def passage(count=64):
    """Windows that begin with 1, 2, ...: the first eight are what methods are calibrated on."""
    windows = torch.arange(1, count + 1)[:, None].expand(count, WINDOW).contiguous()
    protocol = Protocol("window", WINDOW, WINDOW, False, 1, 1, "t", "0" * 64, "float32")
    rest = (lambda n: windows[:n]) if count else (lambda n: None)
    return Passage(protocol, (), (), None, None, None, rest=rest)


def context_of(**changes):
    given = {"tokenizer": Bytes(), "device": "cpu", "label": "int4 on tiny", "seed": 0, "passage": passage()}
    return EvalContext(**(given | changes))


def both(reference, candidate, evaluation, **changes):
    """Answers of reference and candidate, as a run asks for them."""
    context = context_of(**changes)
    before = evaluation.answers(reference, context)
    after = evaluation.answers(candidate, replace(context, reference=before, reference_model=reference))
    return before, after


LETTERS = tuple(range(97, 123))


def scripts(text):
    return dict.fromkeys(range(1, 100), text)


def test_agreement_is_what_comes_before_the_first_difference():
    """Of ten tokens 3, 0 and all ten; what is equal behind a difference does not count."""
    texts = {9: LETTERS, 10: LETTERS, 11: LETTERS}
    changed = {
        9: (*LETTERS[:3], 65, *LETTERS[4:]),
        10: (65, *LETTERS[1:]),
        11: (*LETTERS[:10], 65),
    }
    before, after = both(Script(texts), Script(changed), Generation(tokens=10, prompts=3, prompt=4))

    assert [1.0, 1.0, 1.0] == [answer.score for answer in before.answers]
    assert [0.3, 0.0, 1.0] == [answer.score for answer in after.answers]
    assert (1.0, pytest.approx(1 / 3)) == (before.figures["exact texts"], after.figures["exact texts"])
    assert ("agreement", True, None, "mean") == before.metric == after.metric


def test_both_texts_stand_side_by_side():
    """Under one id, with the prompt; the pairing lists those that agree least first."""
    texts = {9: LETTERS, 10: LETTERS}
    changed = {9: (*LETTERS[:3], 65, *LETTERS[4:]), 10: (65, *LETTERS[1:])}
    before, after = both(Script(texts), Script(changed), Generation(tokens=5, prompts=2, prompt=4))
    found = paired("generation", before, after, "int4 on tiny")

    assert ["prompt 2", "prompt 1"] == [question.id for question in found.worst]
    assert ("abcde", "Abcde", "\n" * 4) == (
        found.worst[0].reference,
        found.worst[0].candidate,
        found.worst[0].text,
    )
    assert (1.0, pytest.approx(0.3)) == (found.reference, found.candidate)
    assert pytest.approx(0.3) == found.ratio.value


@given(st.lists(st.integers(0, 2), max_size=12), st.integers(0, 12), st.integers(3, 5))
def test_agreed_by_brute_force(text, place, other):
    """A text with one token changed agrees up to that token, and with itself all along."""
    assert len(text) == agreed(text, text)
    if place < len(text):
        assert place == agreed(text, [*text[:place], other, *text[place + 1 :]])


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("abcdefgh", 0.0),
        ("aaaaaaaa", 4 / 5),  # five runs of four, one kind
        ("abababab", 3 / 5),  # abab, baba, abab, baba, abab
        ("abcdabcd", 1 / 5),
        ("abcabcabc", 3 / 6),
        ("abcd", 0.0),
        ("abc", 0.0),
    ],
)
def test_repeated_in_closed_form(text, share):
    """Runs of four that were there before, by hand."""
    assert repeated(list(map(ord, text))) == pytest.approx(share)


@given(st.lists(st.integers(0, 2), min_size=4, max_size=30))
def test_repeated_counts_tokens_that_end_an_old_run(text):
    """The definition token by token: whether the four tokens that end here also ended somewhere before."""
    old = [text[i - 3 : i + 1] in [text[j - 3 : j + 1] for j in range(3, i)] for i in range(3, len(text))]
    assert repeated(text) == pytest.approx(sum(old) / len(old))


def test_distinct_pairs_are_counted_over_all_texts():
    """ab, bc, ab, bd: three of four."""
    assert distinct([[1, 2, 3], [1, 2, 4]]) == pytest.approx(3 / 4)
    assert distinct([[1]]) == 0.0


def test_a_text_that_decays_shows_in_every_figure():
    """A candidate that loops after 8 of 40 tokens: agreement 0.2, and of 37 runs of four 28 are old."""
    fresh = tuple(range(40, 100))
    before, after = both(
        Script(scripts(fresh)), Script(scripts((*fresh[:8], 33))), Generation(tokens=40, prompts=2, prompt=4)
    )
    assert [0.2, 0.2] == [answer.score for answer in after.answers]
    # runs that begin at 0 .. 8 are new, those at 9 .. 36 are all of one kind
    assert pytest.approx(28 / 37) == after.figures["repeated tokens"]
    assert 0 == before.figures["repeated tokens"]
    # both texts are alike, so that half of the pairs is distinct in the reference
    assert pytest.approx(0.5) == before.figures["distinct pairs"]
    assert pytest.approx(9 / 78) == after.figures["distinct pairs"]


def test_meaningless_is_what_the_reference_would_never_write():
    """It gives 255 other tokens exp(-20) each; those are 3 of 12, as the candidate is back on the script behind."""
    wrong = (*LETTERS[:5], 65, 66, 67, *LETTERS[8:])
    before, after = both(
        Script(scripts(LETTERS)), Script(scripts(wrong)), Generation(tokens=12, prompts=2, prompt=4)
    )
    assert (0.0, pytest.approx(3 / 12)) == tuple(
        answers.figures["meaningless tokens"] for answers in (before, after)
    )


def test_what_the_reference_half_expects_has_a_meaning():
    """At a likelihood of exp(5) to 1 all other tokens stay above 1e-4, so that only what is no text is left."""
    texts = (*LETTERS[:5], 7, 65, 0xFF, *LETTERS[8:])
    _, after = both(
        Script(scripts(LETTERS), likely=5.0),
        Script(scripts(texts), likely=5.0),
        Generation(tokens=12, prompts=1, prompt=4),
    )
    assert pytest.approx(2 / 12) == after.figures["meaningless tokens"]


def test_without_the_reference_at_hand_nothing_is_called_meaningless():
    """No figure rather than one by another rule."""
    evaluation = Generation(tokens=4, prompts=1, prompt=4)
    context = context_of()
    before = evaluation.answers(Script(scripts(LETTERS)), context)
    after = evaluation.answers(Script(scripts(LETTERS)), replace(context, reference=before))
    assert "meaningless tokens" in before.figures
    assert "meaningless tokens" not in after.figures


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"abc", "..."),
        ("aé€😀b".encode(), "." * 11),
        (b"a\xffbcdefg", ".#......"),
        (b"\x80\x80\x80\x80abcd", "####...."),
        (b"abcd\xf0\x9f\x98", "......."),  # the beginning of a character that had no more room
        (b"ab\xf0\x9fcdef", "..##...."),
        (b"a\x07b\tc\n", ".#...."),
        ("a\ue000b".encode(), ".###."),
        ("a\u0378b".encode(), ".##."),
    ],
)
def test_what_is_no_text(data, expected):
    """Broken UTF-8, control, private and unassigned characters; one of several tokens is judged as a whole."""
    assert expected == "".join(".#"[bad] for bad in garbled(tuple(data), Bytes()))


@pytest.mark.parametrize("piece", [1, 500, 2**25])
def test_probabilities_are_those_of_one_pass(piece, monkeypatch):
    """However few logits are held at once."""
    monkeypatch.setattr(written_texts, "PIECE", piece)
    module, tokens = tiny_model("llama"), tiny_tokens(3, 30)
    with torch.no_grad():
        logs = module(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    expected = logs[:, 9:-1].gather(2, tokens[:, 10:, None])[..., 0].exp()

    assert torch.allclose(expected, probabilities(module, tokens[:, :10], tokens[:, 10:]), atol=1e-5)


def test_logits_are_never_all_held(monkeypatch):
    """Of a large vocabulary the reference gives at most `PIECE` at a time."""
    monkeypatch.setattr(written_texts, "PIECE", 2 * 256 * 3)
    kept = []

    class Watched(Script):
        def forward(self, input_ids, past_key_values, use_cache, logits_to_keep):
            kept.append(logits_to_keep)
            return super().forward(input_ids, past_key_values, use_cache, logits_to_keep)

    Generation(tokens=10, prompts=2, prompt=4).answers(Watched(scripts(LETTERS)), context_of())
    assert [1] * 10 + [1, 3, 3, 3] == kept


def test_an_end_of_text_ends_nothing():
    """By the tokenizer, the config and the model's own settings; the next likeliest token is taken."""
    model = Script(scripts((97, 0, 98, 1, 2, 3)), likely=2.0)
    model.config = SimpleNamespace(eos_token_id=1)
    model.generation_config = SimpleNamespace(eos_token_id=[2, 3])
    (text,) = Generation(tokens=6, prompts=1, prompt=4).answers(model, context_of()).written
    assert (97, 98) == (text[0], text[2])
    assert not {0, 1, 2, 3} & set(text)


def test_prompts_are_apart_from_calibration():
    """They begin behind the windows on which methods look, and the protocol has their hash."""
    seen = []

    class Watched(Script):
        def forward(self, input_ids, *rest, **named):
            seen.append(input_ids)
            return super().forward(input_ids, *rest, **named)

    found = Generation(tokens=4, prompts=3, prompt=4).answers(Watched(scripts(LETTERS)), context_of())
    assert [[9] * 4, [10] * 4, [11] * 4] == seen[0].tolist()
    told = [found.protocol[name] for name in ("decoding", "new tokens", "prompts")]
    assert ["greedy, never an end of text", "4", "3 of 4 tokens"] == told
    assert found.protocol["kernels"].startswith(f"torch {torch.__version__}, CPU ")
    assert len(found.protocol["prompts sha256"]) == 64
    assert 2 * (3 * 4 + 3 * 4) == found.tokens  # written, and read once more by the reference
    assert found.seconds > 0


def test_fewer_prompts_where_less_text_is_left():
    """The last windows there are, with a note; `--llm-limit` lowers the number without one."""
    few = Generation(tokens=4, prompts=8, prompt=4).answers(
        Script(scripts(LETTERS)), context_of(passage=passage(3))
    )
    limited = Generation(tokens=4, prompts=8, prompt=4).answers(Script(scripts(LETTERS)), context_of(limit=2))
    assert (3, ("3 prompts instead of 8, since no more text is left",)) == (len(few.answers), few.notes)
    assert (2, ()) == (len(limited.answers), limited.notes)


def test_few_positions_make_shorter_texts():
    """For both models alike, with a note."""
    small = Script(scripts(LETTERS), longest=14)
    before, after = both(small, small, Generation(tokens=64, prompts=1, prompt=4))
    assert 10 == len(before.written[0]) == len(after.written[0])
    assert ("texts of 10 new tokens, since the model has no positions for 64",) == before.notes == after.notes


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (
            Script(scripts(LETTERS), longest=7),
            {},
            r"int4 on tiny: a prompt of 4 tokens leaves 4 positions or more to write in, got 3 of 7; "
            r"give a smaller prompt= or tokens=",
        ),
        (
            Script(scripts(LETTERS)),
            {"passage": passage(0)},
            r"int4 on tiny: a prompt is text that is not scored, and none is left; give a longer --llm-text",
        ),
        (
            Script(scripts((97, 98)), likely=float("nan")),
            {},
            r"int4 on tiny gives NaN or infinity in its logits while it writes text; check the weights",
        ),
        (
            nn.Linear(1, 1),
            {},
            r"int4 on tiny failed on text of its own \(TypeError: .*; run the model by itself",
        ),
    ],
)
def test_what_cannot_write_is_said(model, changes, message):
    """Each in one sentence with the way out."""
    with pytest.raises(EvaluationError, match=message):
        Generation(tokens=8, prompts=1, prompt=4).answers(model, context_of(**changes))


def test_a_prompt_is_no_longer_than_a_window():
    """Else it would be no running text."""
    with pytest.raises(EvaluationError, match=r"of a window of 16 tokens, got prompt=17; make it shorter"):
        Generation(tokens=8, prompts=1, prompt=17).answers(Script(scripts(LETTERS)), context_of())


def test_a_candidate_with_fewer_positions_is_refused():
    """Its shares would be of other lengths."""
    with pytest.raises(EvaluationError, match=r"leaves 12 positions or more to write in, got 8 of 12"):
        both(
            Script(scripts(LETTERS)),
            Script(scripts(LETTERS), longest=12),
            Generation(tokens=12, prompts=1, prompt=4),
        )


@pytest.mark.parametrize(
    ("name", "value", "least"), [("tokens", 3, 4), ("prompts", 0, 1), ("prompt", 1.5, 1), ("tokens", True, 4)]
)
def test_parameters_are_counts(name, value, least):
    """Texts of at least four tokens, since four make a repetition."""
    with pytest.raises(EvaluationError, match=rf"{name} is a whole number of at least {least}, got {value}"):
        Generation(**{name: value})
    assert isinstance(Generation(), Evaluator)


def test_texts_are_kept(tmp_path):
    """A model that was asked is not asked again, and says so; another one is."""
    evaluation, cache = Generation(tokens=6, prompts=2, prompt=4), Cache(tmp_path)
    model = Script(scripts(LETTERS))
    first = evaluation.answers(model, context_of(cache=cache, weights_hash="a" * 64))
    asked = model.asked
    again = evaluation.answers(model, context_of(cache=cache, weights_hash="a" * 64))
    reading = model.asked - asked

    assert first.written == again.written
    assert first.answers == again.answers
    assert reading < asked
    assert 2 * (4 + 6) == again.tokens == first.tokens // 2
    evaluation.answers(model, context_of(cache=cache, weights_hash="b" * 64))
    assert 2 * asked + reading == model.asked
    model.config = SimpleNamespace(to_dict=lambda: {"rope": 2})
    other = evaluation.answers(model, context_of(cache=cache, weights_hash="a" * 64))
    assert other.tokens == first.tokens  # equal weights, another model


def test_progress_is_told():
    """Token by token, and wiped at the end."""
    told = []
    Generation(tokens=4, prompts=1, prompt=4).answers(
        Script(scripts(LETTERS)), context_of(progress=told.append)
    )
    assert [f"token {i} of 4" for i in (1, 2, 3, 4)] + [""] == told


def test_a_copy_writes_the_same():
    """A real model against an equal one: agreement 1, equal figures."""
    module = tiny_model("gemma3")
    windows = tiny_tokens(20, 32)
    text = replace(passage(), rest=lambda count: windows[:count])
    before, after = both(
        module,
        copy_model(module),
        Generation(tokens=24, prompts=4, prompt=8),
        passage=text,
        tokenizer=tiny_tokenizer(),
    )
    assert [1.0] * 4 == [answer.score for answer in after.answers]
    assert before.figures == after.figures
    assert before.written == after.written


def test_a_padding_token_in_a_text_is_no_padding(caplog):
    """Of a mask that it takes to be missing transformers would warn."""
    windows = tiny_tokens(20, 32)
    windows[:, 7] = 3
    text = replace(passage(), rest=lambda count: windows[:count])
    with torch.inference_mode():
        Generation(tokens=8, prompts=2, prompt=8).answers(
            tiny_model("gpt2"), context_of(passage=text, tokenizer=tiny_tokenizer())
        )
    assert "attention_mask" not in caplog.text
