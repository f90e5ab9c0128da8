"""Attention heads of one block: how many there are, silencing some, and cutting them out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from pytest_llmslim.errors import ModelError
from pytest_llmslim.models.slices import dense, keep_columns, keep_rows


class Attention(ABC):
    """The heads of one block.

    Query heads come in groups that share one key/value head: head `h` belongs to group `h // groups`.
    Without grouping (GPT-2, OPT) there is one query head a group.

    Args:
        module: the attention module of transformers.
        output: attribute of the projection of all heads back to the hidden width.
        heads: attribute that the forward reads as number of heads, or empty.
        label: the block's dotted name, for messages.
    """

    def __init__(self, module: nn.Module, output: str, heads: str, label: str) -> None:
        self.module = module
        self.label = label
        self._output = output
        self._heads = heads

    @property
    def projection_output(self) -> nn.Module:
        """The linear whose input columns are the heads, `head_dim` columns each."""
        return self.module.get_submodule(self._output)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return int(self.module.head_dim)

    @property
    def heads(self) -> int:
        """Query heads that are left."""
        return int(self.projection_output.in_features) // self.head_dim

    @property
    @abstractmethod
    def kv_heads(self) -> int:
        """Key/value heads that are left: as many as there are groups."""

    @property
    @abstractmethod
    def inputs(self) -> dict[str, int]:
        """Attributes of the projections whose rows are heads, and into how many equal parts the rows fall."""

    @property
    def groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    def mask_heads(self, heads: set[int]) -> None:
        """Zero what these query heads give to the block, by zeroing their columns of the output projection.

        Raises:
            ModelError: a head that is not there, or a quantized projection.
        """
        self._check("head", heads, self.heads)
        weight = dense(self.projection_output, self.label, "heads").weight
        with torch.no_grad():
            weight[:, _columns(sorted(heads), self.head_dim, weight.device)] = 0

    def remove_kv_groups(self, groups: set[int]) -> None:
        """Cut out whole groups: a key/value head with all its query heads; fewer weights and less work.

        The rows of the query, key and value projections and the columns of the output projection shrink in
        place. The config still tells the old number; `shapes.keep_kv_groups` corrects it too.

        Raises:
            ModelError: a group that is not there, all groups at once, or quantized projections.
        """
        self._check("key/value group", groups, self.kv_heads)
        if not groups:
            return
        if len(groups) == self.kv_heads:
            raise ModelError(
                f"{self.label} keeps at least one key/value group, got all {self.kv_heads} to remove; "
                "spare one"
            )
        for linear in self.module.children():
            if hasattr(linear, "in_features"):
                dense(linear, self.label, "heads")
        kept = [group for group in range(self.kv_heads) if group not in groups]
        heads = [group * self.groups + member for group in kept for member in range(self.groups)]
        self._shrink(heads, kept)
        self.tell()

    def tell(self) -> None:
        """Tell the forward how many heads the projections have; call it after resizing them by hand."""
        if self._heads:
            setattr(self.module, self._heads, self.heads)

    @abstractmethod
    def _shrink(self, heads: list[int], kv_heads: list[int]) -> None:
        """Keep only these query and key/value heads."""

    def _keep_output(self, heads: list[int]) -> None:
        _keep(self.projection_output, heads, self.head_dim, dimension=1)

    def _check(self, kind: str, indices: set[int], count: int) -> None:
        wrong = sorted(index for index in indices if not 0 <= index < count)
        if wrong:
            raise ModelError(
                f"{self.label} has the {kind}s 0 to {count - 1}, got {wrong[0]}; name only {kind}s it has"
            )


class SplitAttention(Attention):
    """Query, key and value have a linear each: OPT, Llama and its relatives."""

    @property
    def inputs(self) -> dict[str, int]:
        """Three linears of one part each."""
        return {"q_proj": 1, "k_proj": 1, "v_proj": 1}

    @property
    def kv_heads(self) -> int:
        """Key/value heads that are left."""
        return int(self.module.k_proj.out_features) // self.head_dim

    def _shrink(self, heads: list[int], kv_heads: list[int]) -> None:
        _keep(self.module.q_proj, heads, self.head_dim, dimension=0)
        _keep(self.module.k_proj, kv_heads, self.head_dim, dimension=0)
        _keep(self.module.v_proj, kv_heads, self.head_dim, dimension=0)
        self._keep_output(heads)


class FusedAttention(Attention):
    """One linear gives query, key and value, in this order: GPT-2."""

    @property
    def inputs(self) -> dict[str, int]:
        """One linear of three parts."""
        return {"c_attn": 3}

    @property
    def kv_heads(self) -> int:
        """As many as query heads."""
        return self.heads

    def _shrink(self, heads: list[int], kv_heads: list[int]) -> None:
        count = self.heads
        fused = [part * count + head for part in range(3) for head in heads]
        _keep(self.module.c_attn, fused, self.head_dim, dimension=0)
        self._keep_output(heads)

    def tell(self) -> None:
        """As above, and where the fused output is split."""
        super().tell()
        self.module.split_size = self.heads * self.head_dim


def _columns(heads: list[int], head_dim: int, device: torch.device) -> torch.Tensor:
    """Indices [len(heads) * head_dim] of the rows or columns of these heads."""
    starts = torch.tensor(heads, dtype=torch.int64, device=device)[:, None] * head_dim
    return (starts + torch.arange(head_dim, device=device)).flatten()


def _keep(linear: nn.Linear, heads: list[int], head_dim: int, *, dimension: int) -> None:
    """Shrink `linear` in place to these heads, by rows (dimension 0, with the bias) or columns (1)."""
    index = _columns(heads, head_dim, linear.weight.device)
    (keep_rows if dimension == 0 else keep_columns)(linear, index)
