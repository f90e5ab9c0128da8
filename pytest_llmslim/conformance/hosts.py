"""Tiny models that methods are tried on, and the text they see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from pytest_llmslim.methods import Context
from pytest_llmslim.methods.linears import effective_weight
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.strategies.matrix import Matrix
from pytest_llmslim.strategies.tiny import VOCABULARY, Tiny, tiny_model

if TYPE_CHECKING:
    from torch import nn

LABEL: Final = "tiny"
PLACE: Final = "model.layers.0.mlp.up_proj"
"""The linear that holds the matrix; what enters it does not depend on its weights."""
WINDOWS, WINDOW = 16, 24
_SPECIAL = 4  # token ids below are special
_BOS = 0
_NEAR = 1e-3


@dataclass(frozen=True)
class Sinks(Tiny):
    """A tiny Llama in which the heads of all groups but the last attend to the first token."""

    family: str = "llama"

    def module(self) -> nn.Module:
        """The model, made anew."""
        made = super().module()
        _make_sinks(made)
        return made


def host(matrix: Matrix) -> nn.Module:
    """A Llama of one layer with `matrix` at `PLACE`, in its dtype; all other weights are random."""
    rows, columns = matrix.shape
    made = tiny_model(
        "llama",
        hidden_size=columns,
        intermediate_size=rows,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
    )
    made.to(matrix.dtype).get_submodule(PLACE).weight.data = matrix.tensor
    return made


def gaussian(rows: int, columns: int, seed: int = 0) -> Matrix:
    """Random weights."""
    return Matrix.of(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))


def tokens(count: int = WINDOWS) -> torch.Tensor:
    """Random text of token ids [count, window]; each window begins with the BOS token."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(_SPECIAL, VOCABULARY, (WINDOWS, WINDOW), generator=generator)
    text[:, 0] = _BOS
    return text[:count]


def context(reference: nn.Module, seed: int = 0) -> Context:
    """What a method is told about a tiny model."""
    return Context(
        calibration=tokens(8),
        seed=seed,
        device="cpu",
        family=str(reference.config.model_type),
        label=LABEL,
        reference=reference,
        draw=tokens,
    )


def logits(module: nn.Module) -> torch.Tensor:
    """Of two windows that are not among those of the calibration: [2, window, vocabulary]."""
    with torch.no_grad():
        output: torch.Tensor = module(input_ids=tokens()[-2:], use_cache=False).logits
    return output


def divergence(module: nn.Module, reference: nn.Module) -> float:
    """Mean over tokens of KL(reference || module) on the calibration text, in nats."""
    with torch.no_grad():
        wanted, got = (
            each(input_ids=tokens(8), use_cache=False).logits.double().log_softmax(-1)
            for each in (reference, module)
        )
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())


def loss(module: nn.Module, _reference: nn.Module) -> float:
    """Mean negative log-likelihood of the calibration text's tokens, in nats."""
    text = tokens(8)
    with torch.no_grad():
        got = module(input_ids=text, use_cache=False).logits[:, :-1].flatten(0, 1)
    return float(functional.cross_entropy(got, text[:, 1:].flatten()))


def near(wanted: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether logits are equal but for float errors, and for the epsilon of a norm over fewer channels."""
    return wanted.shape == got.shape and float((wanted - got).abs().max()) <= _NEAR * float(
        wanted.abs().max()
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """A word for every token id."""
    words = {f"<{index}>": index for index in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<1>")), unk_token="<1>"
    )


def weight_of(linear: nn.Module) -> torch.Tensor:
    """What a linear multiplies by: [out, in], on tensors of its own."""
    return effective_weight(linear).detach().clone()


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """What every linear of the blocks multiplies by, by name."""
    return {name: weight_of(linear) for name, linear in Blocks(module).linears().items()}


def _make_sinks(module: nn.Module) -> None:
    """Let heads attend to the BOS token.

    A direction of the embedding tells BOS from all other tokens, and the pair of features of each head that
    rotates least with the position carries it.
    """
    embedding = module.get_input_embeddings().weight.data
    embedding[:, :2] = 0
    embedding[:, 0], embedding[_BOS] = 20, 0
    embedding[_BOS, 1] = 20
    for layer in Blocks(module).layers:
        attention = layer.attention
        slow = attention.head_dim // 2 - 1
        for linear, source, heads in (
            (attention.module.q_proj, 0, attention.heads - attention.groups),
            (attention.module.k_proj, 1, attention.kv_heads - 1),
        ):
            for head in range(heads):
                linear.weight.data[head * attention.head_dim + slow, source] = 10.0
