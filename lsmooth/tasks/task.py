"""What every task gives the training loop: data, a model, batches that can be found again, a loss, and metrics.

A task is one file. It defines a frozen dataclass of `Settings` (every hyperparameter of model, data and schedule), a
`Problem` (one run: the model and the batches of one seed), and a `Task` that names them and holds the paper's values:

    class MySettings(Settings): ...     # model sizes, dropout, ... beyond batch_size, epochs, steps, max_norm
    class MyProblem(Problem): ...       # __init__ builds the model; batches, drawn, loss, metrics, baseline, lr_factor
    class MyTask(Task): ...             # settings, optimizer_defaults, find_data, problem

and is entered in `lsmooth.tasks`. The training loop (`lsmooth.tasks.training`) does the rest: optimizer, learning rate,
clipping, mixed precision, checkpoints, the recorder.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lsmooth.errors import InvalidArgumentError, unknown_name

Preset = Literal["paper", "small"]
Split = Literal["valid", "test"]
S = TypeVar("S", bound="Settings")


# The product of two counts of this size still fits into the 64 bits of PyTorch, NumPy and HDF5.
LARGEST_COUNT = 10**9
# float32 holds no larger number.
LARGEST_FLOAT = 3.4e38
# Layers are built one by one; a larger number would fill the memory.
_LARGEST = {"layers": 1000}
# Prefixes of settings that are probabilities: shares of something dropped or smoothed.
_PROBABILITIES = ("dropout", "weight_drop", "label_smoothing")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hyperparameters of a run that are not the optimizer's; a task's own settings add to these.

    Attributes:
        batch_size: Examples (or parallel streams of text) in a batch.
        epochs: Passes over the training data.
        steps: Optimizer steps after which the run ends, within any epoch; None for all epochs.
        max_norm: Clip the gradient to this 2-norm before each step; None for no clipping.
        report_every: Optimizer steps between two evaluations and reports; None for one after each epoch.
    """

    batch_size: int
    epochs: int
    steps: int | None = None
    max_norm: float | None = None
    report_every: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise InvalidArgumentError(f"{name}={value} is not a positive number.")
            if isinstance(value, int) and value > _LARGEST.get(name, LARGEST_COUNT):
                raise InvalidArgumentError(f"{name}={value} is more than {_LARGEST.get(name, LARGEST_COUNT)}.")
            if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
                raise InvalidArgumentError(f"{name}={value} is not a finite number of float32.")
            if name == "lr_decay" and not 0 <= value <= 1:
                raise InvalidArgumentError(f"{name}={value} is not a factor in [0, 1].")
            if isinstance(value, float) and name.startswith(_PROBABILITIES) and not 0 <= value < 1:
                raise InvalidArgumentError(f"{name}={value} is not a probability in [0, 1).")
        heads = getattr(self, "heads", 1)
        width = getattr(self, "width", getattr(self, "embedding", heads))
        if width % heads:
            raise InvalidArgumentError(f"heads={heads} do not divide a width of {width}; choose a divisor of it.")
        if self.max_norm is not None and not self.max_norm > 0:
            raise InvalidArgumentError(f"max_norm={self.max_norm} is not a positive norm; use none for no clipping.")

    def replaced(self: S, changes: Mapping[str, Any]) -> S:
        """Return the settings with some fields changed; a value given as text is read as the field's type.

        Raises:
            InvalidArgumentError: There is no such field (the close ones are named), or the text is not of its type.
        """
        hints = typing.get_type_hints(type(self))
        values: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in hints:
                raise unknown_name("setting", name, hints)
            values[name] = read_value(name, value, hints[name]) if isinstance(value, str) else value
        return dataclasses.replace(self, **values)


def read_value(name: str, text: str, kind: Any) -> Any:
    """Return `text` as a value of the type `kind`: int, float, bool, str, a tuple of one of them, or `X | None`.

    Raises:
        InvalidArgumentError: The text cannot be read as that type.
    """
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        options = typing.get_args(kind)
        if type(None) in options and text.lower() == "none":
            return None
        kind = next(option for option in options if option is not type(None))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return tuple(read_value(name, part.strip(), item) for part in text.strip("()").split(",") if part.strip())
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}[text.lower()]
        if kind in (int, str):
            return kind(text)
        if kind is float:
            value = float(text)
            if not abs(value) <= LARGEST_FLOAT:
                raise InvalidArgumentError(f"{name}={text} is not a finite number of float32.")
            return value
    except InvalidArgumentError:
        raise
    except (ValueError, KeyError):
        pass
    raise InvalidArgumentError(f"{name}={text} cannot be read as {getattr(kind, '__name__', kind)}.")


@dataclass(frozen=True)
class Data:
    """A data set that was found; a task's own data adds the arrays.

    Attributes:
        origin: Where it came from, in words for the user: the stand-in's name, the folder, the hub's name for it.
        stand_in: Whether it is the built-in stand-in rather than the paper's data set.
    """

    origin: str
    stand_in: bool

    @property
    def has_test(self) -> bool:
        """Whether there is a "test" split, which comparisons end with."""
        return True


@dataclass(frozen=True)
class Baseline:
    """The training loss of the best guess without input, with its name: a model below it has learned something."""

    name: str
    loss: float


D = TypeVar("D", bound=Data)
Batch = Any
Carried = Any


class Problem(ABC):
    """One run of a task: the model of one seed, the batches in their order, the loss of a batch, the metrics.

    All randomness of model and loss comes from torch's global generators; the order of batches depends on the seed and
    the epoch alone (`epoch_generator`), so that a run continues from a checkpoint exactly.

    Args:
        settings: Hyperparameters.
        model: The model, on the device on which it is trained.
        seed: The run's seed.
        steps_per_epoch: Optimizer steps in an epoch; about so many, where epochs differ in length.
        examples: How many training examples there are for probes to draw from.

    Attributes:
        loss_is_a_sum: Whether `loss` is a sum over the examples of a batch, not a mean.
    """

    loss_is_a_sum: ClassVar[bool] = False

    def __init__(self, settings: Settings, model: nn.Module, *, seed: int, steps_per_epoch: int, examples: int) -> None:
        if steps_per_epoch < 1:
            raise InvalidArgumentError(
                f"The training data is too little for one batch of {settings.batch_size}; use a smaller batch_size."
            )
        self.model = model
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.examples = examples
        self.epochs = settings.epochs
        self.max_steps = settings.steps
        self.total_steps = settings.steps or settings.epochs * steps_per_epoch

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the training batches of an epoch, on the model's device: the same ones whenever it is called."""

    @abstractmethod
    def drawn(self, which: Tensor, rng: np.random.Generator) -> Batch:
        """Return training examples as a batch, on the model's device, for a probe.

        Args:
            which: Indices of the examples, from 0 to `examples` - 1: int64 (n,), on the CPU.
            rng: Where their augmentation is drawn from, if they have any.
        """

    @abstractmethod
    def loss(self, batch: Batch, carried: Carried) -> tuple[Tensor, Carried]:
        """Return the training loss of a batch, and what goes on to the next batch of the epoch.

        It is evaluated several times on the same arguments at measured steps, and must not change them or anything
        else that it depends on.

        Args:
            batch: One of `batches`.
            carried: What the last call of the epoch returned, detached (a recurrent model's hidden state); None for
                the first batch of an epoch.
        """

    @abstractmethod
    def metrics(self, split: Split) -> dict[str, Tensor | float]:
        """Compute the metrics on a split, in evaluation mode and without gradients (see `evaluate`).

        They hold `"loss"`, comparable with the training loss without its regularisation, and the task's `metric`.
        """

    @abstractmethod
    def baseline(self) -> Baseline:
        """Return the loss of the best guess that looks at no input (unigram entropy, ln 10, ...)."""

    def compile(self) -> None:
        """Have the model compiled by torch.compile when it is first called."""
        self.model.compile()

    def lr_factor(self, step: int, epoch: int, batch: Batch) -> float:
        """Return the factor on the learning rate at an optimizer step (the schedule); 1 by default.

        Args:
            step: Optimizer step, counted from 0 over the whole run.
            epoch: Epoch, counted from 0.
            batch: The step's batch.
        """
        return 1.0

    def clip_factor(self, step: int, epoch: int, batch: Batch) -> float:
        """Return the factor at a step on the threshold of an optimizer that clips on its own; 1 by default.

        Args:
            step: Optimizer step, counted from 0 over the whole run.
            epoch: Epoch, counted from 0.
            batch: The step's batch.
        """
        return 1.0

    def shown_loss(self, loss: Tensor, batch: Batch, carried: Carried) -> Tensor:
        """Return the step's loss as it is shown and kept: comparable with the metrics' `"loss"`, a scalar tensor.

        The loss that is trained on may be another: a sum over a batch, or one with penalties. It is what smoothness
        is measured of.

        Args:
            loss: What `loss` returned for the batch, detached.
            batch: The batch.
            carried: What `loss` returned to be carried on, detached.
        """
        return loss

    def after_step(self) -> None:  # noqa: B027  most problems do nothing
        """Called after each optimizer step, for example to average weights; does nothing by default."""

    def after_report(self, split: Split, metrics: Mapping[str, float]) -> None:  # noqa: B027
        """Called after each report with its metrics on the evaluated split; does nothing by default."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs beyond model, optimizer and position; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from where `state_dict` was taken."""

    def evaluate(self, split: Split) -> dict[str, float]:
        """Return the metrics on a split as numbers; the model is in training mode afterwards, as before."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                found = self.metrics(split)
        finally:
            self.model.train(training)
        return {name: float(value) for name, value in found.items()}


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a generator on the CPU whose draws depend on seed and epoch alone."""
    # Mersenne twisters with neighbouring seeds are independent; the factor keeps (seed, epoch) pairs apart.
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


class Task(ABC, Generic[S, D]):
    """One of the paper's training runs.

    Attributes:
        name: Its name on the command line.
        summary: One line: model and data.
        figure: The paper's figure or table that it reproduces.
        files: The files that `--data DIR` looks for, in words.
        signs: Globs of file names by which a folder is recognised as this data set, without reading the files.
        hub: Public name of the data set for `--data hub`.
        optimizer: The optimizer used by default.
        metric: The metric that settings are chosen by and that tables show, one of those of `Problem.metrics`.
        higher_is_better: Whether a larger metric is a better one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    figure: ClassVar[str]
    files: ClassVar[str]
    signs: ClassVar[tuple[str, ...]]
    hub: ClassVar[str]
    optimizer: ClassVar[str]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = False

    @abstractmethod
    def settings(self, preset: Preset) -> S:
        """Return the hyperparameters of a preset: the paper's, or some that a laptop can run in two minutes."""

    @abstractmethod
    def optimizer_defaults(self, optimizer: str, preset: Preset) -> dict[str, Any]:
        """Return the hyperparameters that an optimizer (`lsmooth.optim.NAMES`) has in this task, lr among them.

        Empty for an optimizer that the paper did not run on it.
        """

    @abstractmethod
    def find_data(self, source: str | None) -> D:
        """Find the data set.

        Args:
            source: None for the built-in stand-in; a folder with the data set's usual files; "hub" for the Hugging
                Face hub under the task's `hub` name, or "hub:NAME" for another name or a local folder of that kind.

        Raises:
            DataError: It is not there; the message names the files that were looked for.
        """

    @abstractmethod
    def problem(self, settings: S, data: D, *, seed: int, device: torch.device, hold_out: bool) -> Problem:
        """Build model and batches; torch's generators have been seeded (see `build`)."""

    def build(
        self, settings: S, data: D, *, seed: int, device: torch.device | str = "cpu", hold_out: bool = True
    ) -> Problem:
        """Return one run of the task: the same one for the same arguments.

        Args:
            settings: Hyperparameters.
            data: What `find_data` found.
            seed: For the initial weights, the order of batches, dropout, and all else that is random.
            device: Where it is trained.
            hold_out: Keep part of the training data out, as the "valid" split, where the data set has none of its
                own. Without it all training data is trained on, and such a data set has only the "test" split.
        """
        torch.manual_seed(seed)
        return self.problem(settings, data, seed=seed, device=torch.device(device), hold_out=hold_out)
