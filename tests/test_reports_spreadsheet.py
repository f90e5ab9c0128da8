"""Figures as CSV: what a spreadsheet and pandas read."""

from __future__ import annotations

import csv
import dataclasses
import io
import math

import pytest
from sample_records import KEY, evaluation, record

from pytest_llmslim.records import Estimate, Figure, Verdict
from pytest_llmslim.reports.spreadsheet import text
from pytest_llmslim.run_records import Missed, Origin, Run

ORIGIN = Origin(id="run-1", started="2026-11-22T21:35:33Z", commit="ab" * 20, version="0.1.0")


def rows_of(*records, **fields):
    whole = text(Run(origin=ORIGIN, records=records, **fields))
    return list(csv.DictReader(io.StringIO(whole, newline="")))


def test_a_row_has_every_figure_and_where_it_comes_from():
    """Numbers with all their digits, with interval, method and source; hashes, device, commit and run."""
    (row,) = rows_of(record(notes=("one", "two")))
    assert float(row["perplexity_ratio"]) == 1.02
    assert float(row["time_ratio_low"]) <= float(row["time_ratio"]) == record().time.value
    assert (row["energy_ratio_method"], row["energy_ratio_source"]) == ("measured", "rapl")
    assert row["candidate_weights_sha256"] == "c" * 64
    assert row["text_sha256"] == "ab" * 32
    assert (row["run"], row["commit"], row["device"]) == ("run-1", "ab" * 20, "EPYC")
    assert (row["suite"], row["recipe"], row["outcome"]) == ("suites/test_ptq.py", "int4", "passed")
    assert (row["fingerprint threads"], row["notes"]) == ("1", "one two")


def test_a_number_that_is_absent_is_an_empty_cell_with_its_reason():
    """Never 0, and never a word where a number belongs."""
    (row,) = rows_of(record(energy=(), divergence=None))
    assert row["energy_ratio"] == row["energy_ratio_low"] == row["opt"] == row["mean_kl"] == ""
    assert row["energy_ratio_reason"] == "no energy meter"
    assert row["candidate_peak_memory_reason"] == "the peak did not move"


def test_infinity_stays_a_number():
    """A worthless candidate has an infinite opt, which float() reads."""
    (row,) = rows_of(record(opt=Estimate(math.inf, 0.0, math.inf, 8, "measured", "all")))
    assert float(row["opt"]) == math.inf


def test_evaluations_are_further_columns_sorted():
    """The same columns stand in the same order whichever recipe comes first; a record without one has empty cells."""
    exam = evaluation(both=18, figures=(Figure("distinct pairs", "", 0.5, None),))
    both = record(evaluations=(exam, evaluation(name="aaa")))
    first, second = (text(Run(records=pair)).splitlines()[0] for pair in ((both, record()), (record(), both)))
    assert first == second
    assert (
        first.index("eval aaa acc_norm") < first.index("eval arc_challenge") < first.index("fingerprint cpu")
    )
    without, row = rows_of(record(), both)
    assert without["eval arc_challenge acc_norm candidate"] == ""
    assert float(row["eval arc_challenge acc_norm candidate"]) == exam.candidate
    assert float(row["eval arc_challenge acc_norm ratio_low"]) == exam.ratio.low
    assert row["eval arc_challenge distinct pairs reference"] == "0.5"
    assert row["eval arc_challenge distinct pairs candidate"] == ""


def test_what_measured_nothing_has_a_row():
    """Last, with its reason; and a run that measured nothing at all is a table too."""
    rows = rows_of(record(), unmeasured=(Missed("gpt2-int4", "no CUDA"),))
    assert [(row["outcome"], row["test"], row["reason"]) for row in rows[1:]] == [
        ("unmeasured", "gpt2-int4", "no CUDA")
    ]
    assert rows_of() == []
    assert text(Run()).startswith("run,started,commit,")


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_names_are_no_formulas(name):
    """A spreadsheet runs what begins so; the apostrophe shows it as text. Numbers are left alone."""
    bad = Verdict("time", "failed", f"{name}: worse.")
    key = dataclasses.replace(KEY, model=name, recipe=name)
    exam = evaluation(name=name, reference=-0.5)
    (row,) = rows_of(record(key=key, verdicts=(bad,), fingerprint={"cpu": name}, evaluations=(exam,)))
    for column in ("model", "recipe", "reason", "device", "fingerprint cpu"):
        assert row[column].startswith(f"'{name}")
    assert row[f"eval {name} acc_norm reference"] == "-0.5"


def test_the_form_is_that_of_rfc_4180():
    """Lines end in CR LF; commas, quotes and line ends inside a cell are quoted."""
    hard = 'a "b", c\nd'
    whole = text(Run(records=(record(key=dataclasses.replace(KEY, recipe=hard)),)))
    assert whole.endswith("\r\n")
    assert '"a ""b"", c\nd"' in whole
    assert rows_of(record(key=dataclasses.replace(KEY, recipe=hard)))[0]["recipe"] == hard
