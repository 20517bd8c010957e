"""The `lsmooth` command. Each subcommand is a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from lsmooth import __version__
from lsmooth.errors import LsmoothError

# name -> line shown in `lsmooth --help`. The module lsmooth.cli.<name> holds a click command called `command`.
COMMANDS = {
    "demo": "Train a Transformer on real text, trace it, draw Figures 1 and 3, print L0 and L1.",
    "train": "Run one of the paper's training runs and trace it.",
    "compare": "Compare optimizers on a task over seeds: table, curves, results.",
    "plot": "Draw the figures of a trace.",
    "estimate": "Print L0 and L1: by module, parameter, coordinate or block.",
    "advise": "Say what a trace means for learning rate, clipping and momentum.",
    "info": "Say what is in a trace: run, steps measured and flagged, size.",
    "tail": "Follow a trace while it is being written.",
    "export": "Write a trace as a table: CSV, Parquet or netCDF.",
    "tasks": "List the tasks, and where their data was found.",
}


class _Commands(click.Group):
    """A group that knows its commands' names and one-line helps without importing their modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lsmooth.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from lsmooth.errors import unknown_name

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(str(unknown_name("command", args[0], COMMANDS)))
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; an error of lsmooth's own, or of the file system, ends as one sentence and exit code 1."""
        try:
            return super().main(*args, **kwargs)
        except LsmoothError as error:
            message = str(error)
        except BrokenPipeError:
            # The reader of our output (head, less) went away: no fault of the user's.
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            if error.strerror is None:
                raise
            place = f"{error.filename}: " if error.filename is not None else ""
            message = f"{place}{error.strerror}."
        click.echo(f"Error: {message}", err=True)
        sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lsmooth")
def main() -> None:
    """Measure how smooth a training loss really is: local Lipschitz constants, L0 and L1, layer by layer."""
