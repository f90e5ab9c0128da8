"""A new user in an empty repository: init, measure, accept, break, read, accept, green. Every step is a process."""

from __future__ import annotations

import re
import subprocess

import pytest
from checkpoints import ship
from workflow_runner import bash, environment

SMALL = "llm_tokens = 2040\nllm_rounds = 8\n"
"""So that a run takes seconds; a user leaves it out."""


@pytest.fixture
def shell(tmp_path):
    """Types a line in an empty repository; gives whether it succeeded, and what it printed."""
    folder = tmp_path / "ours"
    folder.mkdir()
    variables = environment(tmp_path / "machine")
    subprocess.run(["git", "init", "--quiet", folder], check=True)

    def typed(line):
        ran = bash(line, folder, variables)
        return ran.outcome == "success", ran.output

    typed.folder = folder
    return typed


def test_from_nothing_to_red_and_back_to_green(shell):
    """What each step prints leads to the next one."""
    good, said = shell("llmslim init")
    assert good, said
    commands = re.findall(r"^  (pytest .*?) +#", said, re.MULTILINE)
    measure, update, compare = commands
    with (shell.folder / "pytest.ini").open("a") as file:
        file.write(SMALL)

    # One line is edited: a checkpoint instead of a recipe.
    test = shell.folder / "tests/test_compressed.py"
    test.write_text(test.read_text().replace("llm.measure()", 'llm.measure("shipped")'))
    ship(shell.folder / "shipped")
    good, said = shell(compare)
    assert not good
    assert "has no baseline; write one with --llm-update and commit it." in said
    good, said = shell(update)
    assert good, said
    assert "shipped on embedded:gpt2: new, perplexity 1.000" in said
    assert shell("git add . && git -c user.name=A -c user.email=a@example.org commit -qm gate")[0]

    # The model breaks: within the limit of the test, and worse than what was accepted.
    ship(shell.folder / "shipped", damage=0.09)
    good, said = shell(f"{compare} --llm-markdown red.md")
    assert not good
    page = (shell.folder / "red.md").read_text()
    assert page.startswith("## ❌ Failed: 1 of 1 candidate failed")
    found = re.search(r"perplexity ratio (1\.0\d+) \S+ \S+ was 1\.000 in the baseline: .* limit 1 %", page)
    assert found, page
    (next_line,) = [line for line in page.splitlines() if line.startswith("Next: ")]
    (accept,) = re.findall(r"`(llmslim accept .*?)`", next_line)

    # It is accepted as the page says; where that is not enough, `accept` says what is.
    good, said = shell(accept.replace("...", "group size 128 halves the memory"))
    assert good, said
    assert f"perplexity 1.000 -> {found[1]}" in said
    if "unless you accept with --anchor" in said:
        assert shell(accept.replace("...", "agreed") + " --anchor")[0]
    assert shell("llmslim check")[0]
    good, said = shell(f"{compare} --llm-markdown green.md")
    assert good, said
    assert "❌" not in (shell.folder / "green.md").read_text()
    assert '"reason": "' in next(shell.folder.glob("baselines/*/test_compressed.json")).read_text()
    assert measure in compare
