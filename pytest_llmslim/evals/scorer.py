"""Answers lm-eval's requests fast: shared prefixes run once, batches are by length, what is known is not asked again.

The scores are those of lm-eval's own `HFLM(softmax_dtype="float32")`: its tokens, its BOS, its truncation. Equal up
to the rounding of float arithmetic, about 1e-6 of a log probability in float32. That rounding depends on what else is
in a batch: the order of requests does not matter, for they are sorted; a run that goes on from a cache, or a batch
that was halved because memory ran out, may differ in the last digits. Activations in 8 bits make more of it: lm-eval's
own scores at batch sizes 1 and 8 lie 0.04 (a scale per token), 0.1 (LLM.int8) and 0.7 nats (a scale per tensor) apart
on a tiny random model, and ours as far.

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
from pytest_llmslim.evals.prefixes import End, Group, Limits, batches, grouped, prefix_batches, rows_of

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
    """Prefixes in a cache, one a row.

    Args:
        cache: keys and values, as transformers keeps them.
        lengths: tokens of each prefix, shape [rows]; shorter ones are padded on the left.
        longest: positions of the cache.
        padded: whether any is shorter than `longest`.
    """

    cache: Any
    lengths: torch.Tensor
    longest: int
    padded: bool

    def repeated(self, owners: Sequence[int]) -> Past:
        """The prefixes of these rows, in a cache of their own."""
        rows = torch.tensor(owners, device=self.lengths.device)
        return Past(_copy(self.cache, rows), self.lengths[rows], self.longest, self.padded)

    def bytes_a_slot(self) -> float:
        """Of one position of one row in all layers."""
        tensors = [each for layer in self.cache.layers for each in (layer.keys, layer.values)]
        whole = sum(each.numel() * each.element_size() for each in tensors)
        return max(1.0, whole / (len(self.lengths) * self.longest))


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
        self._sharing = sharing and {"past_key_values", "use_cache"} <= self._takes
        self._pads: bool | None = None
        cuda = self._device.type == "cuda"
        self._cache_bytes = CUDA_CACHE_BYTES if cuda else CPU_CACHE_BYTES
        scored = max(1, LOGIT_BYTES // (4 * _vocabulary(model)))
        self.limits = Limits(CUDA_TOKENS if cuda else CPU_TOKENS, scored, 0)

    def scores(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[dict[int, Score]]:
        """Answers to requests (token ids of context and continuation) by their index, batch by batch.

        Raises:
            EvaluationError: a request is empty or too long, logits are NaN, or one request alone needs too much memory.
        """
        groups = self._groups(requests)
        shared = [group for group in groups if group.shared]
        for together in prefix_batches(shared, self.limits, pads=bool(self._pads)):
            yield from self._halved(together, self._with_prefixes)
        alone = [End(row) for group in groups if not group.shared for row in group.rows]
        for batch in batches(alone, self.limits):
            yield from self._halved(batch, lambda ends: iter([self._ends(ends, None)]))

    def _groups(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Group]:
        rows = rows_of(requests, self._longest)
        if self._sharing:
            groups = grouped(rows)
            probe = next((group.rows[0].tokens[:PROBE] for group in groups if group.shared), None)
            if probe is None or self._cache_holds(probe):
                return groups
        return [Group(0, (row,)) for row in rows]

    def _halved(
        self, items: Sequence[Any], run: Callable[[Sequence[Any]], Iterator[dict[int, Score]]]
    ) -> Iterator[dict[int, Score]]:
        """Run items together, or in halves where the GPU's memory does not hold them; later batches are smaller."""
        try:
            yield from run(items)
            return
        except torch.cuda.OutOfMemoryError:
            if len(items) == 1:
                raise EvaluationError(
                    f"{self._label} runs out of GPU memory on a single request; "
                    f"free memory on the GPU, or use --llm-device cpu."
                ) from None
        torch.cuda.empty_cache()
        self.limits.tokens = max(1, self.limits.tokens // 2)
        half = len(items) // 2
        yield from self._halved(items[:half], run)
        yield from self._halved(items[half:], run)

    def _with_prefixes(self, groups: Sequence[Group]) -> Iterator[dict[int, Score]]:
        past = self._prefixes([group.rows[0].tokens[: group.shared] for group in groups])
        slots = int(self._cache_bytes / past.bytes_a_slot())
        limits = Limits(self.limits.tokens, self.limits.scored, slots)
        ends = [End(row, group.shared, i) for i, group in enumerate(groups) for row in group.rows]
        for batch in batches(ends, limits, past.longest):
            yield from self._halved(batch, lambda ends: iter([self._ends(ends, past)]))

    def _prefixes(self, prefixes: Sequence[Sequence[int]]) -> Past:
        """Run prefixes together, padded on the left: then the distance of any two tokens is that in the text."""
        longest = max(map(len, prefixes))
        tokens = torch.tensor([[0] * (longest - len(each)) + list(each) for each in prefixes])
        lengths = torch.tensor([len(each) for each in prefixes])
        padded = bool((lengths < longest).any())
        extra: dict[str, Any] = {"use_cache": True}
        if padded:
            mask = _mask(lengths, longest)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            extra |= {"attention_mask": mask.to(self._device), "position_ids": positions.to(self._device)}
        found = self._run(tokens, 1, extra)
        return Past(found.past_key_values, lengths.to(self._device), longest, padded)

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
            keep = stop - max(start, first)
            extra = self._behind(past, start, stop) | {"use_cache": past is not None or len(cuts) > 2}
            found = self._run(tokens[:, start:stop], keep, extra)
            reading.add(found.logits[:, -keep:], stop - keep)
            if stop < width and past is None:
                past = Past(found.past_key_values, torch.zeros(len(ends), dtype=torch.long), 0, False)
        return reading.scores(self._label)

    def _behind(self, past: Past | None, start: int, stop: int) -> dict[str, Any]:
        """The arguments by which tokens `start` to `stop` of the ends follow what is in the cache."""
        if past is None:
            return {}
        extra: dict[str, Any] = {"past_key_values": past.cache}
        if past.padded:
            extra["attention_mask"] = _mask(past.lengths + stop, past.longest + stop)
            extra["position_ids"] = past.lengths[:, None] + torch.arange(start, stop, device=self._device)
        return extra

    def _run(self, tokens: torch.Tensor, keep: int, extra: dict[str, Any]) -> Any:  # noqa: ANN401  # a ModelOutput
        """One forward pass over token ids [rows, length], with the logits of the last `keep` positions at least."""
        arguments = {name: value for name, value in extra.items() if name in self._takes}
        if "logits_to_keep" in self._takes:
            arguments["logits_to_keep"] = keep
        with torch.no_grad():
            return self._model(input_ids=tokens.to(self._device), **arguments)

    def _cache_holds(self, probe: Sequence[int]) -> bool:
        """Whether a pass on a repeated cache gives the logits of a whole pass; asked of the model once.

        Also found out: whether prefixes of different length may run together.
        """
        if self._pads is None:
            padding = {"attention_mask", "position_ids"} <= self._takes
            self._pads = padding and self._same(probe, (0, 2))
            self._sharing = self._sharing and (self._pads or self._same(probe, (0, 0)))
        return self._sharing

    def _same(self, probe: Sequence[int], starts: Sequence[int]) -> bool:
        """Compare the probe's last logits, from token `start` on for each row, with and without a cache."""
        half = len(probe) // 2
        try:
            past = self._prefixes([probe[start:half] for start in starts]).repeated([*range(len(starts))] * 2)
            ends = torch.tensor([list(probe[half:])] * len(past.lengths))
            extra = self._behind(past, 0, ends.shape[1]) | {"use_cache": True}
            split = self._run(ends, 1, extra).logits[:, -1].float()
        except Exception:  # whatever a model does not know of caches: then its prefixes are not shared
            return False
        passes = [self._run(torch.tensor([list(probe[start:])]), 1, {"use_cache": False}) for start in starts]
        whole = torch.cat([each.logits[:, -1].float() for each in passes] * 2)
        spread = (whole - whole.mean(1, keepdim=True)).norm()
        return bool((split - whole).norm() <= TOLERANCE * spread)


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
    fork.batch_select_indices(rows)
    return fork


def _mask(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """1 for the last `lengths` of `width` positions, int64 [rows, width]."""
    return (torch.arange(width, device=lengths.device) >= width - lengths[:, None]).long()


def _padded(tokens: Sequence[int], width: int) -> list[int]:
    """Whatever stands behind the last token changes nothing before it."""
    return [*tokens, *[0] * (width - len(tokens))]


def _vocabulary(model: nn.Module) -> int:
    config: Any = model.config
    return int(config.get_text_config().vocab_size)
