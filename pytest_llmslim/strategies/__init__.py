"""Hypothesis strategies for tests of compression methods: weights as they really are, tiny models, recipes.

    from hypothesis import given
    from pytest_llmslim.strategies import weights

    @given(weights())
    def test_mine(matrix):
        rounded = my_quantizer(matrix.tensor)

A failing example is shrunk towards a small matrix of few simple numbers, and printed as a matrix one can read.
"""

from __future__ import annotations

from pytest_llmslim.strategies.matrix import Matrix
from pytest_llmslim.strategies.recipes import recipes
from pytest_llmslim.strategies.tiny import FAMILIES, GROUPED, Tiny, tiny_model, tiny_models
from pytest_llmslim.strategies.weights import DTYPES, KINDS, bad_weights, weights

__all__ = [
    "DTYPES",
    "FAMILIES",
    "GROUPED",
    "KINDS",
    "Matrix",
    "Tiny",
    "bad_weights",
    "recipes",
    "tiny_model",
    "tiny_models",
    "weights",
]
