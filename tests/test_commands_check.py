"""`llmslim check`, and what all commands have in common: help, errors, quiet ends, and little to load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sample_records import KEY, blocks, record
from stored_runs import named, store

from pytest_llmslim.baselines import anchor_path_of, path_of, update
from pytest_llmslim.commands import Group

SCRIPT = Path(sys.executable).with_name("llmslim")
RESTORE = (
    "restore it from version control, or measure again and accept with --llm-update or llmslim accept (an anchor, "
    "which an edited entry may have left, with --llm-anchor or --anchor too)."
)


@pytest.fixture
def kept(tmp_path):
    """Baselines of two recipes, and an anchor."""
    folder = tmp_path / "baselines"
    update(folder, [record(), named("int8")])
    update(folder, [record(time=blocks(0.9))])
    return folder


def edit(path, old='"windows": 24', new='"windows": 25'):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# check ------------------------------------------------------------------------------------------------------


def test_baselines_as_they_were_written(llmslim, kept):
    """All files below baselines/, anchors too, or those that are named."""
    found = llmslim("check")
    assert (found.exit_code, found.output) == (0, "as they were written: baselines 3, files 2\n")
    found = llmslim("check", path_of(Path("baselines"), KEY))
    assert (found.exit_code, found.output) == (0, "as they were written: baselines 2, files 1\n")
    assert llmslim("check", "--baseline", kept).exit_code == 0


@pytest.mark.parametrize("where", [path_of, anchor_path_of])
def test_an_edit_by_hand_is_named_with_its_remedy(llmslim, kept, where):
    """File as given, line, record; exit code 1."""
    path = where(Path("baselines"), KEY)
    edit(path)
    for words in ((), (path,)):
        found = llmslim("check", *words)
        assert found.exit_code == 1
        assert found.stdout == ""
        assert found.stderr.startswith(
            f"{path}, line 2, int4 on embedded:gpt2 in test_ptq, was edited by hand (digest "
        )
        assert found.stderr.endswith(f"); {RESTORE}\n")


def test_a_bare_file_name_is_found_too(llmslim, kept, monkeypatch):
    """From within the folder, as an editor's hook calls it."""
    monkeypatch.chdir(kept / "embedded__gpt2")
    name = path_of(kept, KEY).name
    assert llmslim("check", name).exit_code == 0
    edit(path_of(kept, KEY))
    monkeypatch.chdir(kept / "embedded__gpt2")
    assert llmslim("check", name).exit_code == 1


def test_a_digest_that_is_missing_is_named(llmslim, kept):
    """As an edit is: whoever edits a line can take its digest away, too."""
    path = path_of(Path("baselines"), KEY)
    line = json.loads((kept / path.relative_to("baselines")).read_text().splitlines()[2])
    edit(kept / path.relative_to("baselines"), f'"digest": "{line["digest"]}", ', "")
    found = llmslim("check")
    assert (found.exit_code, found.stderr) == (
        1,
        f"{path}, line 3, int8 on embedded:gpt2 in test_ptq, has no digest; {RESTORE}\n",
    )


def test_what_cannot_be_read_is_said_beside_what_was_edited(llmslim, kept):
    """Every file is looked at; the exit code is the graver one."""
    path, anchor = path_of(Path("baselines"), KEY), anchor_path_of(Path("baselines"), KEY)
    edit(kept / anchor.relative_to("baselines"))
    (kept / path.relative_to("baselines")).write_text("{}")
    found = llmslim("check", path, anchor, "none/at/all.json")
    assert found.exit_code == 2
    lines = found.stderr.splitlines()
    assert lines[0].startswith(f"{path} is no baseline of pytest-llmslim; move it away, or restore it")
    assert lines[1] == "none/at/all.json does not exist; give files of baselines"
    assert lines[2].startswith(f"{anchor}, line 2, int4 on embedded:gpt2 in test_ptq, was edited by hand")


def test_no_baselines_are_no_green_check(llmslim):
    """A typo in --baseline would be."""
    found = llmslim("check", "--baseline", "typo")
    assert (found.exit_code, found.stderr) == (
        2,
        "Error: there is no baseline below typo; write one with --llm-update, or give --baseline.\n",
    )


# All commands -----------------------------------------------------------------------------------------------

OURS = ("show", "report", "compare", "accept", "check")


@pytest.mark.parametrize("name", OURS)
def test_help_teaches(llmslim, name):
    """Examples one a line, none broken by wrapping, and what comes next."""
    found = llmslim(name, "--help")
    assert found.exit_code == 0
    examples = found.stdout.partition("  Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) >= 2
    assert all(line.startswith(f"    llmslim {name}") for line in examples)
    assert "\n  Next: " in found.stdout
    assert "\\b" not in found.stdout


def test_the_help_of_all_says_the_exit_codes(llmslim):
    """And every command in a line that is not cut off."""
    found = llmslim("-h")
    assert "\n  Exit codes:\n    0  done\n    1  a regression (compare --fail), " in found.stdout
    listed = found.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(Group.NAMES)
    assert not [line for line in listed if line.split()[0] in OURS and line.endswith("...")]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "RUN does not exist; a run is a folder of results"),
        (lambda path: path.mkdir(), "RUN has neither results.jsonl nor baselines; a run is a folder"),
        (lambda path: path.write_text("oops"), "RUN is no JSON (Expecting value: "),
        (lambda path: path.write_text("{}"), "RUN is no run of pytest-llmslim; a run is a folder"),
        (lambda path: path.write_bytes(b"\xff"), "RUN is no UTF-8 text; a run is a folder"),
        (
            lambda path: path.write_text('{"schema": 99, "origin": {}}'),
            "RUN has schema 99, and this version of pytest-llmslim reads up to 1; upgrade pytest-llmslim.",
        ),
    ],
)
@pytest.mark.parametrize(
    "words",
    [("show", "RUN"), ("report", "RUN"), ("compare", "RUN", "RUN"), ("accept", "RUN", "--reason", "x")],
)
def test_a_run_that_cannot_be_read_is_one_sentence(llmslim, tmp_path, make, sentence, words):
    """And exit code 2, whatever command asked for it."""
    path = tmp_path / "given"
    make(path)
    found = llmslim(*(path if word == "RUN" else word for word in words))
    assert found.exit_code == 2
    said = found.stderr.replace(str(path), "RUN")
    assert said.startswith(f"Error: {sentence}")
    assert said.count("\n") == 1
    assert said.endswith(".\n")


def test_a_folder_without_rights_is_one_sentence(llmslim, monkeypatch):
    """The system's words, and the file."""

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", forbidden)
    found = llmslim("show", "secret")
    assert (found.exit_code, found.stderr) == (2, "Error: secret: Permission denied; see to its rights.\n")


def test_ctrl_c_is_quiet(llmslim, tmp_path, monkeypatch):
    """No traceback, no word, and the exit code that a shell gives."""
    from pytest_llmslim import runs

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "read", interrupted)
    found = llmslim("show", tmp_path)
    assert (found.exit_code, found.output) == (130, "")


# The installed script ---------------------------------------------------------------------------------------


def script(*words, **options):
    return subprocess.run(
        [str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False, timeout=60, **options
    )


def test_the_script_is_installed(tmp_path):
    """It shows a run, in plain text where nobody's terminal is; `python -m pytest_llmslim` is the same."""
    run = store(tmp_path / "run", record())
    found = script("show", run)
    assert found.returncode == 0, found.stderr
    assert "1  int4    34.88" in found.stdout
    assert "\x1b" not in found.stdout
    module = subprocess.run(
        [sys.executable, "-m", "pytest_llmslim", "show", str(run)], capture_output=True, text=True, check=True
    )
    assert module.stdout == found.stdout


def test_a_closed_pipe_is_quiet(tmp_path):
    """As of `llmslim show RUN | head -1`: no traceback, and the exit code of a program that a pipe ended."""
    run = store(tmp_path / "run", *(named(f"recipe{i}") for i in range(300)))
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [str(SCRIPT), "show", "-v", run], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


LOADED = """
import sys
from click.testing import CliRunner
from pytest_llmslim.commands import main
for words in {calls!r}:
    assert CliRunner().invoke(main, words).exit_code == 0, words
print(sorted(set(sys.modules) & set("torch transformers numpy scipy pytest _pytest plotly hypothesis".split())))
"""


def test_nothing_heavy_is_loaded(tmp_path):
    """Not for help, and not for what reads, compares, accepts and checks stored runs."""
    run, folder = str(store(tmp_path / "run", record())), str(tmp_path / "kept")
    accept = ["accept", run, "--reason", "x", "--baseline", folder]
    calls = [["--help"], ["show", "-v", run], ["compare", run, run], accept, ["check", "--baseline", folder]]
    ended = subprocess.run(
        [sys.executable, "-c", LOADED.format(calls=calls)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ended.stdout == "[]\n", ended.stdout + ended.stderr


def test_help_is_there_at_once():
    """The best of five is far below what importing torch alone takes."""
    took = []
    for _ in range(5):
        start = time.perf_counter()
        assert script("--help").returncode == 0
        took.append(time.perf_counter() - start)
    assert min(took) < 0.3
