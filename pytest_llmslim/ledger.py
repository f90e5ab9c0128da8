"""The controller's book of a run: records arrive on reports, files and baselines are written from here.

Only the process that shows the results has one; xdist workers send their records on the reports, so that what
a worker measured before it crashed is kept. Every record is on disk as soon as it has arrived.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llmslim.state import settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_llmslim.records import Record


class Ledger:
    """Keeps the records of a run, writes `results.jsonl`, `summary.json` and baselines, prints the summary."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.records: list[Record] = []
        self.unmeasured: list[tuple[str, str]] = []
        self.changes: list[str] = []
        self.troubles: list[str] = []

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the records off a report."""
        records = getattr(report, "llmslim", ())
        for data in records:
            self._take(data)
        label = getattr(report, "llmslim_label", None)
        if label and not records and not report.passed:
            self.unmeasured.append((label, _first_line(report)))

    def _take(self, data: dict[str, Any]) -> None:
        import json

        from pytest_llmslim.encoding import from_builtins
        from pytest_llmslim.records import Record

        self.records.append(from_builtins(Record, data))
        self._write("results.jsonl", json.dumps(data, sort_keys=True) + "\n", append=len(self.records) > 1)

    @pytest.hookimpl
    def pytest_sessionfinish(self) -> None:
        """Write the summary, and the baselines where asked."""
        if not self.records:
            return
        import json

        from pytest_llmslim.reports.files import summary

        settings = settings_of(self.config)
        self._write(
            "summary.json",
            json.dumps(summary(self.records, self.unmeasured), indent=1, sort_keys=True) + "\n",
        )
        if settings.update:
            self._update(settings.baseline)

    def _update(self, folder: Path) -> None:
        from pytest_llmslim.baselines import Store, told
        from pytest_llmslim.errors import BaselineError

        try:
            self.changes = told(Store(folder).update(self.records))
        except BaselineError as error:
            self.troubles.append(str(error))

    def _write(self, name: str, text: str, *, append: bool = False) -> None:
        folder = settings_of(self.config).results
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ignore = folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            with (folder / name).open("a" if append else "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            trouble = f"{folder / name} cannot be written ({error.strerror}); give another folder with --llm-results."
            if trouble not in self.troubles:
                self.troubles.append(trouble)

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:  # noqa: ANN401
        """Print the ranked table."""
        if not (self.records or self.unmeasured):
            return
        from pytest_llmslim.reports.terminal import Shown, lines

        settings = settings_of(config)
        shown = Shown(
            tuple(self.records),
            tuple(self.unmeasured),
            tuple(self.changes),
            tuple(self.troubles),
            self._near(settings.baseline),
            self._near(settings.results),
            settings.update,
            config.get_verbosity() > 0,
            terminalreporter._tw.fullwidth,
        )
        terminalreporter.section("compressed language models")
        for line, markup in lines(shown):
            terminalreporter.write_line(line, **dict.fromkeys(markup, True))

    def _near(self, path: Path) -> str:
        """A path as seen from where the user stands."""
        here = self.config.invocation_params.dir
        return str(path.relative_to(here) if path.is_relative_to(here) else path)


def attach(item: pytest.Item, report: pytest.TestReport, records: list[Record]) -> None:
    """Put records on a report, and their figures where JUnit shows them: on the item, whose teardown it reads."""
    from pytest_llmslim.encoding import to_builtins
    from pytest_llmslim.reports.files import figures

    report.llmslim = [to_builtins(record) for record in records]  # type: ignore[attr-defined]
    for record in records:
        prefix = "llmslim." if len(records) == 1 else f"llmslim.{record.key.recipe}."
        item.user_properties += [
            (prefix + name, to_builtins(value))
            for name, value in figures(record).items()
            if value is not None
        ]


def _first_line(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):  # of a skip: path, line, reason
        return str(longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(longrepr, "reprcrash", None)
    return str(crash.message if crash else longrepr).splitlines()[0].removeprefix("Failed: ")
