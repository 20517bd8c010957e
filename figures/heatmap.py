"""Smoothness of every layer over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.axis_labels import y_label
from lsmooth.figures.house import drawing, sequential
from lsmooth.figures.labels import label_rows
from lsmooth.figures.points import Data, Points, points_of
from lsmooth.figures.scales import LogLabels, LogTicks, count
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More columns than this would be too narrow for print; several steps then share one.
MOST_COLUMNS = 120
_MISSING = "#DDDDDD"


def layer_heatmap(
    data: Data,
    *,
    by: By = "module",
    displacement: Displacement = "layer",
    norm: str = "l2",
    ax: Axes | None = None,
    linear: bool = False,
    colorbar: bool = True,
) -> Axes:
    """Draw smoothness as colour over iterations (left to right) and layers (top down, in the network's order).

    Where there are many steps, several share a column, which shows their median. Light grey: no usable point.

    Args:
        data: A trace, its path, a `Cloud`, or a DataFrame of points with a column group.
        by: How parameters are grouped, as for `Trace.cloud`.
        displacement: As for `Trace.cloud`.
        norm: The geometry, as for `Trace.cloud`.
        ax: Where to draw; a new figure in the house style by default, higher for more layers.
        linear: A linear colour scale in place of a logarithmic one.
        colorbar: Whether the colour scale stands beside the Axes.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: There is no usable point, or the arguments do not go together.
        TraceError: The trace cannot be read.
    """
    series = points_of(data, by, displacement=displacement, norm=norm)
    edges, table = smoothness_table(series)
    shown = np.isfinite(table) & ((table > 0) | linear)
    if not shown.any():
        why = series[0].explain_nothing(log=not linear) if series else "There is no layer to draw."
        if any(points.drawable(log=not linear).any() for points in series):
            why = "All steps are flagged; there is no usable point to draw (see `lsmooth info`)."
        raise InvalidArgumentError(why)
    names = [points.group for points in series]
    content = (edges, np.where(shown, table, np.nan), names, linear, colorbar, y_label(series[0].norm))
    with drawing(ax, heatmap_height(len(series))) as ax:
        _draw(ax, *content)
    return ax


def heatmap_height(layers: int) -> float:
    """Return the height, in inches, of a heatmap of this many layers."""
    return min(8.0, max(2.2, 0.6 + 0.135 * layers))


def smoothness_table(series: list[Points]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the median smoothness of usable points in each of k stretches of the run, by group.

    Returns:
        Edges of the stretches in steps, float64 (k + 1,), and medians, float64 (groups, k), NaN where there is none.
    """
    steps = np.unique(np.concatenate([points.steps for points in series])) if series else np.empty(0)
    if not len(steps):
        return np.array([0.0, 1.0]), np.full((len(series), 1), np.nan)
    if len(steps) <= MOST_COLUMNS:
        inner = (steps[1:] + steps[:-1]) / 2
        first = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
        last = (steps[-1] - steps[-2]) / 2 if len(steps) > 1 else 0.5
        edges = np.concatenate([[steps[0] - first], inner, [steps[-1] + last]])
    else:
        edges = np.linspace(steps[0] - 0.5, steps[-1] + 0.5, MOST_COLUMNS + 1)
    table = np.full((len(series), len(edges) - 1), np.nan)
    for row, points in enumerate(series):
        order = np.argsort(points.steps, kind="stable")
        order = order[points.usable[order]]
        bounds = np.searchsorted(points.steps[order], edges)
        for column in range(len(edges) - 1):
            mine = order[bounds[column] : bounds[column + 1]]
            if len(mine):
                table[row, column] = np.median(points.smoothness[mine])
    return edges, table


def _draw(
    ax: Axes,
    edges: NDArray[np.float64],
    table: NDArray[np.float64],
    names: list[str],
    linear: bool,
    colorbar: bool,
    label: str,
) -> None:
    low, high = float(np.nanmin(table)), float(np.nanmax(table))
    if high <= low:
        low, high = (low / 2, high * 2) if low > 0 else (low - 1, high + 1)
    ax.set_facecolor(_MISSING)
    sns.heatmap(
        table,
        mask=np.isnan(table),
        cmap=sequential(),
        norm=Normalize(low, high) if linear else LogNorm(low, high),
        cbar=colorbar,
        cbar_kws={"label": label, "aspect": 30, "pad": 0.02, "fraction": 0.08},
        xticklabels=False,
        yticklabels=False,
        rasterized=True,
        ax=ax,
    )
    figure = ax.figure.figure
    height = ax.figure.bbox.height / figure.dpi * 72 - 30
    width = ax.figure.bbox.width / figure.dpi * 72
    meaning = label_rows(ax, names, width=0.4 * width, height=height, first=0.5)
    _label_steps(ax, edges)
    ax.set_xlabel(f"iteration{meaning}")
    bar = ax.collections[0].colorbar
    if bar is not None and not linear:
        axis = bar.ax.yaxis
        axis.set_major_locator(LogTicks())
        axis.set_major_formatter(LogLabels())
        axis.set_minor_formatter("")


def _label_steps(ax: Axes, edges: NDArray[np.float64]) -> None:
    """Label the columns, all of one width, with step numbers of the run."""
    low, high = edges[0], edges[-1]
    steps = MaxNLocator(nbins=3, integer=True, steps=[1, 2, 5, 10]).tick_values(low, high)
    shown = [step for step in steps if low <= step <= high]
    ax.set_xticks(np.interp(shown, edges, np.arange(len(edges))), [count(step) for step in shown], rotation=0)
