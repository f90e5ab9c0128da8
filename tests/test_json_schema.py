"""The published schema says what is written and read: no more, no less."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_records import evaluation, record

from pytest_llmslim import json_schema, runs
from pytest_llmslim.encoding import from_builtins, to_builtins
from pytest_llmslim.records import Accepted, Carbon, Estimate, Figure, Question
from pytest_llmslim.run_records import Missed, Origin, Run

FOLDER = Path(json_schema.__file__).parent / "schemas"
ANEW = """the classes of records changed; bring the schema along with: python -c "
import pathlib, pytest_llmslim.json_schema as s
for n in s.PUBLISHED: pathlib.Path('pytest_llmslim/schemas', n + '.schema.json').write_text(s.text(n))"
"""
FULL = record(
    evaluations=(
        evaluation(
            figures=(
                Figure("tokens", "", 1.0, None, Estimate(1.0, 0.0, float("inf"), 2, "measured", "pairs")),
            ),
            worst=(Question("1", "q", "a", "b", "c", 0.5),),
        ),
    ),
    carbon=Carbon("FRA", 56.0, "table"),
    accepted=Accepted("meant", "ab" * 20, "run-1", "2026-11-22T21:35:33Z"),
)
BARE = record(energy=(), divergence=None)
RUN = Run(
    Origin(id="run-1", started="2026-11-22T21:35:33Z", settings={"model": "gpt2"}),
    (FULL, BARE),
    (FULL,),
    (Missed("a", "b"),),
    ("gone",),
)
RUN = Run(RUN.origin, RUN.records, RUN.baselines, RUN.unmeasured, RUN.missing, history=RUN.points)
CHECKS = {name: jsonschema.Draft202012Validator(json_schema.schema(name)) for name in json_schema.PUBLISHED}


@pytest.mark.parametrize("name", json_schema.PUBLISHED)
def test_the_published_file_is_that_of_the_classes(name):
    """It is made from them, and is a schema."""
    assert (FOLDER / f"{name}.schema.json").read_text() == json_schema.text(name), ANEW
    jsonschema.Draft202012Validator.check_schema(json_schema.schema(name))


def test_what_is_written_fits():
    """Exports of runs and lines of results, full and bare."""
    CHECKS["run"].validate(json.loads(runs.export(RUN)))
    CHECKS["run"].validate(json.loads(runs.rest_of(RUN)))
    for each in (FULL, BARE):
        CHECKS["record"].validate(json.loads(json.dumps(to_builtins(each))))


def test_titles_and_descriptions_are_those_of_the_docstrings():
    """A field that the docstring names is described."""
    found = json_schema.schema("run")
    assert (found["title"], found["$defs"]["Side"]["title"]) == ("Run", "Side")
    assert found["properties"]["history"]["description"] == "earlier runs of the same keys, oldest first."
    assert found["$defs"]["Reading"]["properties"]["resolution"]["description"] == (
        "smallest step of the source, in seconds between updates; `None` when unknown."
    )
    assert "Raises" not in json.dumps(found)


def places(value, at=()):
    """Every place in a document, as a path."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places(part, (*at, name))


def changed(document, at, change):
    """A copy in which one place is another, or gone."""
    whole = copy.deepcopy({"": document})
    holder, name = whole, ""
    for step in at:
        holder, name = holder[name], step
    change(holder, name)
    return whole[""]


DOCUMENT = json.loads(
    runs.export(Run(RUN.origin, (FULL,), (), RUN.unmeasured, RUN.missing, history=RUN.points))
)
PLACES = list(places(DOCUMENT))
WRONG = [None, True, 7, -1.5, "other", "inf", [], {}, [None], {"other": 1}]


def read_back(document):
    from_builtins(Run, document)


def refused(check, document):
    try:
        check(document)
    except (ValueError, jsonschema.ValidationError):
        return True
    return False


@given(st.sampled_from(PLACES[1:]), st.sampled_from(WRONG))
def test_schema_and_reader_refuse_the_same_values(at, wrong):
    """Whatever stands in any place: both read it, or neither does."""
    if at in (("schema",), ("origin",)):
        return  # by these a file says that it is a run: see below

    def put(holder, name):
        holder[name] = wrong

    document = changed(DOCUMENT, at, put)
    schema, reader = (refused(check, document) for check in (CHECKS["run"].validate, read_back))
    # Of a reading the reader checks too that its value fits its method, which no type says.
    assert schema == reader or (reader and readings_differ(document))


def readings_differ(document):
    """Whether a document has a reading whose value and method contradict each other."""
    for at in places(document):
        part = document
        for step in at:
            part = part[step]
        if isinstance(part, dict) and {"unit", "method", "value"} <= part.keys():
            value = part["value"]
            good = (
                isinstance(value, int | float) and value > 0
                if part["method"] != "unmeasured"
                else value is None
            )
            if not good or (part["method"] == "unmeasured" and not part.get("reason")):
                return True
    return False


@given(st.sampled_from([at for at in PLACES if at and isinstance(at[-1], str)]))
def test_schema_and_reader_need_the_same_fields(at):
    """A field that is missing is missed by both, or has a default in both."""
    if at in (("schema",), ("origin",)):
        return

    def drop(holder, name):
        del holder[name]

    document = changed(DOCUMENT, at, drop)
    schema, reader = (refused(check, document) for check in (CHECKS["run"].validate, read_back))
    assert schema == reader or (reader and readings_differ(document))


@given(st.sampled_from(PLACES))
def test_schema_and_reader_know_no_other_fields(at):
    """A field of a newer version is no field of this one; names of settings and machines are free."""

    def add(holder, name):
        if isinstance(holder[name], dict):
            holder[name]["newer"] = "x"

    document = changed(DOCUMENT, at, add)
    schema, reader = (refused(check, document) for check in (CHECKS["run"].validate, read_back))
    assert schema == reader


@pytest.mark.parametrize("change", [{"schema": 2}, {"schema": "1"}, {"schema": None}, {"origin": 1}])
def test_a_file_of_another_kind_is_no_run(tmp_path, change):
    """By `schema` and `origin` a file says what it is; both are needed, and of this version."""
    path = tmp_path / "run.json"
    for document in (DOCUMENT | change, {k: v for k, v in DOCUMENT.items() if k not in change}):
        path.write_text(json.dumps(document))
        assert refused(CHECKS["run"].validate, document)
        with pytest.raises(runs.RunError, match=r"run\.json"):
            runs.read(path)
