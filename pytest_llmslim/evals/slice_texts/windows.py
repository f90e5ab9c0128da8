"""Texts of a slice as windows of equal length for one tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_llmslim.errors import EvaluationError, NotApplicableError
from pytest_llmslim.evals.slice_texts import speaks
from pytest_llmslim.evals.text import CHARACTERS_A_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llmslim.evals import EvalContext
    from pytest_llmslim.evals.slice_texts import Section, SliceText
    from pytest_llmslim.evals.text import Passage

LONGEST: Final = 2048
LEAST: Final = 16
FEW: Final = 4
"""Windows that `long` has at least: rather shorter ones than a sample of one."""
KNOWN: Final = 0.9
"""Share of a text's tokens that have to be known: what is `<unk>` to both models tells nothing."""
DOCUMENT: Final = 256
"""Tokens of a document of the embedded language with its BOS: its models have seen nothing longer."""


class Window(NamedTuple):
    """Token ids of one forward pass, scored from position `first` on; `section` names the part of the text."""

    ids: tuple[int, ...]
    first: int
    section: str

    @property
    def scored(self) -> int:
        """Tokens that are scored."""
        return len(self.ids) - self.first


class Cut(NamedTuple):
    """The windows of a slice, all of one length; `sha256` is of the text they come from."""

    windows: tuple[Window, ...]
    sha256: str
    notes: tuple[str, ...] = ()


def cut_text(text: SliceText, context: EvalContext, length: int, count: int) -> Cut:
    """At most `count` windows of `length` tokens, BOS included, of each section equally many, in turns.

    A section that the tokenizer does not know, or that is shorter than a window, is left out with a note.

    Raises:
        NotApplicableError: the tokenizer knows too little of every section.
        EvaluationError: every section is shorter than a window.
    """
    start = _bos(context)
    body = length - len(start)
    sections = _spread(text.sections, count)
    rounds = count // len(sections)
    found: list[list[Window]] = []
    short: dict[str, int] = {}
    unknown: dict[str, float] = {}
    for section in sections:
        ids = _encode(context, section.text[: rounds * body * CHARACTERS_A_TOKEN])
        share = _known(context, ids)
        if share < KNOWN:
            unknown[section.name] = share
        elif len(ids) < body:
            short[section.name] = len(ids)
        else:
            bodies = [ids[i : i + body] for i in range(0, len(ids) - body + 1, body)][:rounds]
            found.append([Window((*start, *body_ids), 1, section.name) for body_ids in bodies])
    if not found:
        raise _refusal(context, short, unknown, length)
    windows = tuple(section[i] for i in range(rounds) for section in found if i < len(section))
    return Cut(windows, text.sha256, _notes(short, unknown, len(windows), rounds * len(found)))


def own_text(context: EvalContext, positions: int, count: int) -> Cut:
    """At most `count` windows of the run's own text, as long as positions and text allow, half of each scored.

    Windows overlap so that no token is scored twice. Those of the embedded language are its documents.

    Raises:
        EvaluationError: the text is too short.
    """
    start, ids = _bos(context), _own_tokens(context.passage)
    documents = speaks(context.tokenizer)
    # `FEW` windows of which each begins half a window after the one before it.
    longest = min(LONGEST, positions, len(start) + len(ids) * 2 // (FEW + 1))
    body = min(longest, DOCUMENT if documents else longest) - len(start)
    if body < LEAST:
        raise EvaluationError(
            f"{context.label}: the run's text has {len(ids)} tokens, too few for {FEW} long windows; "
            "give a longer --llm-text, or raise --llm-tokens"
        )
    step = body if documents else body // 2
    begins = range(0, len(ids) - body + 1, step)[:count]
    first = len(start) + body - body // 2
    windows = tuple(Window((*start, *ids[begin : begin + body]), first, "") for begin in begins)
    notes = _notes({}, {}, len(windows), count)
    if documents:
        notes = (*notes, "a long text of the embedded language is one whole document")
    return Cut(windows, context.passage.protocol.text_sha256, notes)


def _spread(sections: Sequence[Section], count: int) -> Sequence[Section]:
    """All sections, or `count` of them from first to last."""
    if count >= len(sections):
        return sections
    return [sections[i * len(sections) // count] for i in range(count)]


def _encode(context: EvalContext, text: str) -> list[int]:
    # verbose=False: a text longer than the model's positions is what we want, windows come later.
    return list(context.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _bos(context: EvalContext) -> list[int]:
    """BOS as a list; empty where the run's own windows start without it."""
    return [context.tokenizer.bos_token_id] if context.passage.protocol.bos else []


def _known(context: EvalContext, ids: Sequence[int]) -> float:
    """Share of the tokens that are not `<unk>`."""
    unknown = context.tokenizer.unk_token_id
    return 1 - sum(token == unknown for token in ids) / max(1, len(ids))


def _own_tokens(passage: Passage) -> list[int]:
    """The run's text: of windows that overlap, each from its first scored token on."""
    ids: list[int] = []
    for i, (window, first) in enumerate(zip(passage.windows, passage.scored_from, strict=True)):
        whole = passage.protocol.name == "window" or i == 0
        ids += window[0, int(passage.protocol.bos) if whole else first :].tolist()
    return ids


def _refusal(
    context: EvalContext, short: dict[str, int], unknown: dict[str, float], length: int
) -> EvaluationError:
    if unknown:
        return NotApplicableError(
            f"the tokenizer knows {100 * max(unknown.values()):.0f} % of this text, and unknown words tell nothing; "
            "leave this slice out, or give --llm-slices a file in the model's language"
        )
    return EvaluationError(
        f"{context.label}: the text has {max(short.values())} tokens, fewer than one window of {length}; "
        "give a longer one"
    )


def _notes(short: dict[str, int], unknown: dict[str, float], found: int, wanted: int) -> tuple[str, ...]:
    notes = []
    if unknown:
        listed = ", ".join(f"{name} ({100 * share:.0f} %)" for name, share in unknown.items())
        notes.append(f"left out, since the tokenizer knows too little of them: {listed}")
    if short:
        listed = ", ".join(f"{name} ({count} tokens)" for name, count in short.items())
        notes.append(f"left out, since they are shorter than a window: {listed}")
    if found < wanted:
        notes.append(f"the text holds {found} windows, fewer than the {wanted} asked for")
    return tuple(notes)
