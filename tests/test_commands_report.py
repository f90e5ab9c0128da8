"""`llmslim report`: one HTML file of one run, or of several."""

from __future__ import annotations

import dataclasses

import pytest
from sample_records import record
from stored_runs import named, origin, store

from pytest_llmslim import outputs, runs
from pytest_llmslim.errors import MissingExtraError
from pytest_llmslim.reports.html import NO_PLOTLY


@pytest.fixture
def pages(monkeypatch):
    """The runs of which a page was made; making it is tested with the report."""
    made = []

    def page(run, title):
        made.append(run)
        return f"<html>{len(run.records)}</html>"

    monkeypatch.setattr(outputs, "html", page)
    return made


def started(day, letters="beef"):
    return origin(id=f"{day}-{letters}", started=f"2026-11-{day}T10:00:00Z")


def elsewhere(each):
    return dataclasses.replace(each, fingerprint=each.fingerprint | {"gpu": "H200"})


def test_a_title_is_text(llmslim, tmp_path):
    """Of the window and of the page, whatever is in it."""
    run = store(tmp_path / "run", record())
    assert llmslim("report", run, "--title", "<b>Ours</b>").exit_code == 0
    text = (tmp_path / "report.html").read_text()
    assert ": &lt;b&gt;Ours&lt;/b&gt; report</title>" in text
    assert '<p class="eyebrow">&lt;b&gt;Ours&lt;/b&gt; ' in text
    assert "<b>Ours" not in text


def test_a_report_of_one_run(llmslim, tmp_path):
    """A real page, under the name that is not given; one that is there is replaced."""
    run = store(tmp_path / "run", record(), named("int8"))
    (tmp_path / "report.html").write_text("old")
    found = llmslim("report", run)
    assert (found.exit_code, found.stdout) == (0, "report: report.html (2 records)\n")
    text = (tmp_path / "report.html").read_text()
    assert "<html" in text
    assert "int8" in text


def test_earlier_runs_of_a_device_become_history(llmslim, tmp_path, pages):
    """In whatever order they are given: the last is shown."""
    paths = [store(tmp_path / day, record(), origin=started(day)) for day in ("20", "22", "21")]
    found = llmslim("report", *paths, "-o", "out/all.html")
    assert (found.exit_code, found.stdout) == (0, "report: out/all.html (1 record, 2 earlier runs)\n")
    assert (tmp_path / "out/all.html").read_text() == "<html>1</html>"
    assert pages[0].origin.started == "2026-11-22T10:00:00Z"
    assert [point.started[8:10] for point in pages[0].history] == ["20", "21"]


def test_devices_stand_side_by_side(llmslim, tmp_path, pages):
    """All records of the last run of each."""
    cpu = store(tmp_path / "cpu", record(), named("int8"), origin=started("20"))
    gpu = store(tmp_path / "gpu", elsewhere(record()), origin=started("21"))
    found = llmslim("report", cpu, gpu)
    assert found.stdout == "report: report.html (3 records, 2 devices)\n"
    assert pages[0].devices == ("EPYC", "H200")


def test_one_earlier_run_is_one(llmslim, tmp_path, pages):
    """Of a run and its own history."""
    paths = [store(tmp_path / day, record(), origin=started(day)) for day in ("20", "22")]
    assert llmslim("report", *paths).stdout == "report: report.html (1 record, 1 earlier run)\n"


def test_a_run_without_records_is_refused(llmslim, tmp_path, pages):
    """Beside one that has some it is no trouble."""
    empty, run = store(tmp_path / "empty"), store(tmp_path / "run", record())
    found = llmslim("report", empty)
    assert (found.exit_code, found.stderr) == (
        2,
        f"Error: {empty} has no record, so that there is nothing to report; measure first, with pytest.\n",
    )
    assert llmslim("report", empty, run).exit_code == 0


def test_without_plotly_it_is_said_how_to_get_it(llmslim, tmp_path, monkeypatch):
    """In one sentence, and nothing is written."""

    def without(run, title):
        raise MissingExtraError(f"{NO_PLOTLY}.")

    monkeypatch.setattr(outputs, "html", without)
    found = llmslim("report", store(tmp_path / "run", record()))
    assert (found.exit_code, found.stderr) == (
        2,
        "Error: an HTML report needs the package plotly; install it with: pip install 'pytest-llmslim[report]'.\n",
    )
    assert not (tmp_path / "report.html").exists()


def test_a_report_needs_a_run(llmslim):
    """The usage says so."""
    found = llmslim("report")
    assert found.exit_code == 2
    assert "Missing argument 'RUN...'" in found.stderr


def test_history_that_a_folder_holds_is_kept(llmslim, tmp_path, pages):
    """Beside what the other runs bring."""
    run = store(tmp_path / "run", record(), origin=started("22"))
    earlier = dataclasses.replace(runs.read(run), origin=started("19", "feed"))
    (run / runs.HISTORY).write_text(outputs.kept(earlier)[runs.HISTORY])
    assert llmslim("report", run).stdout == "report: report.html (1 record, 1 earlier run)\n"
