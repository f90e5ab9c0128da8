"""Gates between 0 and 1 that are exactly 0 or 1 now and then, and whose expected number can be steered.

The hard concrete distribution of Louizos et al. 2017 (arXiv 1712.01312), section 2.2, with u uniform in (0, 1):

    z = min(1, max(0, sigmoid((log u - log(1 - u) + log_alpha) / beta) * (zeta - gamma) + gamma))
    P(z > 0) = sigmoid(log_alpha - beta * log(-gamma / zeta))

The constraint is that of Xia et al. 2023 (Sheared LLaMA, arXiv 2310.06694), section 2.1: with s the expected share
of open gates and t the wanted one, l1 (s - t) + l2 (s - t)^2 is added to the loss, which the gates minimise and l1
and l2 maximise. No library of those looked at has it, and the published code is for one family: our own.
"""

from __future__ import annotations

import math
from typing import Any

import torch

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature, and the interval to which the concrete distribution is stretched, as in the paper."""

BOUNDS = (-4.6, 2.5)
"""log_alpha stays in there, so that no gate is open (0.984 at most) or closed (0.047 at least) beyond recall."""

_EDGE = 1e-6  # u is kept so far from 0 and 1


def sample(log_alpha: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gates in [0, 1] of the shape of `log_alpha`, with gradients; drawn on the CPU, so equal on every device."""
    noise = torch.rand(log_alpha.shape, generator=generator).clamp(_EDGE, 1 - _EDGE).to(log_alpha.device)
    stretched = torch.sigmoid((noise.logit() + log_alpha) / BETA) * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def open_probability(log_alpha: torch.Tensor) -> torch.Tensor:
    """P(z > 0) of each gate."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


def constraint(log_alpha: torch.Tensor, target: float, multipliers: torch.Tensor) -> torch.Tensor:
    """What holds the share of open gates at `target` in every row: a scalar, the mean over rows.

    Args:
        log_alpha: [rows, gates].
        target: wanted share of open gates.
        multipliers: l1 and l2 of each row, [rows, 2]. A step that lowers the result raises them while the share
            is too large.
    """
    linear, quadratic = raised(multipliers).unbind(dim=1)
    excess = open_probability(log_alpha).mean(dim=1) - target
    return (linear * excess + quadratic * excess.square()).mean()


def raised(values: torch.Tensor) -> torch.Tensor:
    """The same values with gradients of the other sign: what minimises a loss maximises it over these."""
    return _Reversed.apply(values)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, values: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return values.view_as(values)

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return -gradient
