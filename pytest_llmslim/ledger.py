"""The controller's book of a run: records arrive on reports, files and baselines are written from here.

Only the process that shows the results has one; xdist workers send their records on the reports, so that what
a worker measured before it crashed is kept. Every record is on disk as soon as it has arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmslim.state import COLLECTED, RECORDS, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmslim.records import Record
    from pytest_llmslim.run_records import Origin, Run

INTERRUPTED = (
    "--llm-update wrote no baseline, since the run was interrupted: let it end, or name the tests that are to be "
    "accepted; what was measured is in {}/results.jsonl."
)


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
        self.interrupted = False
        self.updated = False
        self.written: list[str] = []
        self._origin: Origin | None = None
        self._baselines: tuple[Record, ...] = ()
        self._collected: dict[str, list[list[str]]] = {}
        self._passed: set[tuple[str, ...]] = set()
        self._reasons: dict[tuple[str, ...], str] = {}

    # What arrives ------------------------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the records off a report, and note how the test ended."""
        label = getattr(report, "llmslim_label", None)
        if label is None:
            return
        remark = getattr(report, "llmslim_remark", "")
        if remark and remark not in self.remarks:
            self.remarks.append(remark)
        records = getattr(report, "llmslim", ())
        for data in records:
            self._take(data)
        self._note(report, label, measured=bool(records))

    def _note(self, report: pytest.TestReport, label: str, *, measured: bool) -> None:
        key = tuple(getattr(report, "llmslim_key", None) or ())
        if report.when == "teardown":
            return
        if report.passed:
            if report.when == "call":
                self._passed.add(key)
            return
        self._reasons[key] = _first_line(report)
        if not measured:
            self.unmeasured.append((label, _first_line(report)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401  # xdist's WorkerController
        """Learn from a worker of xdist what there was to do."""
        self._collected = getattr(node, "workeroutput", {}).get("llmslim", self._collected)

    def keep(self, records: list[Record]) -> None:
        """Take records of a test that will have no report."""
        from pytest_llmslim.encoding import to_builtins

        for record in records:
            self._take(to_builtins(record))

    def _take(self, data: dict[str, Any]) -> None:
        import json
        from dataclasses import replace

        from pytest_llmslim import runs
        from pytest_llmslim.encoding import from_builtins
        from pytest_llmslim.records import Record

        self.records.append(from_builtins(Record, data))
        if len(self.records) == 1:
            self._write("run.json", runs.rest_of(replace(self.run(), interrupted=True)))
        self._write("results.jsonl", json.dumps(data, sort_keys=True) + "\n", append=len(self.records) > 1)

    # The end of the run ------------------------------------------------------------------------------------

    @pytest.hookimpl
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the summary, and the baselines where asked; fail where a comparison went away silently."""
        chosen = settings_of(self.config) if self._has_something() or self._all_keys() else None
        if chosen is None:
            return
        self.interrupted = exitstatus not in (
            pytest.ExitCode.OK,
            pytest.ExitCode.TESTS_FAILED,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        )
        failed = False
        if not (self.interrupted or session.shouldfail or session.shouldstop or _only_collects(self.config)):
            self.missing = self._absent(chosen.baseline)
            failed = chosen.strict and bool(self.missing)
        self._baselines = self._compared_with(chosen.baseline)
        self._write_summary()
        self._write_run()
        if self.records and chosen.update:
            self.updated = self._update(chosen.baseline, anchor=chosen.anchor)
            failed |= not self.updated
        if failed and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _has_something(self) -> bool:
        return bool(self.records or self.unmeasured or self.missing or self.remarks)

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
        if not self._has_something():
            return
        import json

        from pytest_llmslim.reports.files import summary

        if not self.records:
            self._write("results.jsonl", "")  # those of an earlier run are not of this one
        found = summary(self.records, self.unmeasured)
        found |= {"missing": list(self.missing), "interrupted": self.interrupted}
        if settings_of(self.config).ablate:
            found["ablation"] = self._ablation()
        self._write("summary.json", json.dumps(found, indent=1, sort_keys=True) + "\n")

    def run(self) -> Run:
        """All that is known of this run so far."""
        from pytest_llmslim.origin import origin
        from pytest_llmslim.run_records import Missed, Run

        if self._origin is None:
            folder, words = self.config.invocation_params.dir, self.config.invocation_params.args
            self._origin = origin(folder, ["pytest", *map(str, words)], settings_of(self.config).changed)
        return Run(
            origin=self._origin,
            records=tuple(self.records),
            baselines=self._baselines,
            unmeasured=tuple(Missed(*pair) for pair in self.unmeasured),
            missing=self.missing,
            interrupted=self.interrupted,
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
        from pytest_llmslim import outputs

        if not self._has_something():
            return
        run = outputs.finished(self.run(), settings_of(self.config).results)
        for name, text in outputs.kept(run).items():
            self._write(name, text)
        self.written, troubles = outputs.write(run, settings_of(self.config))
        for sentence in troubles:
            self._trouble(sentence)
        self.config.hook.pytest_llmslim_report(config=self.config, run=run)

    def _update(self, folder: Path, *, anchor: bool) -> bool:
        """Write the baselines; whether that was done."""
        from pytest_llmslim.baselines import Store, told
        from pytest_llmslim.errors import BaselineError

        if self.interrupted:  # accepting is deliberate, and half of it was not meant
            self._trouble(INTERRUPTED.format(self._near(settings_of(self.config).results)))
            return False
        try:
            self.changes = told(Store(folder).update(self.records, anchor=anchor))
        except BaselineError as error:
            self._trouble(f"{error}; baselines of other suites may have been written.")
            return False
        return True

    def _write(self, name: str, text: str, *, append: bool = False) -> None:
        from pytest_llmslim.reports.files import make_folder

        folder = settings_of(self.config).results
        try:
            make_folder(folder)
            with (folder / name).open("a" if append else "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self._trouble(
                f"{folder / name} cannot be written ({error.strerror}); give another folder with --llm-results."
            )

    def _trouble(self, sentence: str) -> None:
        if sentence not in self.troubles:
            self.troubles.append(sentence)

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401
        """Print the ranked table."""
        if not (self._has_something() or self.troubles):
            return
        from pathlib import Path

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
            attributions=self._attributions() if settings.ablate else (),
            saved=self._near(settings.save) if settings.save else "",
            written=tuple(self._near(Path(path)) for path in self.written),
        )
        terminalreporter.section("compressed language models")
        for line, markup in lines(shown):
            terminalreporter.write_line(line, **dict.fromkeys(markup, True))

    def _ablation(self) -> list[dict[str, Any]]:
        from pytest_llmslim.ablation import attributions
        from pytest_llmslim.encoding import to_builtins

        return [to_builtins(each) for each in attributions(self.records)]

    def _attributions(self) -> tuple[str, ...]:
        from pytest_llmslim.ablation import attributions
        from pytest_llmslim.reports import ablation

        return tuple(ablation.lines(attributions(self.records)))

    def _near(self, path: Path) -> str:
        """A path as seen from where the user stands."""
        here = self.config.invocation_params.dir
        return str(path.relative_to(here) if path.is_relative_to(here) else path)


def attach(item: pytest.Item, report: pytest.TestReport) -> None:
    """Put on a report of one of our tests what the controller has to know, as plain builtins.

    Records go on the report of the call, and their figures where JUnit shows them: on the item, whose teardown
    it reads.
    """
    from pytest_llmslim import collection, deadline
    from pytest_llmslim.encoding import to_builtins
    from pytest_llmslim.reports.files import figures

    case, key = collection.case_of(item), collection.key_of(item)
    report.llmslim_label = case.id if case else item.name  # type: ignore[attr-defined]
    report.llmslim_key = [key.suite, key.test, key.model, key.recipe] if key else []  # type: ignore[attr-defined]
    reason = deadline.why_not() if settings_of(item.config).timeout else ""
    report.llmslim_remark = f"--llm-timeout is not enforced: {reason}." if reason else ""  # type: ignore[attr-defined]
    records = item.stash.get(RECORDS, None)
    if report.when != "call" or not records:
        return
    report.llmslim = [to_builtins(record) for record in records]  # type: ignore[attr-defined]
    for record in records:
        prefix = "llmslim." if len(records) == 1 else f"llmslim.{record.key.recipe}."
        item.user_properties += [
            (prefix + name, to_builtins(value))
            for name, value in figures(record).items()
            if value is not None
        ]


def _narrowed(config: pytest.Config) -> bool:
    """Whether tests or recipes were picked by name, so that what was collected is not all there is."""
    picked = any("::" in str(argument) for argument in config.args)
    return picked or bool(settings_of(config).recipes) or bool(config.getoption("lf", False))


def _only_collects(config: pytest.Config) -> bool:
    return bool(config.getoption("collectonly", False))


def _first_line(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):  # of a skip: path, line, reason
        return str(longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(longrepr, "reprcrash", None)
    return str(crash.message if crash else longrepr).splitlines()[0].removeprefix("Failed: ")
