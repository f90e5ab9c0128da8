"""What the paper's suites share: which models they run on, how many rounds, and what is printed in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llmslim.errors import SlimError
from pytest_llmslim.paper.mapping import LEFT_OUT, RECIPE, models_of
from pytest_llmslim.paper.tables import LEVEL_ONE, chances, level_two
from pytest_llmslim.state import ERRORS, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_llmslim.bench import Bench
    from pytest_llmslim.records import Record
    from pytest_llmslim.settings import Settings

ROUNDS = 30
ROUNDS_OF_PRUNING = 5
"""On a CPU, as in the paper."""
PRUNING = "sparsegpt"
WIKITEXT = "wikitext-2-raw/wiki.test.raw"
"""In the folder of `--llm-data`."""
MARKER = (
    "paper(model): a test of suites/paper; with a model of tables 7 to 9, of that one against its progenitor."
)


def pytest_configure(config):
    """Declare the marker of these suites."""
    config.addinivalue_line("markers", MARKER)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    """Put the models of `--llm-models-map` on the tests, where the plugin reads them next."""
    mark = metafunc.definition.get_closest_marker("paper")
    if mark is None:
        return
    settings = settings_of(metafunc.config)
    try:
        models = models_of(settings.models_map)
    except SlimError as error:
        metafunc.config.stash[ERRORS].append(str(error))
        return
    _choose_text(settings, models)
    keywords = (
        _one_against_another(mark.args[0], models, settings) if mark.args else _techniques(models, settings)
    )
    metafunc.definition.add_marker(pytest.mark.llm(**keywords))


def _techniques(models: Mapping[str, str], settings: Settings) -> dict[str, object]:
    """Models of level one; `--llm-model` replaces them."""
    if settings.sources["model"].source != "default":
        return {}
    return {"models": [models[name] for name in LEVEL_ONE if models[name] != LEFT_OUT] or [LEFT_OUT]}


def _one_against_another(name: str, models: Mapping[str, str], settings: Settings) -> dict[str, object]:
    """The progenitor as reference, the recipe where the candidate is made here, and the logic tasks where they are."""
    progenitor = models[next(row.reference for row in level_two() if row.model == name)]
    keywords: dict[str, object] = {"model": progenitor}
    if models[name].startswith(RECIPE):
        keywords["recipe"] = models[name].removeprefix(RECIPE)
    if _has_tasks(progenitor, settings):
        keywords["evals"] = list(chances())
    return keywords


def _has_tasks(model: str, settings: Settings) -> bool:
    """Whether tasks can be had: from a folder, or from the hub where the model comes from there."""
    from pathlib import Path

    here = model == LEFT_OUT or model.startswith("embedded:") or Path(model).expanduser().exists()
    return settings.data is not None or not here


def _choose_text(settings: Settings, models: Mapping[str, str]) -> None:
    """WikiText-2 of `--llm-data`, unless a text was given or a reference is embedded: these have their own."""
    references = {models[name] for name in LEVEL_ONE} | {
        models[row.reference or row.model] for row in level_two()
    }
    own = any(model.startswith("embedded:") for model in references)
    file: Path | None = settings.data / WIKITEXT if settings.data else None
    if settings.text is None and not own and file is not None and file.is_file():
        settings.text = file


@pytest.fixture
def technique(measure: Callable[..., Record], llm: Bench, llm_case) -> Callable[[], Record]:
    """Measures a technique of level one in as many rounds as the paper takes."""

    def run() -> Record:
        if llm_case.model == LEFT_OUT:
            pytest.skip("the models map leaves out all models of level one")
        pruned = any(step.name == PRUNING for step in llm_case.recipe.steps)
        on_cpu = llm.reference.device == "cpu"
        return measure(rounds=ROUNDS_OF_PRUNING if pruned and on_cpu else ROUNDS)

    return run


@pytest.fixture
def against_progenitor(
    measure: Callable[..., Record], llm_case, request: pytest.FixtureRequest
) -> Callable[[], Record]:
    """Measures the model of this test's marker against its progenitor, finished or made here by a recipe."""

    def run() -> Record:
        name = request.node.get_closest_marker("paper").args[0]
        candidate = models_of(settings_of(request.config).models_map)[name]
        if LEFT_OUT in (candidate, llm_case.model):
            pytest.skip(f"the models map leaves out {name} or its progenitor")
        return measure(None if llm_case.recipe else candidate, label=name, rounds=ROUNDS)

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Published rows beside measured ones, and the figures."""
    ledger = config.pluginmanager.get_plugin("llmslim-ledger")
    if ledger is None or not ledger.records:
        return
    from pytest_llmslim.published import after_run

    lines = after_run(ledger.records, config)
    if lines:
        terminalreporter.section("published and measured")
    for text, markup in lines:
        terminalreporter.write_line(text, **dict.fromkeys(markup, True))
