"""Figure 1: local smoothness against gradient norm, coloured by iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.house import COLUMN, FLAGGED, PAGE, drawing, new_figure, sequential, settle, style
from lsmooth.figures.labels import title
from lsmooth.figures.legend import place_legend
from lsmooth.figures.points import Data, Points, choose_group, points_of, spread
from lsmooth.figures.scales import linear_limits, log_limits, make_linear, make_log, make_steps
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

X_LABEL = r"gradient norm $\|\nabla f(x_t)\|$"
Y_LABEL = "local Lipschitz constant"

# Up to so many points each is a mark of its own, in its exact colour; more are drawn by shades, which is faster.
_EXACT = 30_000
_SHADES = 64
# Points beyond this are an image in PDF and SVG: as vectors they would be megabytes.
VECTOR = 2_000
# Drawn in a fixed random order: in order of time, late points would hide early ones.
_ORDER_SEED = 0


def smoothness_scatter(
    data: Data,
    *,
    by: By = "global",
    group: str | None = None,
    displacement: Displacement = "layer",
    ax: Axes | None = None,
    norm: Normalize | None = None,
    linear: bool = False,
    colorbar: bool = True,
    legend: bool = True,
) -> Axes:
    """Draw local smoothness against gradient norm, one point a measured step, coloured by iteration.

    On logarithmic axes a loss with (L0, L1)-smoothness, L <= L0 + L1 ‖grad f‖, lies on or below a curve that is flat
    at L0 to the left and rises with slope 1 to the right. Steps that were not measured well are drawn apart, as grey
    crosses; how many points have no place in the figure (zero on a logarithmic axis) is said in the legend.

    Args:
        data: A trace, its path, a `Cloud`, or a DataFrame of points (`Trace.smoothness()`).
        by: How parameters are grouped, as for `Trace.cloud`.
        group: Which of the groups is drawn; not needed where there is one.
        displacement: As for `Trace.cloud`.
        ax: Where to draw; a new figure in the house style by default.
        norm: Colour scale over iterations, to share one among several Axes; this run's own by default.
        linear: Linear axes in place of logarithmic ones.
        colorbar: Whether the colour scale stands beside the Axes.
        legend: Whether flagged and left-out points are explained in a legend.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: No point can be drawn, or there is no such group.
        TraceError: The trace cannot be read.

    Source: Crawshaw et al. 2022, Figure 1 and Section 5.2.
    """
    points = choose_group(points_of(data, by, displacement=displacement), group)
    if not points.drawable(log=not linear).any():
        raise InvalidArgumentError(points.explain_nothing(log=not linear))
    with drawing(ax) as ax:
        norm = norm or step_norm([points])
        draw_points(ax, points, norm, linear=linear)
        ax.set(xlabel=X_LABEL, ylabel=Y_LABEL)
        if colorbar:
            add_colorbar([ax], norm)
        if legend:
            place_legend(ax, [(points.grad_norm, points.smoothness)])
    return ax


def smoothness_panels(
    data: Data | Sequence[Data],
    *,
    by: By = "global",
    displacement: Displacement = "layer",
    figure: Figure | SubFigure | None = None,
    panels: int = 6,
    columns: int | None = None,
    linear: bool = False,
    legend: bool = True,
) -> NDArray[np.object_]:
    """Draw `smoothness_scatter` of several runs, or of several groups, side by side, with one colour scale and axes.

    Args:
        data: One run, or a sequence of runs, each as for `smoothness_scatter`.
        by: How parameters are grouped; each group of each run has a panel.
        displacement: As for `Trace.cloud`.
        figure: An empty figure or subfigure to draw in; a new one in the house style by default.
        panels: How many panels there are at most; of more groups, an even choice from first to last is drawn.
        columns: Panels in a row; 2 by default.
        linear: Linear axes in place of logarithmic ones.
        legend: Whether flagged and left-out points are explained in legends.

    Returns:
        The Axes of the panels, object (panels,).

    Raises:
        InvalidArgumentError: No point of any panel can be drawn.
        TraceError: A trace cannot be read.
    """
    runs = list(data) if isinstance(data, Sequence) and not isinstance(data, str) else [data]
    series = [points for run in runs for points in points_of(run, by, displacement=displacement)]
    with_points = [points for points in series if points.drawable(log=not linear).any()]
    if not with_points:
        raise InvalidArgumentError(
            series[0].explain_nothing(log=not linear) if series else "There is nothing to draw: no run was given."
        )
    several_runs, several_groups = len(runs) > 1, len({points.group for points in series}) > 1
    chosen = [with_points[place] for place in spread(len(with_points), panels)]
    names = [
        ": ".join(
            part for part, shown in ((points.run, several_runs), (points.group, several_groups)) if shown and part
        )
        for points in chosen
    ]
    return draw_panels(
        chosen, names, figure=figure, columns=columns, linear=linear, legend=legend, shared=True, x_label=X_LABEL
    )


def draw_panels(
    series: Sequence[Points],
    names: Sequence[str],
    *,
    figure: Figure | SubFigure | None,
    columns: int | None,
    linear: bool,
    legend: bool,
    shared: bool,
    x_label: str,
) -> NDArray[np.object_]:
    """Draw each series of points in a panel with its name above it; `shared` gives all panels the same limits."""
    columns = min(columns or 2, len(series))
    rows = math.ceil(len(series) / columns)
    if figure is None:
        with style():
            made = new_figure(COLUMN if columns <= 2 else PAGE, panels_height(rows))
            axes = _fill(made, series, names, rows, columns, linear, legend, shared, x_label)
            settle(made)
        return axes
    return _fill(figure, series, names, rows, columns, linear, legend, shared, x_label)


def panels_height(rows: int) -> float:
    """Return how high, in inches, a figure with so many rows of panels is."""
    return 0.7 + 1.35 * rows


def _fill(
    figure: Figure | SubFigure,
    series: Sequence[Points],
    names: Sequence[str],
    rows: int,
    columns: int,
    linear: bool,
    legend: bool,
    shared: bool,
    x_label: str,
) -> NDArray[np.object_]:
    norm = step_norm(series)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)
    axes = grid.ravel()
    width = figure.bbox.width / figure.figure.dpi * 72
    for ax in axes[len(series) :]:
        ax.remove()
    axes = axes[: len(series)]
    for ax, points, name in zip(axes, series, names, strict=True):
        draw_points(ax, points, norm, linear=linear, most_ticks=3, size=3.5)
        if name:
            # A title may reach over the tick labels to the left of its panel, not beyond the figure to the right.
            title(ax, name, (width - 16) / columns - 8, lines=3, loc="right")
        if legend:
            place_legend(ax, [(points.grad_norm, points.smoothness)])
    if shared:
        _set_axes(axes[0], series, linear, 3)
        # An Axes above a place that stays empty has no neighbour below to carry its labels.
        for ax in axes[max(0, len(series) - columns) :]:
            ax.tick_params(labelbottom=True)
    figure.supxlabel(x_label, size=_axes_label_size())
    figure.supylabel(Y_LABEL, size=_axes_label_size())
    add_colorbar(list(axes), norm, above=True)
    return axes


def step_norm(series: Sequence[Points]) -> Normalize:
    """Return the colour scale over the iterations of all series."""
    steps = [points.steps for points in series if len(points)]
    low = min(int(part.min()) for part in steps)
    high = max(int(part.max()) for part in steps)
    return Normalize(low, high if high > low else low + 1)


def draw_points(
    ax: Axes, points: Points, norm: Normalize, *, linear: bool, most_ticks: int = 5, size: float = 5.0
) -> None:
    """Draw the usable points in the colours of their iterations, and flagged ones as grey crosses; set up the axes.

    Args:
        ax: Where to draw.
        points: What to draw.
        norm: Colour scale over iterations.
        linear: Linear axes in place of logarithmic ones.
        most_ticks: How many labelled ticks an axis has at most.
        size: Area of a point in points squared, where there are few.
    """
    shown = points.drawable(log=not linear)
    good, flagged = shown & points.usable, shown & ~points.usable
    left_out = len(points) - int(shown.sum())
    if flagged.any():
        ax.plot(
            points.grad_norm[flagged],
            points.smoothness[flagged],
            linestyle="none",
            marker="x",
            markersize=3,
            markeredgewidth=0.6,
            color=FLAGGED,
            zorder=1.8,
            rasterized=bool(flagged.sum() > VECTOR),
            label=f"flagged ({flagged.sum():,})",
        )
    if good.any():
        _draw_good(ax, points, good, norm, size)
    if left_out:
        ax.plot([], [], linestyle="none", label=f"not shown ({left_out:,})")
    _set_axes(ax, [points], linear, most_ticks)


def _draw_good(ax: Axes, points: Points, good: NDArray[np.bool_], norm: Normalize, size: float) -> None:
    places = np.flatnonzero(good)
    np.random.default_rng(_ORDER_SEED).shuffle(places)
    total = len(places)
    # Many points are drawn smaller, so that the shape of the cloud stays visible.
    area = size * min(1.0, max(0.06, (1500 / total) ** 0.5))
    look: dict[str, Any] = {"zorder": 2.0, "rasterized": total > VECTOR}
    x, y, step = points.grad_norm[places], points.smoothness[places], points.steps[places]
    if total <= _EXACT:
        ax.scatter(x, y, s=area, c=step, cmap=sequential(), norm=norm, linewidths=0, **look)
        return
    shades = np.minimum((np.asarray(norm(step)) * _SHADES).astype(np.int64), _SHADES - 1)
    colours = sequential()((np.arange(_SHADES) + 0.5) / _SHADES)
    # One artist a shade, a few times over: the shades mix as points in random order would.
    rounds = 4
    for part in np.array_split(np.arange(total), rounds):
        by_shade = part[np.argsort(shades[part], kind="stable")]
        bounds = np.searchsorted(shades[by_shade], np.arange(_SHADES + 1))
        for shade in range(_SHADES):
            mine = by_shade[bounds[shade] : bounds[shade + 1]]
            if len(mine):
                ax.plot(
                    x[mine],
                    y[mine],
                    linestyle="none",
                    marker="o",
                    markersize=area**0.5,
                    markeredgewidth=0,
                    color=colours[shade],
                    **look,
                )


def _set_axes(ax: Axes, series: Sequence[Points], linear: bool, most_ticks: int) -> None:
    shown = [points.drawable(log=not linear) for points in series]
    x = [points.grad_norm[keep] for points, keep in zip(series, shown, strict=True)]
    y = [points.smoothness[keep] for points, keep in zip(series, shown, strict=True)]
    if linear:
        make_linear(ax, "x", linear_limits(*x), most_ticks)
        make_linear(ax, "y", linear_limits(*y), most_ticks)
    else:
        make_log(ax, "x", log_limits(*x), most_ticks)
        make_log(ax, "y", log_limits(*y), most_ticks)


def add_colorbar(axes: list[Axes], norm: Normalize, *, above: bool = False) -> None:
    """Put the colour scale over iterations beside the Axes, or above them."""
    bar = axes[0].figure.colorbar(
        ScalarMappable(norm, sequential()),
        ax=axes,
        label="iteration",
        aspect=30,
        fraction=0.08,
        pad=0.02,
        location="top" if above else "right",
    )
    bar.outline.set_visible(False)
    make_steps(bar.ax, "x" if above else "y")


def _axes_label_size() -> Any:
    import matplotlib

    return matplotlib.rcParams["axes.labelsize"]
