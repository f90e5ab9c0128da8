"""The command `llmslim`, beside pytest: compare, accept, show, report, check, doctor, init."""

from __future__ import annotations

import os
import sys
from typing import Final

import click

from pytest_llmslim import units
from pytest_llmslim.errors import SlimError

INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
"""What a shell reports of a program that was ended by SIGINT, or by SIGPIPE."""

EXIT_CODES: Final = """\b
Exit codes:
  0  done
  1  a regression (compare --fail), an edited baseline (check),
     or something that a run needs is missing (doctor)
  2  wrong usage, or something that cannot be read, written or accepted
"""


def examples(*lines: str, then: str = "") -> str:
    """The end of a command's help: what to type, a line each, and what comes next."""
    block = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
    return f"{block}\n\nNext: {then}" if then else block


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
        """Show what a user can mend as one sentence, exit code 2; Ctrl-C and a closed pipe end it quietly."""
        try:
            return super().invoke(ctx)
        except SlimError as error:
            text = "\n".join(map(units.printable, str(error).rstrip(".").split("\n")))
            raise click.UsageError(f"{text}.") from None
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # What is still in the buffer would be written, and fail, once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)
        except OSError as error:
            raise click.UsageError(f"{error.filename}: {error.strerror}; see to its rights.") from None


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="pytest-llmslim")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Look at runs of pytest-llmslim, compare and accept them, and set a project up.

    A RUN is the folder that a test run leaves (llm-results), its results.jsonl, a file written by --llm-json, or a
    folder of baselines. A first gate in a project: llmslim init, pytest, llmslim show llm-results.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False
