"""The application that the commands join, and how it ends: every error is one line and exit code 2."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from convla import __version__
from convla.cli.output import INTERRUPTED, complain, reason
from convla.errors import ConvlaError

__all__ = ["COMMANDS", "app", "run"]


COMMANDS = {
    "reproduce": "Re-run the published experiments beside the printed numbers.",
    "verify": "Check every statement of the ledger.",
    "inspect": "Measure every layer of a model, and bound the whole.",
    "compare": "Show what changed between two models, layer by layer.",
    "initialize": "Minimise the convolutional similarity of a model's kernels before training.",
    "study": "Run a study of one's own: descents on kernels under every combination of some settings.",
    "train": "Train networks with and without the sources' methods, and compare them in pairs.",
    "doctor": "Say what is found here: versions, engines, GPU, threads, caches, extras.",
}
"""What each command does, in the order of the help; the module of the same name adds it to the application."""


class _Commands(TyperGroup):
    """Commands whose modules are imported when they are called, so that help costs no more than the parser.

    Ctrl-C aborts them: the parser's own answer to it differs between versions, and some say nothing.
    """

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the parser's own signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        if self.listing:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name])
        importlib.import_module(f"convla.cli.{cmd_name}")
        return typer.main.get_group(app).commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True
        super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise typer.Abort from interrupt


app = typer.Typer(
    cls=_Commands,
    help="The numerical linear algebra of convolutional layers, checked against the published theory.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line on `arguments` and return the exit code: 0, 1, 2 for a wrong use, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal's encoding lacks is shown as an escape
            stream.reconfigure(errors="backslashreplace")
    command = typer.main.get_command(app)
    try:
        code = command.main(list(arguments), prog_name="convla", standalone_mode=False)
    except typer.Abort:
        complain("interrupted")
        return INTERRUPTED
    except (ConvlaError, ValueError, TypeError, ArithmeticError, OSError, MemoryError) as error:
        complain(reason(error))
        return 2
    except _USAGE_ERROR as error:
        if error.format_message():  # none after the help that a bare `convla` prints
            complain(error.format_message())
        return 2
    return code if isinstance(code, int) else 0


# The base of the parser's own errors; typer carries its parser, or takes it from click, depending on its version.
_USAGE_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _print_version(asked: bool) -> None:
    if asked:
        print(f"convla {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass
