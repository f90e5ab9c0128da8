"""What a finished run leaves beside its records: history, and the reports that were asked for."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pytest_llmslim import runs
from pytest_llmslim.errors import MissingExtraError, RunError, SettingError, SlimError
from pytest_llmslim.origin import now

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_llmslim.run_records import Point, Run
    from pytest_llmslim.settings import Settings

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"
_OURS = (runs.RESULTS, runs.RUN, runs.HISTORY, "summary.json", ".gitignore")


def check(settings: Settings) -> None:
    """Find out before hours of measuring what would fail at their end.

    Raises:
        MissingExtraError: a report needs a package that is not installed.
        SettingError: a report has the name of another, of a file of the results or of a folder, or cannot be written.
        RunError: the history of earlier runs, which this one would continue, cannot be read.
    """
    if settings.report is not None and find_spec("plotly") is None:
        from pytest_llmslim.reports.html import NO_PLOTLY

        raise MissingExtraError(f"--llm-report: {NO_PLOTLY}.")
    named = {name: getattr(settings, name) for name in ("report", "markdown", "csv", "json")}
    asked = {name: path.resolve() for name, path in named.items() if path is not None}
    for name, path in asked.items():
        if path.is_dir():
            raise SettingError(f"--llm-{name} is a file, got the folder {path}; add a name.")
        if path.parent == settings.results.resolve() and path.name in _OURS:
            raise SettingError(
                f"--llm-{name}: {path} is a file of the results themselves; give another name."
            )
        if why := _forbidden(path):
            raise SettingError(f"--llm-{name}: {path} cannot be written ({why}); give another name.")
        other = next((other for other in asked if other < name and asked[other] == path), None)
        if other:
            raise SettingError(f"--llm-{other} and --llm-{name} are two files, got {path} twice.")
    _history(settings.results)


def _forbidden(path: Path) -> str:
    """Why a file cannot be written; empty when it seems that it can."""
    if path.exists():
        return "" if os.access(path, os.W_OK) else "it may not be changed"
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        return f"{above} is no folder"
    return "" if os.access(above, os.W_OK) else f"nothing may be written in {above}"


def finished(run: Run, folder: Path) -> Run:
    """The run with its end, and with the history that its folder holds.

    A history that became unreadable while the run went on begins anew; before it, `check` refuses it.
    """
    whole = run if run.interrupted else replace(run, origin=replace(run.origin, finished=now()))
    try:
        history = _history(folder)
    except RunError:
        history = ()
    return replace(whole, history=tuple(point for point in history if point.run != run.origin.id))


def _history(folder: Path) -> tuple[Point, ...]:
    from pytest_llmslim.run_records import Point

    path = folder / runs.HISTORY
    return runs.read_lines(path, Point).records if path.exists() else ()


def kept(run: Run) -> dict[str, str]:
    """Files of the results' folder, name to text. An interrupted run is no part of the history."""
    points = run.history if run.interrupted else runs.with_history(run.history, run.points)
    return {runs.RUN: runs.rest_of(run), runs.HISTORY: "".join(map(runs.line_of, points))}


def write(
    run: Run, settings: Settings, environ: Mapping[str, str] = os.environ
) -> tuple[list[str], list[str]]:
    """Write every report that was asked for; one that fails does not stop the others.

    Returns:
        The files written, and a sentence for each that could not be.
    """
    makers: tuple[tuple[Path | None, Callable[[Run], str]], ...] = (
        (settings.report, html),
        (settings.markdown, markdown),
        (settings.csv, csv),
        (settings.json, runs.export),
    )
    written, troubles = [], []
    for path, make in makers:
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(make(run), encoding="utf-8", newline="")  # CSV has line ends of its own
            written.append(str(path))
        except OSError as error:
            troubles.append(f"{path} cannot be written ({error.strerror}); give another name.")
        except SlimError as error:
            troubles.append(f"{path} was not written: {error}")
    if environ.get(STEP_SUMMARY):
        troubles += _step_summary(run, environ[STEP_SUMMARY])
    return written, troubles


def _step_summary(run: Run, name: str) -> list[str]:
    try:
        with open(name, "a", encoding="utf-8") as file:
            file.write(f"{markdown(run)}\n")
    except OSError as error:
        return [f"{name} ({STEP_SUMMARY}) cannot be written ({error.strerror})."]
    return []


def broken_hook(error: BaseException) -> str:
    """That somebody's hook failed, with the place where it did."""
    import traceback

    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"The hook pytest_llmslim_report failed ({type(error).__name__}: {error}, {place.filename}, line "
        f"{place.lineno}), so its report may be missing; mend it there, the results are complete."
    )


def html(run: Run, title: str = "") -> str:
    """The HTML report.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    from pytest_llmslim.reports.html import page

    return page(run, title)


def markdown(run: Run) -> str:
    """The Markdown for a pull request."""
    from pytest_llmslim.comparison import with_baselines
    from pytest_llmslim.reports.markdown import page

    return page(run, with_baselines(run))


def csv(run: Run) -> str:
    """All figures as CSV."""
    from pytest_llmslim.reports.spreadsheet import text

    return text(run)
