"""SmoothQuant: 8-bit weights and activations, after moving the outliers of these into those.

Xiao et al. 2022, arXiv 2211.10438, equation 4: with x what a norm gives to linears W, channel j is divided by

    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

in the norm and multiplied by it in the linears. Then weights are rounded to 8 bits a row, and the inputs of all
linears of the blocks to 8 bits a token while the model runs (the paper's W8A8 O1), by torchao's int8-dynamic
kernels. Smoothing is our own: llmcompressor's takes the wrong norm for Gemma 3, has none for OPT and passes over
GPT-2 in silence, torchao's is a prototype that wants all texts of one length. There is no simulation to fall back
on, so that a recipe means the same wherever it runs: without torchao it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.layerwise import calibration, visits
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.methods.smoothing import fold, norm_links
from pytest_llmslim.methods.torchao_linear import Int8Dynamic, check_widths, quantize, torchao

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods.layerwise import Visit

_LEAST: Final = 1e-5  # a channel that is never used, or multiplied by nothing, must not make a factor of 0


@dataclass(frozen=True)
class SmoothQuant:
    """Smooths the norms that feed linears, then lets torchao multiply in 8 bits.

    Args:
        alpha: how much of an outlier goes into the weights: 0 evens out these alone, 1 the activations alone.
        samples: calibration windows.

    Raises:
        RecipeError: a value that is none of these.
        ModuleNotFoundError: torchao is missing; a recipe tells how to install it.
    """

    alpha: float = 0.5
    samples: int = 32

    def __post_init__(self) -> None:
        check_number("smoothquant", "alpha", self.alpha, "a number from 0 to 1", low=0, high=1)
        rule = "a whole number from 1 to 65536"
        check_number("smoothquant", "samples", self.samples, rule, low=1, high=65536, whole=True)
        torchao()  # importing it is no cost of compressing, which is measured from here on

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Smooth `module` and replace the weights of its blocks' linears, in place.

        Raises:
            CompressionError: no text for calibration, no norm that feeds linears, a model without float linears,
                with weights that are not finite, or with a linear of a single input.
        """
        linears = float_linears(module, "smoothquant", context)
        check_widths(linears, "smoothquant", context)
        smoothed = smooth(module, self.alpha, self.samples, context)
        quantize(module, linears, Int8Dynamic.config)
        check_forward(module, "smoothquant", context)
        return Applied(
            module,
            f"smoothquant(alpha={self.alpha:g}): {smoothed} norms smoothed, {len(linears)} linears by torchao "
            f"{torchao().__version__}",
        )


def smooth(module: nn.Module, alpha: float, samples: int, context: Context) -> int:
    """Move outliers of activations into the weights, in place, which leaves the output as it was.

    Returns:
        How many norms were changed.

    Raises:
        CompressionError: no text for calibration, or no norm that feeds linears.
    """
    windows = calibration(context, "smoothquant", samples)
    count = 0
    for visit in visits(module, windows, context, "smoothquant"):
        links = norm_links(module, visit.layer)
        largest = maxima(visit, [link.readers[0] for link in links])
        for link in links:
            weights = [module.get_submodule(name).weight for name in link.readers]
            fold(module, link, factors(largest[link.readers[0]], weights, alpha))
        count += len(links)
    if not count:
        raise CompressionError(
            f"smoothquant on {context.label}: outliers are moved from norms into the linears that read them, got no "
            "norm with a scale before the linears of a block; use int8-dynamic"
        )
    return count


def factors(largest: torch.Tensor, weights: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """By what each channel is divided, float32 [in].

    Args:
        largest: max|x| of every channel [in].
        weights: of the linears that read the channels, [out, in] each.
        alpha: see `SmoothQuant`.
    """
    columns = torch.stack([weight.detach().abs().amax(dim=0) for weight in weights]).amax(dim=0).float()
    return largest.float().clamp(min=_LEAST) ** alpha / columns.clamp(min=_LEAST) ** (1 - alpha)


def maxima(visit: Visit, names: list[str]) -> dict[str, torch.Tensor]:
    """max|x| [in] of every channel that enters these linears, over all windows of a visit."""
    found: dict[str, torch.Tensor] = {}

    def add(name: str, states: torch.Tensor) -> None:
        if name in names:
            here = states.abs().amax(dim=0)
            found[name] = torch.maximum(found[name], here) if name in found else here

    visit.watch(add)
    return found
