"""SentencePiece vocabularies in GGUF files (`tokenizer.ggml.model` is `llama`) as BPE tokenizers.

Such a file lists tokens and scores but no merges. SentencePiece's BPE joins, again and again, the two
neighbours whose joint token has the highest score; so every way to split a token in two known tokens is a
merge, ranked by the score of the token. Kudo and Richardson 2018, "SentencePiece".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "▁"


def sentencepiece_tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that the metadata of a GGUF file describes; puts BOS first if the file says so.

    Raises:
        LookupError: tokens, scores or types are missing.
    """
    part = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    tokens, types = part["tokens"], part["token_type"]
    special = {
        f"{role}_token": tokens[part[key]]
        for role, key in _ROLES.items()
        if part.get(key) is not None and part[key] < len(tokens)
    }
    tokenizer = _bpe(tokens, part["scores"], types, special.get("unk_token"))
    tokenizer.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False)
            for text, kind in zip(tokens, types, strict=True)
            if kind == _USER_DEFINED
        ]
    )
    _spaces(tokenizer, prefix=part.get("add_space_prefix", True))
    _frame(tokenizer, part, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=metadata.get("tokenizer.chat_template"), **special
    )


_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}


def merges(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> Iterator[tuple[str, str]]:
    """All pairs of tokens that join to a token, best score of the joint token first."""
    known = set(tokens)
    joint = [index for index, kind in enumerate(types) if kind == _NORMAL]
    for index in sorted(joint, key=lambda index: -scores[index]):
        text = tokens[index]
        for cut in range(1, len(text)):
            if text[:cut] in known and text[cut:] in known:
                yield text[:cut], text[cut:]


def _bpe(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], unknown: str | None
) -> Tokenizer:
    vocabulary = {text: index for index, text in enumerate(tokens)}
    pairs = list(merges(tokens, scores, types))
    model = models.BPE(
        vocabulary, pairs, unk_token=unknown, byte_fallback="<0x00>" in vocabulary, fuse_unk=True
    )
    return Tokenizer(model)


def _spaces(tokenizer: Tokenizer, *, prefix: bool) -> None:
    """Write spaces as the vocabulary does, and turn them back when decoding."""
    written = normalizers.Replace(" ", _SPACE)
    read = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), written])
        tokenizer.decoder = decoders.Sequence([*read, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = written
        tokenizer.decoder = decoders.Sequence(read)


def _frame(tokenizer: Tokenizer, part: dict[str, Any], special: dict[str, str]) -> None:
    """Put BOS before and EOS behind a text if the file says so."""
    bos = special.get("bos_token") if part.get("add_bos_token", True) else None
    eos = special.get("eos_token") if part.get("add_eos_token", False) else None
    frame = [token for token in (bos, "$A", eos) if token]
    if len(frame) > 1:
        numbered = [(token, tokenizer.token_to_id(token)) for token in frame if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=numbered)
