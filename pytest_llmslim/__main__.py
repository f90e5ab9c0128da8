"""`python -m pytest_llmslim`: the command `llmslim`, also where another package's script has its name."""

from pytest_llmslim.commands import main

main(prog_name="llmslim")
