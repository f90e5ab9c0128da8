"""The controller's book of a run: records arrive on reports, files and baselines are written from here.

Only the process that shows the results has one; xdist workers send their records on the reports, so that what
a worker measured before it crashed is kept. Every record is on disk as soon as it has arrived.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmslim.state import COLLECTED, WATCH, earlier_of, settings_of, watch_of

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmslim.ablation import Attribution
    from pytest_llmslim.records import Key, Record
    from pytest_llmslim.resuming import Book, Earlier
    from pytest_llmslim.run_records import Origin, Run


class Ledger:
    """Keeps the records of a run, writes `results.jsonl`, `summary.json` and baselines, prints the summary."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.records: list[Record] = []
        self.unmeasured: list[tuple[str, str]] = []
        self.changes: list[str] = []
        self.troubles: list[str] = []
        self.missing: tuple[str, ...] = ()
        self.remarks: list[str] = []
        self.interrupted = self.stopped = False
        self.updated = False
        self.written: list[str] = []
        self._began = time.time()
        self._taken = 0
        self._kept: list[Key] = []
        self._baselines: tuple[Record, ...] = ()
        self._collected: dict[str, list[list[str]]] = {}
        self._files: dict[str, str] = {}
        self._passed: set[tuple[str, ...]] = set()
        self._reasons: dict[tuple[str, ...], str] = {}
        self._ended = 0

    # The beginning -----------------------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_sessionstart(self) -> None:
        """Refuse to go on with a run of other settings before anything runs."""
        earlier_of(self.config)

    @pytest.hookimpl
    def pytest_report_header(self) -> list[str]:
        """What `--llm-resume` found."""
        found = earlier_of(self.config)
        if isinstance(found, str):
            return [f"llmslim: {found}"] if found else []
        results = self._near(settings_of(self.config).results)
        return [f"llmslim: {results} has {len(found.records)} records of the run of {found.origin.started}"]

    @property
    def _earlier(self) -> Earlier | None:
        """The run that goes on."""
        found = earlier_of(self.config)
        return None if isinstance(found, str) else found

    # What arrives ------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)  # a moving line is gone before pytest writes
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the records off a report, and note how the test ended."""
        self._wipe()
        label = getattr(report, "llmslim_label", None)
        if label is None:
            return
        from pytest_llmslim.collection import first_line

        self._learn(report)
        records = [self._take(data) for data in getattr(report, "llmslim", ())]
        self._taken += len(getattr(report, "llmslim_taken", ()))
        reason = "" if report.passed else first_line(report)
        self._note(report, label, reason, measured=bool(records))
        self._ended += report.when == "teardown"
        watch = watch_of(self.config)
        if watch:
            watch.note(report, records, reason)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Show how a test of ours ended, behind what pytest shows."""
        watch = self.config.stash.get(WATCH, None)
        if watch:
            watch.ended(nodeid)

    def _wipe(self) -> None:
        watch = self.config.stash.get(WATCH, None)
        if watch:
            watch.screen.wipe()

    def _learn(self, report: pytest.TestReport) -> None:
        """What there is to do, from the first report of a process; and what the user is to know."""
        for remark in getattr(report, "llmslim_remarks", ()):
            self.remark(remark)
        plan = getattr(report, "llmslim_plan", None)
        if not plan:  # not ours, or of a worker in which nothing can run
            return
        self._collected, self._files = self._collected or plan, report.llmslim_files
        watch = watch_of(self.config)
        if watch and not watch.pace.total:
            watch.pace.plan(plan["running"])

    def remark(self, sentence: str) -> None:
        """Keep a sentence for the summary."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def _note(self, report: pytest.TestReport, label: str, reason: str, *, measured: bool) -> None:
        key = tuple(getattr(report, "llmslim_key", None) or ())
        if report.when == "teardown":
            return
        if report.passed:
            if report.when == "call":
                self._passed.add(key)
            return
        self._reasons[key] = reason
        if not measured:
            self.unmeasured.append((label, reason))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401  # xdist's WorkerController
        """Learn from a worker of xdist what there was to do."""
        self._collected = getattr(node, "workeroutput", {}).get("llmslim", self._collected)

    def lost(self, label: str, key: tuple[str, ...], reason: str) -> None:
        """Note a test that went down with its worker: what was reported of it came from the controller alone."""
        self.unmeasured.append((label, reason))
        self._reasons[key] = reason
        self._ended += 1

    def keep(self, records: list[Record]) -> None:
        """Take records of a test that will have no report."""
        from pytest_llmslim.encoding import to_builtins

        for record in records:
            self._take(to_builtins(record))

    def _take(self, data: dict[str, Any]) -> Record:
        from pytest_llmslim.encoding import from_builtins
        from pytest_llmslim.records import Record

        record = from_builtins(Record, data)
        self.records.append(record)
        self._book.add(record)
        return record

    @cached_property
    def _book(self) -> Book:
        """Opened with the first record: the folder is of this run from then on."""
        from dataclasses import replace

        from pytest_llmslim import runs
        from pytest_llmslim.resuming import Book

        if not self._earlier:  # first, so that records of another run never stand beside this one's settings
            self._write(runs.RESULTS, "")
        self._write(runs.RUN, runs.rest_of(replace(self.run(), interrupted=True)))
        return Book(self._write, self._files, self._earlier)

    # The end of the run ------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)  # before pytest writes its XML
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the summary, and the baselines where asked; fail where a comparison went away silently."""
        if self.config.getoption("collectonly", False) or not (self._has_something() or self._all_keys()):
            return
        chosen = settings_of(self.config)
        codes = pytest.ExitCode
        self.interrupted = exitstatus not in (codes.OK, codes.TESTS_FAILED, codes.NO_TESTS_COLLECTED)
        short = 0 < self._ended < len(self._all_keys().get("running", ()))  # all workers went down
        self.stopped = bool(self.interrupted or session.shouldfail or session.shouldstop or short)
        self._wipe()
        self._remark_on_resuming()
        failed = False
        if not self.stopped:
            self.missing = self._absent(chosen.baseline)
            failed = chosen.strict and bool(self.missing)
        self._baselines = self._compared_with(chosen.baseline)
        if self.records and chosen.update:  # before reports and hooks of others, which may fail
            self.updated = self._update(chosen.baseline, anchor=chosen.anchor)
            failed |= not self.updated
        if self._has_results():
            self._write_summary()
            self._write_run()
        if failed and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _remark_on_resuming(self) -> None:
        """What was taken, what was left alone, and that there is something to go on with."""
        from pytest_llmslim import resuming

        found, keys = earlier_of(self.config), self._all_keys()
        sentences = [found] if isinstance(found, str) else []
        if not isinstance(found, str):
            deselected = len(keys.get("running", ())) < len(keys.get("collected", ()))
            partly = deselected or _narrowed(self.config) or found.beyond(self._files)
            met = [record.key for record in self.records]
            self._kept = found.kept(met, None if partly or self.stopped else self._reasons)
            sentences += resuming.told(found, self._taken, self.origin, len(self.records), len(self._kept))
        ended, planned = self._ended, len(keys.get("running", ()))
        if self.stopped and 0 < ended < planned:
            sentences.append(resuming.STOPPED.format(ended, planned))
        for sentence in filter(None, sentences):
            self.remark(sentence)

    def _has_results(self) -> bool:
        return bool(self.records or self.unmeasured or self.missing)

    def _has_something(self) -> bool:
        return bool(self._has_results() or self.remarks)

    def _all_keys(self) -> dict[str, list[list[str]]]:
        return self.config.stash.get(COLLECTED, self._collected)

    def _absent(self, folder: Path) -> tuple[str, ...]:
        """Sentences on baselines with which nothing was compared."""
        from pytest_llmslim.absent import Run, absent
        from pytest_llmslim.baselines import Store, path_of
        from pytest_llmslim.errors import BaselineError
        from pytest_llmslim.records import Key

        keys = self._all_keys()
        run = Run(
            collected=tuple(Key(*names) for names in keys.get("collected", ())),
            running=frozenset(Key(*names) for names in keys.get("running", ())),
            measured=frozenset(record.key for record in self.records),
            passed=frozenset(Key(*names) for names in self._passed if names),
            reasons={Key(*names): reason for names, reason in self._reasons.items() if names},
            narrowed=_narrowed(self.config),
        )
        try:
            return absent(Store(folder).keys(), run, lambda key: self._near(path_of(folder, key)))
        except BaselineError as error:
            self._trouble(str(error))
            return ()

    def _write_summary(self) -> None:
        import json

        from pytest_llmslim.encoding import to_builtins
        from pytest_llmslim.reports.files import summary

        if not (self.records or self._earlier):
            self._write("results.jsonl", "")  # those of an earlier run are not of this one
        found = summary(self.records, self.unmeasured)
        found |= {"missing": list(self.missing), "interrupted": self.stopped}
        if settings_of(self.config).ablate:
            found["ablation"] = to_builtins(self._attributions())
        self._write("summary.json", json.dumps(found, indent=1, sort_keys=True) + "\n")

    @cached_property
    def origin(self) -> Origin:
        """Of what this process does; a run that goes on keeps that of its first part."""
        from pytest_llmslim.origin import origin

        folder, words = self.config.invocation_params.dir, self.config.invocation_params.args
        changed = settings_of(self.config).changed
        return origin(folder, ["pytest", *map(str, words)], changed, began=self._began)

    def run(self) -> Run:
        """All that is known of this run so far."""
        from pytest_llmslim.run_records import Missed, Run

        return Run(
            origin=self._earlier.origin if self._earlier else self.origin,
            records=tuple(self.records),
            baselines=self._baselines,
            unmeasured=tuple(Missed(*pair) for pair in self.unmeasured),
            missing=self.missing,
            interrupted=self.stopped or bool(self._kept),
        )

    def _compared_with(self, folder: Path) -> tuple[Record, ...]:
        """The stored entries of what was measured."""
        from pytest_llmslim.baselines import Store
        from pytest_llmslim.errors import BaselineError

        try:
            store = Store(folder)
            return tuple(stored for record in self.records if (stored := store.get(record.key)) is not None)
        except BaselineError as error:
            self._trouble(str(error))
            return ()

    def _write_run(self) -> None:
        """`run.json`, the history, and the reports that were asked for."""
        from pytest_llmslim import outputs, pace
        from pytest_llmslim.reports import junit

        run = outputs.finished(self.run(), settings_of(self.config).results)
        if self.records or self._earlier:
            self._book.end([*(record.key for record in self.records), *self._kept])
        watch = self.config.stash.get(WATCH, None)
        if watch:
            self._write(pace.DURATIONS, watch.pace.text())
        for name, text in outputs.kept(run).items():
            self._write(name, text)
        self.written, troubles = outputs.write(run, settings_of(self.config))
        for sentence in troubles:
            self._trouble(sentence)
        junit.tell_suite(self.config, run)
        try:
            self.config.hook.pytest_llmslim_report(config=self.config, run=run)
        except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:  # whatever others raise
            self._trouble(outputs.broken_hook(error))

    def _update(self, folder: Path, *, anchor: bool) -> bool:
        """Write the baselines; whether that was done."""
        from pytest_llmslim.baselines import Store, told
        from pytest_llmslim.errors import BaselineError
        from pytest_llmslim.resuming import UNWRITTEN

        if self.interrupted:  # accepting is deliberate, and half of it was not meant
            self._trouble(UNWRITTEN.format(self._near(settings_of(self.config).results)))
            return False
        try:
            self.changes = told(Store(folder).update(self.records, anchor=anchor))
        except BaselineError as error:
            self._trouble(f"{error}; baselines of other suites may have been written.")
            return False
        return True

    def _write(self, name: str, text: str, *, append: bool = False) -> bool:
        """Write a file of the results; whether that was done."""
        from pytest_llmslim.reports import files

        folder = settings_of(self.config).results
        try:
            files.write(folder, name, text, append=append)
        except OSError as error:
            self._trouble(
                f"{folder / name} cannot be written ({error.strerror}); give another folder with --llm-results."
            )
            return False
        return True

    def _trouble(self, sentence: str) -> None:
        if sentence not in self.troubles:
            self.troubles.append(sentence)

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401
        """Print the ranked table."""
        if not (self._has_something() or self.troubles):
            return
        from pathlib import Path

        from pytest_llmslim.reports import ablation
        from pytest_llmslim.reports.terminal import Shown, lines

        settings = settings_of(config)
        shown = Shown(
            tuple(self.records),
            tuple(self.unmeasured),
            tuple(self.changes),
            tuple(self.troubles),
            self._near(settings.baseline),
            self._near(settings.results),
            self.updated,
            config.get_verbosity() > 0,
            terminalreporter._tw.fullwidth,
            missing=(*self.missing, *self.remarks),
            attributions=tuple(ablation.lines(self._attributions())),
            saved=self._near(settings.save) if settings.save else "",
            written=tuple(self._near(Path(path)) for path in self.written),
        )
        terminalreporter.section("compressed language models")
        for line, markup in lines(shown):
            terminalreporter.write_line(line, **dict.fromkeys(markup, True))

    def _attributions(self) -> list[Attribution]:
        """What each step contributes, with `--llm-ablate`."""
        from pytest_llmslim.ablation import attributions

        return [*attributions(self.records)] if settings_of(self.config).ablate else []

    def _near(self, path: Path) -> str:
        """A path as seen from where the user stands."""
        here = self.config.invocation_params.dir
        return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _narrowed(config: pytest.Config) -> bool:
    """Whether tests or recipes were picked by name, so that what was collected is not all there is."""
    picked = any("::" in str(argument) for argument in config.args)
    return picked or bool(settings_of(config).recipes) or bool(config.getoption("lf", False))
