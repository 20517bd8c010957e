"""Send what is measured to where a run is watched: TensorBoard, Weights & Biases, MLflow, a function of one's own."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lsmooth.errors import InvalidArgumentError
from lsmooth.trace.grouping import By, group_parameters

if TYPE_CHECKING:
    from lsmooth.measure.handover import GroupMeasurement, Measurement

# What is sent of a step: each is a name, and how the value is read from a `Measurement`; None for none.
OF_STEP: Mapping[str, Callable[[Measurement], float | None]] = {
    "lsmooth/smoothness": lambda step: step.smoothness,
    "lsmooth/grad_norm": lambda step: step.grad_norm,
    "lsmooth/2_over_lr": lambda step: 2 / step.lr if step.lr > 0 else None,
    "lsmooth/critical_lr": lambda step: step.critical_lr,
    "lsmooth/edge_ratio": lambda step: step.edge_ratio,
}
# What is sent of each group of parameters. TensorBoard makes a folder of all that stands before the first slash.
OF_GROUP: Mapping[str, Callable[[GroupMeasurement], float | None]] = {
    "lsmooth_smoothness/{}": lambda group: group.smoothness,
    "lsmooth_grad_norm/{}": lambda group: group.grad_norm,
    "lsmooth_edge_ratio/{}": lambda group: group.edge_ratio,
}


def scalars_of(measurement: Measurement) -> Iterator[tuple[str, float]]:
    """Yield names and values of a step; one that is not finite is no point of a curve."""
    for name, read in OF_STEP.items():
        yield from _finite(name, read(measurement))
    for group, found in measurement.groups.items():
        for template, read_group in OF_GROUP.items():
            yield from _finite(template.format(group), read_group(found))


def _finite(name: str, value: float | None) -> Iterator[tuple[str, float]]:
    if value is not None and math.isfinite(value):
        yield name, value


def logged_groups(names: Sequence[str], log: Any, by: By | None) -> dict[str, list[int]]:
    """Return the positions of the parameters of each group that a log hears of; none where `by` is None.

    Raises:
        InvalidArgumentError: There is no log, or no parameter falls into any group.
    """
    if by is None:
        return {}
    if log is None:
        raise InvalidArgumentError(f"log_by={by!r} says what log= is sent; give a log, or leave log_by out.")
    return group_parameters(names, by)


class Scalars:
    """Passes scalars of each well measured step on: those of `OF_STEP`, and of each group those of `OF_GROUP`.

    Gradient descent on a quadratic cannot be stable where its smoothness is above 2 / lr (the largest learning rate
    counts, where parameter groups have several). A smoothness below proves nothing: it is a lower bound of the largest
    curvature. Measurements come in from the thread that writes the trace, in blocks, and
    are passed on by the training thread: whoever takes them need not expect another thread.

    Args:
        log: Anything with `add_scalar(name, value, step)`, such as TensorBoard's `SummaryWriter`, or a callable that
            takes the same.

    Raises:
        InvalidArgumentError: `log` is neither.
    """

    def __init__(self, log: Any) -> None:
        add_scalar = getattr(log, "add_scalar", None)
        if not callable(add_scalar) and not callable(log):
            raise InvalidArgumentError(
                f"log={log!r} has no add_scalar(name, value, step), and cannot be called with these itself; give a "
                "SummaryWriter, or a function of name, value and step."
            )
        self._send: Callable[[str, float, int], Any] | None = add_scalar if callable(add_scalar) else log
        self._waiting: deque[Measurement] = deque()

    def put(self, measurement: Measurement) -> None:
        """Take in a step; called on any thread."""
        self._waiting.append(measurement)

    def send(self) -> None:
        """Pass on what has come in. A log that fails is warned about and left alone: training goes on."""
        while self._waiting and self._send is not None:
            measurement = self._waiting.popleft()
            try:
                for name, value in scalars_of(measurement):
                    self._send(name, value, measurement.step)
            except Exception as error:
                self._send = None
                warnings.warn(
                    f"The log given to the recorder failed ({type(error).__name__}: {error}); nothing more is sent to "
                    "it, training and the trace go on.",
                    stacklevel=2,
                )
