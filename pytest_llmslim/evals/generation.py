"""Greedy text of both models from the same beginnings: how far they agree, and how much of it is worth nothing.

Perplexity is measured on text that people wrote. A model that goes on with its own text meets its own mistakes, and
what breaks there (loops, gibberish) shows in no perplexity.

- *agreement*, the metric: the share of the reference's greedy tokens that the candidate writes, too, before the first
  one that differs. Behind it the two models read different texts, so that equality token by token means nothing any
  more. Deiseroth et al., Divergent Token Metrics (arXiv 2311.01544, 2023): their first divergent token, as a share
  of the length. The reference agrees with itself, so its score is 1.
- *exact texts*: the share of prompts where all tokens agree.
- *repeated tokens*: of the tokens that end four in a row, the share of those whose four were there before in the same
  text, `1 - different / all`; Welleck et al., Neural text generation with unlikelihood training (arXiv 1908.04319,
  2019), seq-rep-4.
- *meaningless tokens*: the share of tokens to which the reference, reading the same text, gives a probability under
  1e-4, or that are no characters: broken UTF-8, or code points that Unicode does not assign or keeps for control or
  private use. The literature counts them by hand; this definition is ours. A loop is likely under the reference once it
  runs, so what is repeated and what is meaningless are different things.
- *distinct pairs*: different pairs of neighbours in all texts / all such pairs; distinct-2 of Li et al., A
  diversity-promoting objective function for neural conversation models (arXiv 1510.03055, 2015). It falls with the
  length of texts, and is to be compared at one length only.
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_llmslim.errors import EvaluationError, NotApplicableError
from pytest_llmslim.evals import Answer, Answers, Metric
from pytest_llmslim.evals.blame import blaming
from pytest_llmslim.evals.cache import shelf_of
from pytest_llmslim.evals.text import CALIBRATION_WINDOWS
from pytest_llmslim.models.decoding import Reader, greedy, positions
from pytest_llmslim.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from pytest_llmslim.evals import EvalContext

METRIC: Final = Metric("agreement", higher_is_better=True)
GRAM: Final = 4
"""Tokens in a row that make a repetition."""
RARE: Final = 1e-4
"""A token with less than this probability is none that the reference would write."""
PIECE: Final = 2**25
"""Logits that are held at once when the reference reads: 128 MiB in float32."""
BYTES_A_CHARACTER: Final = 4
"""In UTF-8 at most, so at most as many tokens are one character."""
BROKEN: Final = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers decode bytes to that are no character."""

Text = tuple[int, ...]
"""Tokens that were written behind one prompt."""


@dataclass(frozen=True, slots=True)
class Texts(Answers):
    """Answers with the tokens that were written; the candidate's are held against the reference's."""

    written: tuple[Text, ...] = ()


@dataclass(frozen=True)
class Generation:
    """Greedy texts, their agreement with the reference's and what is wrong with them.

    A token that ends a text is never written, so that shares are of equally many tokens. No sampling, no penalties.

    Args:
        tokens: new ones a prompt, at least 4; fewer where the model has no more positions.
        prompts: texts; `--llm-limit` may lower it.
        prompt: tokens that a text begins with: the beginning of a window of text that is not scored, and that no
            method was calibrated on where there is enough of it.

    Raises:
        EvaluationError: a number that is no count.
    """

    tokens: int = 128
    prompts: int = 8
    prompt: int = 32

    def __post_init__(self) -> None:
        for name, least in (("tokens", GRAM), ("prompts", 1), ("prompt", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise EvaluationError(f"{name} is a whole number of at least {least}, got {value!r}")

    def answers(self, model: nn.Module, context: EvalContext) -> Answers:
        """Let `model` write, and hold what it wrote against the reference's text.

        Raises:
            NotApplicableError: no text is left for prompts, or they leave no position to write in.
            EvaluationError: a prompt is longer than a window, or the model fails.
        """
        before = context.reference if isinstance(context.reference, Texts) else None
        prompts = self._prompts(context)
        length = self._length(model, context, before)
        protocol = _protocol(prompts, length)
        began = time.perf_counter()
        written, new = _write(model, prompts, length, protocol, context)
        scores = [1.0] * len(written) if before is None else _agreement(before.written, written)
        judge = model if before is None else context.reference_model
        figures = _figures(scores, written)
        if judge is not None:
            figures["meaningless tokens"] = _meaningless(judge, prompts, written, context)
            new += prompts.numel() + length * len(written)
        return Texts(
            METRIC,
            _shown(prompts, written, scores, context.tokenizer),
            protocol,
            figures,
            tokens=new,
            seconds=time.perf_counter() - began,
            notes=self._notes(len(prompts), length, context),
            written=written,
        )

    def _prompts(self, context: EvalContext) -> torch.Tensor:
        """Token ids [prompts, prompt] on the model's device."""
        count = min(self.prompts, context.limit or self.prompts)
        rest = context.passage.rest
        windows = None if rest is None else rest(CALIBRATION_WINDOWS + count)
        if windows is None:
            raise NotApplicableError(
                f"{context.label}: a prompt is text that is not scored, and none is left; give a longer --llm-text"
            )
        if windows.shape[1] < self.prompt:
            raise EvaluationError(
                f"{context.label}: a prompt is the beginning of a window of {windows.shape[1]} tokens, got "
                f"prompt={self.prompt}; make it shorter, or --llm-window longer"
            )
        return windows[-count:, : self.prompt].to(context.device)

    def _length(self, model: nn.Module, context: EvalContext, before: Texts | None) -> int:
        """New tokens a prompt; those of the reference's texts where there are any."""
        longest = positions(model)
        wanted = self.tokens if before is None else len(before.written[0])
        room = wanted if longest is None else longest - self.prompt
        if room >= wanted:
            return wanted
        if before is None and room >= GRAM:
            return room
        least = GRAM if before is None else wanted
        raise NotApplicableError(
            f"{context.label}: a prompt of {self.prompt} tokens leaves {least} positions or more to write in, got "
            f"{max(0, room)} of {longest}; give a smaller prompt= or tokens="
        )

    def _notes(self, prompts: int, length: int, context: EvalContext) -> tuple[str, ...]:
        wanted = min(self.prompts, context.limit or self.prompts)
        notes = []
        if length < self.tokens:
            notes.append(f"texts of {length} new tokens, since the model has no positions for {self.tokens}")
        if prompts < wanted:
            notes.append(f"{prompts} prompts instead of {wanted}, since no more text is left")
        return tuple(notes)


# Writing ----------------------------------------------------------------------------------------------------


def _protocol(prompts: torch.Tensor, length: int) -> dict[str, str]:
    """Other kernels round otherwise, and a greedy text turns at the first near tie: so the machine is part of it."""
    device = prompts.device
    cpu = torch.backends.cpu.get_cpu_capability()
    return {
        "decoding": "greedy, never an end of text",
        "kernels": f"torch {torch.__version__}, "
        + (torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {cpu}"),
        "new tokens": str(length),
        "prompts": f"{prompts.shape[0]} of {prompts.shape[1]} tokens",
        "prompts sha256": hashlib.sha256(str(prompts.tolist()).encode()).hexdigest(),
    }


def _write(
    model: nn.Module, prompts: torch.Tensor, length: int, protocol: dict[str, str], context: EvalContext
) -> tuple[tuple[Text, ...], int]:
    """The texts, and how many tokens the model processed for them: none where the cache knew them."""
    shelf = shelf_of(model, context, {"evaluation": "generation", **protocol})
    never = _ends(model, context.tokenizer)
    request = ["texts", never]
    known = None if shelf is None else shelf.get(request)
    if known is not None:
        return tuple(tuple(text) for text in known), 0
    texts = _greedy(model, prompts, length, never, context)
    if shelf is not None:
        shelf.put(request, [list(text) for text in texts])
    return texts, prompts.numel() + length * len(texts)


def _greedy(
    model: nn.Module, prompts: torch.Tensor, length: int, never: Sequence[int], context: EvalContext
) -> tuple[Text, ...]:
    with _blaming(context):
        tokens, finite = greedy(
            model,
            prompts,
            length,
            never,
            lambda count: context.tell(f"token {count} of {length}"),
        )
    context.tell("")
    if not finite:
        raise EvaluationError(
            f"{context.label} gives NaN or infinity in its logits while it writes text; check the weights, "
            "or another --llm-dtype"
        )
    return tuple(tuple(text) for text in tokens.tolist())


@contextmanager
def _blaming(context: EvalContext) -> Iterator[None]:
    """Silent when a text holds a padding token: none is padded."""
    with blaming(context.label, "on text of its own"), quiet():
        yield


def _ends(model: nn.Module, tokenizer: Any) -> list[int]:  # noqa: ANN401  # transformers is read as Any
    """Tokens that end a text, as tokenizer, config and settings of the model name them."""
    settings = [getattr(model, "config", None), getattr(model, "generation_config", None)]
    found: set[int] = set()
    for holder in (tokenizer, *settings):
        named = getattr(holder, "eos_token_id", None)
        found.update(named if isinstance(named, list | tuple) else [] if named is None else [named])
    return sorted(found)


def _shown(
    prompts: torch.Tensor,
    written: Sequence[Text],
    scores: Sequence[float],
    tokenizer: Any,  # noqa: ANN401  # transformers is read as Any
) -> tuple[Answer, ...]:
    """Texts side by side: both models' stand under one id."""
    return tuple(
        Answer(
            f"prompt {number}",
            score,
            tokenizer.decode(text),
            question=tokenizer.decode(prompt, skip_special_tokens=True),
        )
        for number, (prompt, text, score) in enumerate(
            zip(prompts.tolist(), written, scores, strict=True), start=1
        )
    )


# Figures ----------------------------------------------------------------------------------------------------


def _agreement(reference: Sequence[Text], candidate: Sequence[Text]) -> list[float]:
    return [agreed(one, other) / len(one) for one, other in zip(reference, candidate, strict=True)]


def _figures(scores: Sequence[float], written: Sequence[Text]) -> dict[str, float]:
    return {
        "exact texts": sum(score == 1 for score in scores) / len(scores),
        "repeated tokens": sum(repeated(text) for text in written) / len(written),
        "distinct pairs": distinct(written),
    }


def agreed(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens before the first one that differs."""
    same = 0
    for one, other in zip(first, second, strict=True):
        if one != other:
            break
        same += 1
    return same


def repeated(text: Sequence[int]) -> float:
    """Share of the runs of four tokens that were there before; 0 where there is no run of four."""
    runs = [tuple(text[i : i + GRAM]) for i in range(len(text) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def distinct(texts: Sequence[Sequence[int]]) -> float:
    """Different pairs of neighbouring tokens in all texts / all such pairs."""
    pairs = [pair for text in texts for pair in pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def garbled(text: Sequence[int], tokenizer: Any) -> list[bool]:  # noqa: ANN401  # transformers is read as Any
    """Of each token, whether it is part of no character that Unicode assigns to writing.

    Bytes of one character may be several tokens. What ends in the middle of a character is not the model's fault.
    """
    found: list[bool] = []
    while len(found) < len(text):
        rest = text[len(found) : len(found) + BYTES_A_CHARACTER]
        pieces = (tokenizer.decode(list(rest[:count])) for count in range(1, len(rest) + 1))
        whole = next(((count, piece) for count, piece in enumerate(pieces, 1) if BROKEN not in piece), None)
        if whole is None:
            found.append(len(rest) == BYTES_A_CHARACTER)
        else:
            found += [any(map(_unwritten, whole[1]))] * whole[0]
    return found


def _unwritten(character: str) -> bool:
    kind = unicodedata.category(character)
    return kind in ("Cn", "Co", "Cs") or (kind == "Cc" and not character.isspace())


def _meaningless(
    judge: nn.Module, prompts: torch.Tensor, written: Sequence[Text], context: EvalContext
) -> float:
    """Share of the tokens written that say nothing; `judge` is the reference."""
    tokens = torch.tensor(written, device=prompts.device)
    with _blaming(context):
        rare = probabilities(judge, prompts, tokens) < RARE
    empty = rare.cpu() | torch.tensor([garbled(text, context.tokenizer) for text in written])
    return float(empty.float().mean())


def probabilities(model: nn.Module, prompts: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """What `model` gives each token of `written` [texts, tokens] behind `prompts` [texts, prompt] and those before it.

    A piece of the texts at a time: all logits of a vocabulary of 262144 would be gigabytes.

    Returns:
        float32 [texts, tokens].
    """
    reader, tokens, known = Reader(model), torch.cat([prompts, written], dim=1), prompts.shape[1]
    found: list[torch.Tensor] = []
    begin, end = 0, 1
    with torch.no_grad():
        while begin < written.shape[1]:
            logits = reader.next(tokens[:, : known + end - 1], keep=end - begin).float()
            chosen = logits.gather(2, written[:, begin:end, None])[..., 0]
            found.append((chosen - logits.logsumexp(dim=2)).exp())
            step = max(1, PIECE // logits[:, 0].numel())
            begin, end = end, min(written.shape[1], end + step)
    return torch.cat(found, dim=1)
