"""The pytest plugin: hooks only, in the order in which pytest calls them.

It is loaded in every run of every project in which the package is installed. So it imports the option table and
nothing else; rooms are imported inside the hooks that need them, which run only when a test uses our fixtures.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmslim import settings
from pytest_llmslim.errors import SlimError, TimeLimitError
from pytest_llmslim.options import BY_NAME
from pytest_llmslim.state import (
    COLLECTED,
    DEADLINE,
    ERRORS,
    FILES,
    FIXTURE,
    FORESEEN,
    LEASE,
    RECORDS,
    REFUSAL,
    SESSION,
    is_ours,
    settings_of,
)

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

    from pytest_llmslim.records import Record

MARKER = (
    "llm(*, model, models, recipe, recipes, eval, evals, max_perplexity_increase, max_accuracy_drop, "
    "max_time_increase, max_energy_increase, max_opt): what a test of a compressed language model measures and what it "
    "will not ship; the nearest marker wins, over the command line. "
    'Example: llm(model="gpt2", recipe="int4", max_perplexity_increase="3%").'
)


# Options and set-up -----------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare `--llm-*`, `llm_*` and `LLMSLIM_*`."""
    settings.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks through which others add methods."""
    from pytest_llmslim import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """With `--llm-calibrate` or `--llm-published`, measure noise or score published tables instead of running tests.

    Methods that `--llm-conformance` names are looked up before any worker starts.
    """
    try:
        if config.getoption("help", False):
            return None
        if settings.lookup(config, BY_NAME["conformance"]).value:
            from pytest_llmslim.conformance import cases

            cases.trials(config)
        if settings.lookup(config, BY_NAME["published"]).value:
            from pytest_llmslim import published

            return published.main(config)
        if not settings.lookup(config, BY_NAME["calibrate"]).value:
            return None
        from pytest_llmslim.calibrate import main

        return main(config)
    except SlimError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and the fixtures."""
    from pytest_llmslim import fixtures

    config.addinivalue_line("markers", MARKER)
    config.pluginmanager.register(fixtures, "llmslim-fixtures")
    config.stash[ERRORS] = []
    if not hasattr(config, "workerinput"):  # workers send their records; the controller keeps them
        from pytest_llmslim.ledger import Ledger

        config.pluginmanager.register(Ledger(config), "llmslim-ledger")
    if hasattr(config, "workerinput") or config.getoption("dist", "no") != "no":
        from pytest_llmslim import workers

        workers.configure(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is not default, with its source; nothing in a run without our options."""
    try:
        changed = settings.not_default(config)
    except SlimError as error:
        raise pytest.UsageError(str(error)) from None
    return [f"llmslim: {', '.join(changed)}"] if changed else []


# Collection -------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> pytest.CollectReport | None:
    """With `--llm-conformance`, collect the invariants instead of the tests that were named.

    Their conftest.py files are loaded all the same: these may bring the methods.
    """
    wanted = isinstance(collector, pytest.Session) and settings.lookup(
        collector.config, BY_NAME["conformance"]
    )
    if not wanted or not wanted.value:
        return None
    from pytest_llmslim.conformance import cases

    module = pytest.Module.from_parent(collector, path=cases.MODULE, nodeid="conformance")
    return pytest.CollectReport(collector.nodeid, "passed", None, [module])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests that use our fixtures by model and recipe."""
    if FIXTURE not in metafunc.fixturenames:
        return
    from pytest_llmslim import collection

    config = metafunc.config
    errors = config.stash[ERRORS]
    errors.extend(collection.parametrize(metafunc, settings_of(config)))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    """Refuse what cannot run, then sort so that each model is loaded and each candidate built once.

    Around all others: what was collected is noted before anything is deselected, and what runs after it.
    """
    ours = [item for item in items if is_ours(item)]
    result = yield
    if ours:
        _arrange(config, items, ours)
    return result


def _arrange(config: pytest.Config, items: list[pytest.Item], ours: list[pytest.Item]) -> None:
    from pytest_llmslim import collection, resuming

    sentence = _refusal(config)
    if sentence and hasattr(config, "workerinput"):
        config.stash[REFUSAL] = sentence  # a usage error in an xdist worker would end in an internal error
        return
    if sentence:
        raise pytest.UsageError(sentence)
    failed_first = config.getoption("failedfirst", False)  # without pytest's cache there is no such option
    first = config.cache.get("cache/lastfailed", {}) if failed_first and config.cache else ()
    kept, dropped = collection.arrange(items, first)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    items[:] = kept
    config.stash[FORESEEN] = collection.expected(kept, settings_of(config))
    config.stash[COLLECTED] = collection.noted(ours, kept)
    config.stash[FILES] = resuming.files_of(ours, config)
    if hasattr(config, "workeroutput"):  # the controller of xdist collects nothing itself
        config.workeroutput["llmslim"] = config.stash[COLLECTED]


def _refusal(config: pytest.Config) -> str:
    """All that is wrong, a line each, found before anything runs; empty when nothing is."""
    from pytest_llmslim import baselines, outputs

    found: list[str] = config.stash[ERRORS]
    errors = list(dict.fromkeys(found))
    chosen = settings_of(config)
    if chosen.anchor and not chosen.update:
        errors.append("--llm-anchor goes with --llm-update, which writes the baselines; give both.")
    if chosen.ablate and chosen.update:
        errors.append(
            "--llm-ablate measures parts of recipes, which have no baselines; run --llm-update without it."
        )
    if chosen.data is not None and not chosen.data.is_dir():
        errors.append(
            f"--llm-data is a folder of local tasks, got {chosen.data}, which is none; give its path."
        )
    for check in (
        lambda: outputs.check(chosen),
        chosen.limits,
        lambda: baselines.load_all(chosen.baseline),
        lambda: _look_up(chosen.country),
    ):
        try:
            check()
        except SlimError as error:
            errors.append(str(error))
    return "\n".join(errors)


def _look_up(country: str | None) -> None:
    """Carbon is known for the country asked for; loading its table takes a second, so only then."""
    if country is not None:
        from pytest_llmslim.meters.intensity import intensity

        intensity(country)


# Running ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Show what a user can mend as one sentence, without a traceback."""
    if is_ours(item):
        refusal = item.config.stash.get(REFUSAL, "")
        if refusal:
            pytest.fail(refusal, pytrace=False)
        _set_deadline(item)
    return (yield from _guarded(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail the test after its body when a verdict says so: JUnit, xfail and xdist all see it."""
    try:
        result = yield from _guarded(item)
    except KeyboardInterrupt:
        _keep(item)
        raise
    message = _verdict(item, item.stash.get(RECORDS, []))
    if message:
        pytest.fail(message, pytrace=False)
    return result


def _set_deadline(item: pytest.Item) -> None:
    """The clock of a test starts here; a test that runs again has all its time again."""
    seconds = settings_of(item.config).timeout
    if seconds is not None:
        from pytest_llmslim import collection, deadline

        lease = item.config.stash.get(LEASE, None)
        paused = (lambda: lease.waited_s) if lease else None
        item.stash[DEADLINE] = deadline.Deadline(collection.subject_of(item), seconds, paused)


def _guarded(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run a phase of a test within its time limit, and show what a user can mend as one sentence."""
    limit: AbstractContextManager[None] = nullcontext()
    if DEADLINE in item.stash:
        limit = item.stash[DEADLINE].enforced()
    try:
        with limit:
            return (yield)
    except SlimError as error:
        sentence = str(error)
        if isinstance(error, TimeLimitError) and SESSION in item.config.stash:
            item.config.stash[SESSION].discard()  # models may be half moved or half compressed
    pytest.fail(sentence, pytrace=False)  # outside the handler: pytest prints whatever was being handled


def _verdict(item: pytest.Item, records: list[Record]) -> str:
    """What fails a test whose body passed, a line each; empty when nothing does."""
    if records:
        from pytest_llmslim import gate

        verdicts = [verdict for record in records for verdict in record.verdicts]
        return gate.failure(verdicts, strict=settings_of(item.config).strict)
    if any(mark.name == "llm" for mark in item.own_markers):
        from pytest_llmslim import marker

        limits = marker.limits(item.own_markers)
        given = ", ".join(f"{name}={value}" for name, value in limits.items())
        return f"{item.name}: {given} was never checked; call llm.measure()." if limits else ""
    return ""


def _keep(item: pytest.Item) -> None:
    """Hand over what an interrupted test has measured: there will be no report on it."""
    ledger = item.config.pluginmanager.get_plugin("llmslim-ledger")
    if ledger is not None and RECORDS in item.stash:
        ledger.keep(item.stash[RECORDS])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Put the records on the report as plain builtins: xdist carries them to the controller."""
    report: pytest.TestReport = yield
    if is_ours(item):
        from pytest_llmslim import collection

        collection.attach(item, report)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let models and meters go, while there is time: later, xdist interrupts its workers."""
    shared = session.config.stash.get(SESSION, None)
    if shared is not None:
        shared.close()
