"""Smoothness over time, against 2/lr, above which gradient descent at this learning rate cannot be stable."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.axis_labels import y_label
from lsmooth.figures.house import FLAGGED, LINES, drawing
from lsmooth.figures.legend import place_legend
from lsmooth.figures.marks import VECTOR
from lsmooth.figures.points import Data, Points, choose_group, opened, points_of
from lsmooth.figures.scales import linear_limits, log_limits, make_linear, make_log, make_steps, percent
from lsmooth.trace.grouping import By
from lsmooth.trace.layout import Status
from lsmooth.trace.reader import Displacement, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# With fewer points than this, no running median is needed to see the trend.
_LEAST_FOR_MEDIAN = 30


def stability(
    data: Data,
    *,
    by: By = "global",
    group: str | None = None,
    displacement: Displacement = "layer",
    norm: str = "l2",
    ax: Axes | None = None,
    linear: bool = False,
    legend: bool = True,
) -> Axes:
    """Draw local smoothness over iterations together with 2/lr, and say what share of steps is above it.

    Gradient descent on a quadratic cannot be stable above 2/lr; below, it may not be either, since smoothness along a
    step is a lower bound of the largest curvature. For Adam and sign methods, 2/lr is a mark for the eye. The line is
    the running median over a twentieth of the run. Critical learning rates are drawn as 2 / lr, for "global" in l2.

    Args:
        data: A trace, its path, a `Cloud`, or a DataFrame of points with a column lr. Of a trace with several
            parameter groups, the largest lr counts.
        by: How parameters are grouped, as for `Trace.cloud`.
        group: Which of the groups is drawn; not needed where there is one.
        displacement: As for `Trace.cloud`.
        norm: The geometry, as for `Trace.cloud`.
        ax: Where to draw; a new figure in the house style by default.
        linear: A linear smoothness axis in place of a logarithmic one.
        legend: Whether a legend is drawn.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: No point can be drawn, learning rates are missing, or there is no such group.
        TraceError: The trace cannot be read.

    Source: Cohen et al. 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability".
    """
    with opened(data) as data:
        points = choose_group(points_of(data, by, displacement=displacement, norm=norm), group)
        points, several_rates = _with_largest_rate(data, points)
        critical = _critical_sharpness(data) if by == "global" and norm == "l2" else None
    known = np.isfinite(points.smoothness) & ((points.smoothness > 0) | linear)
    if not known.any():
        raise InvalidArgumentError(points.explain_nothing(log=not linear))
    limit = _limit_of(points.lr)
    with drawing(ax) as ax:
        good = known & points.usable
        _draw_points(ax, points.steps, points.smoothness, good, known & ~points.usable)
        _draw_median(ax, points, good)
        _draw_limit(ax, points, limit, good, "2/largest lr" if several_rates else "2/lr")
        if not known.all():
            ax.plot([], [], linestyle="none", label=f"not shown ({(~known).sum():,})")
        clouds = [(points.steps[known], points.smoothness[known]), (points.steps, limit)]
        if critical is not None:
            clouds.append(_draw_critical(ax, points.steps, critical))
        _set_axes(ax, points.steps, tuple(values for _, values in clouds), linear)
        ax.set(xlabel="iteration", ylabel=y_label(points.norm))
        if legend:
            place_legend(ax, clouds)
    return ax


def _with_largest_rate(data: Data, points: Points) -> tuple[Points, bool]:
    """Return the points with the largest lr of a trace's parameter groups, and whether these differ."""
    if not isinstance(data, Trace) or data.lr.shape[1] <= 1:
        return points, False
    return replace(points, lr=data.lr.max(axis=1)), bool((data.lr != data.lr[:, :1]).any())


def _set_axes(ax: Axes, steps: NDArray[np.int64], shown: tuple[NDArray[np.float64], ...], linear: bool) -> None:
    if linear:
        make_linear(ax, "y", linear_limits(*shown))
    else:
        make_log(ax, "y", log_limits(*shown))
    make_steps(ax, "x")
    low, high = float(steps.min()), float(steps.max())
    reach = 0.02 * (high - low) or 0.5
    ax.set_xlim(low - reach, high + reach)


def _limit_of(lr: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 2/lr, NaN where there is no learning rate above 0."""
    if not np.isfinite(lr).any():
        raise InvalidArgumentError("There are no learning rates; give a trace, or a DataFrame with a column lr.")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(lr > 0, 2 / lr, np.nan)


def _critical_sharpness(trace: Data) -> NDArray[np.float64] | None:
    """Return 2 / (lr critical_gamma) of each step, the largest lr of several; NaN where there is none to be drawn."""
    if not isinstance(trace, Trace) or not trace.has("critical_gamma"):
        return None
    rates = trace.lr.max(axis=1) * trace.read("critical_gamma")
    with np.errstate(divide="ignore", invalid="ignore"):
        sharpness = 2 / rates
    good = np.isfinite(sharpness) & (sharpness > 0) & (trace.status == Status.MEASURED)
    return np.where(good, sharpness, np.nan)


def _draw_critical(
    ax: Axes, steps: NDArray[np.int64], sharpness: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw the critical sharpness of the steps, count the steps that have none, and return what is drawn."""
    missing = int(np.isnan(sharpness).sum())
    ax.plot(
        steps,
        sharpness,
        linestyle="none",
        marker="^",
        markersize=2.2,
        markeredgewidth=0,
        color=LINES[2],
        rasterized=bool(len(steps) > VECTOR),
        label=f"critical sharpness ({missing:,} not shown)" if missing else "critical sharpness",
    )
    return steps, sharpness


def _draw_median(ax: Axes, points: Points, good: NDArray[np.bool_]) -> None:
    """Draw the running median of the usable points, where there are enough of them."""
    if good.sum() < _LEAST_FOR_MEDIAN:
        return
    window = max(9, int(good.sum()) // 20)
    order = np.argsort(points.steps, kind="stable")
    chosen = order[good[order]]
    ax.plot(
        points.steps[chosen],
        running_median(points.smoothness[chosen], window),
        color="black",
        linewidth=1.0,
        label=f"median of {window} points",
    )


def _draw_limit(ax: Axes, points: Points, limit: NDArray[np.float64], good: NDArray[np.bool_], name: str) -> None:
    """Draw 2/lr, and say in its label what share of the usable points is above."""
    order = np.argsort(points.steps, kind="stable")
    comparable = good & np.isfinite(limit)
    above = 100 * float((points.smoothness[comparable] > limit[comparable]).mean()) if comparable.any() else None
    ax.plot(
        points.steps[order],
        limit[order],
        color=LINES[1],
        linestyle=(0, (4, 1.5)),
        marker="_" if len(points) == 1 else None,
        label=name if above is None else f"{name} ({percent(above)} of points above)",
    )


def running_median(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the median over `window` neighbours of each value, over fewer at the ends, float64 (n,)."""
    median = pd.Series(values).rolling(window, center=True, min_periods=1).median()
    return median.to_numpy(dtype=np.float64)


def _draw_points(
    ax: Axes,
    steps: NDArray[np.int64],
    smoothness: NDArray[np.float64],
    good: NDArray[np.bool_],
    flagged: NDArray[np.bool_],
) -> None:
    size = 2.2 * min(1.0, max(0.35, (1500 / max(1, int(good.sum()))) ** 0.25))
    for chosen, marker, colour, name in (
        (good, "o", LINES[5], "smoothness"),
        (flagged, "x", FLAGGED, f"flagged ({flagged.sum():,})"),
    ):
        if chosen.any():
            ax.plot(
                steps[chosen],
                smoothness[chosen],
                linestyle="none",
                marker=marker,
                markersize=size if marker == "o" else 3,
                markeredgewidth=0 if marker == "o" else 0.6,
                color=colour,
                rasterized=bool(chosen.sum() > VECTOR),
                label=name,
            )
