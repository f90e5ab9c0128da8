"""The pytest plugin: hooks only, in the order in which pytest calls them.

It is loaded in every run of every project in which the package is installed. So it imports the option table and
nothing else; rooms are imported inside the hooks that need them, which run only when a test uses our fixtures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmslim import settings
from pytest_llmslim.errors import SlimError
from pytest_llmslim.state import ERRORS, FIXTURE, RECORDS, REFUSAL, SESSION, is_ours, settings_of

if TYPE_CHECKING:
    from collections.abc import Generator

MARKER = (
    "llm(*, model, models, recipe, recipes, max_perplexity_increase, max_time_increase, max_energy_increase, max_opt): "
    "what a test of a compressed language model measures and what it will not ship; the nearest marker wins, "
    'over the command line. Example: llm(model="gpt2", recipe="int4", max_perplexity_increase="3%").'
)


# Options and set-up -----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare `--llm-*`, `llm_*` and `LLMSLIM_*`."""
    settings.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks through which others add methods."""
    from pytest_llmslim import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the fixtures."""
    from pytest_llmslim import fixtures

    config.addinivalue_line("markers", MARKER)
    config.pluginmanager.register(fixtures, "llmslim-fixtures")
    config.stash[ERRORS] = []
    if not hasattr(config, "workerinput"):  # workers send their records; the controller keeps them
        from pytest_llmslim.ledger import Ledger

        config.pluginmanager.register(Ledger(config), "llmslim-ledger")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is not default, with its source; nothing in a run without our options."""
    try:
        changed = settings.not_default(config)
    except SlimError as error:
        raise pytest.UsageError(str(error)) from None
    return [f"llmslim: {', '.join(changed)}"] if changed else []


# Collection -------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests that use our fixtures by model and recipe."""
    if FIXTURE not in metafunc.fixturenames:
        return
    from pytest_llmslim import collection

    config = metafunc.config
    errors = config.stash[ERRORS]
    errors.extend(collection.parametrize(metafunc, settings_of(config)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse what cannot run, then sort so that each model is loaded and each candidate built once."""
    if not any(map(is_ours, items)):
        return
    from pytest_llmslim import collection

    sentence = _refusal(config)
    if sentence and hasattr(config, "workerinput"):
        config.stash[REFUSAL] = sentence  # a usage error in an xdist worker would end in an internal error
        return
    if sentence:
        raise pytest.UsageError(sentence)
    kept, dropped = collection.arrange(items)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    items[:] = kept


def _refusal(config: pytest.Config) -> str:
    """All that is wrong, a line each, found before anything runs; empty when nothing is."""
    from pytest_llmslim import baselines

    found: list[str] = config.stash[ERRORS]
    errors = list(dict.fromkeys(found))
    try:
        baselines.load_all(settings_of(config).baseline)
    except SlimError as error:
        errors.append(str(error))
    return "\n".join(errors)


# Running ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show what a user can mend as one sentence, without a traceback."""
    refusal = item.config.stash.get(REFUSAL, "")
    if refusal and is_ours(item):
        pytest.fail(refusal, pytrace=False)
    return (yield from _sentences())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail the test after its body when a verdict says so: JUnit, xfail and xdist all see it."""
    result = yield from _sentences()
    records = item.stash.get(RECORDS, None)
    if records:
        from pytest_llmslim import gate

        message = gate.failure(
            [v for record in records for v in record.verdicts], strict=settings_of(item.config).strict
        )
        if message:
            pytest.fail(message, pytrace=False)
    return result


def _sentences() -> Generator[None, Any, Any]:
    try:
        return (yield)
    except SlimError as error:
        sentence = str(error)
    pytest.fail(sentence, pytrace=False)  # outside the handler: pytest prints whatever was being handled


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Put the records on the report as plain builtins: xdist carries them to the controller."""
    report: pytest.TestReport = yield
    records = item.stash.get(RECORDS, None)
    if is_ours(item):
        from pytest_llmslim import collection, ledger

        case = collection.case_of(item)
        report.llmslim_label = case.id if case else item.name  # type: ignore[attr-defined]
        if report.when == "call" and records:
            ledger.attach(item, report, records)
    return report


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let models and meters go."""
    session = config.stash.get(SESSION, None)
    if session is not None:
        session.close()
