"""Requests answered from shared prefixes, in batches, from the cache: always what lm-eval's own HFLM answers."""

from __future__ import annotations

import logging
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, POSITIONS, WORDS, tiny_model, tiny_text, tiny_tokenizer

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import EvalContext, scorer
from pytest_llmslim.evals.cache import Cache, conditions
from pytest_llmslim.evals.prefixes import (
    End,
    Group,
    Limits,
    Room,
    Row,
    Stem,
    batches,
    cost,
    grouped,
    rows_of,
    stem_batches,
)
from pytest_llmslim.evals.scorer import Scorer, lm_for
from pytest_llmslim.methods import Context
from pytest_llmslim.models.storage import weights_hash
from pytest_llmslim.recipe import Step, instantiate
from pytest_llmslim.registry import Registry

TORCHAO = ("int8-dynamic", "int8-weight")
GREEDY = {"until": ["."], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}


def context_of(tokenizer=None, **changes):
    told = EvalContext(
        tokenizer=tokenizer or tiny_tokenizer(), device="cpu", label="int4 on tiny", seed=0, passage=None
    )
    return replace(told, **changes)


def asked(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


def hflm(model, tokenizer=None):
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=model, tokenizer=tokenizer or tiny_tokenizer(), batch_size=8)


def compressed(recipe):
    context = Context(calibration=None, seed=0, device="cpu", family="llama", label="tiny")
    return instantiate(Step(recipe), Registry(BUILTIN_METHODS)).compress(tiny_model("llama"), context).module


def questions(count=8, *, seed=0, longest=60):
    """Multiple choice: 20 words of examples, then a question each, and four choices of 1 to 5 words."""
    draw = random.Random(seed)
    shots = " ".join(draw.choices(WORDS, k=20))
    asked = [f"{shots} {' '.join(draw.choices(WORDS, k=draw.randint(2, longest)))}" for _ in range(count)]
    return [
        (question, " " + " ".join(draw.choices(WORDS, k=draw.choice((1, 1, 3, 5)))))
        for question in asked
        for _ in range(4)
    ]


def odd_ones():
    """An empty context, a request twice, one cut from the left, spaces before the continuation, a long continuation."""
    return [
        ("", "the of and"),
        ("the of", " and to"),
        ("the of", " and to"),
        (tiny_text(200, seed=3), " rain tree"),
        (tiny_text(200, seed=3), " rain"),
        ("the of in  ", "man"),
        ("the", " " + tiny_text(120, seed=4)),
    ]


def same(ours, theirs):
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert [log for log, _ in ours] == pytest.approx([log for log, _ in theirs], rel=1e-6, abs=1e-5)


def tokens_of(model, run):
    """Tokens in the forward passes of `run`."""
    seen = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["input_ids"]).numel()),
        with_kwargs=True,
    )
    found = run()
    handle.remove()
    return found, sum(seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_multiple_choice_scores_as_lm_eval_does(family):
    """Beyond the sliding window, too, and with the choices that the model itself would write; with fewer tokens."""
    model = tiny_model(family)
    theirs = hflm(model)
    texts = theirs.generate_until(asked("generate_until", *[(q, GREEDY) for q, _ in questions()[::4]]), True)
    greedy = [(q, f" {text}") for (q, _), text in zip(questions()[::4], texts, strict=True) if text.strip()]
    requests = asked("loglikelihood", *questions(), *greedy, *odd_ones())
    ours = lm_for(model, context_of())
    found, tokens = tokens_of(model, lambda: ours.loglikelihood(requests))
    expected, more = tokens_of(model, lambda: theirs.loglikelihood(requests, disable_tqdm=True))
    same(found, expected)
    assert any(greedy for _, greedy in found)
    assert tokens == ours.tokens < more / 1.5
    assert ours.truncated == 2
    assert ours.seconds > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_texts_score_as_in_lm_eval(family):
    """In windows of the model's positions; 3 documents, one shorter than a window."""
    model = tiny_model(family)
    requests = asked("loglikelihood_rolling", *[(tiny_text(n, seed=n),) for n in (300, 41, 190)])
    ours = lm_for(model, context_of())
    expected = hflm(model).loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-6)
    assert ours.batch_size == 16


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_texts_are_those_of_lm_eval(family, tmp_path):
    """And a second run reads them; what is drawn at random is written anew."""
    model = tiny_model(family)
    prompts = [(q, GREEDY) for q, _ in questions(20)[::4]]
    requests = asked("generate_until", *prompts)
    expected = hflm(model).generate_until(requests, disable_tqdm=True)
    context = context_of(cache=Cache(tmp_path), weights_hash="abc")
    first = lm_for(model, context)
    assert first.generate_until(requests) == expected
    again = lm_for(model, context)
    assert again.generate_until(requests) == expected
    assert first.tokens > 0 == again.passes
    assert again.seconds == 0
    random_ones = asked("generate_until", ("the of", {**GREEDY, "do_sample": True, "temperature": 1.0}))
    again.generate_until(random_ones)
    before = again.passes
    again.generate_until(random_ones)
    assert again.passes > before > 0


def test_a_model_without_room_to_write_is_refused():
    """lm-eval's own sentence, and what to do."""
    lm = lm_for(tiny_model("gpt2"), context_of())
    with pytest.raises(
        EvaluationError, match=r"int4 on tiny cannot be asked: .*\(128\)\. Use a model with more pos"
    ):
        lm.generate_until(asked("generate_until", ("the", {"until": ["."], "max_gen_toks": 128})))


def test_the_order_of_requests_changes_nothing():
    """Not even the last digit, for requests are sorted before they are put together."""
    model = tiny_model("llama")
    pairs = [*questions(), *odd_ones()]
    one = dict(
        zip(pairs, lm_for(model, context_of()).loglikelihood(asked("loglikelihood", *pairs)), strict=True)
    )
    random.Random(5).shuffle(pairs)
    other = lm_for(model, context_of()).loglikelihood(asked("loglikelihood", *pairs))
    assert dict(zip(pairs, other, strict=True)) == one


def test_one_text_cut_at_several_places():
    """Each request is that of a pass of its own; lm-eval 0.4.13 reads the shorter continuation at a wrong position."""
    model, tokenizer = tiny_model("qwen3"), tiny_tokenizer()
    pairs = [("", "the of and"), ("the of", " man"), ("the", " of and"), ("the of and", " to")]
    found = lm_for(model, context_of()).loglikelihood(asked("loglikelihood", *pairs))
    for (before, after), (log, _) in zip(pairs, found, strict=True):
        start = len(tokenizer(before).input_ids)
        tokens = torch.tensor(tokenizer(before + " " + after).input_ids)
        logs = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])
        assert log == pytest.approx(float(logs[start - 1 :].sum()), abs=1e-5)


@pytest.mark.parametrize(("recipe", "digits"), [("nf4", 1e-5), ("int8", 0.5), ("int8-dynamic", 0.5)])
def test_packed_models_are_scored_too(recipe, digits):
    """By bitsandbytes and torchao; with 8-bit activations scores depend on the batch, in lm-eval too."""
    if recipe == "int8-dynamic":
        pytest.importorskip("torchao", reason="the extra torchao is not installed")
    model, requests = compressed(recipe), asked("loglikelihood", *questions())
    ours, theirs = lm_for(model, context_of()), hflm(model)
    logs = [log for log, _ in ours.loglikelihood(requests)]
    assert logs == pytest.approx([log for log, _ in theirs.loglikelihood(requests, True)], abs=digits)


def test_the_model_and_its_tokenizer_stay_as_they_were():
    """lm-eval would tie the head to the embedding, and give the run's tokenizer a padding token."""
    model, tokenizer = tiny_model("opt"), tiny_tokenizer()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2, requires_grad=False)
    tokenizer.pad_token = None
    lm = lm_for(model, context_of(tokenizer))
    assert lm.tokenizer.pad_token is not None
    assert tokenizer.pad_token is None
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert "tie_weights" not in vars(model)


def scored(model, pairs, **changes):
    """Answers of a scorer by itself, with its limits changed, and the sizes of its passes."""
    lm = hflm(model)
    requests = [(lm._encode_pair(*pair) if pair[0] else ([0], lm.tok_encode(pair[1])[1:])) for pair in pairs]
    one = Scorer(model, POSITIONS, "int4 on tiny")
    for name, value in changes.items():
        setattr(one.limits, name, value)
    sizes = []
    handle = model.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(
            (*kwargs["input_ids"].shape, output.logits.shape[1])
        ),
        with_kwargs=True,
    )
    answers = {i: answer for found in one.scores(requests) for i, answer in found.items()}
    handle.remove()
    return [answers[i] for i in range(len(pairs))], sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_never_there_all_at_once(family):
    """With room for 20 positions long texts run in pieces, and few rows together; the answers stay."""
    model = tiny_model(family)
    pairs = [*questions(), *odd_ones(), ("", tiny_text(100, seed=9))]
    plain, _ = scored(model, pairs)
    found, sizes = scored(model, pairs, scored=20)
    same(found, plain)
    assert max(rows * kept for rows, _, kept in sizes) <= 20


def test_batches_keep_to_their_tokens():
    """A batch of one may exceed them, and nothing else."""
    model = tiny_model("llama")
    plain, _ = scored(model, questions())
    found, sizes = scored(model, questions(), tokens=100)
    same(found, plain)
    assert all(rows * length <= 100 for rows, length, _ in sizes if rows > 1)
    assert max(rows for rows, _, _ in sizes) > 1


def test_a_repeated_cache_keeps_to_its_bytes(monkeypatch):
    """40 questions behind one prefix do not repeat it 40 times at once."""
    model = tiny_model("llama")
    shots = tiny_text(70)
    pairs = [(f"{shots} {word}", f" {word} the of") for word in WORDS[:40]]
    whole, sizes = scored(model, pairs)
    assert max(rows for rows, _, _ in sizes) == 40
    slot = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, width, bytes
    monkeypatch.setattr(scorer, "CPU_CACHE_BYTES", 10 * slot * 80)
    found, sizes = scored(model, pairs)
    assert 5 <= max(rows for rows, length, _ in sizes if length < 8) <= 10
    same(found, whole)


def failing(model, monkeypatch, rows):
    """Let passes of more than `rows` rows run out of memory."""
    real = model.forward

    def forward(input_ids, past_key_values=None, use_cache=None, attention_mask=None, position_ids=None):
        if len(input_ids) > rows:
            raise torch.cuda.OutOfMemoryError
        return real(
            input_ids=input_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            attention_mask=attention_mask,
            position_ids=position_ids,
        )

    monkeypatch.setattr(model, "forward", forward)


def test_where_memory_runs_out_batches_are_halved(monkeypatch):
    """The answers stay, and later batches are smaller from the start."""
    model = tiny_model("llama")
    pairs = [*questions(), *odd_ones()]
    plain, _ = scored(model, pairs)
    failing(model, monkeypatch, 4)
    found, _ = scored(model, pairs)
    same(found, plain)


def test_one_request_that_does_not_fit_is_an_error(monkeypatch):
    """With what can be done."""
    model = tiny_model("llama")
    failing(model, monkeypatch, 0)
    with pytest.raises(
        EvaluationError, match=r"int4 on tiny runs out of GPU memory on a single request; free mem"
    ):
        scored(model, [("the of", " and")])


def test_no_number_is_an_error_not_an_answer(tmp_path):
    """And nothing is kept."""
    model = tiny_model("llama")
    model.model.norm.weight.fill_(float("nan"))
    lm = lm_for(model, context_of(cache=Cache(tmp_path), weights_hash="abc"))
    with pytest.raises(
        EvaluationError, match=r"int4 on tiny gives no finite probabilities \(NaN in the logits\); ch"
    ):
        lm.loglikelihood(asked("loglikelihood", ("the of", " and")))
    assert not list(tmp_path.rglob("*.jsonl"))


class Forgetful(torch.nn.Module):
    """A model whose cache is not to be trusted."""

    def __init__(self, model, spoil):
        super().__init__()
        self.inner, self.config, self.spoil = model, model.config, spoil

    def forward(self, input_ids, past_key_values=None, use_cache=False):
        if past_key_values is not None:
            past_key_values = self.spoil(past_key_values)
        return self.inner(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)


class Bare(torch.nn.Module):
    """A model that takes token ids and nothing else."""

    def __init__(self, model):
        super().__init__()
        self.inner, self.config = model, model.config

    def forward(self, input_ids):
        return self.inner(input_ids=input_ids)


def broken(cache):
    raise NotImplementedError


@pytest.mark.parametrize("spoil", [lambda cache: None, broken], ids=["wrong", "raises"])
def test_a_cache_that_gives_other_logits_is_not_used(spoil):
    """Found out by a pass of 8 tokens; then nothing is shared, and the answers are right."""
    model = tiny_model("llama")
    plain, _ = scored(model, questions())
    lm = hflm(model)
    requests = [lm._encode_pair(*pair) for pair in questions()]
    for bad in (Forgetful(model, spoil), Bare(model)):
        found = {i: one for part in Scorer(bad, POSITIONS, "x").scores(requests) for i, one in part.items()}
        same([found[i] for i in range(len(requests))], plain)


def test_without_positions_only_equal_prefixes_run_together():
    """A model that takes no mask shares all the same, question by question."""
    model = tiny_model("llama")
    lm = hflm(model)
    requests = [lm._encode_pair(*pair) for pair in questions()]
    one = Scorer(Forgetful(model, lambda cache: cache), POSITIONS, "x")
    found, tokens = tokens_of(
        one._model, lambda: {i: one for part in one.scores(requests) for i, one in part.items()}
    )
    same([found[i] for i in range(len(requests))], scored(model, questions())[0])
    assert tokens < sum(len(before) + len(after) for before, after in requests) / 2


def test_an_interrupted_run_goes_on(tmp_path):
    """What was answered before is not asked again; a third run asks nothing."""
    model = tiny_model("llama")
    requests = asked("loglikelihood", *questions(40))
    context = context_of(cache=Cache(tmp_path), weights_hash="abc")
    whole = lm_for(model, context_of())
    expected = whole.loglikelihood(requests)
    first = lm_for(model, context)
    passes = []

    def kill(module, args):
        passes.append(1)
        if len(passes) > whole.passes - 2:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(kill)
    with pytest.raises(KeyboardInterrupt):
        first.loglikelihood(requests)
    handle.remove()
    kept = sum(file.read_bytes().count(b"\n") for file in tmp_path.rglob("*.jsonl"))
    assert 0 < kept < len(requests)
    second = lm_for(model, context)
    answers = second.loglikelihood(requests)
    same(answers, expected)
    assert 0 < second.tokens < whole.tokens * 0.8
    third = lm_for(model, context)
    assert third.loglikelihood(requests) == answers
    assert (third.tokens, third.passes, third.seconds) == (0, 0, 0.0)


def test_rolling_is_kept_too(tmp_path):
    """By window."""
    context = context_of(cache=Cache(tmp_path), weights_hash="abc")
    model, requests = tiny_model("gpt2"), asked("loglikelihood_rolling", (tiny_text(300),))
    first = lm_for(model, context)
    expected = first.loglikelihood_rolling(requests)
    again = lm_for(model, context)
    assert again.loglikelihood_rolling(requests) == expected
    assert first.passes > again.passes == 0


def test_other_models_have_other_shelves(tmp_path):
    """Equal weights under another window are another model, and a model without a hash is not kept."""
    cache = Cache(tmp_path)
    requests = asked("loglikelihood", *questions(1))
    for window, digest in ((32, "abc"), (16, "abc"), (32, "")):
        lm = lm_for(
            tiny_model("mistral", sliding_window=window), context_of(cache=cache, weights_hash=digest)
        )
        lm.loglikelihood(requests)
        assert lm.passes > 0
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2
    assert lm.protocol() == {"bos": "[0]", "max_length": "128"}


def test_what_is_done_with_activations_is_part_of_the_conditions():
    """Torchao's 8-bit weights are the same tensors whether or not activations are quantised, too."""
    pytest.importorskip("torchao", reason="the extra torchao is not installed")
    models = [compressed(recipe) for recipe in TORCHAO * 2]
    assert len({weights_hash(model) for model in models}) == 1
    assert len({conditions(model, "cpu")["architecture"] for model in models}) == len(TORCHAO)


def test_what_is_drawn_at_random_hangs_on_the_seed():
    """Alike for every model of a run, and nothing else of the run draws otherwise for it."""
    how = {"until": ["."], "max_gen_toks": 12, "do_sample": True, "temperature": 5.0}
    requests = asked("generate_until", *[("the of", how)] * 3)
    model = tiny_model("gpt2")
    state = torch.random.get_rng_state()
    first, again, other = (
        lm_for(model, context_of(seed=seed)).generate_until(requests) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 3
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_a_model_that_breaks_is_named(kind):
    """A candidate is anybody's code: what it raises comes with its name and what to do."""
    model = tiny_model("gpt2")
    model.transformer.forward = lambda *args, **kwargs: 1 / 0
    how = " yes" if kind == "loglikelihood" else {"until": ["."], "max_gen_toks": 4}
    with pytest.raises(
        EvaluationError, match=r"int4 on tiny failed while it was asked \(ZeroDivisionError: .*; run"
    ):
        getattr(lm_for(model, context_of()), kind)(asked(kind, ("the war", how)))


def test_a_tokenizer_without_bos_and_eos_is_refused():
    """Something has to stand before the first token that is scored."""
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    message = "int4 on tiny is asked behind a BOS or EOS token, and its tokenizer has neither; name one as bos_token"
    with pytest.raises(EvaluationError, match=message):
        lm_for(tiny_model("gpt2"), context_of(tokenizer))


def test_a_tokenizer_of_bos_alone_pads_with_it():
    """Lm-eval would add a token for padding that no model has an embedding for."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.unk_token = tokenizer.pad_token = None
    lm = lm_for(tiny_model("gpt2"), context_of(tokenizer))
    assert (lm.tokenizer.pad_token_id, tokenizer.pad_token_id) == (tokenizer.bos_token_id, None)


def test_progress_is_told_now_and_then():
    """At most ten times, the last time that there is nothing more to tell."""
    told = []
    lm = lm_for(tiny_model("gpt2"), context_of(progress=told.append))
    lm.loglikelihood(asked("loglikelihood", *questions(80)))
    assert 2 <= len(told) <= 11
    assert all(line.endswith(" of 320 requests") for line in told[:-1])
    assert told[-1] == ""


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
REQUESTS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=6)


def rows_in(group, prefix=()):
    """All rows below a group; each begins with all prefixes around it, and no prefix predicts what is wanted."""
    assert group.prefix[: len(prefix)] == prefix
    found = [*group.rows, *(row for each in group.groups for row in rows_in(each, group.prefix))]
    assert all(row.tokens[: group.shared] == group.prefix and row.first >= group.shared for row in found)
    return found


@given(REQUESTS)
def test_no_token_is_processed_twice(requests):
    """With prefixes of any length the cost is one token a node of the tree, and what predicts something wanted."""
    rows = rows_of(requests, 50)
    nodes = {row.tokens[:k] for row in rows for k in range(1, row.first + 1)}
    assert cost(grouped(rows, 1)) == len(nodes) + sum(len(row.tokens) - row.first for row in rows)


@given(REQUESTS, st.integers(1, 4))
def test_every_row_is_behind_what_it_shares(requests, shortest):
    """Once, at any depth; each prefix is so much longer than the one around it, and shared by two rows at least."""
    rows = rows_of(requests, 50)
    whole = grouped(rows, shortest)
    assert whole.shared == 0
    assert sorted(rows_in(whole)) == sorted(rows)
    assert cost(whole) <= sum(len(row.tokens) for row in rows)
    around = [whole]
    while around:
        group = around.pop()
        for each in group.groups:
            assert each.shared >= group.shared + shortest
            assert len(rows_in(each)) > 1
        around += group.groups


def test_examples_and_questions_are_both_shared():
    """Two levels: 40 tokens of examples once, 10 of each of 5 questions once, 4 choices of 3 tokens each."""
    examples = list(range(40))
    requests = [
        (examples + [100 + question] * 10, [200 + choice, 3, 4])
        for question in range(5)
        for choice in range(4)
    ]
    tree = grouped(rows_of(requests, 500))
    # The last token of a question predicts the first of a choice, so it is the choice's.
    assert (len(tree.groups), tree.groups[0].shared, len(tree.groups[0].groups)) == (1, 40, 5)
    assert cost(tree) == 40 + 5 * 9 + 20 * 3


@given(REQUESTS, st.integers(6, 12))
def test_rows_hold_every_request(requests, longest):
    """At the position where lm-eval reads it; no row is the beginning of another."""
    rows = rows_of(requests, longest)
    wanted = {each.request: (row.tokens, each) for row in rows for each in row.wanted}
    assert set(wanted) == set(range(len(requests)))
    for index, (context, continuation) in enumerate(requests):
        tokens, each = wanted[index]
        inputs = tuple((context + continuation)[-(longest + 1) :][:-1])
        assert tokens[: len(inputs)] == inputs
        assert each.tokens == tuple(continuation)
        assert each.start == len(inputs) - len(continuation)
    assert not any(a is not b and b.tokens[: len(a.tokens)] == a.tokens for a in rows for b in rows)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([], [1]), "A request has 0 tokens of context and 1 of continuation; both need at least one"),
        (([1], []), "A request has 1 tokens of context and 0 of continuation"),
        (([1], [1] * 9), "A continuation of 9 tokens does not fit into the model's 8 positions; use a model"),
    ],
)
def test_what_cannot_be_asked(request_, message):
    """A sentence in place of an assertion inside lm-eval."""
    with pytest.raises(EvaluationError, match=message):
        rows_of([request_], 8)


ENDS = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 19)).map(
        lambda size: End(
            Row((0,) * size[0], rows_of([([0] * size[0], [1])], 50)[0].wanted), min(size[1], size[0] - 1)
        )
    ),
    max_size=20,
)


@given(ENDS, st.integers(1, 60), st.integers(1, 30), st.integers(1, 200), st.integers(0, 10))
def test_batches_hold_all_and_keep_to_their_limits(ends, tokens, scored, slots, past):
    """The longest come first; one end alone may be too large."""
    room = Room(past, slots) if past else None
    found = list(batches(ends, Limits(tokens, scored), room))
    assert sorted(end for batch in found for end in batch) == sorted(ends)
    assert [end.length for batch in found for end in batch] == sorted((e.length for e in ends), reverse=True)
    for batch in found:
        width = max(end.length for end in batch)
        if len(batch) > 1:
            assert len(batch) * width <= tokens
            assert len(batch) * (width - min(end.first for end in batch)) <= scored
            assert room is None or len(batch) * (past + width) <= slots


@given(
    st.lists(st.integers(1, 60), max_size=20),
    st.integers(1, 300),
    st.none() | st.builds(Room, st.integers(1, 50), st.integers(1, 500)),
    st.booleans(),
)
def test_prefixes_run_together_with_little_padding(lengths, tokens, room, pads):
    """One token of eight at most; none where the model cannot bear it."""
    stems = [Stem(Group(length + 5, (Row((0,) * 70, ()),)), 5) for length in lengths]
    found = list(stem_batches(stems, Limits(tokens, 1), room, pads=pads))
    assert sorted(len(stem.tokens) for batch in found for stem in batch) == sorted(lengths)
    for batch in found:
        width = max(len(stem.tokens) for stem in batch)
        whole = len(batch) * width
        assert len(batch) == 1 or whole <= tokens
        assert len(batch) == 1 or room is None or len(batch) * (room.past + width) <= room.slots
        assert whole - sum(len(stem.tokens) for stem in batch) <= (whole // 8 if pads else 0)
