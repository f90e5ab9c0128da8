"""One view of the transformer blocks of all known families: layers, their attention heads and linears."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.attention import Attention, FusedAttention, SplitAttention

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a family keeps its parts.

    Args:
        layers: dotted name of the list of blocks.
        attention: attribute of a block.
        output: attribute of the attention: the projection of all heads back to the hidden width.
        heads: attribute of the attention that its forward reads as number of heads; empty if it reads none.
        fused: whether one linear computes query, key and value.
        inner: the linears of a block that widen the hidden state for the feed-forward part.
        outer: the linear that narrows it again.
        norms: each norm of a block whose output goes into linears and nowhere else, with those linears.
        unit_offset: whether these norms multiply by `1 + weight` instead of `weight`.
    """

    layers: str
    attention: str
    output: str
    heads: str = ""
    fused: bool = False
    inner: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    outer: str = "mlp.down_proj"
    norms: tuple[tuple[str, tuple[str, ...]], ...] = ()
    unit_offset: bool = False


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
_LLAMA = Layout(
    "model.layers",
    "self_attn",
    "o_proj",
    norms=(("input_layernorm", _QKV), ("post_attention_layernorm", _GATED)),
)

FAMILIES: Mapping[str, Layout] = {
    "gpt2": Layout(
        "transformer.h",
        "attn",
        "c_proj",
        heads="num_heads",
        fused=True,
        inner=("mlp.c_fc",),
        outer="mlp.c_proj",
        norms=(("ln_1", ("attn.c_attn",)), ("ln_2", ("mlp.c_fc",))),
    ),
    "opt": Layout(
        "model.decoder.layers",
        "self_attn",
        "out_proj",
        heads="num_heads",
        inner=("fc1",),
        outer="fc2",
        norms=(("self_attn_layer_norm", _QKV), ("final_layer_norm", ("fc1",))),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    # the norm after attention scales its output, so the one before the feed-forward part feeds the linears
    "gemma3_text": replace(
        _LLAMA,
        norms=(("input_layernorm", _QKV), ("pre_feedforward_layernorm", _GATED)),
        unit_offset=True,
    ),
}
"""By `config.model_type`."""


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The feed-forward part of a block, by dotted names from the model's root.

    Channel `c` is row `c` of every linear in `inner` (with its bias) and column `c` of `outer`.
    """

    inner: tuple[str, ...]
    outer: str


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm whose output goes into `linears` (dotted names from the model's root) and nowhere else.

    Dividing its scale (and bias) by a factor a channel, and multiplying the columns of the linears by it, leaves
    the model's output as it was. With `unit_offset` its scale is `1 + weight`.
    """

    name: str
    linears: tuple[str, ...]
    unit_offset: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block.

    Args:
        index: from 0, at the input.
        module: the block itself.
        attention: its heads.
        linears: its linear layers by dotted name from the model's root, in the order of the forward pass.
        feed_forward: the names of its feed-forward linears.
        norms: its norms that feed linears. Only OPT's may come after the linears instead
            (`config.do_layer_norm_before` false, as in opt-350m); it then has none.
    """

    index: int
    module: nn.Module
    attention: Attention
    linears: dict[str, nn.Module]
    feed_forward: FeedForward
    norms: tuple[Norm, ...]


class Blocks:
    """The blocks of a causal language model, as they are when asked; ask anew after replacing modules.

    Args:
        module: a model of transformers of one of `FAMILIES`, GPT-2 after `from_conv1d`.

    Raises:
        ModelError: another family, or blocks that are not where the family keeps them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.family = str(getattr(getattr(module, "config", None), "model_type", type(module).__name__))
        layout = FAMILIES.get(self.family)
        if layout is None:
            raise ModelError(
                f"blocks are known of the model families {', '.join(sorted(FAMILIES))}, got {self.family!r}; "
                "choose a model of one of these, or a method that needs no view of blocks"
            )
        try:
            blocks = list(module.get_submodule(layout.layers))
            self.layers = [_layer(index, block, layout) for index, block in enumerate(blocks)]
        except AttributeError as error:
            raise ModelError(
                f"a model of the family {self.family!r} has its blocks at {layout.layers!r}, got "
                f"{type(module).__name__} without them ({error}); pass the whole causal language model"
            ) from None

    def linears(self) -> dict[str, nn.Module]:
        """All linears of all blocks by dotted name; never the head or the embeddings."""
        return {name: linear for layer in self.layers for name, linear in layer.linears.items()}


def _layer(index: int, block: nn.Module, layout: Layout) -> Layer:
    attention = block.get_submodule(layout.attention)
    kind = FusedAttention if layout.fused else SplitAttention
    prefix = f"{layout.layers}.{index}"
    linears = {f"{prefix}.{name}": part for name, part in outermost(block)}
    if not linears:
        raise ModelError(
            f"every block holds linear layers, got none in {prefix}; call from_conv1d on a GPT-2 that "
            "load_model did not load"
        )
    feed_forward = FeedForward(tuple(f"{prefix}.{name}" for name in layout.inner), f"{prefix}.{layout.outer}")
    norms = tuple(
        Norm(f"{prefix}.{name}", tuple(f"{prefix}.{each}" for each in fed), layout.unit_offset)
        for name, fed in layout.norms
        if getattr(block, "do_layer_norm_before", True)
    )
    heads = kind(attention, layout.output, layout.heads, prefix)
    return Layer(index, block, heads, linears, feed_forward, norms)


def outermost(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linears of a block by name; not those inside another one, such as the base of a `LowRank`."""
    inside = ""
    for name, part in block.named_modules():
        if is_linear(part) and not (inside and name.startswith(inside)):
            inside = f"{name}."
            yield name, part


def is_linear(module: nn.Module) -> bool:
    """Whether `module` multiplies by a weight matrix: `nn.Linear`, quantized subclasses, torch.ao's."""
    return isinstance(module, nn.Linear) or (
        hasattr(module, "in_features") and hasattr(module, "out_features")
    )
