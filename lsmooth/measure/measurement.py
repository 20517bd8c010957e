"""Measures one step: evaluates its gradient along its segment, and shows it to every quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lsmooth.measure.delivery import Delivery
from lsmooth.measure.quantities import Point, Quantity
from lsmooth.measure.row import Row
from lsmooth.replay.evaluation import Evaluation

if TYPE_CHECKING:
    from lsmooth.loop.step import Step
    from lsmooth.measure.probes import Probes
    from lsmooth.replay.evaluation import Replay

# x_t, where a second evaluation shows whether the closure computes the same function again.
CHECK = Point(0.0)


def points_of(gammas: Sequence[float], endpoint: bool) -> list[Point]:
    """Return the points of a segment in the order of evaluation; a point at gamma = 1 also serves as the endpoint."""
    points = [Point(gamma, i, endpoint and gamma == 1.0) for i, gamma in enumerate(gammas)]
    if endpoint and not any(point.endpoint for point in points):
        points.append(Point(1.0, None, True))
    return points


def measure(
    step: Step,
    evaluation: Evaluation,
    quantities: Sequence[Quantity],
    points: Sequence[Point],
    row: Row,
    keeping: Probes | None = None,
    *,
    autocast: bool = True,
) -> None:
    """Fill the row of a step that has been taken; afterwards everything but the row is what it was.

    At each point the step's loss is evaluated again, and each quantity sees the gradients as they arrive. A borrowed
    gradient that training has changed is first evaluated again at x_t.

    Args:
        step: The step.
        evaluation: Evaluates its loss.
        quantities: The quantities to measure.
        points: The points of the segment.
        row: Filled in.
        keeping: Probes that evaluate x_{t+1} themselves and keep the result for the next step; None for none.
        autocast: False evaluates losses without autocast, also loss and gradient at x_t.
    """
    try:
        step.segment.end()
        changed = autocast and step.gradient.read_again(row)
        step = step if autocast else step.without_autocast()
        with evaluation.set_aside(step) as replay:
            if changed or not autocast:
                step = _begun_again(step, replay, row, keeps_loss=autocast)
            for quantity in quantities:
                quantity.at_start(step, row)
            for point in points:
                # The changed gradient is gone, so that there is nothing to compare a second evaluation with.
                if changed and point == CHECK:
                    continue
                delivery = Delivery(step, row, partial(_show_arrived, quantities, point, step))
                if keeping is not None and point.gamma == 1.0:
                    loss = keeping.at_end(step, replay, delivery.take)
                else:
                    loss = replay.at(point.gamma, delivery.take)
                row.evaluated = True
                _show_missing(quantities, point, delivery)
                for quantity in quantities:
                    quantity.at_point(point, loss, row, step)
            for quantity in quantities:
                quantity.at_last(row, step)
            for quantity in quantities:
                quantity.further(replay, row, step)
    except BaseException:
        for quantity in quantities:
            quantity.clear()
        raise


def _begun_again(step: Step, replay: Replay, row: Row, *, keeps_loss: bool) -> Step:
    """Evaluate the gradient at x_t again, set it as the step's gradient, and return the step.

    The loss is evaluated again too, unless `keeps_loss` keeps that of training.
    """
    row.evaluated = True
    loss, gradients = replay.loss_and_gradients_at_start()
    step.gradient.replace(gradients)
    return step if keeps_loss else replace(step, loss=loss)


def _show_arrived(
    quantities: Sequence[Quantity], point: Point, step: Step, positions: Sequence[int], gradients: Sequence[Tensor]
) -> None:
    for quantity in quantities:
        quantity.arrived(point, positions, gradients, step)


@torch.no_grad()
def _show_missing(quantities: Sequence[Quantity], point: Point, delivery: Delivery) -> None:
    for position, first in delivery.missing():
        for quantity in quantities:
            quantity.absent(point, position, first)
