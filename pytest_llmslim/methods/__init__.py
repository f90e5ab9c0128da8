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
    from collections.abc import Callable
    from pathlib import Path

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
        reference: the uncompressed model in eval mode, to learn from or to compare with; never to be changed.
            `None` where there is none, as in a test of a method by itself.
        draw: gives up to so many windows like `calibration`, for methods that need more; see `windows`.
        progress: told now and then what is being done, e.g. `step 20 of 300, loss 2.1`.
        checkpoints: folder for what lets an interrupted training go on; `None`: nothing is kept.
    """

    calibration: torch.Tensor | None
    seed: int
    device: str
    family: str
    label: str
    reference: nn.Module | None = None
    draw: Callable[[int], torch.Tensor | None] | None = None
    progress: Callable[[str], None] | None = None
    checkpoints: Path | None = None

    def windows(self, count: int) -> torch.Tensor | None:
        """At most `count` windows of text that is not scored, int64 [windows, window]; `None` without any.

        A larger count begins with the windows of a smaller one.
        """
        if self.draw is not None:
            return self.draw(count)
        return None if self.calibration is None else self.calibration[:count]

    def tell(self, what: str) -> None:
        """Show what is being done, where somebody watches."""
        if self.progress is not None:
            self.progress(what)


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """The module after one step of a recipe.

    Args:
        module: the compressed module; may be the one that was handed in.
        sentence: what was done, in numbers, starting with the method's name.
        simulated: why time and energy of this module are not those of the method; empty when they are.
        resumed: why what this step took is not all that it cost, after an interruption; empty when it is.
    """

    module: nn.Module
    sentence: str
    simulated: str = ""
    resumed: str = ""


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
