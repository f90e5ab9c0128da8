"""Where a run comes from and what to do next, as lines of Markdown."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from pytest_llmslim.reports.escaped import code, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_llmslim.comparison import Compared
    from pytest_llmslim.run_records import Run

COMMAND = 200
"""Characters that are shown of a command."""
FOLDER = "llm-results"


def next_step(run: Run, found: Sequence[Compared]) -> list[str]:
    """How to accept what changed or is new; nothing where there is nothing to accept."""
    if run.interrupted:
        return ["Next: let the run end; with `--llm-resume` it goes on where it stopped.", ""]
    held = [
        verdict for each in found for verdict in each.verdicts if verdict.against in ("baseline", "anchor")
    ]
    outcomes = {verdict.outcome for verdict in held}
    anchor = " --anchor" if any(v.against == "anchor" and v.outcome == "failed" for v in held) else ""
    folder = shlex.quote(run.origin.settings.get("results", FOLDER))
    command = code(f'llmslim accept {folder} --reason "..."{anchor}', COMMAND)
    update = f"--llm-update{' --llm-anchor' if anchor else ''}"
    how = f"with {command}, or by a run with `{update}`, and commit the baselines."
    if "failed" in outcomes:
        return [f"Next: make it better, or, where the loss is meant, accept it {how}", ""]
    if "new" in outcomes:
        return [f"Next: store what is new {how}", ""]
    if any(change.moved and change.better for each in found for change in each.changes):
        return [f"Next: keep what became better {how}", ""]
    return []


def footer(run: Run, found: Sequence[Compared]) -> str:
    """Commit, command, profile, device, text, and how much was compared; in one line."""
    compared = sum(each.old is not None for each in found)
    return ", ".join([*_origin(run), f"{compared} of {len(found)} compared with a baseline"]) + "."


def footer_of_two(old: Run, new: Run) -> str:
    """The same of both."""
    return f"Then: {', '.join(_origin(old))}. Now: {', '.join(_origin(new))}."


def _origin(run: Run) -> list[str]:
    """What is known of where a run comes from."""
    origin, records = run.origin, run.records
    changed = " with changed files" if origin.changed else ""
    found = [
        f"commit {code(origin.commit[:12])}{changed}" if origin.commit else "",
        code(origin.command, COMMAND) if origin.command else "",
        _each("profile", (record.profile.name for record in records)),
        _each("on", run.devices),
        _each("text", (f"{record.protocol.text} {record.protocol.text_sha256[:12]}" for record in records)),
        f"run {code(origin.id)}" if origin.id else "",
        f"pytest-llmslim {plain(origin.version, 20)}" if origin.version else "",
    ]
    return [text for text in found if text] or ["a run of unknown origin"]


def _each(word: str, names: Iterable[str]) -> str:
    """Up to three names, each once."""
    known = list(dict.fromkeys(name for name in names if name))
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return f"{word} {', '.join(plain(name, 60) for name in known[:3])}{more}" if known else ""
