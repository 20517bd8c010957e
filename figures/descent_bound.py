"""Iterations of gradient descent and of generalized SignSGD as gradients grow, against the lower bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.figures.house import DASHES, LINES, drawing
from lsmooth.figures.legend import place_legend
from lsmooth.figures.scales import log_limits, make_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("M_L1", "optimizer", "iterations", "bound")


def lower_bound(frame: pd.DataFrame, *, ax: Axes | None = None, legend: bool = True) -> Axes:
    """Draw how many iterations each optimizer needs as M L1 grows, and how many gradient descent needs at least.

    Both axes are logarithmic. Runs that did not arrive have no point, and the legend counts them.

    Args:
        frame: What `lsmooth.theory.lower_bound_experiment` returns: columns "M_L1", "optimizer", "iterations", "bound".
        ax: Where to draw; a new figure in the house style by default.
        legend: Whether a legend is drawn.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: A column is missing, or no run has arrived.

    Source: `lsmooth.theory.gd_lower_bound`, in the manner of Crawshaw et al. 2022, Theorem 2.
    """
    for column in COLUMNS:
        if column not in frame.columns:
            raise unknown_name("column in the frame", column, map(str, frame.columns))
    known = frame[np.isfinite(frame["iterations"]) & (frame["iterations"] > 0)]
    if not len(known):
        raise InvalidArgumentError("No run in the frame has arrived; there is nothing to draw.")
    with drawing(ax) as ax:
        for place, name in enumerate(frame["optimizer"].drop_duplicates()):
            mine = known[known["optimizer"] == name].sort_values("M_L1")
            missing = int((frame["optimizer"] == name).sum()) - len(mine)
            ax.plot(
                mine["M_L1"],
                mine["iterations"],
                color=LINES[place % len(LINES)],
                linestyle=DASHES[place % len(DASHES)],
                marker="os^D"[place % 4],
                markersize=3,
                label=f"{name} ({missing} did not arrive)" if missing else str(name),
            )
        bound = frame.drop_duplicates("M_L1").sort_values("M_L1")
        ax.plot(
            bound["M_L1"],
            bound["bound"],
            color="black",
            linewidth=0.8,
            linestyle=(0, (1, 1.2)),
            label="least for gradient descent",
        )
        make_log(ax, "x", log_limits(frame["M_L1"]))
        make_log(ax, "y", log_limits(known["iterations"], bound["bound"]))
        ax.set(xlabel="$M L_1$, the largest gradient times $L_1$", ylabel="iterations")
        if legend:
            place_legend(ax, [(known["M_L1"], known["iterations"]), (bound["M_L1"], bound["bound"])])
    return ax
