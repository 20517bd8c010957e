"""How loss and gradient change along single steps, from x_t to x_{t+1}."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.estimators import joined_norms
from lsmooth.figures.house import DASHES, drawing, sequential
from lsmooth.figures.legend import place_legend
from lsmooth.figures.points import opened, spread
from lsmooth.figures.scales import linear_limits, make_linear
from lsmooth.trace.layout import Status
from lsmooth.trace.reader import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Quantity = Literal["loss", "gradient"]
_Y_LABELS = {
    "loss": r"$f(x_t + \gamma d) - f(x_t)$",
    "gradient": r"$\|\nabla f(x_t + \gamma d) - \nabla f(x_t)\|$",
}
_MARKERS = "os^Dv*P"


def segment_profile(
    data: Trace | str | os.PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    quantity: Quantity = "loss",
    ax: Axes | None = None,
    legend: bool = True,
) -> Axes:
    """Draw how the loss, or the gradient, changes along chosen steps d = x_{t+1} - x_t, one line a step.

    On a quadratic, the change of the gradient is a straight line from 0 and that of the loss a parabola; how far a
    line bends says how much the curvature changes within one step.

    Args:
        data: A trace, or its path.
        steps: Optimizer step indices, as in `Trace.steps`; by default five from the first to the last, measured well.
        quantity: "loss" draws f(x_t + gamma d) - f(x_t), to the endpoint where the trace has it; "gradient" draws
            ‖grad f(x_t + gamma d) - grad f(x_t)‖2 of all parameters.
        ax: Where to draw; a new figure in the house style by default.
        legend: Whether a legend names the steps.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: A step was not measured, none was measured well, or `quantity` is unknown.
        TraceError: The trace cannot be read.
    """
    if quantity not in _Y_LABELS:
        raise InvalidArgumentError(f"quantity={quantity!r} is neither 'loss' nor 'gradient'.")
    with opened(data) as trace:
        if not isinstance(trace, Trace):
            raise InvalidArgumentError(f"A segment is drawn from a Trace or its path, not from {type(data).__name__}.")
        rows = _rows(trace, steps)
        numbers = [int(trace.steps[row]) for row in rows]
        curves = [(_loss_along if quantity == "loss" else _gradient_along)(trace, row) for row in rows]
    with drawing(ax) as ax:
        first, last = numbers[0], numbers[-1]
        for place, (step, (gammas, values)) in enumerate(zip(numbers, curves, strict=True)):
            ax.plot(
                gammas,
                values,
                color=sequential()((step - first) / max(1, last - first)),
                linestyle=DASHES[place % len(DASHES)],
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=2.8,
                label=f"step {step}",
            )
        if quantity == "loss":
            ax.axhline(0, color="0.7", linewidth=0.6, zorder=0.5)
        make_linear(ax, "x", (-0.03, 1.03), 6)
        make_linear(ax, "y", linear_limits(*[values for _, values in curves]))
        ax.set(xlabel=r"position along the step, $\gamma$", ylabel=_Y_LABELS[quantity])
        if legend:
            # Not over the line at 0 either, which would look cut.
            zero = [(np.linspace(0, 1, 60), np.zeros(60))] if quantity == "loss" else []
            place_legend(ax, [*(_finely(*curve) for curve in curves), *zero])
    return ax


def _rows(trace: Trace, steps: Sequence[int] | None) -> list[int]:
    """Return the rows of the trace that hold the steps asked for, or some measured well, in order of time."""
    if steps is not None:
        where = {int(step): row for row, step in enumerate(trace.steps)}
        if not len(steps):
            raise InvalidArgumentError("steps= names no step; leave it out for an even choice.")
        for step in steps:
            if int(step) not in where:
                nearest = min(where, key=lambda known: abs(known - step)) if where else None
                hint = f"; the nearest that was is {nearest}." if nearest is not None else "; none was."
                raise InvalidArgumentError(f"Step {step} was not measured in {trace.path}{hint}")
        return sorted(where[int(step)] for step in steps)
    if not len(trace):
        raise InvalidArgumentError(f"{trace.path}: no step has been measured yet; there is nothing to draw.")
    well = np.flatnonzero(trace.status == Status.MEASURED)
    if not len(well):
        raise InvalidArgumentError(
            f"{trace.path} has no step that was measured well; see `lsmooth info` for why steps were flagged."
        )
    return [int(well[place]) for place in spread(len(well), 5)]


def _loss_along(trace: Trace, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    here = slice(row, row + 1)
    start = float(trace.loss[row])
    gammas, values = [0.0, *trace.gammas.tolist()], [start, *trace.read("loss_along", here)[0].tolist()]
    if trace.has("loss_next") and 1.0 not in gammas:
        gammas.append(1.0)
        values.append(float(trace.read("loss_next", here)[0]))
    return np.array(gammas), np.array(values) - start


def _gradient_along(trace: Trace, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    everything = [list(range(len(trace.parameters)))]
    change = joined_norms(trace.read("grad_diff", slice(row, row + 1)), everything)[0, :, 0]
    return np.concatenate([[0.0], trace.gammas]), np.concatenate([[0.0], change])


def _finely(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points along the lines between a curve's points, for a legend to keep clear of."""
    dense = np.linspace(x.min(), x.max(), 60)
    order = np.argsort(x)
    return dense, np.interp(dense, x[order], y[order])
