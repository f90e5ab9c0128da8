"""What README and docs say is so: options, files, and code blocks that run."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import importlib
import inspect
import json
import re
import tomllib

import pytest
import yaml
from documented import PAGES, ROOT, blocks, name, texts

from pytest_llmslim import settings
from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.conformance import KINDS, MethodInvariants, invariants_of
from pytest_llmslim.eval_catalogue import BUILTIN_EVALUATIONS

READ = {
    "python": ast.parse,
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
    "ini": lambda text: configparser.ConfigParser().read_string(text),
}
SHOWN = {"console", "bash", "sh", "text", "markdown", "html", "csv"}
"""Languages of blocks in which there is nothing to parse; commands are looked at in test_docs_commands.py."""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_that_is_written_about_exists(page):
    """No page names an option that is not there."""
    known = {option.flag for option in settings.OPTIONS} | {"--llm-*"}
    assert set(re.findall(r"--llm-[a-z*-]*[a-z*]", page.read_text())) <= known


def test_the_readme_lists_every_option_with_its_default():
    """The table is the one that the code declares."""
    text = (ROOT / "README.md").read_text()
    assert settings.table() in text


def test_the_readme_names_every_method():
    """And no other."""
    text = (ROOT / "README.md").read_text()
    for spec in BUILTIN_METHODS:
        assert f"`{spec.name}" in text


@pytest.mark.parametrize("spec", BUILTIN_METHODS, ids=lambda spec: spec.name)
def test_the_page_of_methods_has_every_signature(spec):
    """With the defaults that the code has."""
    assert f"`{signature(spec)}`" in (ROOT / "docs/methods.md").read_text()


@pytest.mark.parametrize("spec", BUILTIN_EVALUATIONS, ids=lambda spec: spec.name)
def test_the_page_of_evaluations_has_every_signature(spec):
    """With the defaults that the code has."""
    assert f"`{signature(spec)}`" in (ROOT / "docs/evaluations.md").read_text()


def signature(spec):
    """As a recipe is written: parameters with their defaults, bare where there is none."""
    module, _, attribute = spec.target.partition(":")
    method = getattr(importlib.import_module(module), attribute)
    defaults = {field.name: field.default for field in dataclasses.fields(method)}
    absent = (None, "", dataclasses.MISSING)
    shown = [
        name if defaults[name] in absent else f"{name}={str(defaults[name]).replace('True', 'true')}"
        for name in spec.parameters
    ]
    return f"{spec.name}({', '.join(shown)})" if shown else spec.name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    """Relative links name files that are there, and headings that those files have."""
    for target in re.findall(r"\]\(([^):]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        assert not heading or heading in headings(path), target


def headings(page):
    """The anchors that GitHub and the site give the headings of a page."""
    plain = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_parse(page):
    """What is shown as Python, JSON, TOML, YAML or an ini file is that; no block is of a language unknown here."""
    for block in blocks(page):
        assert block.language in READ.keys() | SHOWN
        READ.get(block.language, str)(block.text)


def test_the_readme_tests_run(heavier, pytester, run, tiny_folder):
    """The tests shown to users pass or fail by their limits, on a tiny model."""
    code = "import torch\n" + "\n".join(texts(ROOT / "README.md", "python"))
    code = code.replace("path/to/original", str(tiny_folder)).replace(", max_opt=0.9", "")
    code = code.replace("path/to/our/compressed-checkpoint", str(tiny_folder))
    pytester.makepyfile(test_readme=code)
    result = run()
    result.stdout.fnmatch_lines(["*my_compression*"])
    # The "compressed checkpoint" is the original itself here, and that is found out.
    result.stdout.fnmatch_lines(["*nothing was compressed*"])


@pytest.fixture(scope="module")
def heavier(heavy):
    """What an inner run would import, and could not import again: torchao registers operators."""
    pytest.importorskip("torchao.quantization")


@pytest.fixture
def extended(heavier, pytester):
    """A project with the files of docs/extending.md."""
    method, conftest, invariants, strategy = texts(ROOT / "docs/extending.md", "python")
    pytester.makepyfile(
        narrow=method, conftest=conftest, test_narrow=invariants, test_strategy_of_the_docs=strategy
    )
    pytester.syspathinsert()
    return pytester


def test_the_method_of_the_docs_works(extended, run):
    """A third party's method is one file and one hook, as shown."""
    test = """
        import pytest

        @pytest.mark.llm(recipe="narrow", max_perplexity_increase="1%")
        def test_narrow(llm):
            assert llm.measure().stored_bytes.value == 0.5
    """
    extended.makepyfile(test_it=test)
    result = run("test_it.py")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1  narrow *"])


@pytest.mark.parametrize("asked", [["--llm-conformance", "narrow"], ["test_narrow.py"]])
def test_the_method_of_the_docs_keeps_the_invariants(extended, asked):
    """Asked for by name or as a class, but for the one that it waives, with its reason."""
    result = extended.runpytest(*asked, "-p", "no:benchmark", "-rs")
    result.assert_outcomes(passed=len(invariants_of(MethodInvariants)) - 1, skipped=1)
    result.stdout.fnmatch_lines(["*waived: bfloat16 is what it is for"])


def test_the_strategy_of_the_docs_draws(extended):
    """A property of a user's own."""
    extended.runpytest("test_strategy_of_the_docs.py", "-p", "no:benchmark").assert_outcomes(passed=1)


def test_the_evaluation_of_the_docs_is_asked(heavier, pytester, run):
    """A third party's evaluation is one file and one hook, as shown."""
    _, sums, conftest = texts(ROOT / "docs/evaluations.md", "python")
    test = """
        import pytest

        @pytest.mark.llm(recipe="int8", eval="sums(largest=3)")
        def test_sums(llm):
            assert llm.measure().evaluations[0].n == 9
    """
    pytester.makepyfile(sums=sums, conftest=conftest, test_own=test)
    pytester.syspathinsert()
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  sums(largest=3): acc, higher is better, n = 9"])


def test_the_docs_list_every_invariant():
    """With what its class says of it."""
    text = (ROOT / "docs/extending.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| [a-z ]+ \| (.*) \|$", text, re.MULTILINE)
    wanted = {
        (name, inspect.getdoc(test).partition("\n")[0])
        for kind in KINDS
        for name, test in invariants_of(kind).items()
    }
    assert wanted == set(rows)
