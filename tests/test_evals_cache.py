"""Answers on disk: what is put there is found again, whatever else stands in the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_llmslim.errors import EvaluationError
from pytest_llmslim.evals import cache as caches
from pytest_llmslim.evals.cache import Cache, Shelf, digest, shelf_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class Model(torch.nn.Linear):
    """Equal weights, whatever else differs."""

    def __init__(self, **settings):
        super().__init__(2, 2)
        self.config = SimpleNamespace(to_dict=lambda: settings)


def test_a_shelf_is_of_one_model_in_one_place(tmp_path):
    """Equal weights under another configuration or device are asked by themselves; where they came from is nothing."""
    context = SimpleNamespace(cache=Cache(tmp_path), weights_hash="abc", device="cuda:1")

    def known(model, **changes):
        return shelf_of(model, SimpleNamespace(**vars(context) | changes), {"task": "a"}).get("first")

    shelf_of(Model(rope=1, _name_or_path="here"), context, {"task": "a"}).put("first", 1)
    assert known(Model(rope=1, _name_or_path="there"), device="cuda:0") == 1
    assert known(Model(rope=2)) is None
    assert known(Model(rope=1), device="cpu") is None
    assert shelf_of(Model(), SimpleNamespace(cache=None, weights_hash="abc"), {}) is None
    assert shelf_of(Model(), SimpleNamespace(cache=Cache(tmp_path), weights_hash=""), {}) is None


def file_of(folder):
    return next(folder.rglob("*.jsonl"))


def test_an_answer_is_found_by_a_later_run(tmp_path):
    """By request, weights and protocol; nothing else finds it."""
    cache = Cache(tmp_path)
    cache.shelf("abc", {"bos": "[0]"}).put(["loglikelihood", [1, 2], [3]], [-1.25, True])
    assert cache.shelf("abc", {"bos": "[0]"}).get(["loglikelihood", [1, 2], [3]]) == [-1.25, True]
    assert cache.shelf("abc", {"bos": "[0]"}).get(["loglikelihood", [1], [2, 3]]) is None
    assert cache.shelf("abd", {"bos": "[0]"}).get(["loglikelihood", [1, 2], [3]]) is None
    assert cache.shelf("abc", {"bos": "[1]"}).get(["loglikelihood", [1, 2], [3]]) is None


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_any_plain_answer_comes_back_as_it_was(tmp_path_factory, answers):
    """Line breaks, quotes and every float."""
    file = tmp_path_factory.mktemp("shelf") / "shelf.jsonl"
    shelf = Shelf(file)
    for request, answer in answers.items():
        shelf.put(request, answer)
    again = Shelf(file)
    assert {request: again.get(request) for request in answers} == answers


@given(st.lists(st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode()), max_size=6))
def test_a_corrupt_line_is_no_error(tmp_path_factory, lines):
    """What is no answer is passed over; the one that stands among it is found, and so is what is put behind it."""
    file = tmp_path_factory.mktemp("shelf") / "shelf.jsonl"
    known = json.dumps([digest("asked"), 7]).encode()
    file.write_bytes(b"\n".join([*lines, b"", known, b"", *lines]))
    shelf = Shelf(file)
    assert shelf.get("asked") == 7
    shelf.put("later", 8)
    assert (Shelf(file).get("asked"), Shelf(file).get("later")) == (7, 8)


@pytest.mark.parametrize("cut", range(2, 80, 11))
def test_a_line_that_a_kill_cut_off_is_asked_again(tmp_path, cut):
    """The lines before it stay, and the next one does not stick to it."""
    shelf = Cache(tmp_path).shelf("abc", 0)
    shelf.put("first", [-2.5, False])
    shelf.put("second", [-3.5, False])
    file = file_of(tmp_path)
    file.write_bytes(file.read_bytes()[:-cut])
    again = Cache(tmp_path).shelf("abc", 0)
    assert (again.get("first"), again.get("second")) == ([-2.5, False], None)
    again.put("third", [-4.5, True])
    last = Cache(tmp_path).shelf("abc", 0)
    assert [last.get(name) for name in ("first", "second", "third")] == [[-2.5, False], None, [-4.5, True]]


def test_workers_append_to_one_file_at_the_same_time(tmp_path):
    """Four processes, 300 answers of different length each: all of them are there."""
    code = """
import sys
from pathlib import Path
from pytest_llmslim.evals.cache import Cache
shelf = Cache(Path(sys.argv[1])).shelf("abc", 0)
for i in range(300):
    shelf.put([sys.argv[2], i], "x" * (i * 7 % 400))
"""
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(w)]) for w in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    shelf = Cache(tmp_path).shelf("abc", 0)
    assert all(shelf.get([str(w), i]) == "x" * (i * 7 % 400) for w in range(4) for i in range(300))
    assert file_of(tmp_path).read_bytes().count(b"\n") == 1200


def test_a_line_is_one_write(tmp_path, monkeypatch):
    """At the end of the file, wherever that is: opened for appending, one call a line."""
    calls = []
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, line: calls.append(line) or real(file, line))
    shelf = Cache(tmp_path).shelf("abc", 0)
    shelf.put("first", 1)
    shelf.put("second", 2)
    assert [line.count(b"\n") for line in calls] == [1, 1]


def test_a_folder_that_cannot_be_written(tmp_path):
    """A file stands where the folder should be: the sentence names file, reason and option."""
    (tmp_path / "abc").write_text("in the way")
    with pytest.raises(
        EvaluationError, match=r"The cache .*abc.* cannot be read \(Not a directory\); give --llm-c"
    ):
        Cache(tmp_path).shelf("abc", 0)
    (tmp_path / "abc").unlink()
    shelf = Cache(tmp_path).shelf("abc", 0)
    (tmp_path / "abc").write_text("in the way")
    with pytest.raises(
        EvaluationError, match=r"cannot be written \(.*\); give --llm-cache a folder that can be"
    ):
        shelf.put("first", 1)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    """A line that was written in part is no answer kept."""
    shelf = Cache(tmp_path).shelf("abc", 0)
    monkeypatch.setattr(caches.os, "write", lambda file, line: len(line) - 1)
    with pytest.raises(EvaluationError, match=r"cannot be written \(No space left on device\)"):
        shelf.put("first", 1)


def test_an_answer_needs_about_as_many_bytes_as_the_docstring_says(tmp_path):
    """100 bytes for a log probability; 75 and the text for a generated one."""
    Cache(tmp_path).shelf("abc", 0).put("first", [-12.345678329467773, False])
    assert len(file_of(tmp_path).read_bytes()) == pytest.approx(100, abs=8)
    Cache(tmp_path).shelf("abd", 0).put("first", "twenty characters...")
    assert len(file_of(tmp_path / "abd").read_bytes()) == pytest.approx(95, abs=8)
