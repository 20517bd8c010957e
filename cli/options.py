"""The options of a training run that `train` and `compare` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from lsmooth.cli.numbers import Count

C = TypeVar("C", bound=Callable[..., Any])


def training_options(command: C) -> C:
    """Add the options that decide what a run computes; `plan_arguments` turns them into arguments of `make_plan`."""
    options = (
        click.option("--epochs", type=Count(), help="Number of passes over the training data."),
        click.option("--steps", type=Count(), help="Stop each run after this number of optimizer steps."),
        click.option(
            "--data",
            metavar="DIR|hub",
            help="Folder with the files of the data set, or `hub` to fetch it.  [default: a built-in stand-in]",
        ),
        click.option(
            "--preset",
            type=click.Choice(["paper", "small"]),
            help="Size of model and batches.  [default: paper on real data, small on the stand-in]",
        ),
        click.option(
            "--set",
            "changes",
            metavar="KEY=VALUE",
            multiple=True,
            help="Change a hyperparameter of the task or the optimizer; may be repeated.",
        ),
        click.option("--device", help="Device to train on: cpu, cuda, cuda:1.  [default: cuda where there is one]"),
        click.option("--amp", type=click.Choice(["bf16"]), help="Run forward passes in mixed precision."),
        click.option(
            "--compile",
            "compiled",
            is_flag=True,
            help="Compile the model with torch.compile. The first steps wait for the compiler.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def plan_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `make_plan` that the options of `training_options` give, `--lr` included."""
    return {
        "data": options["data"],
        "preset": options["preset"],
        "changes": _changes(options),
        "device": checked_device(options["device"]) or default_device(),
        "amp": options["amp"] is not None,
        "compile": options["compiled"],
    }


def _changes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes to the preset by name; --set comes last, so that it wins."""
    changes: dict[str, Any] = {
        key: options[name]
        for name, key in (("lr", "optimizer.lr"), ("steps", "steps"), ("epochs", "epochs"))
        if options.get(name) is not None
    }
    if options["epochs"] is not None and options["steps"] is None:
        # A preset may end after some steps; --epochs asks for whole epochs.
        changes["steps"] = None
    return changes | pairs(options["changes"])


def pairs(texts: Sequence[str], option: str = "--set") -> dict[str, str]:
    """Return texts of the form KEY=VALUE as a mapping.

    Raises:
        click.BadParameter: A text has no "=", or nothing before it.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE.", param_hint=option)
        # Hyperparameters have underscores; a name before a colon is an optimizer's.
        owner, colon, name = key.strip().rpartition(":")
        found[owner + colon + name.replace("-", "_")] = value.strip()
    return found


def checked_device(name: str | None) -> str | None:
    """Return the name of a device, or raise BadParameter if torch cannot compute on it here."""
    from lsmooth.errors import InvalidArgumentError
    from lsmooth.tasks.plan import check_device

    if name is not None:
        try:
            check_device(name)
        except InvalidArgumentError as error:
            raise click.BadParameter(str(error), param_hint="--device") from None
    return name


def default_device() -> str:
    """Return the device to train on where the user names none."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
