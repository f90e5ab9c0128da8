"""Round to nearest: every weight goes to the nearest level of an integer grid, without any text.

The baseline of every paper on quantizing after training (e.g. GPTQ, Frantar et al. 2022, arXiv 2210.17323,
section 4). Our own, since llmcompressor 0.14 does nothing on GPT-2 and says nothing, and torchao packs 4 bits for
GPUs only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.grid import Grid, check_grid
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.packed import SIMULATED, PackedLinear, packed_sentence

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RTN:
    """Rounds the linears of all blocks to an integer grid.

    Args:
        bits: of a weight, 2 to 8.
        group: neighbours along the input that share a scale; not read with another granularity.
        symmetric: levels lie symmetric about 0; otherwise they cover the range of the weights.
        granularity: `group`, `row` or `tensor`: what shares a scale.

    Raises:
        RecipeError: a value that is none of these.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    granularity: str = "group"

    def __post_init__(self) -> None:
        check_grid("rtn", self.bits, self.group, self.symmetric, self.granularity)

    @property
    def grid(self) -> Grid:
        """Where the weights go."""
        return Grid(self.bits, self.group, self.symmetric, self.granularity)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Replace the linears of the blocks by `PackedLinear`, in place.

        Raises:
            CompressionError: a model without float linears, or with weights that are not finite.
        """
        packed = []
        for name, linear in float_linears(module, "rtn", context).items():
            packed.append(PackedLinear.rounded(linear, self.grid))
            module.set_submodule(name, packed[-1])
        check_forward(module, "rtn", context)
        return Applied(module, packed_sentence("rtn", packed), SIMULATED)
