"""The `lsmooth` command. Each command is a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from lsmooth import __version__
from lsmooth.cli.encoding import print_any_text
from lsmooth.errors import LsmoothError

# The groups of `lsmooth --help`: the commands of each with their lines. The module lsmooth.cli.<name> holds a click
# command called `command`.
GROUPS = {
    "Record a run": {
        "demo": "Train a small Transformer, draw Figures 1 and 3, print L0 and L1.",
        "train": "Run one of the paper's training runs and record a trace.",
        "tasks": "List the training runs, and the folders with their data.",
    },
    "Look at a trace": {
        "info": "Print what a trace holds: run, measured and flagged steps, size.",
        "tail": "Follow a trace while it is being written.",
        "plot": "Draw the figures of a trace.",
        "report": "Write one interactive page about a run.",
        "estimate": "Print L0 and L1 by module or coordinate, or which law holds.",
        "advise": "Print what a trace means for learning rate, clipping and momentum.",
        "export": "Write a trace as a table: CSV, Parquet or netCDF.",
    },
    "Compare optimizers": {
        "compare": "Train with several optimizers and seeds; print a table, draw curves.",
    },
}
COMMANDS = {name: text for commands in GROUPS.values() for name, text in commands.items()}


class _Commands(click.Group):
    """A group that knows the names of its commands, and their lines of help, without importing their modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lsmooth.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, COMMANDS))
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), text) for name, text in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from lsmooth.errors import unknown_name

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(str(unknown_name("command", args[0], COMMANDS)))
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command; an LsmoothError, an OSError or a lack of memory ends in one sentence and exit code 1."""
        print_any_text()
        try:
            return super().main(*args, **kwargs)
        except LsmoothError as error:
            message = str(error)
        except BrokenPipeError:
            # The program that reads the output (head, less) has ended; the user made no mistake.
            sys.stderr.close()
            sys.exit(1)
        except OSError as error:
            if error.strerror is None:
                raise
            place = f"{error.filename}: " if error.filename is not None else ""
            message = f"{place}{error.strerror}."
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            message = f"There is not enough memory for these sizes ({reason}); choose smaller ones."
        from lsmooth.trace.attributes import printable

        # A file may be named by anyone, and a terminal obeys control characters.
        click.echo(f"Error: {printable(message)}", err=True)
        sys.exit(1)


def _lacks_memory(error: Exception) -> bool:
    """Return whether an allocation failed, or its size did not fit into 64 bits: torch has no class for these."""
    words = ("allocate memory", "out of memory", "size calculation overflowed", "invalid size, tensor size is negative")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lsmooth")
def main() -> None:
    """Measure how smooth a training loss really is: local Lipschitz constants, L0 and L1, layer by layer."""
