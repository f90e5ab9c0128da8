"""Level one of the paper: techniques by themselves, and the twelve combinations of its table 1.

Its models are GPT-2, GPT-2 Large, GPT-2 XL, and OPT of like size, for which `--llm-models-map` names what is here. 30
rounds a technique, 5 for pruning on a CPU, unless `--llm-rounds` says how many.
"""

from __future__ import annotations

import pytest

from ..test_combinations import COMBINATIONS  # in the wheel the suites lie in another package

STANDALONE = ("int8", "int4", "kd", "ah90", "ah80", "sparsegpt(pattern=2:4)")


@pytest.mark.paper
@pytest.mark.llm(recipes=(*STANDALONE, *COMBINATIONS))
def test_technique(technique):
    """The candidate gives finite probabilities and is what its method says."""
    measured = technique()
    assert measured.candidate.perplexity > 1
    assert measured.integrity.status in ("compressed", "simulated", "changed")
