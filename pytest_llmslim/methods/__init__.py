"""Compression methods, one file each: a frozen config dataclass, pure tensor functions, one `compress()`.

A method is found by name through `registry.Spec`; the smallest one that works:

    @dataclass(frozen=True)
    class Halve:
        factor: float = 0.5

        def compress(self, module: nn.Module, context: Context) -> Applied:
            for linear in Blocks(module).linears().values():
                linear.weight.data.mul_(self.factor)
            return Applied(module, "halve: every linear of a block was scaled")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Applied", "Context", "Method"]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a method may know besides the weights.

    Args:
        calibration: int64 token ids of shape [windows, window], never from the text that is scored;
            `None` when the run has no calibration text.
        seed: for methods that draw random numbers; nothing else may seed them.
        device: where the candidate is to lie, e.g. `cpu` or `cuda:0`.
        family: `config.model_type` of the model, e.g. `gpt2`.
        label: the model as the user named it, for messages.
    """

    calibration: torch.Tensor | None
    seed: int
    device: str
    family: str
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """The module after one step of a recipe.

    Args:
        module: the compressed module; may be the one that was handed in.
        sentence: what was done, in numbers, starting with the method's name.
        simulated: why time, energy and bytes of this module are not those of the method; empty when they are.
    """

    module: nn.Module
    sentence: str
    simulated: str = ""


@runtime_checkable
class Method(Protocol):
    """One compression step: a frozen dataclass of its parameters that can `compress`.

    `__post_init__` checks the parameters and raises `RecipeError` (method, rule, got).
    """

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Compress `module`, a private copy in eval mode that may be changed in place.

        Raises:
            CompressionError: the method refuses this model or failed on it.
            NothingCompressedError: there was nothing to compress under these parameters.
        """
        ...
