"""Invariants of methods that cut shapes."""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from pytest_llmslim.conformance import hosts
from pytest_llmslim.conformance.broken import BrokenInvariantError, explore, require
from pytest_llmslim.conformance.masking import masked
from pytest_llmslim.conformance.methods import MethodInvariants, invariant
from pytest_llmslim.models.conv1d import from_conv1d, to_conv1d
from pytest_llmslim.models.quiet import quiet
from pytest_llmslim.models.storage import copy_model, parameter_count
from pytest_llmslim.registry import PRUNE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from pytest_llmslim.conformance.subject import Subject
    from pytest_llmslim.strategies.tiny import Tiny

_EXAMPLES = 10
_LAYERS = (2, 4)
_NEW_TOKENS = 4


class PrunerInvariants(MethodInvariants):
    """What a method that cuts shapes keeps, beside the invariants of every method."""

    stage = PRUNE

    @invariant
    def test_fewer_parameters(self, subject: Subject) -> None:
        """There are fewer parameters than before."""

        def one(reference: nn.Module, module: nn.Module) -> None:
            before, after = parameter_count(reference), parameter_count(module)
            require(after < before, f"there are fewer parameters than {before}, got {after}")

        _explore(subject, one)

    @invariant
    def test_config_agrees(self, subject: Subject) -> None:
        """A model made anew from the config has the same parameters, of the same shapes."""

        def one(_reference: nn.Module, module: nn.Module) -> None:
            wanted, got = _shapes(_fresh(module)), _shapes(module)
            require(
                wanted.keys() == got.keys(),
                f"the config tells which parameters there are, got others: "
                f"{', '.join(sorted(wanted.keys() ^ got.keys())[:4])}",
            )
            for name, shape in got.items():
                require(
                    wanted[name] == shape,
                    f"the config tells the shapes, got {name} of {shape} where it says {wanted[name]}",
                )

        _explore(subject, one)

    @invariant
    def test_equal_to_masking(self, subject: Subject) -> None:
        """Logits are those of the uncut model with the same channels, heads and layers silenced."""

        def one(reference: nn.Module, module: nn.Module) -> None:
            silenced = masked(reference, module)
            require(
                silenced is not None,
                "every layer that is left is one of the uncut model without some rows, in the old order, got another",
            )
            if silenced is not None:
                wanted, got = hosts.logits(silenced)[0], hosts.logits(module)[0]
                require(
                    hosts.near(wanted, got),
                    "logits equal those of the uncut model with the same parts silenced, got others",
                    masked=wanted,
                    cut=got,
                )

        _explore(subject, one)

    @invariant
    def test_generates(self, subject: Subject) -> None:
        """Generation with the cache gives the tokens that it gives without."""

        def one(_reference: nn.Module, module: nn.Module) -> None:
            with_cache, without = (_generated(module, use_cache=each) for each in (True, False))
            require(
                with_cache == without,
                f"generating with the cache gives {without}, as without it, got {with_cache}",
            )

        _explore(subject, one)

    @invariant
    def test_reloads(self, subject: Subject) -> None:
        """`save_pretrained` and `from_pretrained` give the same model."""

        def one(_reference: nn.Module, module: nn.Module) -> None:
            wanted, got = hosts.logits(module)[0], hosts.logits(_reloaded(module))[0]
            require(
                hosts.near(wanted, got),
                "a checkpoint gives the same logits, got others",
                saved=wanted,
                loaded=got,
            )

        _explore(subject, one)


def _explore(subject: Subject, check: Callable[[nn.Module, nn.Module], None]) -> None:
    """Call `check` with a drawn shape, its model, and what the method makes of it."""

    def one(tiny: Tiny) -> None:
        reference = tiny.module()
        check(reference, subject.compressed(reference).module)

    explore(subject.tinies(_LAYERS), one, _EXAMPLES, first=subject.tiny)


def _fresh(module: nn.Module) -> nn.Module:
    """A model that is made from nothing but the config."""
    try:
        made = AutoModelForCausalLM.from_config(copy.deepcopy(module.config))
    except Exception as error:
        said = f"a model can be made from the config, got {type(error).__name__}: {error}"
        raise BrokenInvariantError(said) from error
    from_conv1d(made)
    return made


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in module.named_parameters()}


def _generated(module: nn.Module, *, use_cache: bool) -> list[int]:
    prompt = hosts.tokens(1)[:, :6]
    options = {"max_new_tokens": _NEW_TOKENS, "min_new_tokens": _NEW_TOKENS, "do_sample": False}
    try:
        with torch.no_grad(), quiet():
            mask = torch.ones_like(prompt)
            written = module.generate(prompt, attention_mask=mask, use_cache=use_cache, **options)
    except Exception as error:
        how = "with" if use_cache else "without"
        said = f"generating {how} the cache works, got {type(error).__name__}: {error}"
        raise BrokenInvariantError(said) from error
    return [int(token) for token in written[0, prompt.shape[1] :]]


def _reloaded(module: nn.Module) -> nn.Module:
    saved = copy_model(module)
    if saved.config.model_type == "gpt2":
        to_conv1d(saved)
    with tempfile.TemporaryDirectory() as folder, quiet():
        try:
            saved.save_pretrained(folder)
            loaded = AutoModelForCausalLM.from_pretrained(folder)
        except Exception as error:
            said = f"a checkpoint can be saved and loaded, got {type(error).__name__}: {error}"
            raise BrokenInvariantError(said) from error
    from_conv1d(loaded)
    return loaded.eval()
