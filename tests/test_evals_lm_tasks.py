"""Tasks of lm-eval, on local rows and on the hub's: prompts and scores are the stock task's."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_rows import Case, both, cases, mmlu_csv, write
from tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from conftest import SHARED
from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import EvalContext, lm_metrics, lm_names, lm_stock, lm_tasks, scorer, totals
from pytest_llmslim.evals.lm_tasks import LMTask, sample

CASES = cases()
POSITIONS = 2048


@pytest.fixture(scope="module")
def tokenizer():
    """A token a byte, so that every text is different to the model."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", "</s>", "<pad>", *letters])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split("", "isolated"),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=260, max_position_embeddings=POSITIONS)


@pytest.fixture
def context(tokenizer):
    return EvalContext(tokenizer=tokenizer, device="cpu", label="int4 on tiny", seed=0, passage=None)


@pytest.fixture(autouse=True)
def _nothing_kept():
    """Prompts of one test are not those of another."""
    lm_tasks._paper.cache_clear()


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds the rows of one task."""

    def holds(rows):
        import datasets

        def load_dataset(path, name=None, **_):
            return {split: datasets.Dataset.from_list(each) for split, each in rows.items()}

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return holds


@pytest.fixture
def asked(monkeypatch):
    """The arguments of every request that a model of ours is sent."""
    seen = []

    def recording(model, context):
        lm = real(model, context)
        for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            monkeypatch.setattr(lm, kind, partial(record, getattr(lm, kind)), raising=False)
        return lm

    def record(answer, requests):
        seen.extend(request.args for request in requests)
        return answer(requests)

    real = scorer.lm_for
    monkeypatch.setattr(scorer, "lm_for", recording)
    return seen


def stock_results(name, model, tokenizer, shots, tmp_path):
    """What lm-eval itself makes of its task, as its `simple_evaluate` calls it: arguments, numbers, samples."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with lm_stock.silence():
        # Where the asked rows are those of a test split, lm-eval has to be told that examples are drawn from them.
        same = "fewshot_split: test\n" if name.startswith("arc") and shots else ""
        (tmp_path / "stock.yaml").write_text(f"include: {lm_names.named()[name].file}\ntask: {name}\n{same}")
        loaded = TaskManager(include_path=str(tmp_path), include_defaults=False).load([name])
        if shots is not None:
            loaded["tasks"][name].set_config("num_fewshot", shots)
        loaded["tasks"][name].set_fewshot_seed(1234)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=POSITIONS)
        found = evaluate(lm, loaded, bootstrap_iters=0)
    samples = found["samples"][name]
    samples = [
        row for row in samples if row["filter"] == samples[0]["filter"]
    ]  # there may be several ways to read
    arguments = [argument for row in samples for argument in row["arguments"]]
    return arguments, found["results"][name], samples


def value(answers):
    return totals.named(answers.metric.total).value(answers.answers)


@pytest.mark.parametrize(
    ("name", "shots"),
    [*((name, case.shots) for name, case in CASES.items()), ("arc_challenge", 0), ("cola", 0)],
)
def test_prompts_and_scores_are_the_stock_tasks(name, shots, model, tokenizer, context, hub, asked, tmp_path):
    """On local rows as on the hub's: every argument of every request, the number, and each question's score."""
    case: Case = CASES[name]
    hub(case.hub)
    arguments, numbers, rows = stock_results(name, model, tokenizer, shots, tmp_path)
    folder = write(tmp_path / "data", case.files)

    answers = LMTask(name, shots).answers(model, replace(context, data=folder))

    assert asked == arguments
    assert value(answers) == pytest.approx(numbers[f"{case.metric},{case.filter}"], rel=1e-5)
    assert [answer.id for answer in answers.answers] == [f"{name}/{i}" for i in range(len(rows))]
    if answers.metric.total == "mean":
        assert [a.score for a in answers.answers] == pytest.approx(
            [row[case.metric] for row in rows], abs=1e-5
        )
    others = {f"{figure},{case.filter}": number for figure, number in answers.figures.items()}
    assert others == pytest.approx({key: numbers[key] for key in others}, rel=1e-4)


@pytest.mark.parametrize("name", ["hellaswag", "winogrande", "mmlu_anatomy"])
def test_rows_of_the_hub_are_asked_as_they_are(name, model, tokenizer, context, hub, asked, tmp_path):
    """Without --llm-data the plain stock task is run."""
    hub(CASES[name].hub)
    arguments, *_ = stock_results(name, model, tokenizer, CASES[name].shots, tmp_path)

    answers = LMTask(name, CASES[name].shots).answers(model, context)

    assert asked == arguments
    assert answers.protocol["data"].startswith("hub:")
    assert "examples" not in answers.protocol


PASSAGE = [
    {"question": "is the mill old", "passage": "The mill is old. -- It stands.", "idx": 0, "label": 1},
    {"question": "is it new", "passage": "The mill is not new.", "idx": 1, "label": 0},
    {"question": "is it red", "passage": "The mill is grey.", "idx": 2, "label": 0},
]
SUMS = [
    {
        "question": f"Ann has {n} hens and buys {n} more. How many has she?",
        "answer": f"{n}+{n}={2 * n}\n#### {2 * n}",
    }
    for n in range(2, 9)
]
OTHERS = {
    "boolq": (both(PASSAGE), 2, "acc", "none", 0.5),
    "gsm8k": ({"train": SUMS, "test": SUMS[:2]}, 5, "exact_match", "strict-match", 0.0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_task_is_judged_by_what_it_lists_first(
    name, model, tokenizer, context, hub, asked, tmp_path
):
    """With its own shots; of several ways to read an answer, by the first."""
    rows, shots, metric, way, chance = OTHERS[name]
    hub(rows)
    own = None if name == "gsm8k" else shots
    arguments, numbers, _ = stock_results(name, model, tokenizer, own, tmp_path)

    answers = LMTask(name, own).answers(model, context)

    assert asked == arguments
    assert (answers.metric.name, answers.metric.chance) == (metric, chance)
    assert value(answers) == pytest.approx(numbers[f"{metric},{way}"])
    assert answers.protocol["shots"] == str(shots)


# Shots, metric, chance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shots", "metric", "higher", "chance", "total"),
    [
        ("arc_challenge", "2", "acc_norm", True, 0.25, "mean"),
        ("hellaswag", "2", "acc_norm", True, 0.25, "mean"),
        ("mmlu_anatomy", "5", "acc", True, 0.25, "mean"),
        ("truthfulqa_mc2", "0", "acc", True, (2 / 3 + 2 / 4) / 2, "mean"),
        ("winogrande", "2", "acc", True, 0.5, "mean"),
        ("triviaqa", "0", "exact_match", True, 0.0, "mean"),
        ("lambada_openai", "0", "acc", True, 0.0, "mean"),
        ("wikitext", "0", "word_perplexity", False, None, "perplexity"),
        ("cola", "0", "mcc", True, 0.0, "matthews"),
        ("mnli", "0", "acc", True, 1 / 3, "mean"),
    ],
)
def test_each_task_has_its_metric_and_chance(
    name, shots, metric, higher, chance, total, model, context, tmp_path, monkeypatch
):
    """Chance is counted on the rows: choices, and true ones among them."""
    folder = write(tmp_path, CASES[name].files)
    monkeypatch.setattr(
        lm_tasks, "SHOTS", {k: min(v, 2) if v != 5 or k != "mmlu" else v for k, v in lm_tasks.SHOTS.items()}
    )
    answers = LMTask(name).answers(model, replace(context, data=folder))
    found = answers.metric
    assert (found.name, found.higher_is_better, found.total) == (metric, higher, total)
    assert found.chance == pytest.approx(chance)
    assert answers.protocol["shots"] == shots
    assert answers.protocol["metric"] == metric


@pytest.mark.parametrize(
    ("name", "shots"),
    [
        ("arc_challenge", 25),
        ("hellaswag", 10),
        ("mmlu", 5),
        ("mmlu_virology", 5),
        ("truthfulqa_mc2", 0),
        ("winogrande", 5),
    ],
)
def test_shots_are_those_of_the_literature(name, shots):
    """Unless others are asked for; None leaves the task's own number."""
    assert LMTask(name)._shots == shots
    assert LMTask(name, 3)._shots == 3
    assert LMTask("triviaqa")._shots is None


@given(st.lists(st.tuples(st.floats(-90, -1), st.integers(1, 40)), min_size=1, max_size=9))
def test_totals_are_lm_evals_aggregations(values):
    """Scores of single questions, put together again by our totals, are what lm-eval would print."""
    from lm_eval.api import metrics

    asked = {
        "mean": [log for log, _ in values],
        "perplexity": [log / 9 for log, _ in values],
        "weighted_perplexity": values,
        "bits_per_byte": values,
        "matthews_corrcoef": [(weight % 2, int(log) % 2) for log, weight in values],
    }
    for name, each in asked.items():
        way = lm_metrics._WAYS[name]
        scores = way.scores(each)
        if name == "matthews_corrcoef":
            assert scores == [float(gold == said) for gold, said in each]
            continue
        ours = math.fsum(scores) / len(scores)
        ours = math.exp(ours) if way.total == "perplexity" else ours
        assert ours == pytest.approx(getattr(metrics, name)(each), rel=1e-9)


@pytest.mark.parametrize(
    ("metric", "place"), [("acc", 0), ("acc_norm", 1), ("acc_bytes", 2), ("acc_mutual_info", 3)]
)
def test_the_choice_that_is_taken(metric, place):
    """By probability, per character, per byte, or against the choice alone."""
    choices = ["a", "bbbb", "éééé", "c", ""]
    logs = [-1.0, -2.0, -2.4, -1.5, -9.0, -1.1, -2.1, -2.5, -9.0, -9.0]
    assert lm_metrics.chosen(metric, [(log, False) for log in logs], choices) == place


# The answers ------------------------------------------------------------------------------------------------


def test_answers_hold_what_was_said_and_what_is_right(model, context, tmp_path):
    """As text, with the question without examples; a blank stands where the two options differ."""
    data = replace(context, data=write(tmp_path, {k: v for c in CASES.values() for k, v in c.files.items()}))
    wino = LMTask("winogrande", 2).answers(model, data).answers[0]
    assert wino.question == "The cup did not fit into the box because the _ was too big."
    assert wino.expected == "cup"
    assert wino.said == ("cup" if wino.score else "box")
    arc = LMTask("arc_challenge", 2).answers(model, data).answers[1]
    assert arc.question == "Question: What does a plant need to grow?\nAnswer:"
    assert arc.expected == "light"
    assert (arc.said == "light") == (arc.score == 1)
    trivia = LMTask("triviaqa").answers(model, data).answers[1]
    assert trivia.expected == 'Jonathan Swift | J. "Dean" Swift'
    truth = LMTask("truthfulqa_mc2").answers(model, data).answers[1]
    assert truth.expected == "No. | Of rock."
    assert len(truth.question) == 300
    assert truth.question.endswith("Q: Is the moon made of cheese?\nA:")
    page = LMTask("wikitext").answers(model, data).answers[1]
    assert (page.said, page.question[:14]) == ("", "= New Bridge =")
    lambada = LMTask("lambada_openai").answers(model, data).answers[0]
    assert (lambada.expected, lambada.said) == ("water", "")


def test_the_protocol_says_what_was_asked(model, context, tmp_path):
    """Task, version, shots, examples, rows, hashes of rows, prompts and file, BOS; not the model."""
    folder = write(tmp_path, CASES["arc_challenge"].files)
    protocol = LMTask("arc_challenge", 2).answers(model, replace(context, data=folder, limit=3)).protocol
    assert protocol["task"] == "arc_challenge"
    assert protocol["version"] == "1.0"
    assert protocol["rows"] == "3 of 5"
    assert protocol["examples"] == "the same rows, never the one that is asked"
    assert protocol["data"].startswith("llm-foundry/arc_challenge.jsonl sha256:")
    assert protocol["bos"] == "<s>"
    assert len(protocol["documents"]) == len(protocol["prompts"]) == 64
    fewer = LMTask("arc_challenge", 1).answers(model, replace(context, data=folder, limit=3)).protocol
    assert {key for key in protocol if protocol[key] != fewer[key]} == {"shots", "prompts"}


def test_the_asked_row_is_never_its_own_example(model, context, asked, tmp_path):
    """Though examples come from the same rows."""
    folder = write(tmp_path, CASES["arc_challenge"].files)
    LMTask("arc_challenge", 4).answers(model, replace(context, data=folder))
    for prompt, _ in asked:
        questions = [line for line in prompt.split("\n") if line.startswith("Question: ")]
        assert len(set(questions)) == len(questions) == 5


def test_a_second_model_is_asked_the_same_without_building_it_again(
    model, context, asked, tmp_path, monkeypatch
):
    """Prompts do not depend on the model; what it answered does."""
    data = replace(context, data=write(tmp_path, CASES["winogrande"].files))
    first = LMTask("winogrande", 1).answers(model, data)
    monkeypatch.setattr(lm_tasks, "stock", None)
    second = LMTask("winogrande", 1).answers(model, data)
    assert first.answers == second.answers
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]


def test_prompts_that_do_not_fit_are_counted(model, tokenizer, context, tmp_path):
    """lm-eval cuts them without a word."""
    short, middle = (tiny_model("llama", vocab_size=260, max_position_embeddings=n) for n in (160, 320))
    folder = write(tmp_path, CASES["arc_challenge"].files | CASES["triviaqa"].files)
    few = LMTask("arc_challenge", 4).answers(short, replace(context, data=folder))
    assert few.notes == (
        "20 of 20 prompts were longer than the model's 160 positions and lost their beginning",
    )
    assert LMTask("arc_challenge", 0).answers(short, replace(context, data=folder)).notes == ()
    shots = LMTask("triviaqa", 2).answers(middle, replace(context, data=folder))
    assert shots.notes[0].startswith("3 of 3 prompts were longer than the model's 320 positions")


def test_a_model_without_room_for_an_answer_is_refused(context, tmp_path):
    """With what to do."""
    tiny = tiny_model("llama", vocab_size=260, max_position_embeddings=256)
    folder = write(tmp_path, CASES["triviaqa"].files)
    with pytest.raises(
        EvaluationError, match=r"triviaqa lets a model write up to 256 tokens, and the 256 positions "
    ):
        LMTask("triviaqa").answers(tiny, replace(context, data=folder))


def test_a_tokenizer_without_an_end_is_asked_all_the_same(model, tokenizer, context, tmp_path):
    """As those of the embedded models: BOS stands for the end."""
    folder = write(tmp_path, CASES["triviaqa"].files)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with_end, without = (
        LMTask("triviaqa").answers(model, replace(context, data=folder, tokenizer=each))
        for each in (tokenizer, endless)
    )
    assert without.answers == with_end.answers


def test_nothing_is_printed(model, context, tmp_path, capfd):
    """No bars, no prints, no warnings; loggers are as they were."""
    logging.getLogger("lm_eval").setLevel(logging.INFO)
    folder = write(tmp_path, CASES["hellaswag"].files)
    LMTask("hellaswag", 1).answers(model, replace(context, data=folder))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == logging.INFO


def test_a_remark_on_the_rows_is_passed_on(model, context, tmp_path):
    """MNLI's local pairs are no random sample."""
    folder = write(tmp_path, CASES["mnli"].files)
    answers = LMTask("mnli").answers(model, replace(context, data=folder))
    assert answers.notes[0].startswith("the pairs were taken out of AdvGLUE")


# Samples ----------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=6), st.none() | st.integers(1, 99), st.integers(0, 3)
)
def test_a_sample_is_spread_over_the_rows_and_always_the_same(sizes, limit, seed):
    """So many rows as asked for, each once, in order, about as many of each task as its share."""
    rows = sample(sizes, limit, seed)
    n, count = sum(sizes), sum(map(len, rows))
    assert count == (n if limit is None else min(limit, n))
    for size, mine in zip(sizes, rows, strict=True):
        assert mine == sorted(set(mine))
        assert all(0 <= row < size for row in mine)
        assert abs(len(mine) - size * count / n) < 2
    assert rows == sample(sizes, limit, seed)


def test_another_seed_draws_other_rows():
    """The seed of the run decides."""
    assert sample([1000], 20, 0) != sample([1000], 20, 1)


def test_mmlu_is_all_of_its_subjects(model, context, tmp_path):
    """Each question once, accuracy over all of them; a limit is for all together, spread over the subjects."""
    subjects = [name.removeprefix("mmlu_") for name in lm_tasks._members("mmlu")]
    one = [("Which letter comes first?", ["A", "B", "C", "D"], 0)]
    for i, subject in enumerate(subjects):
        rows = one * (3 if i else 30)
        write(
            tmp_path,
            {f"mmlu/test/{subject}_test.csv": mmlu_csv(rows), f"mmlu/dev/{subject}_dev.csv": mmlu_csv(one)},
        )
    data = replace(context, data=tmp_path, limit=66)

    answers = LMTask("mmlu", 1).answers(model, data)

    assert len(subjects) == 57
    asked = [answer.id.split("/")[0] for answer in answers.answers]
    assert len(asked) == 66
    assert asked.count(f"mmlu_{subjects[0]}") in (10, 11)
    assert len(set(asked)) > 50
    assert answers.protocol["rows"] == "66 of 198"
    assert answers.protocol["average"] == "over all questions of 57 subjects, each question once"
    assert answers.protocol["data"].count("sha256:") == 2


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shots", "message"),
    [
        ("boolqq", None, r"lm-eval \S+ has no task 'boolqq'; did you mean boolq"),
        ("§", None, r"has no task '§'; lm-eval ls tasks lists them"),
        ("leaderboard", None, "leaderboard is a group of tasks, and an evaluation is one; name its tasks"),
        ("winogrande", -1, "winogrande: shots is a whole number from 0 on, got -1"),
        ("winogrande", True, "winogrande: shots is a whole number from 0 on, got True"),
        ("winogrande", 2.5, "winogrande: shots is a whole number from 0 on, got 2.5"),
        ("winogrande", "few", "winogrande: shots is a whole number from 0 on, got 'few'"),
    ],
)
def test_what_is_no_task_is_refused(name, shots, message):
    """Before anything is loaded."""
    with pytest.raises(EvaluationError, match=message):
        LMTask(name, shots)


@pytest.mark.parametrize(
    ("name", "local", "message"),
    [
        (
            "qqp",
            False,
            r"qqp is not to be had from the hub \(ConnectionError: no net\); go online, or give its files",
        ),
        ("boolq", False, r"boolq is not to be had from the hub \(ConnectionError: no net\); go online$"),
        ("boolq", True, r"\(ConnectionError: no net\), and --llm-data has no layout for it; go online$"),
        (
            "qqp",
            True,
            r"qqp needs \S+QQP/dev.tsv, which is not there; put it there, or leave --llm-data away",
        ),
    ],
)
def test_rows_that_cannot_be_had(name, local, message, model, context, tmp_path, monkeypatch):
    """One sentence with what to do."""
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("no\n net")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(EvaluationError, match=message):
        LMTask(name).answers(model, replace(context, data=tmp_path if local else None))


def test_more_examples_than_rows(model, context, tmp_path):
    """Of a file with few rows: the reason, and what to do."""
    local = write(tmp_path, CASES["arc_challenge"].files)
    with pytest.raises(
        EvaluationError,
        match=r"lm-eval cannot build the prompts of arc_challenge \(ValueError: .*\); take fewer shots= than",
    ):
        LMTask("arc_challenge", shots=25).answers(model, replace(context, data=local))


def test_a_task_that_breaks_is_not_blamed_on_the_hub(model, context, hub):
    """What lm-eval's own code says is passed on."""
    hub({"train": [{"x": 1}], "validation": [{"x": 1}]})
    with pytest.raises(
        EvaluationError, match=r"lm-eval cannot build its task winogrande \(KeyError: 'answer'\); try"
    ):
        LMTask("winogrande").answers(model, context)


def test_code_that_comes_with_data_is_not_run(model, context, hub, monkeypatch):
    """Unless it is allowed; datasets from version 4 on run none."""
    hub(CASES["rte"].hub)
    monkeypatch.setattr(lm_stock, "version", lambda package: "3.6.0")
    with pytest.raises(
        EvaluationError, match=r"datasets 3.6.0 may run code that comes with data; run: pip install"
    ):
        LMTask("rte").answers(model, context)
    assert LMTask("rte").answers(model, replace(context, trust_remote_code=True)).answers


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"UNSAFE_CODE": True}, "humaneval runs code that a model wrote, which pytest-llmslim never does"),
        ({"MULTIMODAL": True}, "humaneval shows pictures or plays sound, and models here read text"),
    ],
)
def test_tasks_that_are_never_run(marks, message):
    """Code and pictures."""
    with pytest.raises(EvaluationError, match=message):
        lm_stock._refuse("humaneval", SimpleNamespace(**marks))


def test_a_metric_that_is_no_mean_is_refused():
    """Answers could not be paired by question."""

    def bleu(items):
        return 0.0

    task = SimpleNamespace(aggregation=lambda: {"bleu": bleu}, higher_is_better=lambda: {"bleu": True})
    with pytest.raises(
        EvaluationError, match="wmt is judged by bleu, which lm-eval puts together by bleu; only mean,"
    ):
        lm_metrics.rule("wmt", task)


# Names ------------------------------------------------------------------------------------------------------


def test_names_are_lm_evals():
    """Tasks and groups, each with its file; without importing lm-eval."""
    assert all(lm_names.is_task(name) for name in (*CASES, "mmlu", "boolq", "gsm8k", "squadv2"))
    assert not lm_names.is_task("perplexityy")
    assert lm_names.named()["mmlu"].group
    assert not lm_names.named()["arc_challenge"].group
    assert len(lm_names.named()) > 10_000


def test_without_lm_eval_there_are_no_names(monkeypatch):
    """Then a name is simply unknown."""
    monkeypatch.setattr(lm_names, "find_spec", lambda name: None)
    assert lm_names.named.__wrapped__() == {}


# Real rows --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "data/mmlu").exists(), reason="the shared data are not there")
@pytest.mark.parametrize("name", ["arc_challenge", "winogrande", "mmlu", "mrpc"])
def test_real_rows(name, model, context):
    """Of every publisher's files: the sample that was asked for, with scores."""
    answers = LMTask(name, 0).answers(model, replace(context, data=SHARED / "data", limit=6))
    assert len(answers.answers) == 6
    assert answers.protocol["rows"].startswith("6 of ")
