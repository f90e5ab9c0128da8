"""Level two of the paper: finished models of tables 7 to 9, each against the larger model that it comes from.

Besides perplexity they answer the five logic tasks: ARC-Challenge (25 shots), HellaSwag (10), MMLU (5), TruthfulQA MC2
(0) and WinoGrande (5), where these can be had: from the hub, or from `--llm-data`. Without the models, our own methods
make candidates in a few steps, so that the way is the same.
"""

from __future__ import annotations

import pytest


def check(measured):
    """The candidate gives finite probabilities and really is another model."""
    assert measured.candidate.perplexity > 1
    assert measured.integrity.status in ("compressed", "simulated", "changed")


@pytest.mark.paper("opt-6.7b-minillm")
def test_opt_6_7b_minillm(against_progenitor):
    """Taught by reverse KL on its own text; table 7, against OPT 13B."""
    check(against_progenitor())


@pytest.mark.paper("opt-6.7b")
def test_opt_6_7b(against_progenitor):
    """The smaller model of the family as it is; table 7, against OPT 13B."""
    check(against_progenitor())


@pytest.mark.paper("opt-6.7b-kd")
def test_opt_6_7b_kd(against_progenitor):
    """Taught by the larger one's probabilities; table 7, against OPT 13B."""
    check(against_progenitor())


@pytest.mark.paper("opt-6.7b-seqkd")
def test_opt_6_7b_seqkd(against_progenitor):
    """Taught by text that the larger one wrote; table 7, against OPT 13B."""
    check(against_progenitor())


@pytest.mark.paper("llama-6.7b-minillm")
def test_llama_6_7b_minillm(against_progenitor):
    """Taught by reverse KL on its own text; table 8, against Llama 13B."""
    check(against_progenitor())


@pytest.mark.paper("llama-6.7b")
def test_llama_6_7b(against_progenitor):
    """The smaller model of the family as it is; table 8, against Llama 13B."""
    check(against_progenitor())


@pytest.mark.paper("llama-6.7b-kd")
def test_llama_6_7b_kd(against_progenitor):
    """Taught by the larger one's probabilities; table 8, against Llama 13B."""
    check(against_progenitor())


@pytest.mark.paper("llama-6.7b-seqkd")
def test_llama_6_7b_seqkd(against_progenitor):
    """Taught by text that the larger one wrote; table 8, against Llama 13B."""
    check(against_progenitor())


@pytest.mark.paper("sheared-llama-2.7b")
def test_sheared_llama_2_7b(against_progenitor):
    """Sheared to 2.7B, then trained; table 9, against Llama 2 6.7B."""
    check(against_progenitor())


@pytest.mark.paper("sheared-llama-1.3b")
def test_sheared_llama_1_3b(against_progenitor):
    """Sheared to 1.3B, then trained; table 9, against Llama 2 6.7B."""
    check(against_progenitor())


@pytest.mark.paper("mn-minitron-8b")
def test_mn_minitron_8b(against_progenitor):
    """Pruned to 8B, then taught; table 9, against Mistral NeMo 12B."""
    check(against_progenitor())


@pytest.mark.paper("llama-3.1-minitron-4b-width")
def test_llama_3_1_minitron_4b_width(against_progenitor):
    """Narrowed to 4B, then taught; table 9, against Llama 3.1 8B."""
    check(against_progenitor())
