"""Anchors of the store: the first accepted entry stays, whatever is accepted or killed after it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import KEY, blocks, quality, record

from pytest_llmslim import baselines
from pytest_llmslim.baselines import Store, anchor_path_of, load_all, path_of, told, update
from pytest_llmslim.records import Key, Record


def timed(ratio: float, key: Key = KEY) -> Record:
    return record(key=key, time=blocks(ratio))


def time_of(stored: Record | None) -> float | None:
    return None if stored is None else stored.time.value


def test_ten_small_losses_are_seen_from_the_anchor(tmp_path: Path) -> None:
    """After ten accepted losses of 1 % the anchor is still the first entry, and 10.5 % away."""
    for step in range(11):
        update(tmp_path, [timed(0.8 * 1.01**step)])
    rolling, anchor = Store(tmp_path).get(KEY), Store(tmp_path).anchor(KEY)
    assert time_of(rolling) == pytest.approx(0.8 * 1.01**10, rel=1e-5)
    assert time_of(anchor) == pytest.approx(0.8, rel=1e-5)


def test_an_entry_that_was_never_replaced_is_its_own_anchor(tmp_path: Path) -> None:
    """Then there is no file of anchors; storing the same again makes none either."""
    for _ in range(2):
        update(tmp_path, [timed(0.8)])
    assert Store(tmp_path).anchor(KEY) is None
    assert Store(tmp_path).anchor(replace(KEY, recipe="never measured")) is None
    assert [path.name for path in tmp_path.rglob("*.json")] == ["suites--test_ptq.py.json"]


def test_only_replaced_entries_have_a_line_among_the_anchors(tmp_path: Path) -> None:
    """The file of anchors lies beside the other, in the same format."""
    other = replace(KEY, recipe="int8")
    update(tmp_path, [timed(0.8), timed(0.8, other)])
    update(tmp_path, [timed(0.9)])
    rolling, anchors = path_of(tmp_path, KEY), anchor_path_of(tmp_path, KEY)
    assert anchors == rolling.with_name("suites--test_ptq.py.anchor.json")
    assert anchors.read_text().splitlines()[0] == rolling.read_text().splitlines()[0]
    assert set(load_all(tmp_path).anchors) == {KEY}
    assert set(Store(tmp_path).keys()) == {KEY, other}


def test_an_anchor_is_replaced_when_asked_for(tmp_path: Path) -> None:
    """The new entry becomes its own anchor, the old anchor's line goes, and so does a file without lines."""
    for ratio in (0.8, 0.85):
        update(tmp_path, [timed(ratio)])
    changes = update(tmp_path, [timed(0.9)], anchor=True)
    assert told(changes) == [
        "int4 on embedded:gpt2: time 0.850 -> 0.900 (+5.9 %)",
        "int4 on embedded:gpt2: opt 0.798 -> 0.824 (+3.2 %)",
        "int4 on embedded:gpt2: anchor replaced, time 0.800 -> 0.900 (+12.5 %), opt 0.773 -> 0.824 (+6.7 %)",
    ]
    assert (time_of(Store(tmp_path).get(KEY)), Store(tmp_path).anchor(KEY)) == (pytest.approx(0.9), None)
    assert not anchor_path_of(tmp_path, KEY).exists()


def test_what_becomes_of_anchors_is_told(tmp_path: Path) -> None:
    """Once when an entry becomes the anchor; later updates leave it alone and say nothing of it."""

    def anchors_told(changed: Record, *, anchor: bool = False) -> list[str]:
        return [line for line in told(update(tmp_path, [changed], anchor=anchor)) if "anchor" in line]

    assert anchors_told(timed(0.8), anchor=True) == []  # new: there is nothing to be told apart from
    assert anchors_told(timed(0.9)) == [
        "int4 on embedded:gpt2: the entry before this one is kept as its anchor"
    ]
    assert anchors_told(timed(0.95)) == []
    relabelled = replace(timed(0.8), notes=("another note",))
    assert anchors_told(relabelled, anchor=True) == ["int4 on embedded:gpt2: anchor replaced, same figures"]


def test_an_entry_that_equals_its_anchor_again_needs_no_line(tmp_path: Path) -> None:
    """Back to the first entry: it is its own anchor once more."""
    for ratio in (0.8, 0.9, 0.8):
        update(tmp_path, [timed(ratio)])
    assert Store(tmp_path).anchor(KEY) is None
    assert not anchor_path_of(tmp_path, KEY).exists()


def test_an_anchor_outlives_its_entry(tmp_path: Path) -> None:
    """Who deletes the rolling file still compares with the anchor, also after writing it anew."""
    for ratio in (0.8, 0.9):
        update(tmp_path, [timed(ratio)])
    path_of(tmp_path, KEY).unlink()
    assert time_of(Store(tmp_path).anchor(KEY)) == pytest.approx(0.8)
    update(tmp_path, [timed(0.95)])
    assert time_of(Store(tmp_path).anchor(KEY)) == pytest.approx(0.8)


def test_an_update_sees_the_store_as_it_is_now(tmp_path: Path) -> None:
    """A store answers with its own update of entry and anchor."""
    store = Store(tmp_path)
    store.update([timed(0.8)])
    assert store.anchor(KEY) is None
    store.update([timed(0.9)])
    assert time_of(store.anchor(KEY)) == pytest.approx(0.8)
    store.update([timed(0.95)], anchor=True)
    assert store.anchor(KEY) is None


def test_which_models_are_known(tmp_path: Path) -> None:
    """A model is known by any entry of any suite, by its whole name."""
    store = Store(tmp_path)
    store.update([timed(0.8)])
    assert store.knows("embedded:gpt2")
    assert not store.knows("embedded:gpt")


def test_entries_of_the_first_schema_become_anchors(tmp_path: Path) -> None:
    """A file from before there were anchors is read, and its entries are the first accepted ones."""
    update(tmp_path, [timed(0.8)])
    path = path_of(tmp_path, KEY)
    line = path.read_text()
    for field in ("carbon", "metering", "sampling"):
        start = line.index(f'"{field}": ')
        ends = [end for end in (line.find(f'"{after}"', start) for after in AFTER[field]) if end > 0]
        line = line[:start] + line[min(ends) :]
    path.write_text(line.replace('"schema": 2', '"schema": 1'))
    assert time_of(Store(tmp_path).get(KEY)) == pytest.approx(0.8)
    update(tmp_path, [timed(0.9)])
    assert time_of(Store(tmp_path).anchor(KEY)) == pytest.approx(0.8)
    assert all('"schema": 2' in file.read_text() for file in path.parent.glob("*.json"))


AFTER = {"carbon": ("divergence",), "metering": ("notes",), "sampling": ("stored_bytes",)}
"""What follows a field of a line, whose keys are sorted."""


SUITES = ("x", "x.anchor", "x.Anchor", "x.anchor_", "x.anchor.anchor", ".anchor", "anchor", "", "x.anchor~")


def test_a_suite_that_is_called_like_an_anchor_meets_none(tmp_path: Path) -> None:
    """The module x.anchor has files of its own, and so has every name that could stand in their way."""
    keys = [Key(suite, "test", "m", "int4") for suite in SUITES]
    for ratio in (0.8, 0.9):
        update(tmp_path, [timed(ratio, key) for key in keys])
    stored = load_all(tmp_path)
    assert set(stored.rolling) == set(stored.anchors) == set(keys)
    names = [place(tmp_path, key).name.lower() for place in (path_of, anchor_path_of) for key in keys]
    assert len(set(names)) == 2 * len(keys) - 2  # x.anchor and x.Anchor, as everywhere on such a disk


names = st.text(alphabet="ab.~_-/A", max_size=5) | st.sampled_from(SUITES) | st.just("a.anchor_")


@given(st.lists(names, unique=True, min_size=2, max_size=6))
def test_no_two_files_of_suites_meet(suites: list[str]) -> None:
    """Whatever suites are called, each has two paths that no other suite has."""
    keys = [Key(suite, "test", "m", "int4") for suite in suites]
    paths = [place(Path(), key) for place in (path_of, anchor_path_of) for key in keys]
    assert len(set(paths)) == 2 * len(suites)


class Killed(BaseException):
    """The process ends here."""


steps = st.lists(
    st.tuples(
        st.lists(st.sampled_from("ab"), min_size=1, max_size=2, unique=True),  # recipes measured
        st.integers(0, 3),  # what was measured
        st.booleans(),  # --llm-anchor
        st.integers(0, 3),  # killed before this write; 3: not at all
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=150)
@given(steps=steps)
def test_whoever_is_killed_loses_no_anchor(
    steps: list[tuple[list[str], int, bool, int]],
) -> None:
    """After updates that are killed anywhere, entry and anchor are as before that update or as after it."""
    rolling: dict[str, float] = {}
    anchors: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for recipes, value, anchor, end in steps:
            patch.setattr(baselines, "write", _write_until(end))
            new = [
                replace(record(), key=replace(KEY, recipe=each), perplexity=quality(1 + value))
                for each in recipes
            ]
            try:
                update(Path(folder), new, anchor=anchor)
            except Killed:
                pass
            store = Store(Path(folder))
            for name in "ab":
                entry = store.get(replace(KEY, recipe=name))
                first = store.anchor(replace(KEY, recipe=name)) or entry
                measured = name in recipes
                before = rolling.get(name), anchors.get(name)
                after = (1.0 + value, 1.0 + value if anchor else anchors.get(name, 1.0 + value))
                got = entry and entry.perplexity.value, first and first.perplexity.value
                assert got[0] in ({before[0], after[0]} if measured else {before[0]})
                assert got[1] in ({before[1], after[1]} if measured else {before[1]})
                if end == 3 and measured:
                    assert got == after
                if entry and first:
                    rolling[name], anchors[name] = got


def _write_until(end: int):  # type: ignore[no-untyped-def]
    """The store's own writing, until the process is killed before write number `end`."""
    from pytest_llmslim.baseline_files import write

    done: list[Path] = []

    def write_or_die(path: Path, records: dict[Key, Record], edited: set[Key]) -> None:
        if len(done) == end:
            raise Killed
        done.append(path)
        write(path, records, edited)

    return write_or_die
