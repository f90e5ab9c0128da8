"""EoRA against the whitened SVD that its problem has as solution, and against plain low rank."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny_model, tiny_tokens
from torch import nn

from pytest_llmslim.errors import CompressionError, NothingCompressedError, RecipeError
from pytest_llmslim.evals import text as texts
from pytest_llmslim.evals.perplexity import perplexity, token_nll
from pytest_llmslim.methods import Context, eora
from pytest_llmslim.methods.bitsandbytes_linear import NF4, Int8
from pytest_llmslim.methods.eora import EoRA, compensate, output_norm
from pytest_llmslim.methods.linears import effective_weight
from pytest_llmslim.methods.low_rank import LowRank
from pytest_llmslim.methods.magnitude import Magnitude
from pytest_llmslim.models.blocks import Blocks
from pytest_llmslim.models.loading import load_model
from pytest_llmslim.models.storage import copy_model, weights_hash


def context(reference: nn.Module | None, **changes: object) -> Context:
    windows = tiny_tokens(8, 24)
    base = Context(windows, 0, "cpu", "llama", "tiny", reference)
    return dataclasses.replace(base, **changes)


def perplexity_of(module: nn.Module, passage: texts.Passage) -> float:
    with torch.no_grad():
        scored = [
            token_nll(module(window, use_cache=False).logits, window, first)
            for window, first in zip(passage.windows, passage.scored_from, strict=True)
        ]
    losses = torch.cat(scored)
    return perplexity(float(losses.sum()), len(losses))


def problem(rows: int, columns: int, seed: int, tokens: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual [rows, columns] and the mean of x xᵀ over so many correlated inputs, in float64."""
    draw = np.random.default_rng(seed)
    residual = draw.standard_normal((rows, columns))
    inputs = draw.standard_normal((tokens, columns)) @ draw.standard_normal((columns, columns))
    return torch.tensor(residual), torch.tensor(inputs.T @ inputs / tokens)


def published(residual: torch.Tensor, covariance: torch.Tensor, rank: int) -> np.ndarray:
    """The product of the factors as the paper computes it: into the eigenspace, truncated SVD, back."""
    values, basis = np.linalg.eigh(covariance.numpy())
    scale = basis * np.sqrt(values)
    left, middle, right = np.linalg.svd(residual.numpy() @ scale, full_matrices=False)
    return (left[:, :rank] * middle[:rank]) @ right[:rank] @ np.linalg.inv(scale)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(1, 10), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_factors_are_those_of_the_published_algorithm(rows, columns, rank, seed):
    """Equal products, whichever side is the smaller one; the rank is at most what was asked for."""
    residual, covariance = problem(rows, columns, seed)
    down, up = compensate(residual, covariance, rank)

    assert (min(rank, rows, columns), columns) == down.shape
    assert (rows, min(rank, rows, columns)) == up.shape
    np.testing.assert_allclose(up @ down, published(residual, covariance, rank), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("rows", "columns"), [(8, 6), (6, 8)])
def test_no_other_factors_are_better(rows, columns):
    """Optimal in the error of the output: neither the plain SVD nor small random changes have a lower one."""
    residual, covariance = problem(rows, columns, 1)
    down, up = compensate(residual, covariance, 2)
    least = output_norm(residual - up @ down, covariance)
    left, middle, right = torch.linalg.svd(residual)
    plain = (left[:, :2] * middle[:2]) @ right[:2]

    assert least < 0.95 * output_norm(residual - plain, covariance)
    generator = torch.Generator().manual_seed(0)
    for step in (1e-3, 0.1):
        for _ in range(200):
            other_up = up + step * torch.randn(up.shape, generator=generator, dtype=up.dtype)
            other_down = down + step * torch.randn(down.shape, generator=generator, dtype=down.dtype)
            assert least <= output_norm(residual - other_up @ other_down, covariance)


@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    rank=st.integers(1, 8),
    tokens=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_the_error_never_grows(rows, columns, rank, tokens, seed):
    """Few inputs, none, or always the same: the covariance is singular, and the factors are finite and no worse."""
    residual, _ = problem(rows, columns, seed)
    inputs = torch.tensor(np.random.default_rng(seed).standard_normal((tokens, columns)))
    covariance = inputs.T @ inputs
    down, up = compensate(residual, covariance, rank)

    assert torch.isfinite(up @ down).all()
    before = output_norm(residual, covariance)
    assert output_norm(residual - up @ down, covariance) <= before * (1 + 1e-9) + 1e-9
    if rank >= max(1, int(torch.linalg.matrix_rank(covariance))):
        assert output_norm(residual - up @ down, covariance) <= 1e-6 * (1 + before)


def test_the_norm_of_outputs_is_their_root_mean_square():
    """Over the inputs that the covariance is of."""
    inputs, weight = torch.randn(50, 4).double(), torch.randn(3, 4).double()
    expected = (inputs @ weight.T).square().sum(dim=1).mean().sqrt()

    assert float(expected) == pytest.approx(output_norm(weight, inputs.T @ inputs / 50), rel=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", [Magnitude(sparsity=0.5), Int8(), NF4()], ids=["magnitude", "int8", "nf4"])
def test_outputs_are_nearer_to_the_references_than_before(step, family):
    """Every linear gets its term, its base stays as it was, logits come nearer; the reference is not touched."""
    reference = tiny_model(family)
    given_hash = weights_hash(reference)
    candidate = step.compress(copy_model(reference), context(reference)).module
    bases = {name: effective_weight(part).clone() for name, part in Blocks(candidate).linears().items()}
    tokens = tiny_tokens(8, 24)
    wanted, before = reference(tokens).logits, candidate(tokens).logits
    applied = EoRA(rank=8).compress(candidate, context(reference))
    linears = Blocks(applied.module).linears()

    assert list(bases) == list(linears)
    assert all(isinstance(part, LowRank) and part.rank == 8 for part in linears.values())
    assert all(torch.equal(bases[name], effective_weight(part.base)) for name, part in linears.items())
    assert float((applied.module(tokens).logits - wanted).norm()) < 0.9 * float((before - wanted).norm())
    assert given_hash == weights_hash(reference)
    assert applied.sentence.startswith(
        f"eora: terms of rank 8 beside {len(linears)} linears; error of their outputs "
    )
    assert not any(parameter.requires_grad for parameter in applied.module.parameters())
    assert "" == applied.simulated


def test_two_terms_can_stand_beside_one_linear():
    """A second eora makes up for what the first one left."""
    reference = tiny_model("llama")
    candidate = Magnitude().compress(copy_model(reference), context(reference)).module
    twice = EoRA(rank=4).compress(
        EoRA(rank=4).compress(candidate, context(reference)).module, context(reference)
    )
    linear = twice.module.model.layers[0].mlp.up_proj

    assert isinstance(linear, LowRank)
    assert isinstance(linear.base, LowRank)
    assert type(linear.base.base) is nn.Linear


def test_linears_without_a_residual_stay_as_they_are():
    """Only what differs from the reference needs a term."""
    reference = tiny_model("llama")
    candidate = copy_model(reference)
    candidate.model.layers[1].mlp.up_proj.weight[0] = 0
    applied = EoRA(rank=1).compress(candidate, context(reference))
    wrapped = [name for name, part in Blocks(applied.module).linears().items() if isinstance(part, LowRank)]

    assert ["model.layers.1.mlp.up_proj"] == wrapped
    torch.testing.assert_close(
        effective_weight(applied.module.model.layers[1].mlp.up_proj),
        reference.model.layers[1].mlp.up_proj.weight,
    )


def test_better_than_plain_low_rank_on_text(monkeypatch):
    """On the embedded Llama, half of it pruned: none > plain SVD > EoRA in perplexity, each by more than 2 %."""
    loaded = load_model("embedded:llama")
    source = texts.grammar_text(40)
    passage = texts.cut(
        source,
        loaded.tokenizer,
        tokens=2048,
        window=65,
        stride=None,
        bos="auto",
        dtype="float32",
        longest=None,
    )
    around = context(loaded.module, calibration=passage.calibration, draw=passage.rest)
    pruned = Magnitude(pattern="2:4").compress(copy_model(loaded.module), around).module
    models = {"none": copy_model(pruned)}
    models["eora"] = EoRA(rank=8, samples=16).compress(copy_model(pruned), around).module
    monkeypatch.setattr(eora, "compensate", lambda gap, cov, rank: compensate(gap, torch.eye(len(cov)), rank))
    models["plain"] = EoRA(rank=8, samples=16).compress(copy_model(pruned), around).module
    found = {name: perplexity_of(model, passage) for name, model in models.items()}

    assert found["plain"] < 0.98 * found["none"]
    assert found["eora"] < 0.98 * found["plain"]


def test_nothing_to_make_up_for_is_an_error():
    """A candidate that equals the reference has no residual."""
    reference = tiny_model("llama")
    with pytest.raises(
        NothingCompressedError,
        match=r"^eora on tiny: earlier steps changed a linear, got all as in the uncompressed model; put a step that",
    ):
        EoRA().compress(copy_model(reference), context(reference))


def test_without_a_reference_it_is_refused():
    """There is nothing to compare with."""
    with pytest.raises(
        CompressionError,
        match=r"^eora on tiny: the method makes up for the difference to the uncompressed model, got no such model; "
        r"pass it as Context\(reference=...\)$",
    ):
        EoRA().compress(tiny_model("llama"), context(None))


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ({"num_hidden_layers": 1}, "7 linears instead of 14"),
        ({"intermediate_size": 64}, r"\[64, 64\] instead of \[128, 64\] in model.layers.0.mlp.gate_proj"),
    ],
)
def test_other_shapes_than_the_references_are_refused(shape, found):
    """After depth, width or a smaller student the residual is not defined."""
    with pytest.raises(
        CompressionError,
        match=rf"^eora on tiny: linears have the shapes of the uncompressed model, got {found}, as an earlier step "
        "cut shapes; use lora$",
    ):
        EoRA().compress(tiny_model("llama", **shape), context(tiny_model("llama")))


def test_without_text_it_is_refused():
    """The error of outputs needs inputs."""
    with pytest.raises(CompressionError, match=r"^eora on tiny: the method learns from calibration windows"):
        EoRA().compress(tiny_model("llama", seed=1), context(tiny_model("llama"), calibration=None))


@pytest.mark.parametrize("name", ["rank", "samples"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", float("nan"), 10**7, None])
def test_parameters_are_whole_numbers(name, value):
    """Anything else is refused by name."""
    with pytest.raises(RecipeError, match=rf"^eora: {name} is a whole number from 1 to \d+, got"):
        EoRA(**{name: value})
