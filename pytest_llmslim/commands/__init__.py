"""The command `llmslim`, beside pytest: compare, accept, show, report, check, doctor, init."""

from __future__ import annotations

from typing import Final

import click

from pytest_llmslim.errors import SlimError


class Group(click.Group):
    """Subcommands, each in a file of its own that is imported when it is called for."""

    NAMES: Final = ("init", "doctor", "show", "report", "compare", "accept", "check")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the help."""
        return list(self.NAMES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The function `command` of the subcommand's module."""
        import importlib

        if name not in self.NAMES:
            return None
        command: click.Command = importlib.import_module(f"pytest_llmslim.commands.{name}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Show what a user can mend as one sentence, exit code 2."""
        try:
            return super().invoke(ctx)
        except SlimError as error:
            raise click.UsageError(str(error)) from None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pytest-llmslim")
def main() -> None:
    r"""Look at runs of pytest-llmslim, compare and accept them, and set a project up.

    A RUN is the folder that a test run leaves (llm-results), its results.jsonl, a file written by --llm-json, or a
    folder of baselines.

    \b
    Exit codes: 0 done; 1 a regression (compare --fail), an edited baseline (check), or something that a run needs is
    missing (doctor); 2 wrong usage, or a run that cannot be read.
    """
