"""Send what is measured to where a run is watched: TensorBoard, Weights & Biases, MLflow, a function of one's own."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lsmooth.errors import InvalidArgumentError

if TYPE_CHECKING:
    from lsmooth.measure.handover import Measurement

NAMES = ("lsmooth/smoothness", "lsmooth/grad_norm", "lsmooth/2_over_lr", "lsmooth/critical_lr")


class Scalars:
    """Passes scalars of each well measured step on: the global smoothness, the gradient norm, 2 / lr, the critical lr.

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
            limit = 2 / measurement.lr if measurement.lr > 0 else None
            critical = measurement.critical_lr
            # An infinite one is no point of a curve.
            known = critical if critical is not None and math.isfinite(critical) else None
            try:
                for name, value in zip(
                    NAMES, (measurement.smoothness, measurement.grad_norm, limit, known), strict=True
                ):
                    if value is not None:
                        self._send(name, value, measurement.step)
            except Exception as error:
                self._send = None
                warnings.warn(
                    f"The log given to the recorder failed ({type(error).__name__}: {error}); nothing more is sent to "
                    "it, training and the trace go on.",
                    stacklevel=2,
                )
