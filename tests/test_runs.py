"""Stored runs in every form that they have, and in every state that they can be in."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from sample_records import KEY, record

from pytest_llmslim import runs
from pytest_llmslim.baselines import Store
from pytest_llmslim.encoding import to_builtins
from pytest_llmslim.errors import RunError
from pytest_llmslim.records import Record
from pytest_llmslim.run_records import Missed, Origin, Point, Run

ORIGIN = Origin(id="run-1", started="2026-11-22T21:35:33Z", settings={"model": "gpt2"})
XEON = {"cpu": "Xeon"}


def named(recipe, **fields):
    return record(key=dataclasses.replace(KEY, recipe=recipe), **fields)


WHOLE = Run(ORIGIN, (named("a"), named("b")), (named("a"),), (Missed("c", "why"),), ("gone",))


def origin(number):
    return Origin(id=f"run-{number}", started=f"2026-11-{number:02}T00:00:00Z")


def line_of(each):
    return json.dumps(to_builtins(each), sort_keys=True) + "\n"


def save(folder, run, history=()):
    """A folder of results, as the plugin leaves it."""
    folder.mkdir(exist_ok=True)
    (folder / runs.RESULTS).write_text("".join(line_of(each) for each in run.records))
    (folder / runs.RUN).write_text(runs.rest_of(run))
    (folder / runs.HISTORY).write_text("".join(line_of(each) for each in history))
    return folder


# Forms ------------------------------------------------------------------------------------------------------


def test_every_form_of_a_run_is_the_same_run(tmp_path):
    """A folder, its results.jsonl, its run.json, and an export."""
    folder = save(tmp_path / "llm-results", WHOLE)
    (tmp_path / "export.json").write_text(runs.export(WHOLE))
    for path in (folder, folder / runs.RESULTS, folder / runs.RUN, tmp_path / "export.json"):
        assert runs.read(path) == WHOLE


def test_history_is_that_of_earlier_runs(tmp_path):
    """Its own points, which the file has too, are no history of it."""
    earlier = Run(origin(7), (named("a"),)).points
    folder = save(tmp_path, WHOLE, (*earlier, *WHOLE.points))
    assert runs.read(folder).history == earlier


def test_records_by_themselves_are_a_run_that_did_not_end(tmp_path):
    """As after a kill before run.json was written; and a copy under another name has nothing beside it."""
    folder = save(tmp_path, WHOLE)
    copy = folder / "copy.jsonl"
    copy.write_text((folder / runs.RESULTS).read_text())
    (folder / runs.RUN).rename(folder / "elsewhere")
    for path in (folder, copy):
        found = runs.read(path)
        assert found.records == WHOLE.records
        assert found.interrupted
        assert found.origin == Origin()


def test_a_folder_of_baselines_is_a_run(tmp_path):
    """Its entries are the records."""
    Store(tmp_path).update([named("a"), named("b")])
    assert {each.key.recipe for each in runs.read(tmp_path).records} == {"a", "b"}


# States -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 40, -2])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, cut):
    """Its writer was killed; what is whole stays."""
    path = tmp_path / runs.RESULTS
    path.write_text(line_of(named("a")) + line_of(named("b"))[:cut])
    found = runs.read_lines(path, Record)
    assert [each.key.recipe for each in found.records] == ["a"]
    assert found.torn


def test_a_last_line_that_only_lacks_its_end_counts(tmp_path):
    """The record is whole."""
    path = tmp_path / runs.RESULTS
    path.write_text(line_of(named("a")).rstrip())
    found = runs.read_lines(path, Record)
    assert (len(found.records), found.torn) == (1, False)


def test_names_with_other_line_ends_are_one_line(tmp_path):
    """JSON may hold U+2028 and its like as they are, e.g. when jq has written the file."""
    path = tmp_path / runs.RESULTS
    odd = named("a\u2028b\x85c")
    path.write_text(json.dumps(to_builtins(odd), ensure_ascii=False) + "\n", encoding="utf-8")
    assert runs.read_lines(path, Record).records == (odd,)


def test_an_empty_file_has_no_records(tmp_path):
    """A run that measured nothing leaves one."""
    path = tmp_path / runs.RESULTS
    path.write_text("")
    assert runs.read_lines(path, Record) == ((), False)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("1", "Record is of type dict, got 1"),
        ('{"newer": 1}', "Record has no field 'newer'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, reason):
    """File, number, reason and remedy; only the last line may be torn."""
    path = tmp_path / runs.RESULTS
    path.write_text(line_of(named("a")) + bad + "\n")
    with pytest.raises(RunError) as caught:
        runs.read(path)
    said = str(caught.value)
    assert said.startswith(f"{path}, line 2, is no record of pytest-llmslim ({reason}")
    assert said.endswith("; delete the line, or measure again.")


MADE = "; a run is a folder of results (llm-results), its results.jsonl, a file of --llm-json, or baselines."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "{} does not exist" + MADE),
        ("run.json", b"{", "{} is no JSON (Expecting property name enclosed in double quotes: *)" + MADE),
        ("run.json", b"[]", "{} is no run of pytest-llmslim" + MADE),
        ("run.json", b'{"schema": 1}', "{} is no run of pytest-llmslim" + MADE),
        ("run.json", b'{"origin": {}, "schema": "1"}', "{} is no run of pytest-llmslim" + MADE),
        ("run.json", b"\xff\xfe", "{} is no UTF-8 text" + MADE),
        (
            "run.json",
            b'{"origin": {}, "schema": 2, "newer": 1}',
            "{} has schema 2, and this version of pytest-llmslim reads up to 1; upgrade pytest-llmslim.",
        ),
        (
            "run.json",
            b'{"origin": {"id": 5}, "schema": 1}',
            "{}: Run.origin.id is of type str, got 5; measure again.",
        ),
    ],
)
def test_what_is_no_run_says_so(tmp_path, name, content, message):
    """One sentence with the file and what to do."""
    from fnmatch import fnmatchcase

    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        runs.read(path)
    assert fnmatchcase(str(caught.value).replace("[", "("), message.format(path).replace("[", "("))


def test_a_folder_of_other_things_says_so(tmp_path):
    """Neither results nor baselines; and broken baselines are named by their own message."""
    with pytest.raises(RunError, match=r"has neither results\.jsonl nor baselines; a run is a folder"):
        runs.read(tmp_path)
    Store(tmp_path).update([named("a")])
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    with pytest.raises(RunError, match=file.name):
        runs.read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    """The rights are the remedy."""
    path = tmp_path / "run.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(RunError, match=r"cannot be read \(Permission denied\); see to its rights"):
        runs.read(path)


# Several runs -----------------------------------------------------------------------------------------------


def points(number, recipe="a", **fields):
    return Run(origin(number), (named(recipe, **fields),)).points


def test_history_keeps_each_run_once_in_order():
    """Whatever order they come in; a run that is known already is replaced, as after resuming it."""
    (again,) = points(2, perplexity=named("a").time)
    found = runs.with_history((*points(3), *points(1), *points(2)), (again,))
    assert [point.run for point in found] == ["run-1", "run-2", "run-3"]
    assert found[1] == again


def test_history_keeps_so_many_of_a_key_and_device():
    """Fifty of each, the last ones, so that a device that is seldom used keeps its own."""
    many = [
        dataclasses.replace(point, run=f"r{i:03}", started=f"{i:03}")
        for i in range(60)
        for point in points(1)
    ]
    seldom = dataclasses.replace(many[0], run="seldom", device="Xeon")
    other = dataclasses.replace(many[0], key=dataclasses.replace(KEY, recipe="z"))
    found = runs.with_history((seldom, other, *many), ())
    assert len(found) == runs.KEPT + 2
    assert {seldom, other} <= set(found)
    assert many[9] not in found
    assert many[10] in found


def test_of_each_device_the_latest_run_counts():
    """Earlier ones become its history, whichever order they are given in."""
    old, new = Run(origin(1), (named("a"),)), Run(origin(2), (named("a"),))
    other = Run(origin(1), (named("a", fingerprint=XEON),), history=points(3, "old"))
    bare = Run(records=(named("a"),))
    found = runs.latest([new, other, old, bare])
    assert [run.origin.id for run in found] == ["run-2", "run-1"]
    assert found[0].records == new.records
    assert [point.run for point in found[0].history] == ["", "run-1"]
    assert [point.run for point in found[1].history] == ["run-3"]


def test_devices_in_another_order_are_the_same_devices():
    """A merged run stands for all of its machines."""
    both = (named("a"), named("a", fingerprint=XEON))
    (found,) = runs.latest([Run(origin(1), both), Run(origin(2), both[::-1])])
    assert found.origin.id == "run-2"


def test_devices_are_merged_into_one_run():
    """All records, each sentence once, the newest origin, and interrupted if one was."""
    one = dataclasses.replace(WHOLE, origin=origin(1), history=points(4))
    two = dataclasses.replace(WHOLE, origin=origin(2), interrupted=True, history=points(3))
    found = runs.merged([two, one])
    assert found.origin == origin(2)
    assert len(found.records) == 4
    assert (found.unmeasured, found.missing, found.interrupted) == (WHOLE.unmeasured, WHOLE.missing, True)
    assert [point.run for point in found.history] == ["run-3", "run-4"]


def test_points_are_read_as_they_were_written(tmp_path):
    """The history's file is a line a point."""
    path = tmp_path / runs.HISTORY
    path.write_text("".join(line_of(point) for point in WHOLE.points))
    assert runs.read_lines(path, Point).records == WHOLE.points
