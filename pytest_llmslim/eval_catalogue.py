"""The evaluations that come with pytest-llmslim, as specs; importing this imports none of them."""

from __future__ import annotations

from typing import Final

from pytest_llmslim.registry import Spec

_TASK: Final = "pytest_llmslim.evals.lm_tasks:LMTask"
_LABELS: Final = "pytest_llmslim.evals.classification:Classification"


def _task(name: str, summary: str, *, task: str = "") -> Spec:
    """A task of lm-eval under our name; shots and metric are those of the literature, see `evals.lm_tasks`."""
    return Spec(name, _TASK, summary, ("shots",), preset=(("task", task or name),))


BUILTIN_EVALUATIONS: Final = (
    _task("arc_challenge", "grade-school science questions, 25 shots, acc_norm"),
    _task("hellaswag", "which ending fits, 10 shots, acc_norm"),
    _task("mmlu", "57 subjects, 5 shots, acc"),
    _task("truthfulqa_mc2", "probability of true answers, 0 shots"),
    _task("winogrande", "what a pronoun stands for, 5 shots, acc"),
    _task("triviaqa", "questions answered in words, exact match with aliases"),
    _task("lambada", "last word of a passage, acc", task="lambada_openai"),
    _task("wikitext", "word perplexity of whole documents"),
    _task("cola", "is it grammatical, Matthews correlation"),
    _task("sst2", "sentiment, acc"),
    _task("mrpc", "paraphrases, acc"),
    _task("rte", "entailment, acc"),
    _task("qnli", "does the sentence answer the question, acc"),
    _task("qqp", "duplicate questions, acc"),
    _task("mnli", "entailment, neutral or contradiction, acc"),
    Spec(
        "sms_spam",
        _LABELS,
        "spam or ham by the likelihood of the label, weighted F1",
        ("metric",),
        preset=(("task", "sms_spam"),),
    ),
    Spec(
        "classification",
        _LABELS,
        "labels of a task by their likelihood: accuracy, precision, recall, weighted F1, loss",
        ("task", "metric"),
    ),
    Spec(
        "generation",
        "pytest_llmslim.evals.generation:Generation",
        "greedy text: agreement with the reference, repeated and meaningless tokens",
        ("tokens", "prompts", "prompt"),
    ),
    Spec(
        "latency",
        "pytest_llmslim.evals.latency:Latency",
        "time to the first token and per output token, over batch and prompt sizes",
        ("batches", "prompts", "tokens"),
    ),
    Spec(
        "slice",
        "pytest_llmslim.evals.slices:Slice",
        "perplexity of one kind of text by itself",
        ("kind", "file", "windows"),
    ),
)
