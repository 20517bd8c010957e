"""L0 and L1 of each layer, with their intervals."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.house import COLUMN, LINES, arranging, drawing
from lsmooth.figures.labels import label_rows
from lsmooth.figures.scales import linear_limits, log_limits, make_linear, make_log
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Constant = Literal["L0", "L1"]
_LABELS = {"L0": "$L_0$", "L1": "$L_1$"}
_MARKERS = ("o", "D", "s", "^", "v")
# With more rows than this, methods are drawn on one line, not side by side.
_APART = 40
# Largest share of the figure's width that names of layers take.
_NAMES_SHARE = 0.4


def layer_constants(
    data: pd.DataFrame | Trace | str | os.PathLike[str],
    *,
    constant: Constant = "L0",
    by: By = "module",
    displacement: Displacement = "layer",
    norm: str = "l2",
    ax: Axes | None = None,
    linear: bool = False,
    legend: bool = True,
) -> Axes:
    """Draw L0 or L1 of each layer from the top down in the network's order, with its confidence interval.

    Each method of estimation has its own mark. On the logarithmic axis an estimate of 0 is an arrow at the left edge;
    a layer without an estimate (too few points) has an empty row.

    Args:
        data: What `lsmooth.estimate(trace, by=…)` returned, or a trace or its path to be estimated here.
        constant: "L0" or "L1".
        by: How a trace's parameters are grouped, as for `Trace.cloud`.
        displacement: As for `Trace.cloud`.
        norm: The geometry, as for `Trace.cloud`.
        ax: Where to draw; a new figure in the house style by default, higher for more layers.
        linear: A linear axis in place of a logarithmic one.
        legend: Whether a legend names the methods, where there are several.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: A column is missing, or no layer has an estimate.
        TraceError: The trace cannot be read.
    """
    if constant not in _LABELS:
        raise InvalidArgumentError(f"constant={constant!r} is neither 'L0' nor 'L1'.")
    frame = _estimates(data, by, displacement, norm)
    with drawing(ax, constants_height(frame["group"].nunique())) as ax:
        meaning = _draw(ax, frame, constant, linear)
        ax.set_xlabel(f"{_LABELS[constant]}{meaning}")
        if legend and frame["method"].nunique() > 1:
            handles, labels = ax.get_legend_handles_labels()
            # Above the rows: within them it would hide some.
            ax.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(labels))
    return ax


def constants_panels(
    data: pd.DataFrame | Trace | str | os.PathLike[str],
    *,
    by: By = "module",
    displacement: Displacement = "layer",
    norm: str = "l2",
    figure: Figure | SubFigure | None = None,
    linear: bool = False,
    legend: bool = True,
) -> NDArray[np.object_]:
    """Draw `layer_constants` of L0 and of L1 side by side, with the layers' names once.

    Args:
        data: As for `layer_constants`.
        by: As for `layer_constants`.
        displacement: As for `layer_constants`.
        norm: As for `layer_constants`.
        figure: An empty figure or subfigure to draw in; a new one in the house style by default.
        linear: Linear axes in place of logarithmic ones.
        legend: Whether a legend names the methods, where there are several.

    Returns:
        The two Axes, object (2,).

    Raises:
        InvalidArgumentError: A column is missing, or no layer has an estimate.
        TraceError: The trace cannot be read.
    """
    frame = _estimates(data, by, displacement, norm)
    with arranging(figure, COLUMN, constants_height(frame["group"].nunique())) as figure:
        axes: NDArray[np.object_] = figure.subplots(1, 2, sharey=True)
        for ax, constant in zip(axes, _LABELS, strict=True):
            meaning = _draw(ax, frame, constant, linear, most_ticks=3)
        axes[1].tick_params(labelleft=False)
        if meaning:
            figure.supxlabel(meaning.strip(), size=matplotlib.rcParams["axes.labelsize"])
        if legend and frame["method"].nunique() > 1:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return axes


def constants_height(layers: int) -> float:
    """Return the height, in inches, of a figure with the constants of this many layers."""
    return min(8.0, max(1.8, 0.75 + 0.15 * layers))


def _estimates(data: Any, by: By, displacement: Displacement, norm: str) -> pd.DataFrame:
    if not isinstance(data, pd.DataFrame):
        import lsmooth

        if isinstance(data, (str, os.PathLike)):
            with Trace(data) as trace:
                return _estimates(trace, by, displacement, norm)
        data = lsmooth.estimate(
            data.cloud(by, displacement=displacement, norm=norm) if isinstance(data, Trace) else data
        )
    for column in ("group", "L0", "L1"):
        if column not in data.columns:
            raise InvalidArgumentError(
                f"The DataFrame has no column {column!r}; give what lsmooth.estimate() returned, with columns group, "
                "method, L0, L1, L0_low, L0_high, L1_low, L1_high."
            )
    frame = data if "method" in data.columns else data.assign(method="estimate")
    if not np.isfinite(frame[["L0", "L1"]].to_numpy(dtype=np.float64)).any():
        reasons = frame["reason"].dropna().unique() if "reason" in frame.columns else []
        why = f" ({reasons[0]})" if len(reasons) and str(reasons[0]) else ""
        raise InvalidArgumentError(f"No layer has an estimate{why}; there is nothing to draw.")
    return frame


def _draw(ax: Axes, frame: pd.DataFrame, constant: str, linear: bool, *, most_ticks: int = 4) -> str:
    """Draw one constant of every layer, and return what the layers' abbreviated names stand for."""
    names = [str(name) for name in frame["group"].drop_duplicates()]
    methods = [str(name) for name in frame["method"].drop_duplicates()]
    _scale(ax, frame, constant, linear, most_ticks)
    apart = 0.5 / len(methods) if len(names) <= _APART else 0.0
    row_of = {name: row for row, name in enumerate(names)}
    for place, method in enumerate(methods):
        mine = frame[frame["method"].astype(str) == method]
        rows = np.array([row_of[str(name)] for name in mine["group"]], dtype=np.float64)
        rows += (place - (len(methods) - 1) / 2) * apart
        look: dict[str, Any] = {"color": LINES[place % len(LINES)], "zorder": 2.5}
        _draw_intervals(ax, mine, constant, rows, linear, look)
        look |= {
            "marker": _MARKERS[place % len(_MARKERS)],
            "markersize": 3.2 if len(names) <= _APART else 2.2,
            "markerfacecolor": look["color"] if place == 0 else "white",
        }
        _draw_estimates(ax, mine[constant].to_numpy(dtype=np.float64), rows, linear, method, look)
    figure = ax.figure.figure
    points_wide = ax.figure.bbox.width / figure.dpi * 72
    meaning = label_rows(ax, names, _NAMES_SHARE * points_wide, ax.figure.bbox.height / figure.dpi * 72 - 40)
    ax.grid(axis="y", color=matplotlib.rcParams["grid.color"], linewidth=0.3, zorder=0)
    ax.set_axisbelow(True)
    ax.set_xlabel(_LABELS[constant])
    return meaning


def _scale(ax: Axes, frame: pd.DataFrame, constant: str, linear: bool, most_ticks: int) -> None:
    """Give the axis limits that hold every estimate and interval."""
    columns = [name for name in (constant, f"{constant}_low", f"{constant}_high") if name in frame.columns]
    values = frame[columns].to_numpy(dtype=np.float64)
    if linear:
        low, high = linear_limits(values)
        make_linear(ax, "x", (min(0.0, low) if np.nanmin(values) < 0 else 0.0, high), most_ticks)
    else:
        make_log(ax, "x", log_limits(values), most_ticks)


def _draw_intervals(
    ax: Axes, mine: pd.DataFrame, constant: str, rows: NDArray[np.float64], linear: bool, look: dict[str, Any]
) -> None:
    if f"{constant}_low" not in mine.columns or f"{constant}_high" not in mine.columns:
        return
    low = mine[f"{constant}_low"].to_numpy(dtype=np.float64)
    high = mine[f"{constant}_high"].to_numpy(dtype=np.float64)
    certain = np.isfinite(low) & np.isfinite(high) & (high > (0 if not linear else -math.inf))
    left = ax.get_xlim()[0]
    ax.hlines(rows[certain], np.maximum(low[certain], left), high[certain], linewidth=0.9, **look, label="_interval")


def _draw_estimates(
    ax: Axes,
    estimate: NDArray[np.float64],
    rows: NDArray[np.float64],
    linear: bool,
    method: str,
    look: dict[str, Any],
) -> None:
    """Draw estimates as marks, and those of 0, which a logarithmic axis cannot show, as arrows at its left edge."""
    drawable = np.isfinite(estimate) & ((estimate > 0) | linear)
    ax.plot(estimate[drawable], rows[drawable], linestyle="none", markeredgewidth=0.9, label=method, **look)
    at_zero = np.isfinite(estimate) & ~drawable
    # Without points, an artist that is not clipped would pull the layout to the figure's corner.
    if at_zero.any():
        ax.plot(
            np.full(int(at_zero.sum()), ax.get_xlim()[0]),
            rows[at_zero],
            linestyle="none",
            marker="<",
            markersize=4.5,
            color=look["color"],
            zorder=look["zorder"],
            clip_on=False,
            label="_zero",
        )
