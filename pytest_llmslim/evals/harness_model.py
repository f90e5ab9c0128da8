"""lm-eval's model class over our scorer and cache. Imports lm-eval: reached through `evals.scorer.lm_for` only."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals.blame import blaming
from pytest_llmslim.evals.cache import shelf_of
from pytest_llmslim.evals.scorer import Score, Scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lm_eval.api.instance import Instance
    from torch import nn

    from pytest_llmslim.evals import EvalContext

BATCH = 16
"""Prompts that are continued together."""
PARTS = 10
"""Progress is told so many times."""


class HarnessModel(HFLM):
    """`HFLM` with shared prefixes, batches by tokens, and answers kept on a shelf. See `evals.scorer`."""

    def __init__(self, model: nn.Module, context: EvalContext) -> None:
        _check_beginning(context)
        with _unchanged(model), _quiet():
            super().__init__(
                pretrained=model,
                tokenizer=_with_padding(context.tokenizer),
                batch_size=BATCH,
                softmax_dtype="float32",
            )
        self.tokens = self.passes = self.truncated = 0
        self.seconds = 0.0
        self._context = context
        self._scorer = Scorer(model, self.max_length, context.label)
        self._shelf = shelf_of(model, context, self.protocol())

    @property
    def eot_token_id(self) -> int:
        """Ends a text; where a tokenizer has no such token, BOS, which begins the next text."""
        end = self.tokenizer.eos_token_id
        return int(self.tokenizer.bos_token_id if end is None else end)

    def protocol(self) -> dict[str, str]:
        """What of the tokenizer and the window an answer depends on."""
        return {"bos": str(self.tok_encode("")), "max_length": str(self.max_length)}

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:
        """Log probabilities of continuations in nats, and whether each is greedy."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log probabilities of whole texts in nats; all windows at once, so that batches are by length."""
        self.batch_size_per_gpu = 10**9
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.batch_size_per_gpu = BATCH

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Texts that follow the prompts; what is drawn at random is drawn alike for every model, and not kept."""
        asked = [request.args for request in requests]
        keys = [["generate", self.tok_encode(prompt), how] for prompt, how in asked]

        def written(missing: Sequence[int]) -> Iterator[dict[int, str]]:
            # lm-eval puts like arguments together and the longest prompt first; so the batches here are its batches.
            order = sorted(
                missing, key=lambda i: (json.dumps(asked[i][1], sort_keys=True), -len(keys[i][1]), i)
            )
            for start in range(0, len(order), BATCH):
                batch = order[start : start + BATCH]
                texts = self._texts([requests[i] for i in batch])
                yield dict(zip(batch, texts, strict=True))

        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self._context.seed)
            return self._answered(keys, written, [_drawn(how) for _, how in asked])

    def _texts(self, requests: list[Instance]) -> list[str]:
        try:
            return super().generate_until(requests, disable_tqdm=True)
        except AssertionError as error:
            raise EvaluationError(
                f"{self._context.label} cannot be asked: {error} "
                f"Use a model with more positions, or leave this task out."
            ) from None

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[Score]:
        pairs = [(before, after) for _, before, after in requests]
        self.truncated += sum(len(before) + len(after) > self.max_length + 1 for before, after in pairs)

        def scored(missing: Sequence[int]) -> Iterator[dict[int, Score]]:
            for found in self._scorer.scores([pairs[i] for i in missing]):
                yield {missing[i]: score for i, score in found.items()}

        keys = [["loglikelihood", before, after] for before, after in pairs]
        return [(log, greedy) for log, greedy in self._answered(keys, scored, [False] * len(keys))]

    def _answered(
        self,
        keys: Sequence[object],
        compute: Callable[[Sequence[int]], Iterator[dict[int, Any]]],
        drawn: Sequence[bool],
    ) -> list[Any]:
        """Answers from the shelf, or computed and put there batch by batch, so that an interrupted run goes on."""
        shelf = self._shelf
        known = {i: shelf.get(key) for i, key in enumerate(keys) if shelf is not None and not drawn[i]}
        answers = {i: answer for i, answer in known.items() if answer is not None}
        missing = [i for i in range(len(keys)) if i not in answers]
        if not missing:
            return [answers[i] for i in range(len(keys))]
        done = 0
        with self._metered():
            for found in compute(missing):
                answers |= found
                for i, answer in found.items():
                    if shelf is not None and not drawn[i]:
                        shelf.put(keys[i], answer)
                self._tell(done, done := done + len(found), len(missing))
        return [answers[i] for i in range(len(keys))]

    def _tell(self, before: int, done: int, total: int) -> None:
        if before * PARTS // total != done * PARTS // total:
            self._context.tell(f"{done} of {total} requests" if done < total else "")

    @contextlib.contextmanager
    def _metered(self) -> Iterator[None]:
        """Count tokens and passes of the model, and time; say whose code failed."""

        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.tokens += kwargs.get("input_ids", args[0] if args else torch.empty(0)).numel()
            self.passes += 1

        handle = self.model.register_forward_pre_hook(count, with_kwargs=True)
        start = time.perf_counter()
        try:
            with blaming(self._context.label, "while it was asked"):
                yield
        finally:
            self.seconds += time.perf_counter() - start
            handle.remove()


def _drawn(how: dict[str, Any]) -> bool:
    return bool(how.get("do_sample")) or float(how.get("temperature") or 0) > 0


def _check_beginning(context: EvalContext) -> None:
    if context.tokenizer.bos_token_id is None and context.tokenizer.eos_token_id is None:
        raise EvaluationError(
            f"{context.label} is asked behind a BOS or EOS token, and its tokenizer has neither; "
            "name one as bos_token in its tokenizer_config.json"
        )


def _with_padding(tokenizer: Any) -> Any:  # noqa: ANN401  # a Hugging Face tokenizer
    """lm-eval gives a tokenizer that has no padding token one; the run's own stays as it is."""
    if tokenizer.pad_token_id is not None:
        return tokenizer
    padded = copy.deepcopy(tokenizer)
    if tokenizer.eos_token_id is None and tokenizer.unk_token_id is None:
        # lm-eval would add a token, for which the model has no embedding.
        padded.pad_token = tokenizer.bos_token
    return padded


@contextlib.contextmanager
def _unchanged(model: Any) -> Iterator[None]:  # noqa: ANN401  # a PreTrainedModel
    """HFLM ties weights; in a compressed model that would replace the packed head by the embedding."""
    model.tie_weights = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del model.tie_weights


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """HFLM warns that it was given a model, which is what is meant."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
