"""Where a run comes from: when, by which command, and from which commit of the project that is tested."""

from __future__ import annotations

import os
import secrets
import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pytest_llmslim import __version__
from pytest_llmslim.run_records import Origin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

GIT_S = 10.0
"""A hung file system is no reason to lose a run."""
COMMITS = ("GITHUB_SHA", "CI_COMMIT_SHA")
BRANCHES = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME")


def now(seconds: float | None = None) -> str:
    """UTC, ISO 8601 with seconds; of another moment where its seconds since 1970 are given."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def origin(
    folder: Path,
    command: Sequence[str],
    settings: Mapping[str, str],
    environ: Mapping[str, str] = os.environ,
    began: float | None = None,
) -> Origin:
    """The origin of a run.

    Nothing is raised: what git cannot say is asked of the CI's variables, and is empty where nobody knows.

    Args:
        folder: in the project.
        command: words of the command line.
        settings: that are not default, as text.
        environ: variables of the CI.
        began: seconds since 1970; `None`: now.
    """
    import shlex

    started = now(began)
    return Origin(
        id=f"{started.replace('-', '').replace(':', '')}-{secrets.token_hex(2)}",
        started=started,
        command=shlex.join(command),
        commit=_git(folder, "rev-parse", "HEAD") or _first(environ, COMMITS),
        branch=_first(environ, BRANCHES) or _git(folder, "branch", "--show-current"),
        changed=bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        version=__version__,
        settings=dict(settings),
    )


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str:
    return next((environ[name] for name in names if environ.get(name)), "")


def _git(folder: Path, *words: str) -> str:
    try:
        # Without its optional locks, git status is in nobody's way.
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # names of changed files are in any encoding
            timeout=GIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
