"""The site builds without warnings, and has what the catalogues have."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from documented import ROOT

from pytest_llmslim.catalogue import BUILTIN_METHODS
from pytest_llmslim.eval_catalogue import BUILTIN_EVALUATIONS
from pytest_llmslim.options import OPTIONS


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built anew in a process of its own, every warning an error."""
    for package in ("sphinx", "myst_parser", "furo", "sphinx_click"):
        pytest.importorskip(package, reason=f"{package} builds the site; pip install 'pytest-llmslim[docs]'")
    folder = tmp_path_factory.mktemp("site")
    options = ["-b", "html", "-E", "-n", "-W", "--keep-going", "-q", "-d", str(folder / "trees")]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Page(HTMLParser):
    """The anchors of a page, and the places to which it links."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        """Keep ids, and targets of links."""
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.add(found["href"])


def test_every_method_and_evaluation_has_its_page(site):
    """With the signature as a recipe is written."""
    for folder, specs in (("method", BUILTIN_METHODS), ("evaluation", BUILTIN_EVALUATIONS)):
        for spec in specs:
            assert f"{spec.name}" in (site / folder / f"{spec.name}.html").read_text()


def test_every_method_shows_numbers(site):
    """A ratio with its interval for both embedded models, by itself or in a recipe; and where they come from."""
    for spec in BUILTIN_METHODS:
        text = (site / "method" / f"{spec.name}.html").read_text()
        for model in ("gpt2", "llama"):
            row = rf"<td><p>{model}</p></td>\s*<td><p>\d[\d.]* \[[^\]]+\]</p></td>"
            assert re.search(row, text), f"{spec.name} on {model}"
        assert "sha256" in text


def test_every_parameter_has_a_meaning(site):
    """From the docstring of its class, or of the one that it is derived from."""
    for path in (ROOT / "docs").glob("*/*.md"):
        for row in re.findall(r"^\| `\w+` \| .* \|$", path.read_text(), re.MULTILINE):
            assert not row.endswith("|  |"), f"{path.stem}: {row}"


def test_every_option_is_in_the_reference(site):
    """With its names in the ini file and the environment."""
    text = (site / "reference/options.html").read_text()
    for option in OPTIONS:
        assert all(f">{name}<" in text for name in (option.flag, option.ini, option.env)), option.name


def test_every_link_inside_leads_somewhere(site):
    """To a file of the site, and to an anchor that it has."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.relative_to(site)}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].anchors | {""}, (
                    f"{path.relative_to(site)}: {link}"
                )
