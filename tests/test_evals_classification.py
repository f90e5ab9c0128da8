"""Which label has a text: by the likelihood of its words, or by a classifier's logits."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from classifying import taught_classifier, tiny_classifier, toy_rows
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from tiny_models import tiny_model, tiny_tokenizer, tiny_tokens

from pytest_llmslim.errors import EvaluationError, MissingPackageError
from pytest_llmslim.evals import Answer, EvalContext, Evaluator, label_tasks
from pytest_llmslim.evals.cache import Cache
from pytest_llmslim.evals.classification import Classification, figures_of, majority
from pytest_llmslim.evals.pairing import paired
from pytest_llmslim.methods import Context
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.models.storage import copy_model

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def ask(tmp_path):
    """Asks a model for labels of rows that are written to a file."""

    def asked(model, rows, task="sms_spam", metric="weighted_f1", **context):
        (tmp_path / "sms_spam").mkdir(exist_ok=True)
        lines = "".join(f"{('ham', 'spam')[label]}\t{text}\n" for text, label in rows)
        (tmp_path / "sms_spam" / "SMSSpamCollection").write_text(lines)
        plain = EvalContext(TOKENIZER, "cpu", "here", 0, None, data=tmp_path)
        return Classification(task, metric).answers(model, replace(plain, **context))

    return asked


@pytest.fixture(scope="module")
def taught():
    return taught_classifier()


@pytest.fixture
def word_task(monkeypatch):
    """The task with a prompt and labels in the tiny tokenizer's words; one label has two tokens."""
    made = replace(label_tasks.TASKS["sms_spam"], words=("new team", "war"), prompt="the {0} is")
    monkeypatch.setitem(label_tasks.TASKS, "sms_spam", made)
    return made


def likelihood(model, prompt, word):
    """Token by token, one forward pass each, without batches."""
    ids = TOKENIZER(prompt)["input_ids"]
    total = 0.0
    for token in TOKENIZER(word, add_special_tokens=False)["input_ids"]:
        with torch.no_grad():
            total += float(model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token])
        ids = [*ids, token]
    return total


# Causal language models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "gemma3"])
def test_labels_by_their_likelihood(family, ask, word_task):
    """As summed up token by token; the loss is -log of the right label's share among the labels."""
    model, rows = tiny_model(family), toy_rows(12, seed=3)
    found = ask(model, rows)

    loss = 0.0
    for (text, label), answer in zip(rows, found.answers, strict=True):
        logs = [likelihood(model, word_task.prompt.format(text), word) for word in word_task.words]
        said = logs.index(max(logs))
        loss -= logs[label] - math.log(sum(map(math.exp, logs)))
        assert (answer.said, answer.score) == (word_task.labels[said], float(said == label))
        assert (answer.expected, answer.question) == (word_task.labels[label], text)
    assert found.figures["loss (nats)"] == pytest.approx(loss / len(rows), abs=1e-5)
    assert found.tokens > 0
    assert found.seconds > 0
    assert found.notes == ()


def test_a_long_prompt_loses_its_beginning(ask, word_task):
    """What asks stands at the end; how many were cut is noted. The tiny models have 128 positions."""
    text = " ".join(["the rain"] * 100)
    model = tiny_model("llama")
    found = ask(model, [("the film", 0), (f"war {text}", 1)])
    same = ask(model, [("the film", 0), (f"album {text}", 1)])
    assert found.notes == (
        "2 of 4 prompts with a label are longer than the model's positions and lost their beginning",
    )
    assert found.figures["loss (nats)"] == same.figures["loss (nats)"]


def test_labels_that_the_tokenizer_does_not_know(ask):
    """Both are <unk>: the first is taken, the loss is that of guessing, and a note says why."""
    found = ask(tiny_model("gpt2"), toy_rows(6, seed=0))
    assert {answer.said for answer in found.answers} == {"ham"}
    assert found.figures["loss (nats)"] == pytest.approx(math.log(2))
    assert found.notes == ("the tokenizer does not tell ham and spam apart, so the first is always taken",)


def test_answers_are_kept(ask, tmp_path, word_task):
    """A second run processes nothing and answers the same."""
    context = {"cache": Cache(tmp_path / "cache"), "weights_hash": "f" * 64}
    first, second = (ask(tiny_model("llama"), toy_rows(9, seed=1), **context) for _ in range(2))
    assert first.tokens > 0 == second.tokens == second.seconds
    assert (first.answers, first.figures) == (second.answers, second.figures)


def test_without_lm_eval(ask, monkeypatch):
    """The line for pip; a classifier does without."""
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    monkeypatch.delitem(sys.modules, "pytest_llmslim.evals.harness_model", raising=False)
    with pytest.raises(
        MissingPackageError, match="package lm_eval, which is not installed; run: pip install lm_eval"
    ):
        ask(tiny_model("gpt2"), toy_rows(3, seed=0))
    assert len(ask(tiny_classifier("gpt2", pad_token_id=3), toy_rows(3, seed=0)).answers) == 3


# Classifiers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "mistral", "qwen3", "gemma3"])
def test_labels_by_a_classifiers_logits(family, ask):
    """As text by text without padding; the loss is transformers' own cross entropy."""
    model, rows = tiny_classifier(family, pad_token_id=3), toy_rows(40, seed=3)
    found = ask(model, rows)

    loss = 0.0
    for (text, label), answer in zip(rows, found.answers, strict=True):
        ids = torch.tensor([TOKENIZER(text)["input_ids"]])
        with torch.no_grad():
            alone = model(input_ids=ids, labels=torch.tensor([label]))
        loss += float(alone.loss)
        assert answer.said == ("ham", "spam")[int(alone.logits.argmax())]
    assert found.figures["loss (nats)"] == pytest.approx(loss / len(rows), abs=1e-5)
    assert found.tokens == sum(len(TOKENIZER(text)["input_ids"]) for text, _ in rows)
    assert found.protocol["asked"] == "classifier"


def test_what_a_classifier_learned_is_seen_and_pruning_hurts_it(ask, taught):
    """All of 300 new texts are right; with 95 % of its weights gone it is far worse, and the flips say so."""
    rows = toy_rows(300, seed=7)
    before = ask(taught, rows)
    context = Context(tiny_tokens(4, 16), 0, "cpu", "llama", "tiny", taught)
    after = ask(Magnitude(sparsity=0.95).compress(copy_model(taught), context).module, rows)
    found = paired("sms_spam", before, after, "pruned on tiny")

    assert found.reference > 0.98
    assert found.candidate < 0.8
    assert found.ratio.high < 0.9
    assert found.flips.right_to_wrong > 30
    assert found.flips.p < 1e-6
    assert (found.metric, found.chance) == ("weighted_f1", pytest.approx(2 / 3 * 4 / 5))
    assert {figure.name for figure in found.figures} == {"accuracy", "precision", "recall", "loss (nats)"}


def test_labels_are_matched_by_name(ask, taught):
    """A checkpoint may have them in another order."""
    turned = copy_model(taught)
    turned.config.id2label = {0: "Spam", 1: "HAM"}
    with torch.no_grad():
        turned.score.weight.copy_(taught.score.weight.flip(0))
    rows = toy_rows(30, seed=1)
    assert ask(turned, rows).answers == ask(taught, rows).answers


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("0", "1")])
def test_labels_without_names(names, ask):
    """Taken in the order of the task's, as a note says."""
    found = ask(tiny_classifier("llama", labels=names, pad_token_id=3), toy_rows(3, seed=1))
    assert found.notes == ("the classifier does not name its labels; they are taken for ham, spam",)


@pytest.mark.parametrize("names", [("negative", "positive"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_another_tasks_classifier_is_refused(names, ask):
    """With its labels and the task's."""
    with pytest.raises(
        EvaluationError,
        match=rf"here tells the labels of sms_spam apart \(ham, spam\), got a classifier of {', '.join(names)}; name",
    ):
        ask(tiny_classifier("llama", labels=names, pad_token_id=3), toy_rows(3, seed=1))


def test_a_long_text_loses_its_beginning(ask):
    """A decoder reads the label off the last token, so the end is kept."""
    model = tiny_classifier("gpt2", pad_token_id=3)
    text = " ".join(["rain"] * 128)
    found = ask(model, [(f"war {text}", 1), ("the film", 0)])
    same = ask(model, [(text, 1), ("the film", 0)])
    assert found.notes == ("1 of 2 texts are longer than the model's positions and lost their beginning",)
    assert found.answers[0].said == same.answers[0].said


def test_two_texts_are_a_pair(tmp_path):
    """Joined as the tokenizer joins them: here one behind the other."""
    (tmp_path / "glue" / "RTE").mkdir(parents=True)
    (tmp_path / "glue" / "RTE" / "dev.tsv").write_text(
        "sentence1\tsentence2\tlabel\tidx\nthe war\tthe film\t1\t0\n"
    )
    model = tiny_classifier("llama", labels=("entailment", "not_entailment"), pad_token_id=3)
    context = EvalContext(TOKENIZER, "cpu", "here", 0, None, data=tmp_path)
    found = Classification("rte").answers(model, context)
    ids = torch.tensor([TOKENIZER("the war", "the film")["input_ids"]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=torch.tensor([1])).loss
    assert found.figures["loss (nats)"] == pytest.approx(float(loss), abs=1e-5)
    assert found.answers[0].question == "the war / the film"


def test_weights_that_give_no_numbers(ask):
    """Refused by name, not answered."""
    model = tiny_classifier("llama", pad_token_id=3)
    model.score.weight.data.fill_(float("nan"))
    with pytest.raises(
        EvaluationError, match=r"here gives no finite probabilities \(NaN or inf in the logits\)"
    ):
        ask(model, toy_rows(3, seed=1))


# What is made of answers ------------------------------------------------------------------------------------


PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30)


@given(PAIRS)
def test_figures_are_those_of_scikit_learn(pairs):
    """Weighted averages, 0 where a label is never said."""
    said, expected = zip(*pairs, strict=True)
    found = figures_of([Answer(str(i), float(a == b), a, b) for i, (a, b) in enumerate(pairs)])
    options = {"average": "weighted", "zero_division": 0}
    assert found == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(expected, said),
            "precision": metrics.precision_score(expected, said, **options),
            "recall": metrics.recall_score(expected, said, **options),
            "weighted_f1": metrics.f1_score(expected, said, **options),
        }
    )


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_guessing_is_always_giving_the_most_frequent_label(expected):
    """Its accuracy and weighted F1, as scikit-learn has them, are the levels of chance."""
    from pytest_llmslim.evals.classification import _metric

    answers = [Answer(str(i), 0.0, "", label) for i, label in enumerate(expected)]
    most = [max(sorted(set(expected)), key=expected.count)] * len(expected)
    f1 = metrics.f1_score(expected, most, average="weighted", zero_division=0)
    assert majority(answers) == _metric("accuracy", answers).chance == metrics.accuracy_score(expected, most)
    assert _metric("weighted_f1", answers).chance == pytest.approx(f1)


def test_accuracy_may_be_the_metric(ask, taught):
    """Then F1 is a figure, and the total is a mean."""
    found = ask(taught, toy_rows(30, seed=2), metric="accuracy")
    assert (found.metric.name, found.metric.total, found.metric.chance) == ("accuracy", "mean", 2 / 3)
    assert [*found.figures] == ["precision", "recall", "weighted_f1", "loss (nats)"]


def test_the_protocol_tells_what_was_asked(ask, taught):
    """Task, form, sample and data; another sample or prompt is another protocol."""
    rows = toy_rows(30, seed=2)
    found = ask(taught, rows, limit=9)
    assert found.protocol | {"sha256": ""} == {
        "task": "sms_spam",
        "asked": "classifier",
        "rows": "9 of 30, by label, seed 0",
        "data": "sms_spam/SMSSpamCollection",
        "sha256": "",
    }
    assert [answer.expected for answer in found.answers].count("spam") == 3
    assert ask(taught, rows).protocol["rows"] == "all 30"
    assert ask(taught, rows, limit=9, seed=1).protocol["sha256"] != found.protocol["sha256"]
    assert ask(tiny_model("gpt2"), rows).protocol["asked"] == "prompt 1"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "task is one of sms_spam, .*, got ''"),
        ({"task": "spam"}, "task is one of sms_spam, sst2, cola, mrpc, qqp, rte, qnli, mnli, got 'spam'"),
        ({"task": "cola", "metric": "f1"}, "metric is one of weighted_f1, accuracy, got 'f1'"),
    ],
)
def test_unknown_parameters(parameters, message):
    """Refused before anything is loaded."""
    with pytest.raises(EvaluationError, match=message):
        Classification(**parameters)


def test_it_is_an_evaluator():
    """So that the run can ask it."""
    assert isinstance(Classification("sms_spam"), Evaluator)
