"""The walk over a model's blocks, one at a time: what every calibrated method shares.

Only one block's inputs are held, so that memory is the model, one block's activations and what the method keeps
(GPTQ, Frantar et al. 2022, arXiv 2210.17323, section 3.3). A block is calibrated on what the blocks before it
give after they were compressed. This is the only place where calibrated methods hang hooks on modules.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.models.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

    from pytest_llmslim.methods import Context
    from pytest_llmslim.models.blocks import Layer

    Watcher = Callable[[str, torch.Tensor], None]
    """Called with a linear's dotted name and its inputs [tokens, in], in the dtype in which they come."""


class _EnoughError(Exception):
    """Ends a forward pass at a block."""


@dataclass(slots=True, eq=False)
class Visit:
    """One block while it is its turn.

    Args:
        layer: the block, as `Blocks` sees it at this moment.
        inputs: hidden states that enter it, one tensor [1, window, hidden] a calibration window.
        arguments: what else the model passes to this block (masks, rotary embeddings); equal for all windows.
    """

    layer: Layer
    inputs: list[torch.Tensor]
    arguments: dict[str, Any]

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """The block's output [1, window, hidden] for one input, without gradients."""
        with torch.no_grad():
            return self.forward(hidden)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """As `run`, with gradients where the block's parameters want them."""
        output = self.layer.module(hidden, **self.arguments)
        return output[0] if isinstance(output, tuple) else output

    def watch(self, watcher: Watcher) -> None:
        """Run all windows through the block as it is; `watcher` sees the inputs of each of its linears."""
        with watching(self.layer.linears, watcher):
            for hidden in self.inputs:
                self.run(hidden)


def calibration(context: Context, method: str, samples: int) -> torch.Tensor:
    """At most `samples` calibration windows, int64 [windows, window].

    Raises:
        CompressionError: the run has no text for calibration.
    """
    rule, remedy = "the method learns from calibration windows", "give a longer text with --llm-text"
    return checked(context.windows(samples), f"{method} on {context.label}: {rule}", remedy)


def checked(windows: torch.Tensor | None, rule: str, remedy: str) -> torch.Tensor:
    """`windows` that something can be learnt from, int64 [n, window].

    Args:
        windows: what the run has, or `None`.
        rule: subject and rule of the error, which ends in what the windows are.
        remedy: its last part.

    Raises:
        CompressionError: there are none, or they hold fewer than two tokens.
    """
    if windows is None or windows.dim() != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        got = "none" if windows is None else f"shape {list(windows.shape)}"
        raise CompressionError(f"{rule} of two tokens or more, got {got}; {remedy}")
    return windows


def visits(module: nn.Module, windows: torch.Tensor, context: Context, method: str) -> Iterator[Visit]:
    """The blocks of `module` in order, each with its inputs for `windows` [windows, window].

    While a block is handed out it may be changed in place, its linears replaced too; the inputs of the next one
    are what it gives afterwards.
    """
    hidden, arguments = _entrance(module, windows)
    for index in range(len(arguments)):
        layer = Blocks(module).layers[index]
        context.tell(f"{method}: layer {index + 1} of {len(arguments)}")
        visit = Visit(layer, hidden, arguments[index])
        yield visit
        if index + 1 == len(arguments):
            return  # nobody reads what the last block gives
        visit.layer = Blocks(module).layers[index]  # its linears may have been replaced
        for position, states in enumerate(hidden):  # in place, so that two sets are never held
            hidden[position] = visit.run(states)


@contextmanager
def watching(linears: dict[str, nn.Module], watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see what enters each of `linears` (by name) until the block ends."""

    def hook(name: str) -> Any:  # noqa: ANN401  # torch hooks are untyped
        def seen(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            watcher(name, inputs[0].detach().reshape(-1, inputs[0].shape[-1]))

        return seen

    handles = [linear.register_forward_pre_hook(hook(name)) for name, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entrance(module: nn.Module, windows: torch.Tensor) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Hidden states that enter the first block, one a window, and the other arguments of every block."""
    blocks = [layer.module for layer in Blocks(module).layers]
    device = next(module.parameters()).device
    states: list[torch.Tensor] = []
    arguments: list[dict[str, Any]] = [{} for _ in blocks]

    def note(index: int) -> Any:  # noqa: ANN401
        def seen(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            kept = {name: value for name, value in named.items() if name != "hidden_states"}
            arguments[index] = _by_name(blocks[index], inputs[1:]) | kept
            if index + 1 == len(blocks):
                raise _EnoughError  # logits of a large vocabulary would be the largest tensor of all

        return seen

    def stop(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        states.append((inputs[0] if inputs else named["hidden_states"]).detach())
        raise _EnoughError

    with torch.no_grad():
        handles = [
            block.register_forward_pre_hook(note(i), with_kwargs=True) for i, block in enumerate(blocks)
        ]
        try:
            with suppress(_EnoughError):
                module(input_ids=windows[:1].to(device), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        last = blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            for window in windows:
                with suppress(_EnoughError):
                    module(input_ids=window[None].to(device), use_cache=False)
        finally:
            last.remove()
    return states, arguments


def _by_name(block: nn.Module, positional: tuple[Any, ...]) -> dict[str, Any]:
    """Arguments after the hidden states that were passed by position, under their names."""
    import inspect

    names = list(inspect.signature(block.forward).parameters)[1:]
    return dict(zip(names, positional, strict=False))
