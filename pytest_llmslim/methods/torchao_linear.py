"""8-bit linears with real kernels by torchao (`quantize_`) and by torch itself (`torch.ao.quantization`).

Weights are on a symmetric grid of 256 levels with one scale a row, so an exact zero stays one. torchao has more
that is not offered: its 4-bit weights need a GPU library or are stored a byte each, and its prototype for CPUs
(fast in bfloat16 only) has a grid without 0, so that the zeros of pruned weights come back.
torchao keeps `nn.Linear` and replaces the weight by a tensor of its own; torch.ao replaces the module.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.models.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

_LEAST_INPUTS = 2  # torchao 0.18 confuses rows and groups of a linear with one
_ENGINES = ("fbgemm", "x86", "onednn")


@dataclass(frozen=True)
class _TorchAO:
    """The weights of the blocks as tensors of torchao."""

    name: ClassVar[str]
    config: ClassVar[str]

    def __post_init__(self) -> None:
        torchao()  # importing it is no cost of compressing, which is measured from here on

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Replace the weights of the blocks' linears, in place.

        Raises:
            CompressionError: a model without float linears, with weights that are not finite, or with a linear of
                a single input.
        """
        linears = float_linears(module, self.name, context)
        check_widths(linears, self.name, context)
        quantize(module, linears, self.config)
        check_forward(module, self.name, context)
        return Applied(module, f"{self.name}: {len(linears)} linears by torchao {torchao().__version__}")


@dataclass(frozen=True)
class Int8Dynamic(_TorchAO):
    """Weights in 8 bits a row, inputs in 8 bits a token as they come, integer products.

    On a CPU long inputs get faster; single tokens get slower, since torchao's own work a call outweighs the product.
    """

    name: ClassVar[str] = "int8-dynamic"
    config: ClassVar[str] = "Int8DynamicActivationInt8WeightConfig"


@dataclass(frozen=True)
class Int8Weight(_TorchAO):
    """Weights in 8 bits a row, turned into floats again in every forward pass: smaller, on a CPU no faster."""

    name: ClassVar[str] = "int8-weight"
    config: ClassVar[str] = "Int8WeightOnlyConfig"


@dataclass(frozen=True)
class Int8Fbgemm:
    """Weights in 8 bits a row, inputs in 7 bits (one range for all tokens of a call), integer products.

    What `torch.ao.quantization.quantize_dynamic` makes; torch calls it deprecated. Since all tokens of a call share
    a range, a token's logits depend a little on the tokens beside it, also on later ones.
    """

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Replace the linears of the blocks by torch.ao's, in place.

        Raises:
            CompressionError: another device than the CPU, a processor without these kernels, a model without float
                linears or in another dtype than float32, or weights that are not finite.
        """
        _check_engine(context)
        linears = float_linears(module, "int8-fbgemm", context)
        for name, linear in linears.items():
            if linear.weight.dtype != torch.float32:
                raise CompressionError(
                    f"int8-fbgemm on {context.label}: the model is in float32, got {linear.weight.dtype} in {name}; "
                    "load it in float32"
                )
            module.set_submodule(name, _packed(linear))
        check_forward(module, "int8-fbgemm", context)
        engine = torch.backends.quantized.engine
        return Applied(module, f"int8-fbgemm: {len(linears)} linears by torch.ao, engine {engine}")


def check_widths(linears: dict[str, nn.Linear], method: str, context: Context) -> None:
    """Refuse linears of a single input, on which torchao fails.

    Raises:
        CompressionError: there is one.
    """
    for name, linear in linears.items():
        if linear.in_features < _LEAST_INPUTS:
            raise CompressionError(
                f"{method} on {context.label}: torchao takes linears of {_LEAST_INPUTS} inputs or more, got "
                f"{linear.in_features} in {name}; use rtn"
            )


def quantize(module: nn.Module, linears: dict[str, nn.Linear], config: str) -> None:
    """Replace the weights of these linears of `module` by tensors of torchao, as its `config` makes them."""
    made = getattr(torchao().quantization, config)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's and torch's own deprecations
        torchao().quantization.quantize_(module, made, filter_fn=lambda _, name: name in linears)


def torchao() -> Any:  # noqa: ANN401  # an untyped library
    """The package, imported without a word.

    Raises:
        ModuleNotFoundError: it is not installed; a recipe tells how to install it.
    """
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchao
        import torchao.quantization
    return torchao


def _check_engine(context: Context) -> None:
    engine = torch.backends.quantized.engine if context.device == "cpu" else context.device
    if engine not in _ENGINES:
        raise CompressionError(
            f"int8-fbgemm on {context.label}: torch's quantized kernels run on a CPU with one of the engines "
            f"{', '.join(_ENGINES)}, got {engine}; use int8-dynamic"
        )


def _packed(linear: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that torch.ao moves to torchao
        linear.qconfig = torch.ao.quantization.per_channel_dynamic_qconfig
        return torch.ao.nn.quantized.dynamic.Linear.from_float(linear).eval()
