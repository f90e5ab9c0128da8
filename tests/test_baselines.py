from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_records import KEY, blocks, evaluation, kind_of_text, quality, record, side

from pytest_llmslim.baseline_files import edited
from pytest_llmslim.baselines import Change, Store, anchor_path_of, load_all, path_of, told, update
from pytest_llmslim.errors import BaselineError
from pytest_llmslim.gate import Thresholds, decide
from pytest_llmslim.records import Figure, Key, Question, Reading, Record, Verdict, no_estimate

ANEW = "restore it from version control, or delete it and write it anew with --llm-update"


def keyed(**fields: str) -> Record:
    return record(key=dataclasses.replace(KEY, **fields))


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A file with two records."""
    update(tmp_path, [keyed(), keyed(recipe="int8")])
    return path_of(tmp_path, KEY)


@pytest.fixture(params=[path_of, anchor_path_of], ids=["rolling", "anchor"])
def held(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Both files of a suite with two records each, and the path of one of them."""
    for time in (0.8, 0.9):
        records = [keyed(), keyed(recipe="int8")]
        update(tmp_path, [dataclasses.replace(each, time=quality(time)) for each in records])
    path: Path = request.param(tmp_path, KEY)
    return path


# Writing and reading -------------------------------------------------------------------------------------


def test_a_baseline_comes_back(tmp_path: Path) -> None:
    """What was stored is found by its key, and a comparison with itself passes on every axis."""
    now = record(time=blocks(0.8123456, 0.01), energy=blocks(0.7123456, 0.01))
    update(tmp_path, [now])
    then = Store(tmp_path).get(now.key)
    assert then is not None
    assert then.perplexity.value == pytest.approx(now.perplexity.value, rel=1e-5)
    verdicts = decide(now, Thresholds(), then)
    assert [v.outcome for v in verdicts] == ["passed"] * 5


def test_only_what_a_comparison_needs_is_stored(tmp_path: Path) -> None:
    """Verdicts and losses of windows are left out; block log ratios stay."""
    update(tmp_path, [dataclasses.replace(record(), verdicts=(Verdict("time", "passed", "fine."),))])
    then = load_all(tmp_path).rolling[KEY]
    assert then.verdicts == ()
    assert then.samples.nll_difference == then.samples.window_tokens == ()
    assert then.samples.time == pytest.approx(record().samples.time, rel=1e-5)


def test_of_evaluations_metric_and_answers_are_stored(tmp_path: Path) -> None:
    """Texts, figures and what asking took are left out, so that like runs have no diff; the gate finds the rest."""
    asked = evaluation(
        20,
        4,
        worst=(Question("q1", "why?", "since", "since", "no", 1.0),),
        figures=(Figure("loss", "", 1.0, 1.1),),
        tokens=100,
        seconds=Reading(1.5, "s", "perf_counter", "measured"),
        notes=("cut",),
    )
    now = record(evaluations=(asked, kind_of_text(), evaluation(metric="", name="latency")))
    update(tmp_path, [now])
    text = path_of(tmp_path, KEY).read_text()
    assert "why?" not in text
    then = Store(tmp_path).get(KEY)
    assert then is not None
    assert [each.name for each in then.evaluations] == ["arc_challenge", "slice(kind=code)"]
    first = then.evaluations[0]
    assert first.reference_right == ""
    assert (first.candidate_right, first.protocol, first.tokens, first.figures, first.notes) == (
        asked.candidate_right,
        asked.protocol,
        0,
        (),
        (),
    )
    assert then.quality == dataclasses.replace(
        now.quality,
        value=first_digits(now.quality.value),
        low=first_digits(now.quality.low),
        high=first_digits(now.quality.high),
    )
    assert {verdict.outcome for verdict in decide(now, Thresholds(), then)} == {"passed"}


def first_digits(value: float) -> float:
    return float(f"{value:.6g}")


def test_without_evaluations_a_line_is_what_it_was(tmp_path: Path) -> None:
    """Files from before there were evaluations load, and are written without a word about them."""
    update(tmp_path, [record()])
    text = path_of(tmp_path, KEY).read_text()
    assert '"evaluations"' not in text
    assert '"quality"' not in text
    then = Store(tmp_path).get(KEY)
    assert then is not None
    assert (then.evaluations, then.quality) == ((), None)


def test_an_evaluation_that_is_asked_later_joins_the_anchor(tmp_path: Path) -> None:
    """As it was first accepted; later updates leave it, so that small losses are seen in sum."""
    first, worse = evaluation(500, 0, 0, 1000), evaluation(460, 40, 0, 1000)
    update(tmp_path, [record()])
    changes = told(update(tmp_path, [record(evaluations=(first,))]))
    label = record().label
    assert f"{label}: anchor completed, arc_challenge acc_norm - -> 0.500" in changes
    assert f"{label}: the entry before this one is kept as its anchor" in changes
    assert not [line for line in told(update(tmp_path, [record(evaluations=(worse,))])) if "anchor" in line]
    anchor = Store(tmp_path).anchor(KEY)
    assert anchor is not None
    assert [each.candidate for each in anchor.evaluations] == [0.5]
    found = decide(record(evaluations=(worse,)), Thresholds(), Store(tmp_path).get(KEY), anchor=anchor)
    assert ("anchor", "failed") in [(v.against, v.outcome) for v in found if v.axis == "evaluation"]


def test_another_references_evaluations_do_not_join_the_anchor(tmp_path: Path) -> None:
    """They would be compared as if they were of the anchor's reference."""
    update(tmp_path, [record()])
    update(tmp_path, [record(reference=side(weights="s"), evaluations=(evaluation(),))])
    anchor = Store(tmp_path).anchor(KEY)
    assert anchor is not None
    assert anchor.evaluations == ()


def test_changes_of_evaluations_are_told(tmp_path: Path) -> None:
    """What the candidate reaches, by name and metric; one that is no longer there, too."""
    runs = [evaluation(20, 4), evaluation(19, 5)]
    new, changed, gone = (update(tmp_path, [record(evaluations=each)]) for each in (runs[:1], runs[1:], ()))
    assert "arc_challenge acc_norm 0.500" in told(new)[0]
    label = "int4 on embedded:gpt2"
    assert f"{label}: arc_challenge acc_norm 0.500 -> 0.475 (-5.0 %)" in told(changed)
    dropped = f"{label}: arc_challenge acc_norm 0.475 -> - (not asked for now, so no longer stored)"
    assert dropped in told(gone)


def test_the_file_is_made_for_diffs(stored: Path) -> None:
    """One record a line, sorted, sorted keys, six digits, a newline at the end."""
    lines = stored.read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"format": "pytest-llmslim baseline", "schema": 2, "records": ['
    assert lines[-1] == "]}"
    assert len(lines) == 4
    entries = [json.loads(line.rstrip(",")) for line in lines[1:-1]]
    assert [entry["key"]["recipe"] for entry in entries] == ["int4", "int8"]
    assert all(list(entry) == sorted(entry) for entry in entries)
    assert '"value": 0.8}' in lines[1]  # exp(log(0.8)) in full has sixteen digits
    assert stored.read_bytes().endswith(b"]}\n")


def test_where_files_lie(tmp_path: Path) -> None:
    """A folder a model, a file a suite, with names that are safe everywhere."""
    update(tmp_path, [keyed(), keyed(model="meta-llama/Llama-3.1-8B"), keyed(suite="suites/../../x")])
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files[0].startswith("embedded__gpt2/suites--..--..--x")
    assert files[1:] == [
        "embedded__gpt2/suites--test_ptq.py.json",
        "meta-llama--Llama-3.1-8B/suites--test_ptq.py.json",
    ]
    assert len(load_all(tmp_path).rolling) == 3


def test_nothing_stored(tmp_path: Path) -> None:
    """A folder that does not exist holds no baseline."""
    assert load_all(tmp_path / "none") == ({}, {})
    assert Store(tmp_path / "none").get(KEY) is None


def test_a_partial_run_never_deletes(stored: Path, tmp_path: Path) -> None:
    """An update of one recipe leaves the lines of all others as they were."""
    before = stored.read_text().splitlines()
    update(tmp_path, [dataclasses.replace(record(), perplexity=quality(1.5))])
    after = stored.read_text().splitlines()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True, True]


def test_an_equal_run_changes_nothing(stored: Path, tmp_path: Path) -> None:
    """Storing the same again says nothing and does not touch the file."""
    before = stored.stat().st_mtime_ns
    assert update(tmp_path, [keyed()]) == ()
    assert stored.stat().st_mtime_ns == before


def test_changes_are_told(stored: Path, tmp_path: Path) -> None:
    """An update lists every figure that changed, from what to what."""
    changes = update(tmp_path, [record(time=blocks(0.9)), keyed(recipe="kd")])
    assert told(changes) == [
        "int4 on embedded:gpt2: time 0.800 -> 0.900 (+12.5 %)",
        "int4 on embedded:gpt2: opt 0.773 -> 0.824 (+6.7 %)",
        "int4 on embedded:gpt2: the entry before this one is kept as its anchor",
        "int4 on embedded:gpt2: new, perplexity 1.020, time 0.800, energy 0.700, stored bytes 0.140, opt 0.773",
    ]


def test_a_number_that_is_gone_is_told() -> None:
    """A figure that has no number any more is a dash."""
    assert str(Change("int4 on gpt2", "energy", 0.7, None)) == "int4 on gpt2: energy 0.700 -> -"
    assert str(Change("int4 on gpt2", "energy", None, 0.7)) == "int4 on gpt2: energy - -> 0.700"


def test_the_last_of_two_wins(tmp_path: Path) -> None:
    """Of two records with one key the last is stored."""
    update(tmp_path, [record(), dataclasses.replace(record(), perplexity=quality(1.5))])
    assert load_all(tmp_path).rolling[KEY].perplexity.value == 1.5


def test_a_store_sees_its_own_update(tmp_path: Path) -> None:
    """After an update a store answers with what it wrote."""
    store = Store(tmp_path)
    assert store.get(KEY) is None
    assert len(store.update([record()])) == 5
    assert store.get(KEY) is not None


def test_infinity_and_absence_are_stored(tmp_path: Path) -> None:
    """An infinite score and an energy that could not be had survive the file."""
    update(
        tmp_path,
        [dataclasses.replace(record(), perplexity=quality(float("inf")), energy=no_estimate("no meter"))],
    )
    then = load_all(tmp_path).rolling[KEY]
    assert (then.perplexity.value, then.energy.value, then.energy.reason) == (float("inf"), None, "no meter")


def test_nan_is_refused_before_anything_is_written(stored: Path, tmp_path: Path) -> None:
    """A record with a NaN leaves the store as it was."""
    before = stored.read_text()
    with pytest.raises(ValueError, match="got NaN"):
        update(tmp_path, [keyed(recipe="good"), dataclasses.replace(record(), floor=float("nan"))])
    assert stored.read_text() == before


# Files that cannot be used -------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(BaselineError) as caught:
        load_all(path.parent.parent)
    with pytest.raises(BaselineError):
        update(path.parent.parent, [record()])
    return str(caught.value).replace(str(path), "FILE")


def edit(path: Path, old: str, new: str) -> str:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return refused(path)


def test_truncated(held: Path) -> None:
    """A file that was cut off is named with its last line and what to do."""
    text = held.read_text()
    for length in (0, 10, len(text) // 2, len(text) - 5):
        held.write_text(text[:length])
        lines = max(1, text[:length].count("\n") + (not text[:length].endswith("\n")))
        assert refused(held) == f"FILE, line {lines}, ends in the middle; {ANEW}"


def test_broken_line(held: Path) -> None:
    """A line that is no JSON is named."""
    assert edit(held, '"schema": 2, "records": [\n', '"schema": 2, "records": [\noops') == (
        f"FILE, line 2, is no JSON (Expecting value); {ANEW}"
    )


def test_merge_conflict(held: Path) -> None:
    """A merge conflict is called one."""
    text = held.read_text().splitlines()
    held.write_text(
        "\n".join([text[0], "<<<<<<< HEAD", *text[1:3], "=======", text[2], ">>>>>>> other", text[3]])
    )
    assert refused(held) == f"FILE, line 2, has a merge conflict; keep one side of it, or {ANEW}"


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", '{"schema": 1}', '{"records": []}', "[" * 10_000 + "]" * 10_000]
)
def test_not_ours(held: Path, text: str) -> None:
    """JSON of someone else is left alone."""
    held.write_text(text)
    assert refused(held) == f"FILE is no baseline of pytest-llmslim; move it away, or {ANEW}"


@pytest.mark.parametrize("schema", ["0", "-1", "true", '"1"', "null", "1.0"])
def test_no_schema(held: Path, schema: str) -> None:
    """A schema is a whole number from 1 on."""
    assert "is no baseline of pytest-llmslim" in edit(held, '"schema": 2', f'"schema": {schema}')


def test_newer_schema(held: Path) -> None:
    """A file of a newer version is not guessed at."""
    assert edit(held, '"schema": 2', '"schema": 3') == (
        "FILE has schema 3, and this version of pytest-llmslim reads up to 2; upgrade pytest-llmslim"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"bos": true', '"bos": 1', "Record.protocol.bos is of type bool, got 1"),
        ('"floor": null, ', "", "Record needs the field 'floor', which is missing"),
        ('"floor": null', '"flour": null', "Record has no field 'flour'; it has key, label"),
        ('"floor": null', '"floor": NaN', "Record.floor is a finite number, or the text 'inf', got nan"),
        ('"floor": null', '"floor": 1e999', "Record.floor is a finite number, or the text 'inf', got inf"),
    ],
)
def test_wrong_field(held: Path, old: str, new: str, message: str) -> None:
    """A wrong, missing or unknown field is named with its line."""
    text = edit(held, old, new)
    assert text.startswith(f"FILE, line 2,: {message}".replace(",:", ":"))
    assert text.endswith(ANEW)


def test_a_file_that_was_reformatted(held: Path) -> None:
    """Where records are not one a line, the number of the record is given."""
    held.write_text(json.dumps(json.loads(held.read_text()), indent=1).replace('"bos": true', '"bos": 1', 1))
    assert refused(held).startswith("FILE, record 1: Record.protocol.bos")


def test_twice_the_same_key(held: Path) -> None:
    """Two lines of one key, as after a careless merge, are refused."""
    assert edit(held, '"recipe": "int8"', '"recipe": "int4"') == (
        "FILE, line 3 has the same test, model and recipe as a line above; delete one of them"
    )


def test_in_the_wrong_place(held: Path) -> None:
    """A line that belongs to another file is refused, since updates would miss it."""
    text = edit(held, '"suite": "suites/test_ptq.py"', '"suite": "other.py"')
    assert text == (
        f"FILE, line 2 belongs to {held.with_name(held.name.replace('suites--test_ptq', 'other'))}; "
        "move it there, or delete the line"
    )


def test_no_text(held: Path) -> None:
    """Bytes that are no UTF-8 are refused."""
    held.write_bytes(b"\xff\xfe\x00")
    assert refused(held) == f"FILE is no UTF-8 text; {ANEW}"


def test_unreadable(held: Path) -> None:
    """A file that the system does not give out is named with the system's reason."""
    held.unlink()
    held.mkdir()
    assert refused(held) == "FILE cannot be read (Is a directory); see to its rights"


def test_the_folder_is_a_file(tmp_path: Path) -> None:
    """A file where the folder should be is said, when reading and when writing."""
    path = tmp_path / "baselines"
    path.write_text("")
    with pytest.raises(
        BaselineError, match=r"baselines are in a folder, got the file .*; give .* --llm-baseline"
    ):
        load_all(path)
    with pytest.raises(
        BaselineError, match=r"test_ptq.py.json cannot be written \(Not a directory\); see to its"
    ):
        update(path, [record()])


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_file_breaks_more_than_a_sentence(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever happens to the bytes of a file, it is read or refused with a sentence that names it."""
    folder = tmp_path_factory.mktemp("store")
    update(folder, [keyed(), keyed(recipe="int8")])
    path = path_of(folder, KEY)
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 40)))
    content[start:end] = data.draw(st.binary(max_size=8) | st.text(max_size=8).map(str.encode))
    path.write_bytes(bytes(content))
    try:
        assert len(load_all(folder).rolling) <= 2
    except BaselineError as error:
        message = str(error)
        assert str(path) in message  # reading may as well succeed


# Digests -------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1] / "baselines"
RESTORE = (
    "restore it from version control, or measure again and accept with --llm-update or llmslim accept (an anchor, "
    "which an edited entry may have left, with --llm-anchor or --anchor too)."
)


def by_hand(path: Path) -> list[str]:
    """What `edited` says of a file, without its name."""
    return [sentence.replace(str(path), "FILE") for sentence in edited(path.parent.parent, path).values()]


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_every_line_has_a_digest_of_its_rest(held: Path) -> None:
    """Of the JSON as it is stored, so that anyone can compute it; an untouched file has nothing to say."""
    for line in held.read_text().splitlines()[1:-1]:
        entry = json.loads(line.rstrip(","))
        digest = entry.pop("digest")
        text = json.dumps(entry, sort_keys=True, ensure_ascii=False).encode()
        assert digest == hashlib.sha256(text).hexdigest()[:16]
    assert by_hand(held) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"windows": 24', '"windows": 25'),
        ('"cpu": "EPYC"', '"cpu": "other"'),
        ('"value": 0.7', '"value": 0.6'),
    ],
)
def test_an_edited_line_is_named(held: Path, old: str, new: str) -> None:
    """Whatever was changed in it, and no other line; a test run loads it all the same."""
    change(held, old, new)
    (sentence,) = by_hand(held)
    assert sentence.startswith("FILE, line 2, int4 on embedded:gpt2 in test_ptq, was edited by hand (digest ")
    assert sentence.endswith(f"); {RESTORE}")
    assert len(load_all(held.parent.parent).rolling) == 2


def test_a_digest_that_was_taken_out_is_missed(held: Path) -> None:
    """As in a file of before there were digests: it loads, and the check names each line."""
    entry = json.loads(held.read_text().splitlines()[2])
    change(held, f'"digest": "{entry["digest"]}", ', "")
    assert by_hand(held) == [f"FILE, line 3, int4 on embedded:gpt2 in test_ptq, has no digest; {RESTORE}"]
    assert len(load_all(held.parent.parent).rolling) == 2


def test_taking_lines_of_two_branches_is_no_edit(tmp_path: Path, stored: Path) -> None:
    """Git merges line by line, and so does whoever resolves a conflict; layout is nothing either."""
    ours = stored.read_text().splitlines()
    update(tmp_path, [dataclasses.replace(keyed(recipe="int8"), time=quality(1.5))])
    theirs = stored.read_text().splitlines()
    stored.write_text("\n".join([*ours[:2], *theirs[2:]]))
    assert ours[2] != theirs[2]
    assert by_hand(stored) == []
    stored.write_text(json.dumps(json.loads(stored.read_text()), indent=1))
    assert by_hand(stored) == []


def test_an_update_of_a_neighbour_does_not_make_an_edit_good(stored: Path, tmp_path: Path) -> None:
    """The edited line stays without a right digest until it is itself measured again."""
    change(stored, '"recipe": "int4", ', '"recipe": "int4",  ')  # layout
    change(stored, '"windows": 24', '"windows": 25')
    update(tmp_path, [dataclasses.replace(keyed(recipe="int8"), time=quality(1.5))])
    assert [sentence.split(",")[1] for sentence in by_hand(stored)] == [" line 2"]
    update(tmp_path, [keyed()])
    assert by_hand(stored) == []


def test_an_edited_entry_is_an_edited_anchor(stored: Path, tmp_path: Path) -> None:
    """Replacing it moves it among the anchors, where it is as little trusted; --llm-anchor ends that."""
    change(stored, '"windows": 24', '"windows": 25')
    update(tmp_path, [record(time=blocks(0.9))])
    assert by_hand(stored) == []
    anchor = anchor_path_of(tmp_path, KEY)
    assert by_hand(anchor) == [f"FILE, line 2, int4 on embedded:gpt2 in test_ptq, has no digest; {RESTORE}"]
    update(tmp_path, [record(time=blocks(0.7), evaluations=(evaluation(),))])
    assert len(by_hand(anchor)) == 1
    update(tmp_path, [record(time=blocks(0.7))], anchor=True)
    assert not anchor.exists()


def test_the_committed_baselines_are_as_they_were_measured() -> None:
    """Each of their lines has its digest."""
    files = sorted(ROOT.glob("*/*.json"))
    assert len(files) >= 4
    assert [sentence for path in files for sentence in edited(ROOT, path).values()] == []


def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path) -> None:
    """The lines of an update, from what is stored; not even a folder is made."""
    assert len(update(tmp_path / "none", [keyed()], dry_run=True)) == 5
    assert not (tmp_path / "none").exists()
    update(tmp_path, [keyed()])
    before = path_of(tmp_path, KEY).read_bytes()
    told_dry = told(update(tmp_path, [record(time=blocks(0.9))], dry_run=True))
    assert path_of(tmp_path, KEY).read_bytes() == before
    assert told_dry == told(update(tmp_path, [record(time=blocks(0.9))]))


# Writing safely ------------------------------------------------------------------------------------------


class Full:
    """A file on a full disk: writing, flushing or closing says so."""

    def __init__(self, file: Any, step: str) -> None:
        self.file, self.step = file, step

    def __getattr__(self, name: str) -> Any:
        return self.fail if name == self.step else getattr(self.file, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def fail(self, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["write", "flush", "fsync"])
@pytest.mark.parametrize("full", ["rolling", "anchor"])
def test_a_full_disk_leaves_the_old_files(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, full: str
) -> None:
    """Whichever file and step the disk is full at: one sentence, every record as before, nothing else left behind."""
    before = load_all(tmp_path)
    fsync, opened = os.fsync, Path.open
    handles: set[int] = set()

    def open_on_full_disk(path: Path, *arguments: Any, **options: Any) -> Any:
        file = opened(path, *arguments, **options)
        if path.suffix != ".tmp" or (".anchor." in path.name) != (full == "anchor"):
            return file
        handles.add(file.fileno())
        return Full(file, step)

    def fsync_on_full_disk(handle: int) -> None:
        if step == "fsync" and handle in handles:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    monkeypatch.setattr(os, "fsync", fsync_on_full_disk)
    path = stored if full == "rolling" else anchor_path_of(tmp_path, KEY)
    with pytest.raises(BaselineError) as caught:
        update(tmp_path, [record(time=blocks(0.9)), keyed(recipe="kd")])
    monkeypatch.undo()
    assert (
        str(caught.value)
        == f"{path} cannot be written (No space left on device); see to its rights and space"
    )
    assert handles
    assert load_all(tmp_path).rolling == before.rolling
    assert Store(tmp_path).anchor(KEY) is None
    assert not list(stored.parent.glob(".*"))


def test_ctrl_c_while_writing_leaves_the_old_file(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old records, no temporary file, and a lock that the next writer gets."""

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    before = stored.read_text()
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        update(tmp_path, [keyed(recipe="kd")])
    monkeypatch.undo()
    assert stored.read_text() == before
    assert list(stored.parent.iterdir()) == [stored]
    update(tmp_path, [keyed(recipe="kd")])
    assert stored.read_text() != before


def test_only_the_file_is_left(stored: Path) -> None:
    """No lock and no temporary file stay in a folder that is committed."""
    assert list(stored.parent.iterdir()) == [stored]


WRITER = """
import dataclasses, sys
from pathlib import Path
from sample_records import KEY, blocks, record
from pytest_llmslim.baselines import update
folder, name = Path(sys.argv[1]), sys.argv[2]
for i in range(12):
    now = record(time=blocks(0.8 + i / 100))
    own = [dataclasses.replace(now, key=dataclasses.replace(KEY, recipe=f"{name}-{i}"))]
    own += [dataclasses.replace(now, key=dataclasses.replace(KEY, recipe=name))]
    update(folder, own)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked on Windows")
def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    """Processes that update one suite at once keep each other's entries and anchors."""
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], env=environment)
        for name in "abc"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    stored = load_all(tmp_path)
    assert {key.recipe for key in stored.rolling} == {*"abc", *(f"{n}-{i}" for n in "abc" for i in range(12))}
    first = {key.recipe: found.time.value for key, found in stored.anchors.items()}
    assert first == {name: pytest.approx(0.8, rel=1e-5) for name in "abc"}


keys = st.builds(Key, *[st.text(alphabet="ab/:.-~ é", min_size=0, max_size=4)] * 4)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(keys, max_size=4), max_size=3))
def test_all_that_was_ever_stored_is_found(runs: list[list[Key]]) -> None:
    """After any runs in any order, each key that was ever measured has its last record."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        last: dict[Key, Any] = {}
        for number, run in enumerate(runs):
            update(Path(folder), [record(key=key, label=f"run {number}") for key in run])
            last |= dict.fromkeys(run, f"run {number}")
        assert {key: found.label for key, found in load_all(Path(folder)).rolling.items()} == last
