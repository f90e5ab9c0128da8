"""Where a run comes from: git where it can say, the CI's variables where it cannot."""

from __future__ import annotations

import re
import subprocess

import pytest

from pytest_llmslim import origin as room
from pytest_llmslim.origin import now, origin


@pytest.fixture
def project(tmp_path):
    """A git repository with one commit."""

    def git(*words):
        names = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", "-C", tmp_path, *names, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "--initial-branch", "topic")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    return tmp_path, git


def found(folder, **environ):
    return origin(folder, ["pytest", "a b", "-q"], {"model": "gpt2"}, environ)


def test_git_says_commit_and_branch(project):
    """And whether files that it knows were changed; a file that it does not know is no change."""
    folder, git = project
    (folder / "new").write_text("x")
    clean = found(folder)
    assert (clean.commit, clean.branch, clean.changed) == (git("rev-parse", "HEAD"), "topic", False)
    (folder / "file").write_text("two")
    assert found(folder).changed


def test_names_in_any_encoding_are_no_trouble(project):
    """Git may print names of changed files as bytes that are no UTF-8."""
    folder, git = project
    git("config", "core.quotepath", "false")
    (folder / "file").write_text("two")
    odd = folder.joinpath("r\udce9sum\udce9")
    try:
        odd.write_text("x")
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such name")
    git("add", "-N", ".")
    assert found(folder).changed


def test_the_index_is_left_alone(project, monkeypatch):
    """A status that locked it would be in the way of the user's own git."""
    commands = []
    real = subprocess.run
    monkeypatch.setattr(
        room.subprocess, "run", lambda words, **options: commands.append(words) or real(words, **options)
    )
    found(project[0])
    assert commands
    assert all("--no-optional-locks" in words for words in commands)


@pytest.mark.parametrize(
    ("environ", "commit", "branch"),
    [
        ({}, "", ""),
        ({"GITHUB_SHA": "abc", "GITHUB_REF_NAME": "main"}, "abc", "main"),
        ({"GITHUB_SHA": "abc", "GITHUB_HEAD_REF": "topic", "GITHUB_REF_NAME": "7/merge"}, "abc", "topic"),
        ({"GITHUB_SHA": "abc", "GITHUB_HEAD_REF": "", "GITHUB_REF_NAME": "main"}, "abc", "main"),
        ({"CI_COMMIT_SHA": "def", "CI_COMMIT_REF_NAME": "topic"}, "def", "topic"),
    ],
)
def test_without_git_the_ci_says_it(tmp_path, environ, commit, branch):
    """GitHub and GitLab; elsewhere nobody knows, and that is no error."""
    whole = found(tmp_path, **environ)
    assert (whole.commit, whole.branch, whole.changed) == (commit, branch, False)


def test_a_checkout_of_ci_has_no_branch_of_its_own(project):
    """Its head is detached, or a merge: the commit is git's, the branch the CI's."""
    folder, git = project
    git("checkout", "--detach")
    whole = found(folder, GITHUB_SHA="other", GITHUB_HEAD_REF="topic")
    assert (whole.commit, whole.branch) == (git("rev-parse", "HEAD"), "topic")


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10.0)])
def test_a_git_that_is_absent_or_hangs_costs_nothing(project, monkeypatch, error):
    """The run goes on without a commit."""

    def fail(*words, **options):
        raise error

    monkeypatch.setattr(room.subprocess, "run", fail)
    whole = found(project[0])
    assert (whole.commit, whole.branch, whole.changed) == ("", "", False)


def test_a_run_has_a_name_of_its_own(tmp_path):
    """Two that start in one second are told apart; the command is as it would be typed again."""
    first, second = found(tmp_path), found(tmp_path)
    assert first.id != second.id
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{4}", first.id)
    assert first.id.startswith(first.started.replace("-", "").replace(":", ""))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now())
    assert (first.command, first.settings, first.finished) == ("pytest 'a b' -q", {"model": "gpt2"}, "")
    assert first.version.count(".") == 2
