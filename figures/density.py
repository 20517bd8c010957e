"""All coordinates of a tensor at once: how many of them are how smooth, at which size of their derivative."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError, unknown_name
from lsmooth.figures.coordinates import INTERPOLATED_LABEL
from lsmooth.figures.house import drawing, sequential
from lsmooth.figures.points import Data, points_of
from lsmooth.figures.scales import LogLabels, LogTicks, make_log
from lsmooth.figures.scatter import Y_LABEL
from lsmooth.trace.reader import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Bins a side, where points are given and not counts.
_BINS = 60


def coordinate_density(
    data: Any,
    *,
    parameter: str | None = None,
    ax: Axes | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw how many coordinates fell where, in the plane of derivative size and smoothness, over all measured steps.

    Args:
        data: A trace recorded with `Recorder(densities=True)`, its path, or what `Trace.density(…)` returns; or points
            of followed coordinates to be counted: `Trace.cloud("coordinate")` or its DataFrame.
        parameter: Which tensor of a trace; all of them together by default, where they were counted on one grid.
        ax: Where to draw; a new figure in the house style by default.
        colorbar: Whether the colour scale stands beside the Axes.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: Nothing was counted, or there is no such parameter.
        TraceError: The trace cannot be read, or was recorded without densities.
    """
    if isinstance(data, (str, os.PathLike)):
        with Trace(data) as trace:
            return coordinate_density(trace, parameter=parameter, ax=ax, colorbar=colorbar)
    label = INTERPOLATED_LABEL
    if isinstance(data, Trace):
        grad_edges, smoothness_edges, counts = _of_trace(data, parameter)
    elif hasattr(data, "grad_edges"):
        grad_edges, smoothness_edges, counts = data.grad_edges, data.smoothness_edges, data.counts
    else:
        label = r"smaller of both ends' $|\partial_j f|$"
        grad_edges, smoothness_edges, counts = _counted(data)
    if not counts.any():
        raise InvalidArgumentError(
            f"No coordinate{f' of {parameter}' if parameter else ''} moved at any step that was measured well; there "
            "is nothing to draw."
        )
    columns, rows = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
    with drawing(ax) as ax:
        mesh = ax.pcolormesh(
            grad_edges,
            smoothness_edges,
            np.ma.masked_equal(counts, 0).T,
            # Few are light and many dark, on paper that is white where there is none.
            cmap=sequential().reversed(),
            norm=LogNorm(1, max(2, int(counts.max()))),
            rasterized=True,
        )
        make_log(ax, "x", (grad_edges[columns[0]], grad_edges[columns[-1] + 1]))
        make_log(ax, "y", (smoothness_edges[rows[0]], smoothness_edges[rows[-1] + 1]))
        ax.set(xlabel=label, ylabel=Y_LABEL)
        if colorbar:
            bar = ax.figure.colorbar(
                mesh, ax=ax, label="coordinates and steps in a cell", aspect=30, pad=0.02, fraction=0.08
            )
            bar.outline.set_visible(False)
            bar.ax.yaxis.set_major_locator(LogTicks())
            bar.ax.yaxis.set_major_formatter(LogLabels())
    return ax


def _of_trace(trace: Any, parameter: str | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if not getattr(trace, "has_densities", False):
        raise TraceError(
            f"{trace.path} was recorded without densities; record with Recorder(densities=True), or draw the followed "
            'coordinates: coordinate_density(trace.cloud("coordinate")).'
        )
    if parameter is not None and parameter not in trace.parameters:
        raise unknown_name("parameter", parameter, trace.parameters)
    first = trace.density(parameter or trace.parameters[0])
    counts = np.array(first.counts, dtype=np.int64)
    if parameter is None:
        for name in trace.parameters[1:]:
            other = trace.density(name)
            same = np.array_equal(other.grad_edges, first.grad_edges) and np.array_equal(
                other.smoothness_edges, first.smoothness_edges
            )
            if not same:
                raise InvalidArgumentError(
                    f"{trace.path} counts its parameters on different grids; name one, such as parameter="
                    f"{trace.parameters[0]!r}."
                )
            counts += other.counts
    return np.asarray(first.grad_edges), np.asarray(first.smoothness_edges), counts


def _counted(data: Data) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Count points on a grid that is even in logarithms."""
    series = points_of(data)
    keep = [points.drawable(log=True) & points.usable for points in series]
    if not any(good.any() for good in keep):
        return np.array([1.0, 10.0]), np.array([1.0, 10.0]), np.zeros((1, 1), dtype=np.int64)
    x = np.concatenate([np.log10(points.grad_norm[good]) for points, good in zip(series, keep, strict=True)])
    y = np.concatenate([np.log10(points.smoothness[good]) for points, good in zip(series, keep, strict=True)])
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=_BINS)
    return 10.0**x_edges, 10.0**y_edges, counts.astype(np.int64)
