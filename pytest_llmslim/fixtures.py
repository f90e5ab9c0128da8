"""The public fixtures. They import nothing heavy until a test asks for one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_llmslim.state import RECORDS, TAKEN, earlier_of, session_of

if TYPE_CHECKING:
    from pytest_llmslim.bench import Bench
    from pytest_llmslim.candidates import Candidate
    from pytest_llmslim.collection import Case
    from pytest_llmslim.evals.text import Passage
    from pytest_llmslim.models.loading import LoadedModel


@pytest.fixture(scope="session")
def llm_case(request: pytest.FixtureRequest) -> Case:
    """Model and recipe of this parametrised test (from `--llm-model`, `--llm-recipe` and the marker)."""
    case: Case = request.param
    return case


@pytest.fixture
def llm(request: pytest.FixtureRequest, llm_case: Case) -> Bench:
    """Measures a candidate against its reference: `llm.measure()`, `llm.reference`, `llm.candidate`, `llm.text`."""
    from pytest_llmslim import benchmark_figures
    from pytest_llmslim.bench import Bench
    from pytest_llmslim.collection import key_names, thresholds_of

    session = session_of(request.config)
    suite, test = key_names(request.node)
    shown = partial(benchmark_figures.show, request)
    found = earlier_of(request.config)
    earlier = None if isinstance(found, str) else partial(found.of_test, request.node.path)
    bench = Bench(session, llm_case, suite, test, thresholds_of(llm_case, session.settings), shown, earlier)
    request.node.stash[RECORDS], request.node.stash[TAKEN] = bench.records, bench.taken
    return bench


@pytest.fixture
def llm_reference(llm: Bench) -> LoadedModel:
    """The original model: `.module`, `.tokenizer`, `.name`."""
    return llm.reference


@pytest.fixture
def llm_candidate(llm: Bench) -> Candidate:
    """The model compressed by this test's recipe: `.module`, `.build`, `.integrity`."""
    return llm.candidate


@pytest.fixture
def llm_text(llm: Bench) -> Passage:
    """The windows of tokens on which both models are run."""
    return llm.text
