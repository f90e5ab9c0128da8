from __future__ import annotations

import dataclasses
import enum
import json
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import record, side

from pytest_llmslim.encoding import from_builtins, to_builtins
from pytest_llmslim.records import (
    WORST_FIRST,
    Build,
    Divergence,
    Estimate,
    Integrity,
    Key,
    Outcome,
    Profile,
    Protocol,
    Reading,
    Record,
    Samples,
    Side,
    Verdict,
    no_estimate,
    unmeasured,
    worst,
)

INF, NAN = math.inf, math.nan

# Numbers as libraries hand them out: numpy scalars pass every local test and break xdist.
number = (
    st.floats(allow_nan=False)
    | st.floats(allow_nan=False).map(np.float64)
    | st.floats(allow_nan=False, width=32).map(np.float32)
)
whole = st.integers(0, 2**40) | st.integers(0, 2**40).map(np.int64)
text = st.text(max_size=8)
positive = st.floats(1e-12, 1e12)


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    if draw(st.booleans()):
        return unmeasured("J", draw(text), draw(st.text(min_size=1, max_size=5)))
    method = draw(st.sampled_from(["measured", "sampled", "estimated", "simulated"]))
    return Reading(
        draw(positive), draw(st.sampled_from("JsB")), draw(text), method, draw(st.none() | positive)
    )


estimates = st.builds(
    Estimate, number, number, number, whole, st.sampled_from(["measured", "sampled"]), text
) | st.builds(no_estimate, text)
sides = st.builds(Side, whole, whole, text, number, st.none() | number, st.none() | number, *[readings()] * 4)
verdicts = st.builds(
    Verdict,
    st.sampled_from(["integrity", "time"]),
    st.sampled_from(get_args(Outcome)),
    text,
    st.sampled_from(["threshold", "baseline"]),
)
many = st.lists(number, max_size=4).map(tuple)
records = st.builds(
    Record,
    key=st.builds(Key, text, text, text, text),
    label=text,
    protocol=st.builds(
        Protocol,
        text,
        whole,
        whole,
        st.booleans() | st.booleans().map(np.bool_),
        whole,
        whole,
        text,
        text,
        text,
    ),
    reference=sides,
    candidate=sides,
    perplexity=estimates,
    divergence=st.builds(Divergence, number, number),
    time=estimates,
    wall=estimates,
    energy=estimates,
    stored_bytes=estimates,
    floor=st.none() | number,
    build=st.builds(Build, readings(), readings(), st.lists(text, max_size=3).map(tuple)),
    integrity=st.builds(Integrity, st.sampled_from(["compressed", "simulated", "nothing"]), text),
    profile=st.builds(Profile, text, number, number),
    opt=estimates,
    fingerprint=st.dictionaries(text, text, max_size=3),
    samples=st.builds(Samples, many, many, many, many, st.lists(whole, max_size=3).map(tuple)),
    notes=st.lists(text, max_size=2).map(tuple),
    verdicts=st.lists(verdicts, max_size=2).map(tuple),
)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)] + list(value)
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]


# There and back ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(records)
def test_round_trip(whole_record: Record) -> None:
    """Every record comes back equal through JSON, and holds nothing but plain builtins on the way."""
    data = to_builtins(whole_record)
    assert {type(leaf) for leaf in leaves(data)} <= {str, int, float, bool, type(None)}
    assert from_builtins(Record, json.loads(json.dumps(data, allow_nan=False))) == whole_record


def test_defaults_may_be_missing() -> None:
    """A field with a default that a file leaves out is that default."""
    data = to_builtins(record())
    del data["verdicts"], data["notes"]
    assert from_builtins(Record, data) == record()


class Level(str, enum.Enum):  # noqa: UP042  # str() of this kind is `Level.HIGH`
    HIGH = "high"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(1.5), 1.5),
        (np.float32(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array(2.5), 2.5),
        (np.float64(INF), "inf"),
        (-INF, "-inf"),
        (Level.HIGH, "high"),
        ({1: (2, None)}, {"1": [2, None]}),
        (True, True),
    ],
)
def test_plain_types(value: object, plain: object) -> None:
    """Scalars of numpy, enums, tuples and infinity become what JSON and xdist know."""
    result = to_builtins(value)
    assert (result, type(result)) == (plain, type(plain))


@pytest.mark.parametrize("bad", [NAN, np.float32(NAN), [{"x": NAN}]])
def test_nan_does_not_leave(bad: object) -> None:
    """A NaN is a fault, and is refused instead of spreading."""
    with pytest.raises(ValueError, match="a record holds finite numbers, inf or None, got NaN"):
        to_builtins(bad)


@pytest.mark.parametrize("bad", [object(), {1, 2}, b"x", np.array([1.0, 2.0]), np.array([1.0]), Record])
def test_what_is_no_builtin(bad: object) -> None:
    """Objects, sets, bytes, arrays and classes are refused by name."""
    with pytest.raises(TypeError, match=f"a record holds builtins, got {type(bad).__name__}"):
        to_builtins(bad)


def damaged(*path: str, value: Any = None, remove: bool = False) -> Any:
    data = to_builtins(record())
    target = data
    for step in path[:-1]:
        target = target[int(step) if step.isdigit() else step]
    if remove:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (damaged("opt", "colour", value=1), r"Record.opt has no field 'colour'; it has value, low, high, n"),
        (damaged("key", "test", remove=True), r"Record.key needs the field 'test', which is missing"),
        (damaged("time", "n", value="many"), r"Record.time.n is of type int, got 'many'"),
        (damaged("time", "n", value=True), r"Record.time.n is of type int, got True"),
        (damaged("time", "value", value=True), r"Record.time.value is of type float, got True"),
        (damaged("time", "value", value="1.0"), r"Record.time.value is of type float, got '1.0'"),
        (
            damaged("time", "value", value=NAN),
            r"Record.time.value is a finite number, or the text 'inf', got nan",
        ),
        (
            damaged("time", "value", value=INF),
            r"Record.time.value is a finite number, or the text 'inf', got inf",
        ),
        (damaged("time", "value", value=10**400), r"Record.time.value is of type float, got 1000"),
        (
            damaged("time", "method", value="guessed"),
            r"Record.time.method is one of measured, .*, got 'guessed'",
        ),
        (damaged("protocol", "bos", value=1), r"Record.protocol.bos is of type bool, got 1"),
        (
            damaged("samples", "time", value=[0.1, None]),
            r"Record.samples.time\[1\] is of type float, got None",
        ),
        (damaged("samples", "time", value=0.1), r"Record.samples.time is of type list, got 0.1"),
        (damaged("fingerprint", "cpu", value=3), r"Record.fingerprint.cpu is of type str, got 3"),
        (damaged("reference", value=[]), r"Record.reference is of type dict, got \[\]"),
        (
            damaged("candidate", "time_s", "value", value=0),
            r"Record.candidate.time_s is no Reading: a measured read",
        ),
        ([], r"Record is of type dict, got \[\]"),
        (None, r"Record is of type dict, got None"),
    ],
)
def test_what_is_no_record(data: object, message: str) -> None:
    """A wrong, missing or unknown field is named with its place."""
    with pytest.raises(ValueError, match=message):
        from_builtins(Record, data)


def test_whole_numbers_are_numbers() -> None:
    """JSON writes 1.0 as 1 in some tools; it is read as a float."""
    back = from_builtins(Record, damaged("time", "value", value=1))
    assert isinstance(back.time.value, float)


# Readings and outcomes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 0.0, -1.0, NAN, INF, None])
def test_a_failed_meter_never_yields_a_reading(value: float | None) -> None:
    """Zero, negative, missing and infinite values are no readings."""
    with pytest.raises(ValueError, match=r"a measured reading is finite and above 0, got .* J"):
        Reading(value, "J", "rapl", "measured")


@pytest.mark.parametrize(("value", "reason"), [(1.0, "why"), (None, ""), (0.0, "")])
def test_unmeasured_has_a_reason_and_no_value(value: float | None, reason: str) -> None:
    """What could not be had says why, and has no number."""
    with pytest.raises(ValueError, match="an unmeasured reading has a reason and no value"):
        Reading(value, "J", "rapl", "unmeasured", None, reason)


def test_no_estimate() -> None:
    """An estimate that could not be had has a reason, and is not known."""
    estimate = no_estimate("no meter")
    assert (estimate.known, estimate.value, estimate.reason, estimate.n) == (False, None, "no meter", 0)
    assert record().time.known


def test_the_worst_outcome_wins() -> None:
    """Failed over inconclusive over not comparable over new over passed; nothing at all passed."""
    assert set(WORST_FIRST) == set(get_args(Outcome))
    verdicts = [Verdict("time", outcome, "") for outcome in reversed(WORST_FIRST)]
    for i, outcome in enumerate(reversed(WORST_FIRST), 1):
        assert worst(verdicts[:i]) == outcome
        assert dataclasses.replace(record(), verdicts=tuple(verdicts[:i])).outcome == outcome
    assert record().outcome == "passed"


def test_records_do_not_change() -> None:
    """A record is frozen."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        side().perplexity = 1.0  # type: ignore[misc]
