"""Answers lm-eval's requests fast: shared prefixes run once, batches are by length, what is known is not asked again.

The scores are those of lm-eval's own `HFLM(softmax_dtype="float32")`: its tokens, its BOS, its truncation. Equal up
to the rounding of float arithmetic, about 1e-6 of a log probability in float32. That rounding depends on what else is
in a batch: the order of requests does not matter, for they are sorted; a run that goes on from a cache, or a batch
that was halved because memory ran out, may differ in the last digits. Kernels of low precision make more of it, from
one batch size of lm-eval to another as here: 0.04 nats with 8-bit activations and a scale per token, 0.1 with LLM.int8
and 0.7 with a scale per tensor (tiny random Llama), 0.06 with bitsandbytes' 4-bit kernel for CPUs, which multiplies in
bfloat16 (Gemma 3 270M). There a question whose choices are nearly equal may be answered otherwise than by lm-eval.

One difference is meant: where requests of one run cut the same text at different places, `the|of and` beside
`the of|man`, lm-eval 0.4.13 reads the shorter one at the first position of the longer. Here each is right.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals.prefixes import (
    End,
    Group,
    Limits,
    Room,
    Stem,
    batches,
    grouped,
    rows_of,
    stem_batches,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn

    from pytest_llmslim.evals import EvalContext
    from pytest_llmslim.evals.harness_model import HarnessModel

Score = tuple[float, bool]
"""Log probability of a continuation in nats, and whether greedy decoding would have written it."""

CPU_TOKENS, CUDA_TOKENS = 2048, 16384
"""Tokens of a forward pass: more bring no speed."""
LOGIT_BYTES = 2**28
"""Of [rows, positions, vocabulary] in float32: 256 positions of a vocabulary of 262k."""
CPU_CACHE_BYTES, CUDA_CACHE_BYTES = 2**29, 2**31
"""Of the keys and values that a prefix is repeated to."""
ROWS = 64
"""Positions whose softmax is taken at once."""
PROBE = 8
TOLERANCE = 0.05
"""Share of the logits' spread by which a pass with a cache may differ from one without; a wrong one is far off."""


def lm_for(model: nn.Module, context: EvalContext) -> HarnessModel:
    """lm-eval's view of a model in memory, with what it has answered before in `context.cache`.

    Works on any causal model of transformers, packed or not: only its forward pass is called.

    Args:
        model: in eval mode; it is not changed.
        context: its tokenizer, device, label, weights' hash and cache are used.

    Returns:
        an `lm_eval.api.model.LM` with counters `tokens` (in forward passes, with padding), `passes`, `seconds` and
        `truncated` (requests that did not fit into the model's positions).
    """
    from pytest_llmslim.evals.harness_model import HarnessModel

    return HarnessModel(model, context)


@dataclass(frozen=True)
class Past:
    """What is in a cache.

    Args:
        cache: keys and values, as transformers keeps them.
        mask: which of its positions hold a token and no padding, bool [rows, positions], on the CPU.
    """

    cache: Any
    mask: torch.Tensor

    @property
    def longest(self) -> int:
        """Positions."""
        return self.mask.shape[1]

    @property
    def slides(self) -> bool:
        """Whether layers look at the last positions only, so that padding among them would take a token's place."""
        return any(self.cache.is_sliding)

    def repeated(self, owners: Sequence[int]) -> Past:
        """These rows, in a cache of their own."""
        rows = torch.tensor(owners)
        return Past(_copy(self.cache, rows), self.mask[rows])

    def bytes_a_slot(self) -> float:
        """Of one position of one row in all layers."""
        tensors = [each for layer in self.cache.layers for each in (layer.keys, layer.values)]
        return max(1.0, sum(each.numel() * each.element_size() for each in tensors) / self.mask.numel())


class Scorer:
    """Log probabilities of continuations from one causal language model.

    Args:
        model: takes `input_ids` and gives `logits`; whatever else it can take is found out.
        longest: positions of the model.
        label: names it in errors.
        sharing: whether prefixes are shared where the model's cache is found to give the same logits.
    """

    def __init__(self, model: nn.Module, longest: int, label: str, *, sharing: bool = True) -> None:
        self._model, self._longest, self._label = model, longest, label
        self._takes = set(inspect.signature(model.forward).parameters)
        self._device = next(model.parameters()).device
        self._sharing = sharing
        self._pads: bool | None = None
        cuda = self._device.type == "cuda"
        self._cache_bytes = CUDA_CACHE_BYTES if cuda else CPU_CACHE_BYTES
        scored = max(1, LOGIT_BYTES // (4 * _vocabulary(model)))
        self.limits = Limits(CUDA_TOKENS if cuda else CPU_TOKENS, scored)

    def scores(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[dict[int, Score]]:
        """Answers to requests (token ids of context and continuation) by their index, batch by batch.

        Raises:
            EvaluationError: a request is empty or too long, logits are NaN, or one request alone needs too much memory.
        """
        try:
            yield from self._below([self._plan(requests)], None)
        except torch.cuda.OutOfMemoryError:
            raise EvaluationError(
                f"{self._label} runs out of GPU memory on a single request; "
                f"free memory on the GPU, or use --llm-device cpu."
            ) from None

    def _plan(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Group:
        rows = rows_of(requests, self._longest)
        plan = grouped(rows)
        if plan.groups and not self._cache_holds(plan.groups[0].prefix[:PROBE]):
            return Group(0, tuple(rows))
        return plan

    def _below(self, groups: Sequence[Group], past: Past | None) -> Iterator[dict[int, Score]]:
        """All of these groups, whose prefixes are the rows of `past`."""
        room = None if past is None else Room(past.longest, int(self._cache_bytes / past.bytes_a_slot()))
        ends = [End(row, group.shared, i) for i, group in enumerate(groups) for row in group.rows]
        for batch in batches(ends, self.limits, room):
            yield from self._halved(batch, lambda ends: iter([self._ends(ends, past)]))
        stems = [Stem(each, group.shared, i) for i, group in enumerate(groups) for each in group.groups]
        pads = bool(self._pads) and not (past and past.slides)
        for together in stem_batches(stems, self.limits, room, pads=pads):
            yield from self._halved(together, lambda stems: self._behind(stems, past))

    def _halved(
        self, items: Sequence[Any], run: Callable[[Sequence[Any]], Iterator[dict[int, Score]]]
    ) -> Iterator[dict[int, Score]]:
        """Run items together, or in halves where the GPU's memory does not hold them; later batches are smaller."""
        try:
            yield from run(items)
            return
        except torch.cuda.OutOfMemoryError:
            if len(items) == 1:
                raise
        torch.cuda.empty_cache()
        self.limits.tokens = max(1, self.limits.tokens // 2)
        half = len(items) // 2
        yield from self._halved(items[:half], run)
        yield from self._halved(items[half:], run)

    def _behind(self, stems: Sequence[Stem], past: Past | None) -> Iterator[dict[int, Score]]:
        """Run stems, and all that goes on from them."""
        if past is not None:
            past = past.repeated([stem.owner for stem in stems])
        yield from self._below(
            [stem.group for stem in stems], self._kept([stem.tokens for stem in stems], past)
        )

    def _kept(self, stems: Sequence[Sequence[int]], past: Past | None) -> Past:
        """Run token ids behind what is in the cache, padded on the left: so tokens keep their distance in the text."""
        width = max(map(len, stems))
        tokens = torch.tensor([[0] * (width - len(each)) + list(each) for each in stems])
        mask = torch.tensor([[False] * (width - len(each)) + [True] * len(each) for each in stems])
        return self._run(tokens, mask, 1, past, use_cache=True)[1]

    def _ends(self, ends: Sequence[End], past: Past | None) -> dict[int, Score]:
        """Run ends together, padded on the right, and read off them what is wanted.

        Positions whose logits would need too much memory at once (one long text) run in pieces, on a cache.
        """
        if past is not None:
            past = past.repeated([end.owner for end in ends])
        width, first = max(end.length for end in ends), min(end.first for end in ends)
        tokens = torch.tensor([_padded(end.row.tokens[end.skip :], width) for end in ends])
        step = max(1, self.limits.scored // len(ends))
        cuts = [0, *range(first + step, width, step), width]
        if past is None and (len(cuts) == 2 or not self._cache_holds(ends[0].row.tokens[:PROBE])):
            cuts = [0, width]
        reading = Reading(ends)
        for start, stop in pairwise(cuts):
            piece = tokens[:, start:stop]
            keep = stop - max(start, first)
            # What pads on the right stands behind all that is read, and needs no mask.
            mask = torch.ones_like(piece, dtype=torch.bool)
            logits, past = self._run(piece, mask, keep, past, use_cache=stop < width)
            reading.add(logits, stop - keep)
        return reading.scores(self._label)

    def _run(
        self, tokens: torch.Tensor, mask: torch.Tensor, keep: int, past: Past | None, *, use_cache: bool
    ) -> tuple[torch.Tensor, Past]:
        """One forward pass.

        Args:
            tokens: ids [rows, length] that follow `past`.
            mask: which of them are no padding, bool [rows, length].
            keep: of how many last positions logits are needed.
            past: is changed by the pass.
            use_cache: whether the result goes on in a cache.

        Returns:
            logits [rows, keep, vocabulary], and what is in the cache now.
        """
        arguments: dict[str, Any] = {"use_cache": use_cache or past is not None}
        if past is not None:
            arguments["past_key_values"] = past.cache
            mask = torch.cat([past.mask, mask], 1)
        if not mask.all():
            arguments["attention_mask"] = mask.long().to(self._device)
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            arguments["position_ids"] = positions.to(self._device)
        arguments["logits_to_keep"] = keep
        known = {name: value for name, value in arguments.items() if name in self._takes}
        with torch.no_grad():
            found = self._model(input_ids=tokens.to(self._device), **known)
        return found.logits[:, -keep:], Past(getattr(found, "past_key_values", None), mask)

    def _cache_holds(self, probe: Sequence[int]) -> bool:
        """Whether a pass on a repeated cache gives the logits of a whole pass; asked of the model once.

        Also found out: whether prefixes of different length may run together.
        """
        if self._pads is None:
            able = self._sharing and {"past_key_values", "use_cache"} <= self._takes
            self._pads = (
                able and {"attention_mask", "position_ids"} <= self._takes and self._same(probe, (0, 2))
            )
            self._sharing = able and (self._pads or self._same(probe, (0, 0)))
        return self._sharing

    def _same(self, probe: Sequence[int], starts: Sequence[int]) -> bool:
        """Compare the probe's last logits, from token `start` on for each row, with and without a cache."""
        half = len(probe) // 2
        try:
            past = self._kept([probe[start:half] for start in starts], None)
            past = past.repeated([*range(len(starts))] * 2)
            split = self._last([probe[half:]] * len(past.mask), past)
        except Exception:  # whatever a model does not know of caches: then nothing is shared
            return False
        whole = torch.cat([self._last([probe[start:]], None) for start in starts] * 2)
        spread = (whole - whole.mean(1, keepdim=True)).norm()
        return bool((split - whole).norm() <= TOLERANCE * spread)

    def _last(self, tokens: Sequence[Sequence[int]], past: Past | None) -> torch.Tensor:
        """Logits of the last position, float32 [rows, vocabulary]."""
        ids = torch.tensor(list(map(list, tokens)))
        mask = torch.ones_like(ids, dtype=torch.bool)
        return self._run(ids, mask, 1, past, use_cache=False)[0][:, -1].float()


class Reading:
    """Sums up log probabilities of what is wanted of the rows of a batch."""

    def __init__(self, ends: Sequence[End]) -> None:
        self._asked = [
            (row, wanted.request, wanted.start - end.skip + step, token)
            for row, end in enumerate(ends)
            for wanted in end.row.wanted
            for step, token in enumerate(wanted.tokens)
        ]
        self._sums = {request: 0.0 for _, request, _, _ in self._asked}
        self._greedy = dict.fromkeys(self._sums, True)

    def add(self, logits: torch.Tensor, start: int) -> None:
        """Read logits [rows, positions, vocabulary] whose first position is `start` of the ends."""
        here = [each for each in self._asked if start <= each[2] < start + logits.shape[1]]
        for i in range(0, len(here), ROWS):
            part = here[i : i + ROWS]
            rows, positions, tokens = (torch.tensor([each[k] for each in part]) for k in (0, 2, 3))
            picked = logits[rows.to(logits.device), (positions - start).to(logits.device)]
            logs = torch.log_softmax(picked, -1, dtype=torch.float32)
            chosen = logs.gather(1, tokens.to(logits.device)[:, None])[:, 0].tolist()
            best = (logs.argmax(-1).cpu() == tokens).tolist()
            for (_, request, _, _), log, same in zip(part, chosen, best, strict=True):
                self._sums[request] += log
                self._greedy[request] &= same

    def scores(self, label: str) -> dict[int, Score]:
        """By request.

        Raises:
            EvaluationError: one is NaN.
        """
        if any(value != value for value in self._sums.values()):
            raise EvaluationError(
                f"{label} gives no finite probabilities (NaN in the logits); "
                f"check the weights, or use another --llm-dtype."
            )
        return {request: (value, self._greedy[request]) for request, value in self._sums.items()}


def _copy(cache: Any, rows: torch.Tensor) -> Any:  # noqa: ANN401  # transformers.Cache
    """A cache of these rows that can grow without changing the other; `update` replaces tensors, never writes."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    fork.batch_select_indices(rows.to(cache.layers[0].keys.device))
    return fork


def _padded(tokens: Sequence[int], width: int) -> list[int]:
    """Whatever stands behind the last token changes nothing before it."""
    return [*tokens, *[0] * (width - len(tokens))]


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.get_text_config().vocab_size)
