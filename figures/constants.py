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
from lsmooth.figures.house import COLUMN, LINES, new_figure, settle, style
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
# Beyond so many rows methods are drawn on one line, not side by side.
_APART = 40


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
    if ax is None:
        with style():
            ax = new_figure(COLUMN, constants_height(frame["group"].nunique())).add_subplot()
            _draw(ax, frame, constant, linear, legend, share=0.4)
            settle(ax.figure)
        return ax
    _draw(ax, frame, constant, linear, legend, share=0.4)
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
    if figure is None:
        with style():
            made = new_figure(COLUMN, constants_height(frame["group"].nunique()))
            axes = constants_panels(frame, figure=made, linear=linear, legend=legend)
            settle(made)
        return axes
    axes = figure.subplots(1, 2, sharey=True)
    for ax, constant in zip(axes, _LABELS, strict=True):
        _draw(ax, frame, constant, linear, False, share=0.36, most_ticks=3)
    axes[1].tick_params(labelleft=False)
    if legend and frame["method"].nunique() > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return axes


def constants_height(layers: int) -> float:
    """Return how high, in inches, a figure of the constants of so many layers is."""
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


def _draw(
    ax: Axes,
    frame: pd.DataFrame,
    constant: str,
    linear: bool,
    legend: bool,
    *,
    share: float,
    most_ticks: int = 4,
) -> None:
    names = [str(name) for name in frame["group"].drop_duplicates()]
    row_of = {name: row for row, name in enumerate(names)}
    methods = [str(name) for name in frame["method"].drop_duplicates()]
    known = frame[[c for c in (constant, f"{constant}_low", f"{constant}_high") if c in frame.columns]]
    values = known.to_numpy(dtype=np.float64)
    limits = linear_limits(values) if linear else log_limits(values)
    if linear:
        make_linear(ax, "x", (min(0.0, limits[0]) if np.nanmin(values) < 0 else 0.0, limits[1]), most_ticks)
    else:
        make_log(ax, "x", limits, most_ticks)
    left = ax.get_xlim()[0]
    apart = 0.5 / len(methods) if len(names) <= _APART else 0.0
    size = 3.2 if len(names) <= _APART else 2.2
    for place, method in enumerate(methods):
        mine = frame[frame["method"].astype(str) == method]
        rows = np.array([row_of[str(name)] for name in mine["group"]], dtype=np.float64)
        rows += (place - (len(methods) - 1) / 2) * apart
        estimate = mine[constant].to_numpy(dtype=np.float64)
        look: dict[str, Any] = {"color": LINES[place % len(LINES)], "zorder": 2.5}
        drawable = np.isfinite(estimate) & ((estimate > 0) | linear)
        if f"{constant}_low" in mine.columns and f"{constant}_high" in mine.columns:
            low = mine[f"{constant}_low"].to_numpy(dtype=np.float64)
            high = mine[f"{constant}_high"].to_numpy(dtype=np.float64)
            certain = np.isfinite(low) & np.isfinite(high) & (high > (0 if not linear else -math.inf))
            ax.hlines(
                rows[certain], np.maximum(low[certain], left), high[certain], linewidth=0.9, **look, label="_interval"
            )
        ax.plot(
            estimate[drawable],
            rows[drawable],
            linestyle="none",
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=size,
            markerfacecolor=look["color"] if place == 0 else "white",
            markeredgewidth=0.9,
            label=method,
            **look,
        )
        at_zero = np.isfinite(estimate) & ~drawable
        # Without points, an artist that is not clipped would pull the layout to the figure's corner.
        if at_zero.any():
            ax.plot(
                np.full(int(at_zero.sum()), left),
                rows[at_zero],
                linestyle="none",
                marker="<",
                markersize=4.5,
                clip_on=False,
                label="_zero",
                **look,
            )
    figure = ax.figure.figure
    points_wide = ax.figure.bbox.width / figure.dpi * 72
    label_rows(ax, names, share * points_wide, ax.figure.bbox.height / figure.dpi * 72 - 40)
    ax.grid(axis="y", color=matplotlib.rcParams["grid.color"], linewidth=0.3, zorder=0)
    ax.set_axisbelow(True)
    ax.set_xlabel(_LABELS[constant])
    if legend and len(methods) > 1:
        handles, labels = ax.get_legend_handles_labels()
        # Above the rows: within them it would hide some.
        ax.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(labels))
