"""The plan of a run: all that decides what it computes, in plain values that go into checkpoints and result files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lsmooth import optim, tasks
from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.tasks.parallel import Parallel
from lsmooth.tasks.task import Data, Preset, Settings, Task, read_value
from lsmooth.tasks.training import TrainingRun


@dataclass(frozen=True)
class Plan:
    """One training run, to be started here or elsewhere.

    Attributes:
        task: Name of the task.
        data: Where the data is looked for: None (the stand-in), a folder, or the hub.
        preset: "paper" or "small".
        settings: Every field of the task's settings.
        optimizer: Name of the optimizer.
        hyperparameters: The optimizer's, those that are not its own defaults.
        seed: For everything that is random.
        device: Where it is trained.
        amp: Whether forward passes run in bfloat16 where that is safe and the device can.
        compile: Whether the model is compiled.
        hold_out: Whether part of the training data is kept for validation; see `Task.build`.
    """

    task: str
    data: str | None
    preset: Preset
    settings: Mapping[str, Any]
    optimizer: str
    hyperparameters: Mapping[str, Any]
    seed: int = 0
    device: str = "cpu"
    amp: bool = False
    compile: bool = False
    hold_out: bool = True

    def with_hyperparameters(self, changes: Mapping[str, Any]) -> Plan:
        """Return the plan with some hyperparameters or settings changed; text is read as their type.

        A name is looked up among the task's settings, then among the optimizer's hyperparameters; `optimizer.NAME`
        means the latter.

        Raises:
            InvalidArgumentError: There is no such name, or a value is not of its type.
        """
        task = tasks.get(self.task)
        defaults = optim.hyperparameters(self.optimizer)
        own = {field.name for field in dataclasses.fields(task.settings(self.preset))}
        of_task: dict[str, Any] = {}
        of_optimizer: dict[str, Any] = {}
        for key, value in changes.items():
            name = key.removeprefix("optimizer.")
            if key in own:
                of_task[key] = value
            elif name in defaults:
                read = read_value(name, value, hint_like(defaults[name])) if isinstance(value, str) else value
                of_optimizer[name] = read
            else:
                raise unknown_name("hyperparameter", key, [*own, *defaults])
        settings = type(task.settings(self.preset))(**self.settings).replaced(of_task)
        return dataclasses.replace(
            self,
            settings=dataclasses.asdict(settings),
            hyperparameters={**self.hyperparameters, **of_optimizer},
        )

    def typed_settings(self) -> Settings:
        """Return the settings as the task's own dataclass."""
        kind: type[Settings] = type(tasks.get(self.task).settings(self.preset))
        return kind(**self.settings)

    def start(self, data: Data | None = None, *, parallel: bool = False) -> TrainingRun:
        """Build model and optimizer, at step 0.

        Args:
            data: Data that the task found under `data` already; None to look for it.
            parallel: Whether the processes of torch.distributed train it together.
        """
        task: Task = tasks.get(self.task)
        settings = self.typed_settings()
        found = task.find_data(self.data) if data is None else data
        problem = task.build(settings, found, seed=self.seed, device=self.device, hold_out=self.hold_out)
        if self.compile:
            problem.compile()
        trained = [parameter for parameter in problem.model.parameters() if parameter.requires_grad]
        optimizer = optim.build(self.optimizer, trained, **self.hyperparameters)
        return TrainingRun(
            problem,
            optimizer,
            max_norm=settings.max_norm,
            report_every=settings.report_every,
            amp=self.amp,
            parallel=Parallel(problem) if parallel else None,
        )


def make_plan(
    task: str,
    *,
    optimizer: str | None = None,
    data: str | None = None,
    preset: Preset | None = None,
    changes: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    amp: bool = False,
    compile: bool = False,
    hold_out: bool = True,
) -> tuple[Plan, Data]:
    """Return the plan of a run with the task's defaults filled in, and the data that was found for it.

    Args:
        task: Name of the task.
        optimizer: Name of the optimizer; the task's own by default.
        data: None, a folder, or "hub"; see `Task.find_data`.
        preset: By default "small" on the stand-in and "paper" on real data.
        changes: Settings of the task or hyperparameters of the optimizer, as values or as text.
        seed: For everything that is random.
        device: Where to train.
        amp: See `Plan`.
        compile: See `Plan`.
        hold_out: See `Plan`.

    Raises:
        InvalidArgumentError: A name is unknown or a value is wrong.
        DataError: The data is not there.
    """
    chosen = tasks.get(task)
    optimizer = chosen.optimizer if optimizer is None else optimizer
    # An unknown optimizer is refused before data is read, which may take long.
    optim.hyperparameters(optimizer)
    check_device(device)
    found = chosen.find_data(data)
    preset = preset or ("small" if found.stand_in else "paper")
    if data is not None and os.path.isdir(data):
        data = os.path.abspath(data)
    plan = Plan(
        task=task,
        data=data,
        preset=preset,
        settings=dataclasses.asdict(chosen.settings(preset)),
        optimizer=optimizer,
        hyperparameters=chosen.optimizer_defaults(optimizer, preset),
        seed=seed,
        device=device,
        amp=amp,
        compile=compile,
        hold_out=hold_out,
    ).with_hyperparameters(changes or {})
    return plan, found


def check_device(device: str) -> None:
    """Raise an InvalidArgumentError if torch cannot compute on this device here."""
    try:
        # A device without memory, such as meta, has no number to read.
        torch.zeros((), device=device).item()
    except Exception as error:
        # What torch raises differs from device to device: RuntimeError, AssertionError, ModuleNotFoundError, ….
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise InvalidArgumentError(f"There is no device {device!r} here ({reason}).") from error


def hint_like(default: Any) -> Any:
    """Return the type hint of a hyperparameter with this default: a float, unless the default says otherwise."""
    if isinstance(default, tuple):
        return tuple[float, ...]
    if isinstance(default, (bool, str)):
        return type(default)
    return float | None if default is None else float
