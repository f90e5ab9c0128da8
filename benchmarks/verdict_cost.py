"""What one verdict costs: paired and with shared prefixes, or by running lm-eval twice and a latency run.

The verdict is how much accuracy a recipe costs, with an interval, and how much time it saves. (a) Ours: both models
answer the same questions through `evals.scorer`; the interval comes from the flips; pairs of timed passes over text
give time and perplexity. (b) Plain lm-eval: `HFLM` at batch 8 runs the reference, then the candidate; two accuracies
are compared as of two samples, for which more questions are needed to be as sure; then a latency run of one model
after the other, likewise.

Both are run on the same questions here, and their answers compared. What is measured: tokens in forward passes (with
padding) and seconds, of both ways, on these questions. What is computed: how many questions and timed passes the
plain way would need, from the flips and from the spread of times in pairs and alone; and its cost for them, for cost
grows by the question and by the pass. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import torch
from lm_eval.models.huggingface import HFLM

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.evals import Answers, EvalContext, scorer
from pytest_llmslim.evals.harness_model import HarnessModel
from pytest_llmslim.evals.lm_tasks import LMTask
from pytest_llmslim.evals.text import Passage, cut, reference_manual
from pytest_llmslim.measure import Duet, Plan
from pytest_llmslim.meters.null import NullMeter
from pytest_llmslim.methods import Context
from pytest_llmslim.models.loading import LoadedModel, load_model
from pytest_llmslim.models.storage import copy_model
from pytest_llmslim.recipe import instantiate, parse
from pytest_llmslim.registry import Registry

if TYPE_CHECKING:
    from torch import nn

BATCH = 8
SAME = 1e-4
"""Scores that are shares of probability differ by rounding."""


class Plain(HarnessModel):
    """`HFLM` as it comes, with our counters."""

    def __init__(self, model: nn.Module, context: EvalContext) -> None:
        super().__init__(model, context)
        self.batch_size_per_gpu = BATCH
        self.softmax_dtype = None

    def _loglikelihood_tokens(self, requests: Any, **options: object) -> Any:  # noqa: ANN401
        self.truncated += sum(len(a) + len(b) > self.max_length + 1 for _, a, b in requests)
        with self._metered():
            return HFLM._loglikelihood_tokens(self, requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:  # noqa: ANN401
        """By `_loglikelihood_tokens`."""
        return HFLM.loglikelihood_rolling(self, requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:  # noqa: ANN401
        """With the same meter."""
        with self._metered():
            return HFLM.generate_until(self, requests, disable_tqdm=disable_tqdm)


class Unshared(HarnessModel):
    """Ours, with every prompt run whole."""

    def __init__(self, model: nn.Module, context: EvalContext) -> None:
        super().__init__(model, context)
        self._scorer = scorer.Scorer(model, self.max_length, context.label, sharing=False)


WAYS = {"ours": HarnessModel, "ours, nothing shared": Unshared, "plain lm-eval": Plain}


class Cost(NamedTuple):
    """Of forward passes."""

    tokens: float
    seconds: float

    def __add__(self, other: Cost) -> Cost:  # type: ignore[override]  # not of tuples
        return Cost(self.tokens + other.tokens, self.seconds + other.seconds)

    def times(self, factor: float) -> Cost:
        """Of so many times the questions."""
        return Cost(self.tokens * factor, self.seconds * factor)


class Latency(NamedTuple):
    """What timing costs: of `pairs` pairs, and how many times as many passes tell as much without pairs."""

    cost: Cost
    pairs: int
    factor: float


def main() -> None:
    """Measure every task once and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of local tasks, as for --llm-data")
    parser.add_argument("--model", default="embedded:llama")
    parser.add_argument("--recipe", default="int4")
    parser.add_argument("--tasks", nargs="+", default=["winogrande", "arc_challenge"])
    parser.add_argument("--shots", type=int, help="default: those of the task")
    parser.add_argument("--limit", type=int, default=40, help="questions of each task")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of timed passes")
    parser.add_argument("--all", action="store_true", help="also ours with nothing shared")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reference = load_model(arguments.model)
    passage = text_for(reference)
    candidate = compressed(reference, passage, arguments.recipe, arguments.model)
    latency = time_in_pairs(reference.module, candidate, passage, arguments.rounds)
    print(f"{arguments.recipe} on {arguments.model}, {arguments.limit} questions a task, 1 thread")
    for name in arguments.tasks:
        context = EvalContext(
            reference.tokenizer, "cpu", name, 0, passage, limit=arguments.limit, data=arguments.data
        )
        task = LMTask(name, arguments.shots)
        ways = [way for way in WAYS if arguments.all or way != "ours, nothing shared"]
        found = {
            way: [ask(task, way, model, context) for model in (reference.module, candidate)] for way in ways
        }
        print(f"\n{name}, {found['ours'][0].protocol['shots']} shots\n")
        print(*cost_rows(found), "", *verdict_lines(found, latency), sep="\n")


def text_for(model: LoadedModel) -> Passage:
    """256 tokens a window of the text that every Python has."""
    shape = {
        "tokens": 4096,
        "window": 256,
        "stride": None,
        "bos": "auto",
        "dtype": "float32",
        "longest": None,
    }
    return cut(reference_manual(), model.tokenizer, **shape)


def compressed(reference: LoadedModel, passage: Passage, recipe: str, label: str) -> nn.Module:
    """The candidate."""
    registry = Registry(BUILTIN_METHODS)
    context = Context(passage.calibration, 0, "cpu", reference.family, label)
    module = copy_model(reference.module)
    for step in parse(recipe, registry).steps:
        module = instantiate(step, registry).compress(module, context).module
    return module


def ask(task: LMTask, way: str, model: nn.Module, context: EvalContext) -> Answers:
    """The very same task, marked the same way, with another model class of lm-eval."""
    with patch.object(scorer, "lm_for", WAYS[way]), torch.inference_mode():
        return task.answers(model, context)


def time_in_pairs(reference: nn.Module, candidate: nn.Module, passage: Passage, rounds: int) -> Latency:
    """Timed passes over text in pairs, with their warm-ups; the same passes give the perplexity."""
    tokens: list[int] = []

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens.append((args[0] if args else kwargs["input_ids"]).numel())

    handles = [model.register_forward_pre_hook(count, with_kwargs=True) for model in (reference, candidate)]
    start = time.perf_counter()
    found = Duet(reference, candidate, passage, Plan(rounds, 0, "cpu"), NullMeter("not asked for"), "x").run()
    seconds = time.perf_counter() - start
    for handle in handles:
        handle.remove()
    logs = [[math.log(each) for each in side.cpu_ns] for side in (found.reference, found.candidate)]
    ratios = [after - before for before, after in zip(*logs, strict=True)]
    alone = sum(map(statistics.variance, logs))
    return Latency(Cost(sum(tokens), seconds), len(ratios), max(1.0, alone / statistics.variance(ratios)))


# Tables -----------------------------------------------------------------------------------------------------


def cost_of(both: list[Answers]) -> Cost:
    """Of both models."""
    return Cost(sum(each.tokens for each in both), sum(each.seconds for each in both))


def cost_rows(found: dict[str, list[Answers]]) -> list[str]:
    """Measured: what the questions cost, each way, and whether the answers are the same."""
    rows = ["| measured, both models | tokens | seconds | other answers |", "|---|---|---|---|"]
    for way, both in found.items():
        cost = cost_of(both)
        pairs = [
            (a, b)
            for mine, theirs in zip(both, found["plain lm-eval"], strict=True)
            for a, b in zip(mine.answers, theirs.answers, strict=True)
        ]
        other = sum(a.said != b.said or abs(a.score - b.score) > SAME for a, b in pairs)
        rows.append(f"| {way} | {cost.tokens:,.0f} | {cost.seconds:.2f} | {other} of {len(pairs)} |")
    notes = dict.fromkeys(note for note in found["ours"][0].notes)
    return [*rows, *(f"\n{note}" for note in notes)]


def verdict_lines(found: dict[str, list[Answers]], latency: Latency) -> list[str]:
    """Computed: how much plain lm-eval needs, and what the whole verdict costs each way."""
    before, after = found["ours"]
    scores = [(a.score, b.score) for a, b in zip(before.answers, after.answers, strict=True)]
    n = len(scores)
    p, q = (sum(side) / n for side in zip(*scores, strict=True))
    factor, half_width = needed(scores)
    ours, timed = cost_of(found["ours"]), latency.cost
    plain, timed_alone = cost_of(found["plain lm-eval"]).times(factor), timed.times(latency.factor)
    sides = [(ours, timed, ours + timed), (plain, timed_alone, plain + timed_alone)]
    parts = ("questions", "timed passes", "the verdict")
    return [
        f"{n} questions: {before.metric.name} {p:.3f} and {q:.3f}, worse on {sum(b < a for a, b in scores)}, "
        f"better on {sum(b > a for a, b in scores)}; the paired 95 % interval of the difference is "
        f"{half_width:.3f} to either side. As of two samples this takes {factor:.1f} times as many questions, "
        f"{factor * n:,.0f} a model (the data has {before.protocol['rows'].rpartition(' ')[2]}); the time ratio "
        f"{latency.factor:.1f} times the {latency.pairs} passes a model.\n",
        "| tokens (seconds) | ours, measured | plain, computed | times as much |",
        "|---|---|---|---|",
        *(
            f"| {name} | {mine.tokens:,.0f} ({mine.seconds:.1f}) | {theirs.tokens:,.0f} ({theirs.seconds:.1f}) "
            f"| {theirs.tokens / mine.tokens:.1f} ({theirs.seconds / mine.seconds:.1f}) |"
            for name, mine, theirs in zip(parts, *sides, strict=True)
        ),
    ]


def needed(scores: list[tuple[float, float]]) -> tuple[float, float]:
    """How many times as many questions two samples need as pairs, and the half width of the paired 95 % interval.

    The mean difference of n questions has the variance of one difference / n in pairs, and the sum of both models'
    variances / n as of two samples; for right and wrong answers these are (b + c) / n - ((b - c) / n)^2 and
    p (1 - p) + q (1 - q). There half a question is added in each of the four cells, as Agresti and Min (2005) do, so
    that no flip at all does not make pairs infinitely good.
    """
    weights = [(a, b, 1.0) for a, b in scores]
    if {score for pair in scores for score in pair} <= {0.0, 1.0}:
        weights += [(a, b, 0.5) for a in (0.0, 1.0) for b in (0.0, 1.0)]
    pairs = variance([(b - a, w) for a, b, w in weights])
    alone = variance([(a, w) for a, _, w in weights]) + variance([(b, w) for _, b, w in weights])
    return alone / pairs, 1.96 * (pairs / sum(w for _, _, w in weights)) ** 0.5


def variance(weighted: list[tuple[float, float]]) -> float:
    """Of values with weights."""
    total = sum(w for _, w in weighted)
    mean = sum(x * w for x, w in weighted) / total
    return sum(w * (x - mean) ** 2 for x, w in weighted) / total


if __name__ == "__main__":
    main()
