"""Quantized linears by bitsandbytes: LLM.int8(), NormalFloat 4 and floating point 4, on CPU and CUDA.

Only the linears inside the blocks are replaced; embeddings, norms and `lm_head` keep their dtype.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_choice, check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

COMPUTE_DTYPES = ("auto", "float32", "bfloat16", "float16")
_FLOAT16_MAX = 65504.0
# What bitsandbytes' kernel for CPUs with AVX512-BF16 asks of a 4-bit linear; it fails in forward otherwise.
_OUT_MULTIPLE = 32
# Weights that share a scale. On a CPU bitsandbytes 0.50 looks scales up row by row although it made them for the
# flattened weight: where a row is no multiple of a block, it multiplies with the scales of other rows.
_BLOCK = 64


@dataclass(frozen=True)
class Int8:
    """LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339): weights in 8 bits, one scale a row.

    Inputs are quantized to 8 bits at run time; they and the weights pass through float16.

    Args:
        threshold: input features with a magnitude of at least this are multiplied in float; 0 turns it off.

    Raises:
        RecipeError: a threshold that is not a number from 0 on.
    """

    threshold: float = 6.0

    def __post_init__(self) -> None:
        rule = "a number from 0 to 65504"
        check_number("int8", "threshold", self.threshold, rule, low=0, high=_FLOAT16_MAX)
        _bitsandbytes()  # importing it is no cost of compressing, which is measured from here on

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Replace the linears of the blocks by `Linear8bitLt`, in place.

        Raises:
            CompressionError: a model without float linears, or with weights that float16 cannot hold.
        """
        linears = float_linears(module, "int8", context)
        _check_float16(linears, context)
        _replace(module, linears, self._quantized, context.device)
        check_forward(module, "int8", context)
        return Applied(
            module, f"int8: {len(linears)} linears by bitsandbytes, outliers from {self.threshold:g} on"
        )

    def _quantized(self, old: nn.Linear) -> nn.Module:
        bnb = _bitsandbytes()
        new = bnb.nn.Linear8bitLt(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            has_fp16_weights=False,
            threshold=float(self.threshold),
            device="meta",
        )
        # `Int8Params.to` quantizes only what comes from the CPU
        new.weight = bnb.nn.Int8Params(old.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
        return new


@dataclass(frozen=True)
class _FourBit:
    """Weights in 4 bits, one scale for every 64 of them.

    On a CPU with AVX512-BF16 the first forward pass stores the scales in bfloat16 and undoes `double_quant`.

    Args:
        double_quant: the scales are quantized to 8 bits too.
        compute_dtype: in which weights are multiplied; `auto`: the dtype of the input.

    Raises:
        RecipeError: a value that is none of these.
    """

    double_quant: bool = True
    compute_dtype: str = "auto"

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_choice(self.name, "double_quant", self.double_quant, (True, False))
        check_choice(self.name, "compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        _bitsandbytes()  # as in Int8

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Replace the linears of the blocks by `Linear4bit`, in place.

        Raises:
            CompressionError: a model without float linears, with weights that are not finite, or on a CPU
                without a linear whose rows are multiples of 64.
        """
        linears = float_linears(module, self.name, context)
        fitting = {name: old for name, old in linears.items() if context.device != "cpu" or rows_fit(old)}
        if not fitting:
            raise CompressionError(
                f"{self.name} on {context.label}: on a CPU a row of weights is a multiple of {_BLOCK}, "
                f"got {', '.join(sorted({str(old.in_features) for old in linears.values()}))}; use int8"
            )
        _replace(module, fitting, self._quantized, context.device)
        check_forward(module, self.name, context)
        said = f"{self.name}: {len(fitting)} linears by bitsandbytes"
        if len(fitting) < len(linears):
            said += (
                f"; {len(linears) - len(fitting)} stay in float, since their rows are no multiple of {_BLOCK} "
                "and bitsandbytes' CPU kernel takes the wrong scales for them"
            )
        return Applied(module, said)

    def _quantized(self, old: nn.Linear) -> nn.Module:
        bnb = _bitsandbytes()
        new = bnb.nn.Linear4bit(
            old.in_features,
            old.out_features,
            bias=old.bias is not None,
            compute_dtype=None if self.compute_dtype == "auto" else getattr(torch, self.compute_dtype),
            compress_statistics=self.double_quant,
            quant_type=self.name,
            device="meta",
        )
        new.weight = bnb.nn.Params4bit(
            old.weight.data,
            requires_grad=False,
            compress_statistics=self.double_quant,
            quant_type=self.name,
            module=new,
        )
        if old.out_features % _OUT_MULTIPLE:
            new.support_avx512bf16_for_cpu = False
        return new


@dataclass(frozen=True)
class NF4(_FourBit):
    """4-bit NormalFloat (QLoRA, Dettmers et al. 2023, arXiv 2305.14314); the recipe names int4 and nf4."""

    name: ClassVar[str] = "nf4"


@dataclass(frozen=True)
class FP4(_FourBit):
    """4-bit floating point of bitsandbytes."""

    name: ClassVar[str] = "fp4"


def rows_fit(linear: nn.Linear) -> bool:
    """Whether bitsandbytes' CPU kernels find the right scales: a row holds whole blocks of 64 weights."""
    return linear.in_features % _BLOCK == 0


def _replace(
    module: nn.Module, linears: dict[str, nn.Linear], quantized: Callable[[nn.Linear], nn.Module], device: str
) -> None:
    for name, old in linears.items():
        new = quantized(old)
        new.bias = old.bias
        module.set_submodule(name, new.to(device).eval())


def _check_float16(linears: dict[str, nn.Linear], context: Context) -> None:
    for name, linear in linears.items():
        largest = float(linear.weight.abs().max())
        if largest > _FLOAT16_MAX:
            raise CompressionError(
                f"int8 on {context.label}: weights pass through float16, which ends at 65504, "
                f"got {largest:g} in {name}; use int4"
            )


def _bitsandbytes() -> Any:  # noqa: ANN401  # an untyped library
    # It logs that an optional kernel is not installed, and in each forward pass of each int8 layer that the
    # input is cast, which would be timed as well.
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch and triton, at first import
        import bitsandbytes
    return bitsandbytes
