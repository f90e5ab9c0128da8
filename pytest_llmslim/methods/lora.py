"""LoRA (Hu et al. 2021, arXiv 2106.09685): heals a compressed model by training low-rank terms beside its linears.

Over quantized weights this is the training of QLoRA (Dettmers et al. 2023, arXiv 2305.14314). `up` begins at zero,
`down` with variance 1 / in, and the factor alpha / rank is 1. What is learnt from is not a task but the
uncompressed model: the loss is KL(reference || candidate) of every next token, or the cross entropy of the text
where there is no reference of the same vocabulary.

peft trains and merges LoRA, too. Its merge fills the zeros of pruned weights, and it does not know `PackedLinear`;
so terms that will be merged are trained under the mask of the zeros here.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch.sparse import SparseSemiStructuredTensor

from pytest_llmslim.errors import CompressionError
from pytest_llmslim.methods import Applied, Context
from pytest_llmslim.methods.linears import check_forward, effective_weight, is_plain
from pytest_llmslim.methods.low_rank import LowRank, merge
from pytest_llmslim.methods.parameters import check_choice, check_number
from pytest_llmslim.methods.requantize import requantized, requantizes
from pytest_llmslim.methods.semi_structured import make_dense, speed_up
from pytest_llmslim.methods.token_loss import cross_entropy, divergence, mean_loss, reference_for
from pytest_llmslim.methods.training import Course, batch_of, text_for, train
from pytest_llmslim.models.blocks import Blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from pytest_llmslim.methods.training import Trained

TARGETS: Final = ("all", "attention", "feed-forward")


@dataclass(frozen=True)
class LoRA:
    """Trains low-rank terms beside the linears of the blocks, and merges them where that keeps what they learnt.

    Args:
        rank: of each term; at most the smaller side of the linear.
        target: which linears: `all`, `attention` or `feed-forward`.
        merge: `auto` merges into float weights, whose exact zeros stay, and leaves terms beside quantized ones, where
            rounding would undo them; true also rounds quantized ones anew, with zeros kept; false leaves all beside.
        steps: optimizer steps.
        batch: windows of text a step.
        rate: highest learning rate.

    Raises:
        RecipeError: a value out of range.
    """

    rank: int = 8
    target: str = "all"
    merge: str | bool = "auto"
    steps: int = 60
    batch: int = 4
    rate: float = 5e-3

    def __post_init__(self) -> None:
        check_number("lora", "rank", self.rank, "a whole number from 1 to 4096", low=1, high=4096, whole=True)
        check_choice("lora", "target", self.target, TARGETS)
        check_choice("lora", "merge", self.merge, ("auto", True, False))
        self._course.check("lora")

    @property
    def _course(self) -> Course:
        return Course(self.steps, self.batch, self.rate)

    def compress(self, module: nn.Module, context: Context) -> Applied:
        """Train, then merge in place or leave `LowRank` linears.

        Raises:
            CompressionError: no text, a linear that cannot be merged although that was asked for, or a loss that is
                not finite.
        """
        windows = text_for(self._course, context, "lora")
        linears = Blocks(module).linears()
        chosen = self._chosen(module)
        merging = {name for name in chosen if self._merges(name, linears[name], context)}
        sparse = {name for name in merging if _is_sparse(linears[name])}
        for name in sparse:
            make_dense(linears[name])
        with _gradients_passing(module, set(linears) - set(chosen)):
            terms = self._wrap(module, chosen, merging, context)
            trained, source = self._train(module, terms, windows, context)
        dtype = module.get_input_embeddings().weight.dtype
        for name, term in terms.items():
            module.set_submodule(name, _settled(term, merging=name in merging, dtype=dtype))
        speed_up({name: module.get_submodule(name) for name in sparse}, "2:4")
        check_forward(module, "lora", context)
        form = {0: "beside", len(terms): "merged into"}.get(len(merging), f"merged into {len(merging)} of")
        said = f"lora: terms of rank {self.rank} {form} {len(terms)} linears, learnt from {source}, {trained.sentence}"
        return Applied(module, said, resumed=trained.resumed)

    def _chosen(self, module: nn.Module) -> list[str]:
        """The names of the linears that get a term, in the order of the model."""
        chosen = []
        for layer in Blocks(module).layers:
            inner = {*layer.feed_forward.inner, layer.feed_forward.outer}
            wanted = {"all": (True, False), "feed-forward": (True,), "attention": (False,)}[self.target]
            chosen += [name for name in layer.linears if (name in inner) in wanted]
        return chosen

    def _merges(self, name: str, linear: nn.Module, context: Context) -> bool:
        if self.merge is False or is_plain(linear) or _is_sparse(linear):
            return self.merge is not False
        if self.merge is True and not requantizes(linear):
            raise CompressionError(
                f"lora on {context.label}: terms are merged into float weights and into those of rtn, gptq, awq, qat, "
                f"int8, int4 and fp4, got {type(linear).__name__} in {name}; leave merge at auto"
            )
        return self.merge is True

    def _wrap(
        self, module: nn.Module, chosen: list[str], merging: set[str], context: Context
    ) -> dict[str, LowRank]:
        """Put terms that give zero beside the linears; under a mask where a merged one has zeros to keep."""
        generator = torch.Generator().manual_seed(context.seed)
        terms = {}
        for name in chosen:
            base = module.get_submodule(name)
            weight = effective_weight(base)
            rows, columns = weight.shape
            rank = min(self.rank, rows, columns)
            down = torch.randn(rank, columns, generator=generator).to(weight.device) / math.sqrt(columns)
            up = torch.zeros(rows, rank, device=weight.device)
            masked = name in merging and not (is_plain(base) and bool(weight.all()))
            terms[name] = LowRank(base, down, up, masked=masked)
            module.set_submodule(name, terms[name])
        return terms

    def _train(
        self,
        module: nn.Module,
        terms: dict[str, LowRank],
        windows: torch.Tensor,
        context: Context,
    ) -> tuple[Trained, str]:
        """How the training went, and what was learnt from."""
        teacher = reference_for(module, context)
        parameters = {
            f"{name}.{factor}": getattr(term, factor)
            for name, term in terms.items()
            for factor in ("down", "up")
        }

        def loss(step: int, _generator: torch.Generator) -> torch.Tensor:
            batch = batch_of(windows, self._course, step, context.seed)
            return mean_loss(cross_entropy if teacher is None else divergence, module, batch, teacher=teacher)

        trained = train(
            "lora",
            module,
            parameters,
            loss,
            self._course,
            context,
            teacher=teacher,
            identity=repr(self),
            keep_zeros=False,
        )
        return trained, "the text" if teacher is None else "the uncompressed model"


def _settled(term: LowRank, *, merging: bool, dtype: torch.dtype) -> nn.Module:
    """What stays in the place of a trained term and its base."""
    if not merging:
        term.down.data, term.up.data = term.down.data.to(dtype), term.up.data.to(dtype)
        return term.eval()
    return merge(term) if is_plain(term.base) else requantized(term.base, term.dequantized().detach())


@contextmanager
def _gradients_passing(module: nn.Module, names: set[str]) -> Iterator[None]:
    """Let gradients pass those of these linears that are quantized and have no term of their own."""
    kept = {name: module.get_submodule(name) for name in names if not is_plain(module.get_submodule(name))}
    for name, linear in kept.items():  # a term of rank 0 gives nothing, and its base passes gradients
        device = effective_weight(linear).device
        empty = (
            torch.zeros(0, linear.in_features, device=device),
            torch.zeros(linear.out_features, 0, device=device),
        )
        module.set_submodule(name, LowRank(linear, *empty))
    try:
        yield
    finally:
        for name, linear in kept.items():
            module.set_submodule(name, linear)


def _is_sparse(linear: nn.Module) -> bool:
    return isinstance(getattr(linear, "weight", None), SparseSemiStructuredTensor)
