"""Cuts feed-forward channels by the size of their weights."""

from dataclasses import dataclass

from pytest_llmslim.errors import NothingCompressedError
from pytest_llmslim.methods import Applied
from pytest_llmslim.methods.linears import check_forward, float_linears
from pytest_llmslim.methods.parameters import check_number
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.shapes import keep_channels


@dataclass(frozen=True)
class Halve:
    """Leaves the share `keep` of the feed-forward channels in every layer, those of the largest weights."""

    keep: float = 0.5

    def __post_init__(self):
        check_number("halve", "keep", self.keep, "a number above 0 and below 1", low=1e-9, high=1 - 1e-9)

    def compress(self, module, context):
        linears = float_linears(module, "halve", context)
        kept = {}
        for layer in Blocks(module).layers:
            norms = linears[layer.feed_forward.outer].weight.norm(dim=0)
            kept[layer.index] = sorted(norms.argsort(descending=True)[: self._count(len(norms))].tolist())
        width = linears[layer.feed_forward.outer].in_features
        if len(kept[0]) == width:
            raise NothingCompressedError(f"halve on {context.label}: cuts {width} channels, got none to cut")
        keep_channels(module, kept)
        check_forward(module, "halve", context)
        return Applied(module, f"halve: {len(kept[0])} of {width} feed-forward channels left in each layer")

    def _count(self, width):
        return max(1, round(self.keep * width))
