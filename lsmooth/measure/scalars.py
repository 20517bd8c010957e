"""Sends scalars of measured steps to a log: TensorBoard, Weights & Biases, MLflow, or a function."""

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

# The scalars of a step: a name, and a function that reads the value from a `Measurement`; None is not sent.
OF_STEP: Mapping[str, Callable[[Measurement], float | None]] = {
    "lsmooth/smoothness": lambda step: step.smoothness,
    "lsmooth/grad_norm": lambda step: step.grad_norm,
    "lsmooth/2_over_lr": lambda step: 2 / step.lr if step.lr > 0 else None,
    "lsmooth/critical_lr": lambda step: step.critical_lr,
    "lsmooth/edge_ratio": lambda step: step.edge_ratio,
}
# The scalars of each group of parameters. TensorBoard makes a folder of the part before the first slash.
OF_GROUP: Mapping[str, Callable[[GroupMeasurement], float | None]] = {
    "lsmooth_smoothness/{}": lambda group: group.smoothness,
    "lsmooth_grad_norm/{}": lambda group: group.grad_norm,
    "lsmooth_edge_ratio/{}": lambda group: group.edge_ratio,
}


def scalars_of(measurement: Measurement) -> Iterator[tuple[str, float]]:
    """Yield names and values of the scalars of a step, without values that are not finite."""
    for name, read in OF_STEP.items():
        yield from _finite(name, read(measurement))
    for group, found in measurement.groups.items():
        for template, read_group in OF_GROUP.items():
            yield from _finite(template.format(group), read_group(found))


def _finite(name: str, value: float | None) -> Iterator[tuple[str, float]]:
    if value is not None and math.isfinite(value):
        yield name, value


def logged_groups(names: Sequence[str], log: Any, by: By | None) -> dict[str, list[int]]:
    """Return the positions of the parameters in each group of parameters that is logged; empty if `by` is None.

    Args:
        names: Names of the measured parameters.
        log: The log; None for none.
        by: The grouping, as for `Trace.smoothness`.

    Raises:
        InvalidArgumentError: There is no log, or no parameter falls into any group.
    """
    if by is None:
        return {}
    if log is None:
        raise InvalidArgumentError(f"log_by={by!r} has no log= to send to; give a log, or leave log_by out.")
    return group_parameters(names, by)


class Scalars:
    """Sends the scalars `OF_STEP` of each well measured step to a log, and `OF_GROUP` of each group of parameters.

    Gradient descent on a quadratic cannot be stable where the smoothness is above 2 / lr (with the largest learning
    rate of several parameter groups). A smoothness below that proves nothing, since it is a lower bound of the largest
    curvature. Measurements arrive in blocks on the writer's thread, and are sent on the training thread, so that a log
    need not be thread-safe.

    Args:
        log: An object with `add_scalar(name, value, step)`, such as TensorBoard's `SummaryWriter`, or a function with
            these arguments.

    Raises:
        InvalidArgumentError: `log` is neither.
    """

    def __init__(self, log: Any) -> None:
        add_scalar = getattr(log, "add_scalar", None)
        if not callable(add_scalar) and not callable(log):
            raise InvalidArgumentError(
                f"log={log!r} has no add_scalar(name, value, step) and is not callable; give a "
                "SummaryWriter, or a function of name, value and step."
            )
        self._send: Callable[[str, float, int], Any] | None = add_scalar if callable(add_scalar) else log
        self._waiting: deque[Measurement] = deque()

    def put(self, measurement: Measurement) -> None:
        """Take a step; may be called on any thread."""
        self._waiting.append(measurement)

    def send(self) -> None:
        """Send the steps taken so far. If the log raises, warn and send nothing more."""
        while self._waiting and self._send is not None:
            measurement = self._waiting.popleft()
            try:
                for name, value in scalars_of(measurement):
                    self._send(name, value, measurement.step)
            except Exception as error:
                self._send = None
                warnings.warn(
                    f"The log given to the recorder failed ({type(error).__name__}: {error}); nothing more is sent to "
                    "it, and training and the trace go on.",
                    stacklevel=2,
                )
