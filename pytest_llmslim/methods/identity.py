"""The control: a candidate equal to its reference, so that an A/A run shows what the harness itself adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llmslim.methods import Applied

if TYPE_CHECKING:
    from torch import nn

    from pytest_llmslim.methods import Context


@dataclass(frozen=True)
class Identity:
    """Changes nothing."""

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Return `module` as it is."""
        return Applied(module, "identity: nothing was changed")
