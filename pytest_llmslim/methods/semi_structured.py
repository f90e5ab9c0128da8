"""Real kernels for the pattern 2:4, where a GPU has them (NVIDIA's sparse tensor cores, arXiv 2104.08378).

By `torch.sparse.to_sparse_semi_structured`: half of the weights and two bits for the place of each are stored. It
needs CUDA with compute capability 8.0, float16 or bfloat16, and rows and columns in whole tiles.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

if TYPE_CHECKING:
    from collections.abc import Mapping

SIMULATED: Final = "zeros are stored and multiplied as any other weight on this device"

_PATTERN: Final = "2:4"
_CAPABILITY: Final = (8, 0)
_DTYPES: Final = (torch.float16, torch.bfloat16)
_TILE: Final = (32, 64)
"""Rows and columns of the least weight that both of torch's backends take, in multiples of which all are taken."""


def speed_up(linears: Mapping[str, nn.Linear], pattern: str | None) -> str:
    """Give linears whose weights are zero in the `pattern` kernels that skip the zeros.

    Returns:
        Empty when there are such kernels; else why time and bytes are not those of the method.
    """
    fitting = [linear for linear in linears.values() if pattern == _PATTERN and fits(linear.weight)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that torch may change the interface
            sparse = [to_sparse_semi_structured(linear.weight.data) for linear in fitting]
    except RuntimeError:  # torch was built without the kernels
        return SIMULATED
    for linear, weight in zip(fitting, sparse, strict=True):
        linear.weight = nn.Parameter(weight, requires_grad=False)
    return "" if fitting else SIMULATED


def fits(weight: torch.Tensor) -> bool:
    """Whether the device of `weight` [out, in] has kernels for its dtype and shape."""
    rows, columns = weight.shape
    return (
        weight.device.type == "cuda"
        and torch.cuda.get_device_capability(weight.device) >= _CAPABILITY
        and weight.dtype in _DTYPES
        and rows % _TILE[0] == 0
        and columns % _TILE[1] == 0
    )


def make_dense(linear: nn.Module) -> None:
    """Undo `speed_up` of one linear, zeros included; any other is left as it is."""
    weight = getattr(linear, "weight", None)
    if isinstance(weight, SparseSemiStructuredTensor):
        linear.weight = nn.Parameter(weight.to_dense(), requires_grad=False)
