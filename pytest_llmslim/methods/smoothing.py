"""Moving a factor a channel from one module of a block into the linears that read it: the output stays as it was.

AWQ (Lin et al. 2023, arXiv 2306.00978, section 3.2) and SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, equation 3)
choose the factors, each in its own file. With a factor s a channel, W the readers and x what they read,

    W x = (W diag(s)) (diag(s)^-1 x)

and diag(s)^-1 goes into what makes x: the scale and bias of a norm, or the rows of a linear. llmcompressor does
this too, but takes the wrong norm for Gemma 3 (a relative error of the logits of 1.1) and knows no OPT and GPT-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_llmslim.models.attention import FusedAttention

if TYPE_CHECKING:
    from pytest_llmslim.models.blocks import Layer


@dataclass(frozen=True, slots=True)
class Link:
    """A module that gives channels, and the linears that alone read them; dotted names from the model's root.

    Args:
        source: a norm, or a linear whose output is multiplied and added up but goes through nothing that a
            factor could not pass: the values of attention, the ungated half of a gated feed-forward part, ReLU.
        readers: linears with one column a channel.
        rows: which outputs of a linear `source` the channels are, in order; `None` for a norm.
        unit_offset: the norm multiplies by `1 + weight`.
    """

    source: str
    readers: tuple[str, ...]
    rows: slice | None = None
    unit_offset: bool = False


def norm_links(module: nn.Module, layer: Layer) -> list[Link]:
    """The norms of a block that feed linears; none where norms come after the linears or have no scale."""
    return [
        Link(norm.name, norm.linears, unit_offset=norm.unit_offset)
        for norm in layer.norms
        if module.get_submodule(norm.name).weight is not None
    ]


def linear_links(layer: Layer) -> list[Link]:
    """The linears of a block that feed another one: value to output, and up to down, where a factor can pass.

    Values pass if every query head has its own (else several columns of the output read one row), the
    feed-forward part if it is gated or has ReLU.
    """
    attention, links = layer.attention, []
    if attention.kv_heads == attention.heads:
        width = attention.heads * attention.head_dim
        fused = isinstance(attention, FusedAttention)
        value = attention.module.c_attn if fused else attention.module.v_proj
        rows = slice(2 * width, 3 * width) if fused else slice(0, width)
        links.append(Link(_name(layer, value), (_name(layer, attention.projection_output),), rows))
    inner, outer = layer.feed_forward.inner, layer.feed_forward.outer
    if len(inner) == 2 or any(type(part) is nn.ReLU for part in layer.module.modules()):
        # of gate and up the gate comes first; only up passes no activation
        links.append(Link(inner[-1], (outer,), slice(0, layer.linears[outer].in_features)))
    return links


def fold(module: nn.Module, link: Link, factor: torch.Tensor) -> None:
    """Divide the channels of the link's source by `factor` and multiply the readers' columns by it, in place.

    Args:
        module: the whole model, its linears plain and float.
        link: of this model.
        factor: float32 [channels], all above zero.
    """
    source = module.get_submodule(link.source)
    with torch.no_grad():
        for name, parameter in source.named_parameters(recurse=False):
            part = parameter if link.rows is None else parameter[link.rows]
            offset = 1.0 if link.unit_offset and name == "weight" else 0.0
            by = factor if part.dim() == 1 else factor[:, None]
            part.copy_((part.float() + offset) / by - offset)
        for name in link.readers:
            weight = module.get_submodule(name).weight
            weight.copy_(weight.float() * factor)


def _name(layer: Layer, linear: nn.Module) -> str:
    return next(name for name, each in layer.linears.items() if each is linear)
