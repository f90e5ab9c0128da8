"""Slices: one kind of text by itself, cut into windows of equal length and scored."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import WORDS, tiny_model, tiny_tokenizer

from conftest import SHARED
from pytest_llmslim import evaluations
from pytest_llmslim.embedded.grammar import DOCUMENT_TOKENS, Grammar
from pytest_llmslim.errors import EvaluationError, NotApplicableError
from pytest_llmslim.evals import EvalContext, slice_texts, slices
from pytest_llmslim.evals import text as texts
from pytest_llmslim.evals.cache import Cache
from pytest_llmslim.evals.slice_texts import Section, SliceText, problems
from pytest_llmslim.evals.slice_texts.windows import cut_text, own_text
from pytest_llmslim.evals.slices import KINDS, Slice
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.storage import copy_model


class Letters:
    """A token a character; capitals are unknown, BOS is 1."""

    is_fast, bos_token_id, unk_token_id = False, 1, 0

    def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False, verbose=True):
        ids = [0 if character.isupper() else ord(character) for character in text]
        return {"input_ids": [1] * add_special_tokens + ids}

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i) for i in ids if i > 1)


def context_of(tokenizer, text, *, tokens=64, window=8, stride=None, bos="auto", **fields):
    """What an evaluation is told, with `text` as the text of the run."""
    source = texts.Source("own", text, "f" * 64)
    passage = texts.cut(
        source, tokenizer, tokens=tokens, window=window, stride=stride, bos=bos, dtype="float32", longest=None
    )
    return EvalContext(tokenizer, "cpu", "int4 on tiny", 0, passage, **fields)


LETTERS = "abcdefghijklmnopqrstuvwxyz" * 8


@pytest.fixture(scope="module")
def letters():
    """A run on a text of letters."""
    return context_of(Letters(), LETTERS)


def spelled(cut):
    return [("".join(chr(i) if i > 1 else "^?"[1 - i] for i in w.ids), w.first) for w in cut.windows]


def text_of(**sections):
    return SliceText(tuple(Section(name, text) for name, text in sections.items()), "a" * 64)


# Texts ------------------------------------------------------------------------------------------------------


def test_the_command_line_knows_every_kind():
    """`--llm-slices all` is each of them, parsed without importing this room."""
    assert evaluations.SLICES == KINDS
    assert set(slices.TEXTS) == set(KINDS) - {"long"}


def test_code_is_what_python_brings():
    """Each module from its first function or class on, and it parses."""
    text = slice_texts.code()
    assert [section.name for section in text.sections] == list(slice_texts.MODULES)
    for section in text.sections:
        assert section.text.startswith(("def ", "class ", "@"))
        ast.parse(section.text)


def test_code_without_its_source_is_an_error(monkeypatch):
    """A Python that was installed as bytecode alone."""
    monkeypatch.setattr(slice_texts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        EvaluationError, match="csv is installed without it; give --llm-slices a file of code instead"
    ):
        slice_texts._source("csv")


def test_a_module_without_functions_is_taken_whole():
    """Nothing is left out of constants."""
    assert slice_texts._without_head("a = 1\n") == "a = 1\n"


NUMBER = r"\d+(?:\.\d+)?"
SIDE = rf"{NUMBER}(?: ?[-+*/] ?\(?{NUMBER}\)?)*"
EQUATION = re.compile(rf"(?<![\w.^(])(?<![-+*/] ){SIDE}(?: = {SIDE})+(?![\w(^])")
DIVISOR = re.compile(r"gcd\((\d+), (\d+)\) = (\d+) and lcm\(\1, \2\) = (\d+)")


def test_every_equation_of_mathematics_holds():
    """All sides of each equation between numbers are equal, by Python's own arithmetic."""
    text = problems.text()
    found = [match[0] for match in EQUATION.finditer(text.replace("0 + 1 + ... +", "m +"))]
    assert len(found) > 1200
    for equation in found:
        sides = [eval(side) for side in equation.split(" = ")]
        assert max(sides) - min(sides) < 1e-9, equation
    divisors = [tuple(map(int, match.groups())) for match in DIVISOR.finditer(text)]
    assert len(divisors) > 20
    for a, b, divisor, multiple in divisors:
        assert (math.gcd(a, b), math.lcm(a, b)) == (divisor, multiple)


def test_mathematics_is_the_same_everywhere():
    """A change of the generator changes stored results, and is meant."""
    assert slice_texts.mathematics().sha256.startswith("2e66464085494d95")
    assert problems.text(36, seed=1) != problems.text(36, seed=2)


def test_mathematics_has_each_kind_once_in_turn():
    """No model gets by with copying the problem before."""
    paragraphs = problems.text(36).split("\n\n")
    starts = [paragraph.split()[0] for paragraph in paragraphs]
    assert len(paragraphs) == 36
    assert sorted(starts[:18]).count("Factor") == sorted(starts[18:]).count("Factor") == 1


def test_languages_are_many_and_without_digits():
    """So that damage to digits is damage to mathematics alone."""
    sections = slice_texts.languages().sections
    assert [s.name for s in sections] == "fr de es it pt pl tr ru el ar hi zh ja ko".split()
    for section in sections:
        assert len(section.text) > 350
        assert not re.search(r"[0-9\[\]]", section.text)


@pytest.mark.parametrize("kind", ["nested", "rare"])
def test_documents_of_the_embedded_language_are_chosen(kind):
    """Those with the most relative clauses, or the rarest words, come first; each is whole."""
    grammar = Grammar()
    (section,) = getattr(slice_texts, kind)().sections
    documents = grammar.read(section.text)
    assert {len(document) for document in documents} == {DOCUMENT_TOKENS}
    if kind == "nested":
        counts = [document.count(grammar.vocabulary.relative) for document in documents]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > 2 * counts[-1]
    else:
        rank = {word: i for shares in grammar.backgrounds.values() for i, word in enumerate(shares.words)}
        means = [sum(map(rank.get, document)) / DOCUMENT_TOKENS for document in documents]
        assert min(means[:16]) > sum(means) / len(means)


# Parameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"a slice has a kind \(code, .*\) or a file, got kind='', file=''"),
        ({"kind": "code", "file": "x"}, "got kind='code', file='x'"),
        (
            {"kind": "poems"},
            "one of code, mathematics, languages, long, nested, rare, or a file; got kind='poems'",
        ),
        ({"kind": "code", "windows": 0}, "a slice has at least one window, got windows=0"),
        ({"kind": "code", "windows": 2.5}, "at least one window, got windows=2.5"),
        ({"file": "poems"}, "slice poems: there is no such file, and no such kind of text; give the path"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    """When the run is collected, with what would do."""
    with pytest.raises(EvaluationError, match=message):
        Slice(**parameters)


def test_bad_files_are_refused(tmp_path, monkeypatch):
    """Unreadable, not UTF-8, empty."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(EvaluationError, match=r"latin.txt is not UTF-8 \(byte 3\); convert it"):
        Slice(file="latin.txt")
    with pytest.raises(EvaluationError, match=r"empty.txt is empty; give a file with some thousand words"):
        Slice(file="empty.txt")
    with pytest.raises(
        EvaluationError, match=r"cannot be read \(Is a directory\); give the path of a UTF-8 file"
    ):
        slice_texts.from_file(tmp_path)


def test_a_file_is_found_from_where_the_user_stands(tmp_path, monkeypatch, letters):
    """Even where a test changes the folder later; its name is that of the slice."""
    (tmp_path / "notes.txt").write_text(LETTERS * 10)
    monkeypatch.chdir(tmp_path)
    found = Slice(file="notes.txt", windows=2)
    monkeypatch.chdir("/")
    answers = found.answers(Uniform(), letters)
    assert [answer.id for answer in answers.answers] == ["notes.txt/1", "notes.txt/2"]


# Windows ----------------------------------------------------------------------------------------------------


def test_sections_take_turns(letters):
    """Equally many windows each, all of one length, BOS in front."""
    cut = cut_text(text_of(a="abcdefghijk", b="lmnopqrst"), letters, 4, 5)
    assert spelled(cut) == [("^abc", 1), ("^lmn", 1), ("^def", 1), ("^opq", 1)]
    assert [window.section for window in cut.windows] == ["a", "b", "a", "b"]
    assert cut.notes == ()


def test_fewer_windows_than_sections_are_spread(letters):
    """From the first section to the last, not the first few."""
    text = text_of(**{name: name * 10 for name in "abcdef"})
    assert [window.section for window in cut_text(text, letters, 4, 3).windows] == ["a", "c", "e"]


def test_windows_without_bos_are_text_alone():
    """As the run's own are; the first token has nothing before it and is not scored."""
    context = context_of(Letters(), LETTERS, bos="never")
    assert spelled(cut_text(text_of(a="abcdefghijk"), context, 4, 2)) == [("abcd", 1), ("efgh", 1)]


def test_what_is_left_out_is_told(letters):
    """Sections too short or not known to the tokenizer, and windows that the text does not hold."""
    cut = cut_text(text_of(a="abcdefg", b="xy", c="KNOW none"), letters, 4, 9)
    assert [window.section for window in cut.windows] == ["a", "a"]
    assert cut.notes == (
        "left out, since the tokenizer knows too little of them: c (56 %)",
        "left out, since they are shorter than a window: b (2 tokens)",
        "the text holds 2 windows, fewer than the 3 asked for",
    )


def test_a_text_that_is_not_known_is_refused(letters):
    """With the share that is known, and what to do."""
    with pytest.raises(
        NotApplicableError,
        match="the tokenizer knows 25 % of this text, and unknown words tell nothing; leave this slice out, or give",
    ):
        cut_text(text_of(a="ABCd" * 5, b="ABCD" * 5), letters, 4, 9)


def test_a_text_that_is_too_short_is_refused(letters):
    """Shorter than one window."""
    with pytest.raises(
        EvaluationError,
        match="int4 on tiny: the text has 2 tokens, fewer than one window of 4; give a longer one",
    ):
        cut_text(text_of(a="ab"), letters, 4, 9)


def test_long_windows_are_scored_in_their_second_half(letters):
    """Each begins half a window after the one before, so that no token is scored twice."""
    cut = own_text(letters, 21, 16)
    text = (LETTERS * 2)[:64]
    assert spelled(cut) == [(f"^{text[i : i + 20]}", 11) for i in (0, 10, 20, 30, 40)]
    assert cut.sha256 == "f" * 64
    assert cut.notes == ("the text holds 5 windows, fewer than the 16 asked for",)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(41, 200),
    st.integers(4, 30),
    st.one_of(st.none(), st.integers(1, 20)),
    st.sampled_from(["auto", "never"]),
    st.integers(17, 300),
)
def test_long_windows_are_the_text_of_the_run(tokens, window, stride, bos, positions):
    """Whatever its windows are: each long one is a piece of it, and no token is scored twice."""
    stride = None if stride is None else min(stride, window - 2)
    text = "".join(chr(20_000 + i) for i in range(tokens))  # each character once
    context = context_of(Letters(), text, tokens=tokens, window=window, stride=stride, bos=bos)
    cut = own_text(context, positions, 16)
    whole = [ord(character) for character in text]
    scored = []
    for piece in cut.windows:
        assert len(piece.ids) <= positions
        ids = list(piece.ids[bos == "auto" :])
        assert ids == whole[ids[0] - 20_000 :][: len(ids)]
        scored += piece.ids[piece.first :]
    assert len(scored) == len(set(scored)) > 0
    assert len({len(piece.ids) for piece in cut.windows}) == 1


def test_too_little_text_for_long_windows_is_refused():
    """With the options that give more."""
    context = context_of(Letters(), LETTERS, tokens=30)
    with pytest.raises(
        EvaluationError,
        match="the run's text has 30 tokens, too few for 4 long windows; give a longer --llm-text, or",
    ):
        own_text(context, 512, 16)


# Scoring ----------------------------------------------------------------------------------------------------


class Uniform(torch.nn.Module):
    """Gives each of 128 tokens the same probability; notes what it was asked."""

    config = SimpleNamespace(vocab_size=128, max_position_embeddings=21)

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, input_ids, use_cache):
        self.asked.append(input_ids.shape[1])
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 128))


@pytest.fixture(scope="module")
def tiny():
    """A tiny model, and a run on a text in its vocabulary."""
    tokenizer = tiny_tokenizer()
    text = " ".join(WORDS[(7 * i * i + i) % len(WORDS)] for i in range(400))
    return tiny_model("llama"), context_of(tokenizer, text, tokens=300, window=32)


@pytest.mark.parametrize("keeps", [True, False])
def test_scores_are_those_of_all_logits(tiny, keeps):
    """Mean cross entropy of the second half, whether or not the model can give a part of its logits."""
    model, context = tiny
    asked = model if keeps else Plain(model)
    found = Slice(kind="long", windows=3).answers(asked, context)
    cut = own_text(context, model.config.max_position_embeddings, 3)
    assert len(found.answers) == 3
    for answer, window in zip(found.answers, cut.windows, strict=True):
        ids = torch.tensor([window.ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
        assert answer.score == pytest.approx(losses[window.first - 1 :].mean().item(), rel=1e-6)
    assert found.tokens == sum(len(window.ids) for window in cut.windows)
    assert found.metric == ("perplexity", False, None, "perplexity")


class Plain(torch.nn.Module):
    """A model that always gives all logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids, use_cache):
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_answers_say_what_was_measured(tiny):
    """Numbered ids, the beginning of each window, and a protocol that decides the number."""
    model, context = tiny
    found = Slice(kind="long").answers(model, context)
    cut = own_text(context, model.config.max_position_embeddings, 16)
    assert [answer.id for answer in found.answers] == [f"long/{i}" for i in range(1, len(cut.windows) + 1)]
    assert found.answers[0].question.startswith(
        " ".join(WORDS[(7 * i * i + i) % len(WORDS)] for i in range(8))
    )
    length = len(cut.windows[0].ids)
    assert found.protocol == {
        "slice": "long",
        "window": str(length),
        "scored": str(cut.windows[0].scored),
        "tokens": str(cut.windows[0].scored * len(cut.windows)),
        "bos": "true",
        "dtype": "float32",
        "sha256": "f" * 64,
    }
    assert Slice(kind="long").answers(model, context).answers == found.answers


def test_sections_are_named_in_the_questions(letters, monkeypatch):
    """A reader sees which language it was."""
    monkeypatch.setitem(slices.TEXTS, "languages", lambda: text_of(fr="bonjour " * 9, de="guten tag " * 9))
    found = Slice(kind="languages", windows=2).answers(Uniform(), letters)
    assert [answer.question for answer in found.answers] == [
        "fr: bonjour bonjour bonj",
        "de: guten tag guten tag",
    ]


def test_the_limit_of_the_run_counts_windows(letters, tmp_path):
    """`--llm-limit` is of questions; a window is one."""
    (tmp_path / "notes.txt").write_text(LETTERS)
    found = Slice(file=str(tmp_path / "notes.txt")).answers(Uniform(), replace(letters, limit=2))
    assert len(found.answers) == 2


def test_what_was_answered_is_not_asked_again(letters, tmp_path):
    """Each window once a model, with an equal score; a killed run goes on where it was."""
    context = replace(letters, cache=Cache(tmp_path), weights_hash="1" * 64)
    first, second, other = Uniform(), Uniform(), Uniform()
    one, two = (Slice(kind="long").answers(model, context) for model in (first, second))
    assert (one.answers, one.protocol) == (two.answers, two.protocol)
    assert (len(first.asked), second.asked) == (5, [])
    assert (one.tokens, two.tokens, two.seconds) == (105, 0, 0)
    Slice(kind="long").answers(other, replace(context, weights_hash="2" * 64))
    assert len(other.asked) == 5
    third = Uniform()
    third.config = SimpleNamespace(**vars(third.config), to_dict=lambda: {"rope": 2})
    Slice(kind="long").answers(third, context)
    assert len(third.asked) == 5  # equal weights, another model


def test_a_foreign_text_is_noted(letters):
    """Where the reference guesses; once, not for each candidate."""
    found = Slice(kind="long").answers(Uniform(), letters)
    assert math.exp(found.answers[0].score) == pytest.approx(128)
    assert found.notes[-1] == (
        "this text is foreign to the reference, which is no better than guessing among 128 tokens: a change says little"
    )
    again = Slice(kind="long").answers(Uniform(), replace(letters, reference=found))
    assert not any("foreign" in note for note in again.notes)


def test_a_model_that_breaks_is_named(letters):
    """With the reason and what to do."""
    model = Uniform()
    model.forward = lambda input_ids, use_cache: 1 / 0
    with pytest.raises(
        EvaluationError,
        match=r"int4 on tiny failed in a forward pass of 21 tokens \(ZeroDivisionError: .*\); run the model by itself",
    ):
        Slice(kind="long").answers(model, letters)


# Models -----------------------------------------------------------------------------------------------------


def perplexities(model, context, kinds):
    found = {}
    for kind in kinds:
        scores = [answer.score for answer in Slice(kind=kind, windows=6).answers(model, context).answers]
        found[kind] = math.exp(sum(scores) / len(scores))
    return found


def ratios(model, tokens, context, kinds):
    """Perplexities over the model's own, once the embeddings of some tokens are gone."""
    damaged = copy_model(model)
    embeddings = torch.nn.Embedding.from_pretrained(model.get_input_embeddings().weight.detach().clone())
    embeddings.weight[tokens] = 0
    damaged.set_input_embeddings(embeddings)
    before, after = (perplexities(each, context, kinds) for each in (model, damaged))
    return {kind: after[kind] / before[kind] for kind in kinds}


def test_damage_to_digits_is_seen_by_mathematics():
    """And hardly, or not at all, by the others."""
    folder = SHARED / "data" / "stories260K"
    if not folder.exists():
        pytest.skip("stories260K is not in the shared folder")
    model = load_model(str(folder))
    names = [model.tokenizer.decode([i]) for i in range(len(model.tokenizer))]
    digits = [i for i, name in enumerate(names) if any(map(str.isdigit, name))]
    context = context_of(model.tokenizer, " ".join(WORDS[:-10] * 20), tokens=1500, window=256)
    found = ratios(model.module, digits, context, ("code", "mathematics", "languages", "long"))
    assert found["mathematics"] > 5
    assert found["code"] < 2
    assert found["languages"] == found["long"] == 1


@pytest.fixture(scope="module")
def embedded():
    """The embedded Llama and a run on its own text."""
    model = load_model("embedded:llama")
    text = Grammar().text(33, 8)
    return model, context_of(model.tokenizer, text, tokens=8 * DOCUMENT_TOKENS, window=DOCUMENT_TOKENS + 1)


def test_damage_to_a_word_is_seen_by_its_slice(embedded):
    """Relative clauses are more frequent in `nested`; long texts of the embedded language are whole documents."""
    model, context = embedded
    relative = [model.tokenizer.convert_tokens_to_ids("ke")]
    found = ratios(model.module, relative, context, ("nested", "rare", "long"))
    assert found["nested"] > max(found["rare"], found["long"]) > 1
    cut = own_text(context, 512, 16)
    assert [window.ids for window in cut.windows] == [tuple(w[0].tolist()) for w in context.passage.windows]
    assert cut.notes[-1] == "a long text of the embedded language is one whole document"


def test_other_languages_make_no_sense_on_embedded_models(embedded):
    """Nor do kinds of the embedded language on other models; nobody expects those, so they are left out quietly."""
    model, context = embedded
    with pytest.raises(NotApplicableError, match="the tokenizer knows 0 % of this text") as refused:
        Slice(kind="mathematics").answers(model.module, context)
    assert not refused.value.quiet


def test_kinds_of_the_embedded_language_are_its_own(tiny):
    """On another model they are refused by name, and `all` passes over them without a word."""
    with pytest.raises(
        NotApplicableError,
        match="the language of the embedded models, and the tokenizer is of another; use one of code, mathematics, ",
    ) as refused:
        Slice(kind="nested").answers(*tiny)
    assert refused.value.quiet


# Runs -------------------------------------------------------------------------------------------------------

OWN = """
    import pytest

    @pytest.mark.llm(recipe="int8")
    def test_it(llm):
        llm.measure()
"""


def test_all_slices_are_those_that_make_sense(pytester, run):
    """The rest is left out with a note, or without where nobody expects it."""
    pytester.makepyfile(OWN)
    result = run("--llm-slices", "all")
    result.assert_outcomes(passed=1)
    shown = result.stdout.str()
    assert "slice(kind=long): perplexity, lower is better" in shown
    for kind in ("code", "mathematics", "languages"):
        assert f"slice(kind={kind})" in shown
    assert re.search(
        r"left out: the tokenizer knows \d+ % of this text, and unknown words tell nothing\n", shown
    )
    assert "nested" not in shown
    assert "rare" not in shown


def test_a_slice_asked_for_by_name_is_never_left_out(pytester, run):
    """Also beside `all`."""
    pytester.makepyfile(OWN)
    result = run("--llm-slices", "all", "--llm-slices", "code")
    result.stdout.fnmatch_lines(
        ["*slice(kind=code): the tokenizer knows * % of this text, *; leave this slice out*"]
    )
    assert result.ret == 1


def test_a_file_is_a_slice(pytester, run, tiny_text):
    """By its name, relative to where the user stands."""
    pytester.makepyfile(OWN)
    (pytester.path / "notes.txt").write_text(tiny_text.read_text())
    result = run("--llm-slices", "notes.txt")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*slice(file=notes.txt): perplexity, lower is better, n = *"])
    result = run("--llm-slices", "nots.txt")
    result.stderr.fnmatch_lines(["*slice nots.txt: there is no such file, and no such kind of text*"])
    assert result.ret != 0
