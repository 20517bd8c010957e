"""The gradients of one evaluation, on their way to the quantities that are computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lsmooth.measure.row import Row
from lsmooth.replay.evaluation import Consumer
from lsmooth.trace.layout import Status

if TYPE_CHECKING:
    from lsmooth.loop.step import Step


class Delivery:
    """Hands the gradients of one evaluation on as they arrive, and knows which did not arrive.

    Args:
        step: The step that is measured.
        row: Its row. It is flagged `OTHER_GRADIENT`, and nothing is handed on, where the evaluation has overwritten
            the step's own gradient.
        hand_on: Takes positions of parameters, and their gradients.
    """

    def __init__(self, step: Step, row: Row, hand_on: Consumer) -> None:
        self._step = step
        self._row = row
        self._hand_on = hand_on
        self._arrived: set[int] = set()

    def take(self, positions: Sequence[int], gradients: Sequence[Tensor]) -> None:
        """Hand on gradients that have arrived, by position of their parameters."""
        if self._step.gradient.overwritten(positions, gradients):
            self._row.flags |= Status.OTHER_GRADIENT
            return
        self._arrived.update(positions)
        self._hand_on(positions, gradients)

    def missing(self) -> list[tuple[int, Tensor]]:
        """Return position and gradient at x_t of each tensor whose gradient did not arrive, and counts as 0."""
        own = self._step.gradient.tensors
        return [(i, first) for i, first in enumerate(own) if first is not None and i not in self._arrived]
