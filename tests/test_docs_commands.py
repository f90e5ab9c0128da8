"""Commands of the docs are ones that pytest and llmslim take, and those that are marked so are run."""

from __future__ import annotations

import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout

import click
import pytest
from click.testing import CliRunner
from documented import PAGES, ROOT, blocks, commands, name

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.commands import main
from pytest_llmslim.eval_catalogue import BUILTIN_EVALUATIONS
from pytest_llmslim.recipe import steps_of

METHODS = {spec.name for spec in BUILTIN_METHODS}
EVALUATIONS = {spec.name for spec in BUILTIN_EVALUATIONS}
OWN = {"narrow", "sums"}
"""Names that pages register themselves."""
COMMANDS = [
    pytest.param(page, words, id=f"{name(page)}: {' '.join(words)[:80]}")
    for page in PAGES
    for block in blocks(page, "console")
    for words in commands(block)
]


@pytest.mark.parametrize(("page", "words"), COMMANDS)
def test_a_command_can_be_typed(page, words, pytestconfig):
    """Its options exist and take such values; the suites, scripts, recipes and evaluations that it names are there."""
    program, *rest = words
    if program == "pytest":
        asked, unknown = pytestconfig._parser.parse_known_and_unknown_args(rest)
        assert not unknown
        there(page, [] if asked.pyargs else asked.file_or_dir)
        assert {step.name for text in asked.llm_recipe or () for step in steps_of(text)} <= METHODS | OWN
        assert {text.partition("(")[0] for text in asked.llm_eval or ()} <= EVALUATIONS | OWN
    elif program == "llmslim":
        typed(main, rest)
    elif program == "python":
        assert (ROOT / rest[0]).exists() or rest[0] == "-m"
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    else:
        assert program in ("pip", "git", "mkdir", "cd", "cat", "echo", "hf", "export"), f"what is {program}?"


def there(page, files):
    """Files are in the repository, or the page tells of them elsewhere than in this command."""
    for file in files:
        path = file.partition("::")[0]
        assert (ROOT / path).exists() or page.read_text().count(path) > 1, path


def typed(command, words):
    """Parse words as click does, without looking whether files are there."""
    context = click.Context(command)
    if isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(context, words[0])
        assert inner is not None, f"llmslim has no command {words[0]}"
        typed(inner, words[1:])
    else:
        command.make_parser(context).parse_args(list(words))


# Blocks that are run ------------------------------------------------------------------------------------------

RUN = [page for page in PAGES if any("run" in block.asked for block in blocks(page))]


@pytest.fixture(scope="module")
def heavier(heavy):
    """What else is imported, before pytester remembers what was: operators of torchao, and classes of stored runs."""
    pytest.importorskip("torchao.quantization")
    for room in (*(f"commands.{command}" for command in main.list_commands(None)), "outputs", "run_records"):
        importlib.import_module(f"pytest_llmslim.{room}")


@pytest.fixture
def project(heavier, pytester, monkeypatch):
    """An empty project under git; measurements are short, and without an energy meter."""
    from pytest_llmslim import session
    from pytest_llmslim.meters.null import NullMeter

    monkeypatch.setattr(session, "choose_energy_meter", lambda device: NullMeter("switched off in this test"))
    for variable, value in {"LLMSLIM_ROUNDS": "8", "LLMSLIM_TOKENS": "2040"}.items():
        monkeypatch.setenv(variable, value)
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "docs")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "docs@example.org")
    # Another test may have imported those of the checkout.
    for module in [each for each in sys.modules if each.split(".")[0] == "suites"]:
        monkeypatch.delitem(sys.modules, module)
    subprocess.run(["git", "init", "--quiet"], cwd=pytester.path, check=True)
    return pytester


@pytest.mark.parametrize("page", RUN, ids=name)
def test_what_a_page_shows_runs(page, project):
    """From its top to its end: files are written, lines edited, commands end with the code that is promised."""
    if page.stem == "ship":
        make_checkpoint(project)
    if "$ pytest suites/" in page.read_text():
        copy_suites(project.path)
    for i, block in enumerate(blocks(page)):
        if "edit" in block.asked:
            edit(project.path, *re.fullmatch(r"(.*): (.*) -> (.*)", block.asked["edit"]).groups())
        if "file" in block.asked:
            path = project.path / block.asked["file"]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text)
        if "run" in block.asked and block.language == "python":
            assert printed(block.text) == blocks(page)[i + 1].text
        elif "run" in block.asked:
            *before, last = [run(project, words) for words in commands(block)]
            assert not any(before)
            assert last == int(block.asked["run"] or 0)


def run(project, words):
    """The exit code of one command: pytest and llmslim in this process."""
    if words[0] == "pytest":
        return int(project.runpytest("-p", "no:benchmark", *words[1:]).ret)
    if words[0] == "llmslim":
        result = CliRunner().invoke(main, words[1:], catch_exceptions=False)
        print(result.output)
        return result.exit_code
    return subprocess.run(words, cwd=project.path, check=False, env=os.environ).returncode


def edit(folder, file, old, new):
    """One line of a file, which has to be there."""
    text = (folder / file).read_text()
    assert text.count(old) == 1
    (folder / file).write_text(text.replace(old, new))


def printed(code):
    """What a block of Python prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        exec(compile(code, "docs", "exec"), {})
    return out.getvalue()


def copy_suites(folder):
    """The suites of this repository, with what they load."""
    for part in ("suites", "fixtures"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "conftest.py", folder)


def make_checkpoint(project):
    """The checkpoint of which the page tells."""
    project.makepyfile(
        compress="""
        import pytest

        @pytest.mark.llm(model="embedded:gpt2", recipe="int4")
        def test_compress(llm):
            llm.measure()
        """
    )
    assert run(project, ["pytest", "compress.py", "--llm-save", "made"]) == 0
    (project.path / "made/embedded-gpt2-int4").rename(project.path / "our-checkpoint")
    shutil.rmtree(project.path / "llm-results")
