"""A run as one record."""

from __future__ import annotations

import pytest
from sample_records import record

from pytest_llmslim.encoding import from_builtins, to_builtins
from pytest_llmslim.records import Verdict
from pytest_llmslim.run_records import Missed, Origin, Point, Run, device_of

BAD = (Verdict("time", "failed", "slow."), Verdict("energy", "inconclusive", "noisy."))


@pytest.mark.parametrize(
    ("fingerprint", "name"),
    [
        ({"cpu": "EPYC", "gpu": "H100"}, "H100"),
        ({"cpu": "EPYC", "gpu": "none"}, "EPYC"),
        ({"cpu": "EPYC", "gpu": "unknown"}, "EPYC"),
        ({"cpu": "EPYC", "gpu": ""}, "EPYC"),
        ({"cpu": "EPYC"}, "EPYC"),
        ({}, "unknown"),
    ],
)
def test_a_machine_is_called_by_what_computed(fingerprint, name):
    """Its GPU where there was one, else its CPU."""
    assert device_of(fingerprint) == name


def test_outcome_and_devices_are_those_of_all_records():
    """The worst outcome; each device once, in order; and an empty run passed nothing on."""
    run = Run(records=(record(), record(fingerprint={"gpu": "H100"}, verdicts=BAD), record()))
    assert run.outcome == "failed"
    assert run.devices == ("EPYC", "H100")
    assert (Run().outcome, Run().devices, Run().points) == ("passed", (), ())


def test_a_run_is_history_for_the_next():
    """A point a record, with the figures, the verdict and where they come from."""
    origin = Origin(id="run-1", started="2026-11-22T21:35:33Z", commit="ab" * 20)
    measured = record(verdicts=BAD)
    (point,) = Run(origin, (measured,)).points
    assert (point.run, point.started, point.commit) == (origin.id, origin.started, origin.commit)
    assert (point.key, point.device, point.outcome) == (measured.key, "EPYC", "failed")
    for figure in ("perplexity", "time", "energy", "stored_bytes", "opt"):
        assert getattr(point, figure) == getattr(measured, figure)
    assert from_builtins(Point, to_builtins(point)) == point


def test_a_run_survives_its_builtins():
    """What is exported is read back equal."""
    run = Run(Origin(settings={"a": "b"}), (record(),), (record(),), (Missed("a", "b"),), ("gone",), True)
    assert from_builtins(Run, to_builtins(run)) == run
