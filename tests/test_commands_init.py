"""What `llmslim init` writes, what it keeps, and what it leaves to the user."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pytest_llmslim.commands import ini_files, main
from pytest_llmslim.commands import init as command
from pytest_llmslim.commands.init import MARK, SETTINGS, set_up

ROOT = Path(__file__).parents[1]
FILES = {
    "tests/test_compressed.py",
    "pytest.ini",
    ".github/workflows/llmslim.yml",
    ".pre-commit-config.yaml",
    ".gitignore",
}


def llmslim(*args):
    return CliRunner().invoke(main, ["init", *map(str, args)])


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def texts_of(folder):
    return {name: (folder / name).read_text() for name in files_of(folder)}


def test_an_empty_folder_gets_everything(tmp_path, monkeypatch):
    """Files are listed, and the three commands that come next stand at the end."""
    monkeypatch.chdir(tmp_path)
    result = llmslim()
    assert result.exit_code == 0, result.output
    assert files_of(tmp_path) == FILES
    written, after = result.output.split("\n\nnext:\n\n")
    assert {line.removeprefix("written  ").split(" (")[0] for line in written.splitlines()} == FILES
    assert [line.split("  #")[0].split() for line in after.splitlines()] == [
        ["pytest", "tests/test_compressed.py", *options]
        for options in ([], ["--llm-update"], ["--llm-require-baseline"])
    ]


def test_the_folder_is_made_and_named(tmp_path):
    """One that does not exist yet, with the commands to be typed in it."""
    result = llmslim(tmp_path / "new/project", "--ci", "none")
    assert files_of(tmp_path / "new/project") == FILES - {".github/workflows/llmslim.yml"}
    assert f"\nnext, in {tmp_path / 'new/project'}:\n" in result.output


def test_a_second_init_changes_nothing(tmp_path):
    """Every file is kept, and said to be one that --force writes anew."""
    llmslim(tmp_path)
    (tmp_path / "pytest.ini").write_text((tmp_path / "pytest.ini").read_text() + "llm_threads = 2\n")
    before = texts_of(tmp_path)
    result = llmslim(tmp_path)
    assert texts_of(tmp_path) == before
    assert "written" not in result.output
    assert "kept     pytest.ini (--force writes it anew)" in result.output
    assert result.output.count("--force writes it anew") == len(FILES) - 1  # .gitignore has its lines
    llmslim(tmp_path, "--force")
    assert "llm_threads" not in (tmp_path / "pytest.ini").read_text()


def test_nothing_of_the_users_is_overwritten_even_by_force(tmp_path):
    """Files without the mark of init stay as they are."""
    own = {
        "tests/test_compressed.py": "def test_mine(): pass\n",
        ".github/workflows/llmslim.yml": "name: mine\n",
    }
    for name, text in own.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    result = llmslim(tmp_path, "--force")
    assert {name: (tmp_path / name).read_text() for name in own} == own
    for name in own:
        assert f"kept     {name} (not written by llmslim init)" in result.output


def test_every_file_that_is_written_whole_has_the_mark(tmp_path):
    """Or --force could not tell it from the user's."""
    for ci in ("github", "gitlab"):
        set_up(tmp_path / ci, "embedded:gpt2", ci)
        for name, text in texts_of(tmp_path / ci).items():
            assert (MARK in text) == (name != ".gitignore"), name


@pytest.mark.parametrize(
    ("model", "written"),
    [
        ("gpt2", "gpt2"),
        ("google/gemma-3-270m", "google/gemma-3-270m"),
        ("embedded:llama", "embedded:llama"),
        ("there", "../there"),
        ('a "quoted" \\ name', 'a "quoted" \\ name'),
        ("/absolute/model.gguf", "/absolute/model.gguf"),
    ],
)
def test_the_model_is_what_was_asked_for(tmp_path, monkeypatch, model, written):
    """As Python reads it; a path is as seen from the project."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    assert llmslim("project", "--model", model).exit_code == 0
    tree = ast.parse((tmp_path / "project/tests/test_compressed.py").read_text())
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    assert ast.literal_eval(value) == written


def test_what_is_commented_out_is_a_test_too(tmp_path):
    """The place for an own checkpoint works once its comment signs are gone."""
    llmslim(tmp_path)
    text = (tmp_path / "tests/test_compressed.py").read_text()
    whole = ast.parse(text.replace("# @", "@").replace("# def", "def").replace("#     llm", "    llm"))
    names = [node.name for node in whole.body if isinstance(node, ast.FunctionDef)]
    assert names == ["test_int4_ships", "test_our_checkpoint_ships"]


OWN = {
    "pyproject.toml": "[project]\nname = 'x'\n\n[tool.pytest.ini_options]\n",
    "tox.ini": "[pytest]\n",
    "setup.cfg": "[tool:pytest]\n",
    "pytest.ini": "[pytest]\n",
    "pytest.toml": "[pytest]\n",
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("where", ["", "project"])
def test_settings_that_are_there_are_left_to_the_user(tmp_path, name, where):
    """The lines to add are printed, in the file's own language; added, they are settings of a run."""
    (tmp_path / name).write_text(OWN[name] + "addopts = '-q'\n")
    result = llmslim(tmp_path / where)
    assert (tmp_path / name).read_text() == OWN[name] + "addopts = '-q'\n"
    assert not (tmp_path / where / "pytest.ini").exists() or name == "pytest.ini"
    table = OWN[name].splitlines()[-1]
    assert f"add to {tmp_path / name}, below {table}:\n" in result.output
    printed = [line.strip() for line in result.output.splitlines() if line.startswith("    llm_")]
    (tmp_path / name).write_text(OWN[name] + "\n".join(printed))
    assert ini_files.resolved(tmp_path).changed == {"profile": "balanced", "cache": ".llm-cache"}
    assert "add to" not in llmslim(tmp_path / where).output


def test_settings_that_are_made_otherwise_are_not_asked_for(tmp_path):
    """A user's own profile stands."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nllm_profile = energy\n")
    assert set_up(tmp_path, "gpt2").to_add == {
        f"{tmp_path / 'pytest.ini'}, below [pytest]": "llm_cache = .llm-cache"
    }


def test_a_pyproject_without_settings_of_pytest_gets_a_pytest_ini(tmp_path):
    """Which holds nothing but valid settings."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert "pytest.ini" in set_up(tmp_path, "gpt2").written
    assert dict(ini_files.find(tmp_path).values) == {"testpaths": "tests", **SETTINGS}


def test_a_gitlab_file_that_is_there_includes_ours(tmp_path):
    """GitLab reads one file; the line that includes ours is printed once."""
    (tmp_path / ".gitlab-ci.yml").write_text("stages: [test]\n")
    done = set_up(tmp_path, "gpt2", "gitlab")
    assert ".gitlab/llmslim.yml" in done.written
    assert yaml.safe_load(done.to_add[".gitlab-ci.yml"]) == {"include": [{"local": ".gitlab/llmslim.yml"}]}
    with (tmp_path / ".gitlab-ci.yml").open("a") as file:
        file.write(done.to_add[".gitlab-ci.yml"])
    assert set_up(tmp_path, "gpt2", "gitlab").to_add == {}


def test_hooks_that_are_there_get_one_more(tmp_path):
    """The entry as it is printed, pasted below the others, is a valid configuration."""
    own = "repos:\n  - repo: meta\n    hooks:\n      - id: identity\n"
    (tmp_path / ".pre-commit-config.yaml").write_text(own)
    entry = set_up(tmp_path, "gpt2").to_add[".pre-commit-config.yaml, below repos"]
    (tmp_path / ".pre-commit-config.yaml").write_text(f"{own}{entry}\n")
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert set_up(tmp_path, "gpt2").to_add == {}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "llm-results/\n.llm-cache/\n"),
        ("*.pyc", "*.pyc\nllm-results/\n.llm-cache/\n"),
        ("/llm-results\n*.pyc\n", "/llm-results\n*.pyc\n.llm-cache/\n"),
        (".llm-cache\nllm-results/\n", ".llm-cache\nllm-results/\n"),
    ],
)
def test_results_are_ignored_by_git(tmp_path, before, after):
    """Lines are added behind what is there, each once."""
    (tmp_path / ".gitignore").write_text(before)
    set_up(tmp_path, "gpt2")
    assert (tmp_path / ".gitignore").read_text() == after


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tests", b"", "/tests cannot be read or written"),
        (".gitignore", b"\xff\xfe", "cannot be read or written ('utf-8' codec can't decode"),
        ("pyproject.toml", b"[tool", "pyproject.toml cannot be read by pytest"),
    ],
)
def test_what_cannot_be_written_is_said_in_a_sentence(tmp_path, name, content, said):
    """Exit code 2, and no traceback."""
    (tmp_path / name).write_bytes(content)
    result = llmslim(tmp_path)
    assert result.exit_code == 2
    assert said in result.output


def test_the_wheel_carries_the_templates(tmp_path):
    """An installation that is no checkout has them."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(built).namelist())
    templates = Path(command.__file__).parent / "templates"
    assert {f"pytest_llmslim/commands/templates/{path.name}" for path in templates.iterdir()} <= names
