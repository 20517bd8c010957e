"""The edge ratio over time: how close each step came to raising the loss that it was to lower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.house import DASHES, FLAGGED, LINES, drawing
from lsmooth.figures.legend import place_legend
from lsmooth.figures.points import Data, opened
from lsmooth.figures.scales import linear_limits, make_linear, make_steps, percent
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# On a quadratic, steps above this raise the loss.
_EDGE = 2.0
# The axis shows this share of the values: a single step may have a ratio of thousands.
_SHOWN = 0.99


def edge_ratio(data: Data, *, by: By = "global", ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw ⟨Delta(1), d⟩ / -⟨g, d⟩ over iterations, the line at 2, and say what share of steps is above it.

    Above 2, a step on a quadratic raises the loss; at 1 it ends where the loss is least along it. This holds of any
    optimizer, since d is the step that it took.

    Args:
        data: A trace, or its path.
        by: How parameters are grouped, as for `Trace.curvature`; at most as many groups as there are colours.
        ax: Where to draw; a new figure in the house style by default.
        legend: Whether a legend is drawn.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: There is nothing to be drawn, or there are too many groups.
        TraceError: The trace cannot be read, or holds no curvature.

    Source: Andreyev and Beneventano 2024, "Edge of Stochastic Stability", batch sharpness along the step taken.
    """
    with opened(data) as trace:
        if not isinstance(trace, Trace):
            raise InvalidArgumentError("The edge ratio is drawn from a trace, or its path, and not from points.")
        table = trace.curvature(by)
        if "edge_ratio" not in table:
            raise InvalidArgumentError(f"{trace.path} was recorded without the endpoint; record with endpoint=True.")
    known = table[np.isfinite(table.edge_ratio)]
    groups = list(known.group.cat.categories)
    if known.empty:
        raise InvalidArgumentError("No step has a finite edge ratio.")
    if len(groups) > len(LINES):
        raise InvalidArgumentError(
            f"{len(groups)} groups are more than the {len(LINES)} colours that can be told apart; group by an "
            "expression that makes fewer."
        )
    with drawing(ax) as ax:
        for place, group in enumerate(groups):
            _draw(ax, known[known.group == group], LINES[(place + 5) % len(LINES)], "" if len(groups) == 1 else group)
        above = 100 * float((known.edge_ratio[known.usable] > _EDGE).mean()) if known.usable.any() else None
        label = "edge" if above is None else f"edge ({percent(above)} of points above)"
        ax.axhline(_EDGE, color="black", linewidth=0.8, linestyle=DASHES[1], label=label, zorder=1)
        values = known.edge_ratio.to_numpy()
        low, high = np.quantile(values, [1 - _SHOWN, _SHOWN])
        outside = int(((values < low) | (values > high)).sum())
        if outside:
            ax.plot([], [], linestyle="none", label=f"outside ({outside:,})")
        make_linear(ax, "y", linear_limits(np.array([min(low, 0.0), max(high, 1.1 * _EDGE)])))
        make_steps(ax, "x")
        ax.set(xlabel="iteration", ylabel=r"edge ratio $\langle\Delta(1), d\rangle\,/\,{-\langle g, d\rangle}$")
        if legend:
            steps = known.step.to_numpy()
            place_legend(ax, [(steps, values.clip(low, high)), (steps, np.full(len(steps), _EDGE))])
    return ax


def _draw(ax: Axes, points: pd.DataFrame, colour: str, name: str) -> None:
    """Draw the points of one group, flagged ones as crosses."""
    size = 2.2 * min(1.0, max(0.35, (1500 / max(1, len(points))) ** 0.25))
    for chosen, marker, shade, label in (
        (points[points.usable], "o", colour, name or "step"),
        (points[~points.usable], "x", FLAGGED, f"flagged ({int((~points.usable).sum()):,})"),
    ):
        if len(chosen):
            ax.plot(
                chosen.step,
                chosen.edge_ratio,
                linestyle="none",
                marker=marker,
                markersize=size if marker == "o" else 3,
                markeredgewidth=0 if marker == "o" else 0.6,
                color=shade,
                label=label,
                zorder=2,
            )
