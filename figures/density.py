"""All coordinates of a tensor at once, counted by the size of their derivative and by their smoothness."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LogNorm

from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.figures.axis_labels import BOTH_ENDS_LABEL, INTERPOLATED_LABEL, Y_LABEL
from lsmooth.figures.house import drawing, sequential
from lsmooth.figures.legend import place_legend
from lsmooth.figures.points import Data, opened, points_of
from lsmooth.figures.scales import LogLabels, LogTicks, make_log, percent
from lsmooth.trace.density import Density
from lsmooth.trace.reader import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

# Bins per axis, where points are given and not counts.
_BINS = 60


def coordinate_density(
    data: Data | Density,
    *,
    parameter: str | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
    legend: bool = True,
) -> Axes:
    """Draw counts of coordinates over the plane of derivative size and smoothness, summed over all measured steps.

    Args:
        data: A trace recorded with `Recorder(densities=True)`, its path, or what `Trace.density(…)` returns; or points
            of followed coordinates to be counted: `Trace.cloud("coordinate")` or its DataFrame.
        parameter: Which tensor of a trace; all of them together by default.
        ax: Where to draw; a new figure in the house style by default.
        colorbar: Whether the colour scale stands beside the Axes.
        legend: Whether a legend says what share of the points has no place: coordinates that did not move at a step,
            whose gradient or estimate is 0, or lies beyond the grid.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: Nothing was counted, or there is no such parameter.
        TraceError: The trace cannot be read, or was recorded without densities.
    """
    label = BOTH_ENDS_LABEL
    with opened(data) if not isinstance(data, Density) else nullcontext(data) as data:
        if isinstance(data, Density):
            density, label = data, INTERPOLATED_LABEL
        elif isinstance(data, Trace):
            density, label = _of_trace(data, parameter), INTERPOLATED_LABEL
        else:
            density = _counted(data)
    if not density.counts.any():
        raise InvalidArgumentError(
            f"No coordinate{f' of {parameter}' if parameter else ''} moved at any step that was measured well; there "
            "is nothing to draw."
        )
    with drawing(ax) as ax:
        mesh = _draw_counts(ax, density)
        ax.set(xlabel=label, ylabel=Y_LABEL)
        if colorbar:
            bar = ax.figure.colorbar(
                mesh, ax=ax, label="coordinates and steps in a cell", aspect=30, pad=0.02, fraction=0.08
            )
            bar.outline.set_visible(False)
            bar.ax.yaxis.set_major_locator(LogTicks())
            bar.ax.yaxis.set_major_formatter(LogLabels())
        if legend and density.left_out:
            share = 100 * density.left_out / (density.left_out + int(density.counts.sum()))
            ax.plot([], [], linestyle="none", label=f"not shown: {percent(share)}")
            filled = np.argwhere(density.counts)
            place_legend(ax, [(density.grad_edges[filled[:, 0]], density.smoothness_edges[filled[:, 1] + 1])])
    return ax


def _draw_counts(ax: Axes, density: Density) -> QuadMesh:
    """Draw the counts as colours, with the axes around the cells that have any."""
    counts, grad_edges, smoothness_edges = density.counts, density.grad_edges, density.smoothness_edges
    mesh = ax.pcolormesh(
        grad_edges,
        smoothness_edges,
        np.ma.masked_equal(counts, 0).T,
        # Light for few and dark for many, so that the scale begins near the white of empty cells.
        cmap=sequential().reversed(),
        norm=LogNorm(1, max(2, int(counts.max()))),
        rasterized=True,
    )
    columns, rows = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
    make_log(ax, "x", (grad_edges[columns[0]], grad_edges[columns[-1] + 1]))
    make_log(ax, "y", (smoothness_edges[rows[0]], smoothness_edges[rows[-1] + 1]))
    return mesh


def _of_trace(trace: Trace, parameter: str | None) -> Density:
    if not trace.has_densities:
        raise TraceError(
            f"{trace.path} was recorded without densities; record with Recorder(densities=True) to count all, "
            'or draw trace.cloud("coordinate"), the followed ones.'
        )
    if parameter is not None:
        return trace.density(parameter)
    if not trace.parameters:
        raise InvalidArgumentError(f"{trace.path} has no parameters; there is nothing to draw.")
    # All tensors are counted on one grid.
    first, everything = trace.density(trace.parameters[0]), trace.density_counts()
    counts = everything.counts.sum(axis=0)
    points = int(trace.parameter_sizes.sum()) * everything.steps
    return replace(first, parameter="", counts=counts, left_out=points - int(counts.sum()))


def _counted(data: Data) -> Density:
    """Count points on a grid that is even in logarithms."""
    series = points_of(data)
    keep = [points.drawable(log=True) & points.usable for points in series]
    total, kept = sum(len(points) for points in series), sum(int(good.sum()) for good in keep)
    grad_edges = smoothness_edges = np.array([1.0, 10.0])
    counts = np.zeros((1, 1))
    if kept:
        x = np.concatenate([np.log10(points.grad_norm[good]) for points, good in zip(series, keep, strict=True)])
        y = np.concatenate([np.log10(points.smoothness[good]) for points, good in zip(series, keep, strict=True)])
        counts, x_edges, y_edges = np.histogram2d(x, y, bins=_BINS)
        grad_edges, smoothness_edges = 10.0**x_edges, 10.0**y_edges
    steps = len(np.unique(np.concatenate([points.steps for points in series]))) if series else 0
    return Density("", grad_edges, smoothness_edges, counts.astype(np.int64), steps, total - kept)
