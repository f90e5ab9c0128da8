"""Tasks of lm-eval: ARC, HellaSwag, MMLU, TruthfulQA, WinoGrande, TriviaQA, LAMBADA, WikiText, GLUE, and any other.

Prompts, requests and what a response is worth are lm-eval's own; the model is asked by `evals.scorer`. The shots are
those of the Open LLM Leaderboard (2023), which the literature of compression reports, and else the task's own.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from random import Random
from typing import TYPE_CHECKING, Any, Final

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import Answer, Answers, lm_metrics, lm_names
from pytest_llmslim.evals.lm_metrics import Asked
from pytest_llmslim.evals.lm_stock import Stock, release, silence, stock
from pytest_llmslim.evals.local_data import shared_words
from pytest_llmslim.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from pytest_llmslim.evals import EvalContext
    from pytest_llmslim.evals.lm_metrics import Rule

MMLU: Final = "mmlu"
SHOTS: Final = {"arc_challenge": 25, "hellaswag": 10, MMLU: 5, "truthfulqa_mc2": 0, "winogrande": 5}
KEPT: Final = 32
"""Tasks whose prompts are kept for the next candidate."""
QUESTION: Final = 300
"""Characters of a question that are shown: its end, where the blank or the `Answer:` is."""
ALIASES: Final = 8


@dataclass(frozen=True)
class LMTask:
    """One task of lm-eval, each question an answer.

    Args:
        task: lm-eval's name of it; `mmlu` is all of its 57 subjects, each question once. Other groups of tasks are
            refused: their tasks are evaluations of their own.
        shots: examples before each question; `None`: the literature's number, or the task's own.

    Raises:
        EvaluationError: there is no such task, or a number of shots that is none.
    """

    task: str
    shots: int | None = None

    def __post_init__(self) -> None:
        _check_name(self.task)
        whole = isinstance(self.shots, int) and not isinstance(self.shots, bool)
        if self.shots is not None and not (whole and self.shots >= 0):
            raise EvaluationError(f"{self.task}: shots is a whole number from 0 on, got {self.shots!r}")

    def answers(self, model: nn.Module, context: EvalContext) -> Answers:
        """Let `model` answer.

        Raises:
            EvaluationError: the rows cannot be had, or the model has too few positions.
        """
        from pytest_llmslim.evals.scorer import lm_for

        context.tell("prompts")
        paper = _paper(
            self.task, self._shots, context.data, context.limit, context.seed, context.trust_remote_code
        )
        context.tell("")
        lm = lm_for(model, context)
        with quiet():
            lost = _check_room(self.task, paper.asked, lm, context.label)
            _respond(paper.asked, lm)
        with silence():
            found, figures = _marked(paper)
        lost += lm.truncated
        requests = sum(len(each.requests) for each in paper.asked)
        notes = [*paper.notes]
        if lost:
            notes.append(
                f"{lost} of {requests} prompts were longer than the model's {lm.max_length} positions "
                "and lost their beginning"
            )
        bos = lm.tokenizer.decode(lm.tok_encode("")) or "none"
        return Answers(
            lm_metrics.metric(paper.rule, paper.asked),
            found,
            paper.protocol | {"bos": bos},
            figures,
            lm.tokens,
            lm.seconds,
            tuple(notes),
        )

    @property
    def _shots(self) -> int | None:
        known = SHOTS.get(MMLU if self.task.startswith(f"{MMLU}_") else self.task)
        return known if self.shots is None else self.shots


def _check_name(name: str) -> None:
    known = lm_names.named()
    if name not in known:
        near = lm_names.nearest(name)
        raise EvaluationError(
            f"lm-eval {release()} has no task {name!r}; "
            + (f"did you mean {', '.join(near)}?" if near else "lm-eval ls tasks lists them")
        )
    if known[name].group and name != MMLU:
        raise EvaluationError(
            f"{name} is a group of tasks, and an evaluation is one; name its tasks, which lm-eval ls tasks lists"
        )


# The questions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Paper:
    """The questions of an evaluation, the same for every model.

    Args:
        asked: in order.
        rule: by which answers are judged.
        protocol: of the questions.
        notes: what a reader has to know about them.
    """

    asked: tuple[Asked, ...]
    rule: Rule
    protocol: dict[str, str]
    notes: tuple[str, ...]


@lru_cache(maxsize=KEPT)
def _paper(
    name: str, shots: int | None, data: Path | None, limit: int | None, seed: int, remote_code: bool
) -> Paper:
    tasks = stock(_members(name), shots, data, remote_code=remote_code)
    rule = lm_metrics.rule(name, tasks[0].task)
    with silence(), _building(name):
        sizes = [len(each.task.eval_docs) for each in tasks]
        rows = sample(sizes, limit, seed)
        asked = tuple(
            question
            for each, mine in zip(tasks, rows, strict=True)
            if mine
            for question in _questions(each.task, mine)
        )
    protocol = _protocol(name, tasks, rule.name, asked)
    protocol["rows"] = f"{len(asked)} of {sum(sizes)}"
    return Paper(asked, rule, protocol, tuple(dict.fromkeys(each.note for each in tasks if each.note)))


@contextmanager
def _building(name: str) -> Iterator[None]:
    """Prompts are built by the task's own code, which takes examples from too few rows for no case of its own."""
    try:
        yield
    except Exception as error:
        raise EvaluationError(
            f"lm-eval cannot build the prompts of {name} ({type(error).__name__}: {error}); "
            "take fewer shots= than there are rows for examples, or try it with lm_eval itself"
        ) from error


def _members(name: str) -> tuple[str, ...]:
    """The tasks behind a name; MMLU's subjects lie in the folder of the group."""
    known = lm_names.named()
    if name != MMLU:
        return (name,)
    folder = known[name].file.parent
    return tuple(sorted(each for each, at in known.items() if at.file.parent == folder and not at.group))


def sample(sizes: Sequence[int], limit: int | None, seed: int) -> list[list[int]]:
    """Rows of tasks of these sizes that are asked, in order.

    All, or `limit` of them: the rows of all tasks in a line are cut into as many parts of equal length, and one row
    is drawn at random from each. So tasks are represented by their size, and the same rows are drawn for every model.
    """
    n = sum(sizes)
    draw = Random(seed)
    if limit is None or limit >= n:
        places = list(range(n))
    else:
        cuts = [part * n // limit for part in range(limit + 1)]
        places = [draw.randrange(first, end) for first, end in pairwise(cuts)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        [place - start for place in places if start <= place < start + size]
        for start, size in zip(starts, sizes, strict=True)
    ]


def _questions(task: Any, rows: list[int]) -> list[Asked]:  # noqa: ANN401  # of lm-eval
    """Let lm-eval build the requests of these rows; it looks through the whole list of them for each row there is."""
    task.build_all_requests(samples=None if len(rows) == len(task.eval_docs) else rows)
    by_row = groupby(task.instances, key=lambda instance: instance.doc_id)
    found = []
    for place, instances in by_row:
        requests = tuple(sorted(instances, key=lambda instance: instance.idx))
        found.append(Asked(task, f"{task.task_name}/{rows[place]}", requests[0].doc, requests))
    return found


def _protocol(name: str, tasks: list[Stock], metric: str, asked: tuple[Asked, ...]) -> dict[str, str]:
    first = tasks[0].task
    shots = first.config.num_fewshot or 0
    protocol = {
        "task": name,
        "version": str(first.VERSION),
        "lm_eval": release(),
        "shots": str(shots),
        "metric": metric,
        "documents": _sha256([[each.id, each.doc] for each in asked]),
        "prompts": _sha256([[request.args for request in each.requests] for each in asked]),
        "data": tasks[0].source,
    }
    if shots and tasks[0].examples:
        protocol["examples"] = tasks[0].examples
    if len(tasks) > 1:
        every = _sha256([each.source for each in tasks])
        protocol["data"] = f"{tasks[0].source} and {len(tasks) - 1} more, sha256:{every}"
        protocol["average"] = f"over all questions of {len(tasks)} subjects, each question once"
    return protocol


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


# The responses ----------------------------------------------------------------------------------------------


def _check_room(name: str, asked: Sequence[Asked], lm: Any, label: str) -> int:  # noqa: ANN401  # of lm-eval
    """How many prompts of texts to be written will lose their beginning; the other kinds are counted by the model.

    Raises:
        EvaluationError: there is no room for a prompt.
    """
    lost = 0
    for request in _requests(asked):
        if request.request_type != "generate_until":
            continue
        prompt, how = request.args
        new = how.get("max_gen_toks") or lm.max_gen_toks
        if new >= lm.max_length:
            raise EvaluationError(
                f"{name} lets a model write up to {new} tokens, and the {lm.max_length} positions of {label} "
                "leave no room for a prompt; use a model with more positions, or leave this task out"
            )
        lost += _longer(prompt, lm.max_length - new, lm)
    return lost


def _longer(prompt: str, most: int, lm: Any) -> bool:  # noqa: ANN401  # of lm-eval
    """A token is a byte at least, so that most prompts need not be tokenised for this."""
    return len(prompt.encode()) >= most and len(lm.tok_encode(prompt)) > most


def _requests(asked: Sequence[Asked]) -> Iterator[Any]:
    return (request for each in asked for request in each.requests)


def _respond(asked: Sequence[Asked], lm: Any) -> None:  # noqa: ANN401  # of lm-eval
    """Put the model's responses into the requests, those of all questions and tasks at once."""
    kinds: dict[str, list[Any]] = {}
    for request in _requests(asked):
        request.resps.clear()
        request.filtered_resps.clear()
        kinds.setdefault(request.request_type, []).extend([request] * request.repeats)
    for kind, requests in kinds.items():
        for request, response in zip(requests, getattr(lm, kind)(requests), strict=True):
            request.resps.append(response)


def _marked(paper: Paper) -> tuple[tuple[Answer, ...], dict[str, float]]:
    """Answers, and the task's other metrics over all of them."""
    for task in {id(each.task): each.task for each in paper.asked}.values():
        task.apply_filters()
    values: list[dict[str, Any]] = []
    found = []
    for each in paper.asked:
        responses = [next(iter(request.filtered_resps.values())) for request in each.requests]
        values.append(each.task.process_results(each.doc, responses))
        found.append(_said(each, responses, paper.rule.name))
    scores = paper.rule.way.scores([value[paper.rule.name] for value in values])
    answers = tuple(
        Answer(each.id, score, said, expected, _shown(each))
        for each, score, (said, expected) in zip(paper.asked, scores, found, strict=True)
    )
    return answers, _others(paper, values)


def _others(paper: Paper, values: list[dict[str, Any]]) -> dict[str, float]:
    task = paper.asked[0].task
    found = {}
    for name, aggregate in task.aggregation().items():
        if name != paper.rule.name and all(name in value for value in values):
            found[name] = float(aggregate([value[name] for value in values]))
    return found


# What is shown ----------------------------------------------------------------------------------------------


def _said(asked: Asked, responses: list[Any], metric: str) -> tuple[str, str]:
    """What the model answered and what is right, as text."""
    task, doc = asked.task, asked.doc
    kind = task.OUTPUT_TYPE
    if kind == "multiple_choice" and hasattr(task, "doc_to_choice"):
        choices = task.doc_to_choice(doc)
        texts = _different(choices) if task.multiple_input else choices
        right = [texts[i] for i in lm_metrics.gold(task, doc) if i < len(texts)]
        return texts[lm_metrics.chosen(metric, responses, choices)], " | ".join(right)
    if kind == "loglikelihood_rolling":
        return "", ""
    target = task.doc_to_target(doc)
    expected = " | ".join(map(str, target[:ALIASES])) if isinstance(target, list) else str(target).strip()
    if kind == "loglikelihood":  # whether it would have been written is known, not what instead
        return expected if responses[0][1] else "", expected
    return str(responses[0]), expected


def _different(choices: list[str]) -> list[str]:
    """The choices without the words with which all of them begin."""
    shared = shared_words(choices)
    return [choice[shared:] for choice in choices]


def _shown(asked: Asked) -> str:
    """The question without examples: its end, or the beginning of a whole document."""
    task, doc = asked.task, asked.doc
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return str(task.doc_to_target(doc)).strip()[:QUESTION]
    if getattr(task, "multiple_input", 0):
        choices = task.doc_to_choice(doc)
        beginning = choices[0].removesuffix(_different(choices)[0])
        return f"{beginning}_ {task.doc_to_target(doc)}"[-QUESTION:]
    return str(task.doc_to_text(doc))[-QUESTION:]
