"""`llmslim init`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pytest_llmslim.commands import examples, ini_files
from pytest_llmslim.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK: Final = "Written by `llmslim init`"
"""Stands at the top of every file that is written whole, and tells them from the user's own."""
TEST: Final = "tests/test_compressed.py"
PRE_COMMIT: Final = ".pre-commit-config.yaml"
IGNORED: Final = ("llm-results/", ".llm-cache/")
SETTINGS: Final = {"llm_profile": "balanced", "llm_cache": ".llm-cache"}
GITLAB: Final = ".gitlab-ci.yml"
GITLAB_PART: Final = ".gitlab/llmslim.yml"
"""Where a project has a `.gitlab-ci.yml` of its own, which includes this one."""


@dataclass
class Done:
    """What was done to a project.

    Args:
        folder: of the project.
        written: files, relative to it.
        kept: files that were there, with the reason in brackets.
        to_add: what the user adds by hand, by where.
    """

    folder: Path
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    to_add: dict[str, str] = field(default_factory=dict)


@click.command(
    "init",
    epilog=examples(
        "llmslim init",
        "llmslim init path/to/project --model gpt2 --ci gitlab",
        then="the three commands that it prints.",
    ),
)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=".")
@click.option("--model", default="embedded:gpt2", show_default=True, metavar="MODEL",
              help="The original: a Hugging Face id, a folder, a .gguf file, or embedded:NAME.")  # fmt: skip
@click.option("--ci", type=click.Choice(["github", "gitlab", "none"]), default="github", show_default=True,
              help="Whose workflow is written.")  # fmt: skip
@click.option("--force", is_flag=True, help="Write files anew that an earlier init wrote, edits included.")
def command(directory: Path, model: str, ci: str, force: bool) -> None:
    """Set a project up: a starter suite, settings, and a CI workflow.

    Into DIRECTORY (here, without one) go tests/test_compressed.py, pytest.ini, a workflow that gates pull requests,
    and a pre-commit hook that refuses baselines edited by hand. Files that are there are kept; what would have to be
    added to them is printed.
    """
    for line in told(set_up(directory, model, ci, force=force)):
        click.echo(line)


def set_up(folder: Path, model: str, ci: str = "github", *, force: bool = False) -> Done:
    """Write what is missing; nothing of the user's is changed but `.gitignore`, to which lines are added.

    Args:
        folder: of the project; made where it does not exist.
        model: as for `--llm-model`; a path is as seen from here.
        ci: `github`, `gitlab` or `none`.
        force: write files of an earlier init anew.

    Raises:
        SettingError: a file cannot be read or written.
    """
    done = Done(folder)
    try:
        _write(done, TEST, _rendered("test_compressed.py", model=_quoted(model, folder)), force=force)
        _settings(done, force=force)
        if ci == "github":
            _write(done, ".github/workflows/llmslim.yml", _rendered("github.yml"), force=force)
        if ci == "gitlab":
            _gitlab(done, force=force)
        _pre_commit(done, force=force)
        _ignore(done)
    except (OSError, UnicodeDecodeError) as error:
        name = getattr(error, "filename", None) or folder
        raise SettingError(
            f"{name} cannot be read or written ({error}); see to its rights and encoding."
        ) from None
    return done


def told(done: Done) -> Iterator[str]:
    """What was done and what comes next, as lines."""
    yield from (f"written  {name}" for name in done.written)
    yield from (f"kept     {name}" for name in done.kept)
    for where, text in done.to_add.items():
        yield f"\nadd to {where}:\n"
        yield from (f"    {line}".rstrip() for line in text.splitlines())
    here = "" if done.folder.resolve() == Path.cwd() else f", in {done.folder}"
    yield f"\nnext{here}:\n"
    yield f"  pytest {TEST}                         # measures: are the limits held?"
    yield f"  pytest {TEST} --llm-update            # accepts what it measures: commit baselines/"
    yield f"  pytest {TEST} --llm-require-baseline  # what CI asks: is nothing worse than accepted?"


# Files ------------------------------------------------------------------------------------------------------


def _write(done: Done, name: str, text: str, *, force: bool) -> None:
    path = done.folder / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not _is_ours(path):
        done.kept.append(f"{name} (not written by llmslim init)")
        return
    elif not force:
        done.kept.append(f"{name} (--force writes it anew)")
        return
    path.write_text(text, encoding="utf-8", newline="\n")
    done.written.append(name)


def _is_ours(path: Path) -> bool:
    return path.is_file() and any(MARK in line for line in path.read_text(encoding="utf-8").splitlines()[:3])


def _settings(done: Done, *, force: bool) -> None:
    """A `pytest.ini` where pytest has no settings; lines to add where it has some."""
    ini = ini_files.find(done.folder.resolve())
    if ini is None or not ini.table or _is_ours(ini.path):
        _write(done, "pytest.ini", _rendered("pytest.ini", settings=SETTINGS), force=force)
        return
    missing = {name: value for name, value in SETTINGS.items() if name not in ini.values}
    if missing:
        quote = '"' if ini.path.suffix == ".toml" else ""
        lines = [f"{name} = {quote}{value}{quote}" for name, value in missing.items()]
        done.to_add[f"{ini.path}, below [{ini.table}]"] = "\n".join(lines)


def _gitlab(done: Done, *, force: bool) -> None:
    """GitLab reads one file only; where there is one, it includes ours."""
    path = done.folder / GITLAB
    if not path.exists() or _is_ours(path):
        _write(done, GITLAB, _rendered("gitlab-ci.yml"), force=force)
        return
    _write(done, GITLAB_PART, _rendered("gitlab-ci.yml"), force=force)
    if GITLAB_PART not in path.read_text(encoding="utf-8"):
        done.to_add[GITLAB] = f"include:\n  - local: {GITLAB_PART}"


def _pre_commit(done: Done, *, force: bool) -> None:
    path = done.folder / PRE_COMMIT
    entry = _rendered("pre-commit-entry.yaml").rstrip("\n")
    if path.exists() and not _is_ours(path):
        if "llmslim-baselines" not in path.read_text(encoding="utf-8"):
            done.to_add[f"{PRE_COMMIT}, below repos"] = entry
        return
    _write(done, PRE_COMMIT, _rendered("pre-commit.yaml", entry=entry), force=force)


def _ignore(done: Done) -> None:
    path = done.folder / ".gitignore"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    known = {line.strip().strip("/") for line in text.splitlines()}
    missing = [name for name in IGNORED if name.strip("/") not in known]
    if missing:
        between = "" if not text or text.endswith("\n") else "\n"
        path.write_text(
            text + between + "".join(f"{name}\n" for name in missing), encoding="utf-8", newline="\n"
        )
        done.written.append(f".gitignore ({', '.join(missing)})")


# Text -------------------------------------------------------------------------------------------------------


def _quoted(model: str, folder: Path) -> str:
    """The model as Python; a path that is there, as seen from the project."""
    if not Path(model).is_absolute() and Path(model).exists():
        model = Path(os.path.relpath(model, folder)).as_posix()
    return json.dumps(model, ensure_ascii=False)


def _rendered(name: str, **values: object) -> str:
    """A template, whose brackets are square: workflows have curly ones of their own."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pytest_llmslim.commands"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Python and YAML, no HTML
        keep_trailing_newline=True,
        variable_start_string="[[", variable_end_string="]]", block_start_string="[%", block_end_string="%]",
        comment_start_string="[#", comment_end_string="#]",
    )  # fmt: skip
    return environment.get_template(f"{name}.jinja").render(values)
