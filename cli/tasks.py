"""`lsmooth tasks`: list the tasks, and the folders with their data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lsmooth.tasks.task import Task

# Without --data, these folders are searched, and their subfolders named after the tasks.
FOLDERS = (".", "data")


@click.command("tasks", epilog="Example: lsmooth tasks --data ~/datasets")
@click.option(
    "--data",
    "folders",
    metavar="DIR",
    multiple=True,
    help="Folder to look for data in, with or without subfolders named after the tasks; may be repeated.  "
    "[default: . and ./data]",
)
def command(folders: tuple[str, ...]) -> None:
    """List the tasks, and the folders where their data was found.

    The optimizers of a task are those that the paper ran on it, with their hyperparameters; the first is the default.
    `lsmooth train` takes any other optimizer too, with its usual hyperparameters.

    Every task has a built-in stand-in for its data, so that it can be trained without any files.
    """
    from lsmooth import tasks
    from lsmooth.errors import DataError

    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"There is no folder {folder} to look for data in.")
    for name in tasks.NAMES:
        for line in _lines(tasks.get(name), folders or FOLDERS):
            click.echo(line)


def _lines(task: Task, folders: tuple[str, ...]) -> list[str]:
    from importlib.util import find_spec

    from lsmooth import optim
    from lsmooth.cli.table import listed

    optimizers = []
    for name in (task.optimizer, *(other for other in optim.NAMES if other != task.optimizer)):
        values = task.optimizer_defaults(name, "paper")
        if values:
            optimizers.append(", ".join([name, *(f"{key} {value}" for key, value in values.items())]))
    looked = [place for folder in folders for place in (Path(folder), Path(folder) / task.name)]
    found = [place for place in looked if any(next(place.glob(sign), None) for sign in task.signs)]
    if found:
        folder = f"found: --data {' or --data '.join(map(str, found))}"
    else:
        folder = f"not found in {', '.join(str(place) for place in looked)}; looked for {task.files}"
    hub = task.hub + (" (--data hub)" if find_spec("datasets") else "; needs pip install 'lsmooth[data]'")
    return [
        f"{task.name}: {task.summary}",
        *listed(
            [
                ("shows", task.figure),
                *zip(["optimizer", *[""] * len(optimizers)], optimizers, strict=False),
                ("stand-in", "built in; used without --data"),
                ("folder", folder),
                ("hub", hub),
            ]
        ),
    ]
