"""Perplexity of one kind of text by itself: damage to code is not averaged away by prose.

A slice is some windows of equal length; each is an answer whose score is the mean negative log likelihood of its
scored tokens, so that reference and candidate are paired window by window.
"""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from pytest_llmslim.errors import EvaluationError, NotApplicableError
from pytest_llmslim.evals import Answer, Answers, EvalContext, Metric, slice_texts
from pytest_llmslim.evals.blame import blaming
from pytest_llmslim.evals.cache import shelf_of
from pytest_llmslim.evals.perplexity import perplexity, token_nll
from pytest_llmslim.evals.slice_texts.windows import DOCUMENT, LONGEST, cut_text, own_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from pytest_llmslim.evals.slice_texts import SliceText
    from pytest_llmslim.evals.slice_texts.windows import Cut, Window

OWN: Final = "long"
TEXTS: Final[dict[str, Callable[[], SliceText]]] = {
    "code": slice_texts.code,
    "mathematics": slice_texts.mathematics,
    "languages": slice_texts.languages,
    "nested": slice_texts.nested,
    "rare": slice_texts.rare,
}
EMBEDDED: Final = ("nested", "rare")
"""Kinds of text in the language of the embedded models."""
KINDS: Final = ("code", "mathematics", "languages", OWN, *EMBEDDED)

WINDOW: Final = DOCUMENT
"""Tokens in a forward pass, BOS included; of the embedded language that is one document."""
SHORT_WINDOW: Final = 128
"""For languages, whose texts are short."""
SHOWN: Final = 24
"""Tokens of a window that are shown as the question."""

METRIC: Final = Metric("perplexity", higher_is_better=False, total="perplexity")


@dataclass(frozen=True)
class Slice:
    """Perplexity of one kind of text.

    Args:
        kind: `code` (Python's own library), `mathematics` (worked problems, generated), `languages` (fourteen other
            than English), `long` (the run's text in windows of up to 2048 tokens, scored in their second half); of
            the embedded language `nested` (most relative clauses) and `rare` (rarest words).
        file: or a UTF-8 file, relative to where pytest was started.
        windows: at most so many; of a text in several parts each part has equally many.

    Raises:
        EvaluationError: neither or both of kind and file, an unknown kind, no windows, or a file that cannot be read.
    """

    kind: str = ""
    file: str = ""
    windows: int = 16
    _path: Path = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kinds = ", ".join(KINDS)
        if bool(self.kind) == bool(self.file):
            raise EvaluationError(
                f"a slice has a kind ({kinds}) or a file, got kind={self.kind!r}, file={self.file!r}"
            )
        if self.kind and self.kind not in KINDS:
            raise EvaluationError(f"a slice is of a kind, one of {kinds}, or a file; got kind={self.kind!r}")
        if not isinstance(self.windows, int) or isinstance(self.windows, bool) or self.windows < 1:
            raise EvaluationError(f"a slice has at least one window, got windows={self.windows!r}")
        object.__setattr__(self, "_path", Path(self.file).absolute())  # a test may change the folder
        if self.file:
            self._check_file()

    def _check_file(self) -> None:
        if not self._path.is_file():
            raise EvaluationError(
                f"slice {self.file}: there is no such file, and no such kind of text; "
                f"give the path of a UTF-8 file, or one of {', '.join(KINDS)}"
            )
        slice_texts.from_file(self._path)

    @property
    def name(self) -> str:
        """The kind, or the file without its folder."""
        return self.kind or self._path.name

    def answers(self, model: nn.Module, context: EvalContext) -> Answers:
        """Score the windows of this slice.

        Raises:
            NotApplicableError: the tokenizer does not know the text, or the kind is of another language.
            EvaluationError: the text is too short, or the model fails on it.
        """
        began = time.perf_counter()
        cut = self._cut(model, context)
        protocol = _protocol(self.name, cut, context)
        scores, tokens = _scores(model, cut.windows, protocol, context)
        numbered = enumerate(zip(cut.windows, scores, strict=True), 1)
        return Answers(
            METRIC,
            tuple(
                Answer(f"{self.name}/{i}", score, question=_beginning(window, context.tokenizer))
                for i, (window, score) in numbered
            ),
            protocol,
            tokens=tokens,
            seconds=time.perf_counter() - began if tokens else 0.0,
            notes=(*cut.notes, *_guessing(scores, model, context)),
        )

    def _cut(self, model: nn.Module, context: EvalContext) -> Cut:
        """This slice's windows for one tokenizer."""
        count = self.windows if context.limit is None else min(self.windows, context.limit)
        positions = getattr(model.config, "max_position_embeddings", None) or LONGEST
        if self.kind == OWN:
            return own_text(context, positions, count)
        if self.kind in EMBEDDED and not slice_texts.speaks(context.tokenizer):
            raise NotApplicableError(
                "this text is in the language of the embedded models, and the tokenizer is of another; "
                f"use one of {', '.join(kind for kind in KINDS if kind not in EMBEDDED)}",
                quiet=True,
            )
        text = slice_texts.from_file(self._path) if self.file else TEXTS[self.kind]()
        length = min(SHORT_WINDOW if self.kind == "languages" else WINDOW, positions)
        return cut_text(text, context, length, count)


def _protocol(name: str, cut: Cut, context: EvalContext) -> dict[str, str]:
    window = cut.windows[0]
    return {
        "slice": name,
        "window": str(len(window.ids)),
        "scored": str(window.scored),
        "tokens": str(sum(window.scored for window in cut.windows)),
        "bos": str(context.passage.protocol.bos).lower(),
        "dtype": context.passage.protocol.dtype,
        "sha256": cut.sha256,
    }


def _scores(
    model: nn.Module, windows: Sequence[Window], protocol: dict[str, str], context: EvalContext
) -> tuple[list[float], int]:
    """Nats a token of each window, and the tokens that were passed: not those of windows that the cache knows."""
    shelf = shelf_of(model, context, protocol)
    scores, tokens = [], 0
    for i, window in enumerate(windows, 1):
        score = shelf.get(window.ids) if shelf else None
        if score is None:
            context.tell(f"window {i} of {len(windows)}")
            score = _score(model, window, context)
            tokens += len(window.ids)
            if shelf:
                shelf.put(window.ids, score)
        scores.append(float(score))
    return scores, tokens


def _score(model: nn.Module, window: Window, context: EvalContext) -> float:
    """Mean negative log likelihood of the scored tokens, nats."""
    ids = torch.tensor([window.ids], device=context.device)
    options: dict[str, Any] = {}
    if window.first > 1 and "logits_to_keep" in inspect.signature(model.forward).parameters:
        # With 2048 tokens and a vocabulary of 256k all logits are 2 GB, of which half are not looked at.
        options["logits_to_keep"] = window.scored + 1
    with blaming(context.label, f"in a forward pass of {len(window.ids)} tokens"), torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **options).logits
    kept = logits.shape[1]
    return float(token_nll(logits, ids[:, -kept:], window.first - len(window.ids) + kept).mean())


def _beginning(window: Window, tokenizer: Any) -> str:  # noqa: ANN401  # transformers is read as Any
    """How a window starts, after the name of its section."""
    text = tokenizer.decode(list(window.ids[:SHOWN]), skip_special_tokens=True)
    return f"{window.section}: {' '.join(text.split())}".removeprefix(": ")


def _guessing(scores: Sequence[float], model: nn.Module, context: EvalContext) -> tuple[str, ...]:
    """A note where the reference is no better than guessing."""
    words = getattr(model.config, "vocab_size", math.inf)
    if context.reference is not None or perplexity(sum(scores), len(scores)) < words:
        return ()
    return (
        f"this text is foreign to the reference, which is no better than guessing among {words} tokens: "
        "a change says little",
    )
