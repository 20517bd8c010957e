"""Figure 1: local smoothness against gradient norm, coloured by iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.figures.house import COLUMN, DASHES, FLAGGED, LINES, PAGE, drawing, new_figure, sequential, settle, style
from lsmooth.figures.labels import title
from lsmooth.figures.legend import place_legend
from lsmooth.figures.points import Data, Points, choose_group, points_of, run_names, spread
from lsmooth.figures.scales import linear_limits, log_limits, make_linear, make_log, make_steps, short_number
from lsmooth.trace.grouping import By
from lsmooth.trace.layout import GEOMETRIES
from lsmooth.trace.reader import Displacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

Y_LABEL = "local Lipschitz constant"
# Below points of coordinates that do not say whether they are of the endpoint.
BOTH_ENDS_LABEL = r"smaller of both ends' $|\partial_j f|$"
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
    norm: str = "l2",
    ax: Axes | None = None,
    colours: Normalize | None = None,
    lines: Sequence[str] = ("trend", "envelope"),
    linear: bool = False,
    colorbar: bool = True,
    legend: bool = True,
) -> Axes:
    """Draw local smoothness against gradient norm, one point a measured step, coloured by iteration.

    On logarithmic axes a loss with (L0, L1)-smoothness, L <= L0 + L1 ‖grad f‖, lies on or below a curve that is flat
    at L0 to the left and rises with slope 1 to the right. The trend runs through the middle of the usable points, the
    envelope above all of them; their constants are in the legend. Steps that were not measured well are drawn apart,
    as grey crosses; how many points have no place in the figure (zero on a logarithmic axis) is said in the legend.

    Args:
        data: A trace, its path, a `Cloud`, or a DataFrame of points (`Trace.smoothness()`).
        by: How parameters are grouped, as for `Trace.cloud`.
        group: Which of the groups is drawn; not needed where there is one.
        displacement: As for `Trace.cloud`.
        norm: The geometry, as for `Trace.cloud`.
        ax: Where to draw; a new figure in the house style by default.
        colours: Colour scale over iterations, to share one among several Axes; this run's own by default.
        lines: Which lines are fitted and drawn: any of "trend", "quantile" (of 95 %) and "envelope", or none.
        linear: Linear axes in place of logarithmic ones.
        colorbar: Whether the colour scale stands beside the Axes.
        legend: Whether lines, flagged and left-out points are explained in a legend.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: No point can be drawn, or there is no such group.
        TraceError: The trace cannot be read.

    Source: Crawshaw et al. 2022, Figure 1 and Section 5.2.
    """
    check_lines(lines)
    points = choose_group(points_of(data, by, displacement=displacement, norm=norm), group)
    if not points.drawable(log=not linear).any():
        raise InvalidArgumentError(points.explain_nothing(log=not linear))
    with drawing(ax) as ax:
        colours = colours or step_colours([points])
        draw_points(ax, points, colours, linear=linear)
        fitted = draw_lines(ax, points, lines, linear=linear)
        for line in fitted:
            line.handle.set_label(line.label)
        ax.set(xlabel=x_label(points), ylabel=y_label(points.norm))
        if colorbar:
            add_colorbar([ax], colours)
        if legend:
            place_legend(ax, [(points.grad_norm, points.smoothness), *(line.handle.get_data() for line in fitted)])
    return ax


def smoothness_panels(
    data: Data | Sequence[Data],
    *,
    by: By = "global",
    displacement: Displacement = "layer",
    norm: str = "l2",
    figure: Figure | SubFigure | None = None,
    panels: int = 6,
    columns: int | None = None,
    lines: Sequence[str] = ("trend", "envelope"),
    linear: bool = False,
    legend: bool = True,
) -> NDArray[np.object_]:
    """Draw `smoothness_scatter` of several runs, or of several groups, side by side, with one colour scale and axes.

    Args:
        data: One run, or a sequence of runs, each as for `smoothness_scatter`.
        by: How parameters are grouped; each group of each run has a panel.
        displacement: As for `Trace.cloud`.
        norm: The geometry, as for `Trace.cloud`.
        figure: An empty figure or subfigure to draw in; a new one in the house style by default.
        panels: How many panels there are at most; of more groups, an even choice from first to last is drawn, the same
            of every run.
        columns: Panels in a row; 2 by default.
        lines: As for `smoothness_scatter`; their constants stand above each panel.
        linear: Linear axes in place of logarithmic ones.
        legend: Whether lines, flagged and left-out points are explained in legends.

    Returns:
        The Axes of the panels, object (panels,).

    Raises:
        InvalidArgumentError: No point of any panel can be drawn.
        TraceError: A trace cannot be read.
    """
    check_lines(lines)
    runs = list(data) if isinstance(data, Sequence) and not isinstance(data, str) else [data]
    series = [
        replace(points, run=name)
        for run, name in zip(runs, run_names(runs), strict=True)
        for points in points_of(run, by, displacement=displacement, norm=norm)
    ]
    with_points = [points for points in series if points.drawable(log=not linear).any()]
    if not with_points:
        raise InvalidArgumentError(
            series[0].explain_nothing(log=not linear) if series else "There is nothing to draw: no run was given."
        )
    groups = list(dict.fromkeys(points.group for points in series))
    several_runs, several_groups = len(runs) > 1, len(groups) > 1
    if several_runs and several_groups:
        # The same groups of every run, and those of one group next to each other: they are there to be compared.
        kept = [groups[place] for place in spread(len(groups), max(1, panels // len(runs)))]
        with_points = [points for group in kept for points in with_points if points.group == group]
        if not with_points:
            raise InvalidArgumentError(f"No run has a point of {', '.join(kept)} that can be drawn.")
    chosen = [with_points[place] for place in spread(len(with_points), panels)]
    names = [
        ": ".join(
            part for part, shown in ((points.run, several_runs), (points.group, several_groups)) if shown and part
        )
        for points in chosen
    ]
    return draw_panels(
        chosen,
        names,
        figure=figure,
        columns=columns,
        lines=lines,
        linear=linear,
        legend=legend,
        shared=True,
        x_text=x_label(chosen[0]),
    )


def draw_panels(
    series: Sequence[Points],
    names: Sequence[str],
    *,
    figure: Figure | SubFigure | None,
    columns: int | None,
    lines: Sequence[str],
    linear: bool,
    legend: bool,
    shared: bool,
    x_text: str,
) -> NDArray[np.object_]:
    """Draw each series of points in a panel with its name above it; `shared` gives all panels the same limits."""
    columns = min(columns or 2, len(series))
    rows = math.ceil(len(series) / columns)
    if figure is None:
        with style():
            made = new_figure(COLUMN if columns <= 2 else PAGE, panels_height(rows, len(lines)))
            axes = draw_panels(
                series,
                names,
                figure=made,
                columns=columns,
                lines=lines,
                linear=linear,
                legend=legend,
                shared=shared,
                x_text=x_text,
            )
            settle(made)
        return axes
    colours = step_colours(series)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)
    axes = grid.ravel()
    # A title may reach over the tick labels to the left of its panel, not beyond the figure to the right.
    width = (figure.bbox.width / figure.figure.dpi * 72 - 16) / columns - 8
    for ax in axes[len(series) :]:
        ax.remove()
    axes = axes[: len(series)]
    drawn: dict[str, Line2D] = {}
    for ax, points, name in zip(axes, series, names, strict=True):
        draw_points(ax, points, colours, linear=linear, most_ticks=3, size=3.5)
        fitted = draw_lines(ax, points, lines, linear=linear)
        drawn |= {line.method: line.handle for line in fitted}
        title(ax, name, width, lines=3, below=[line.short for line in fitted], loc="right")
        if legend:
            place_legend(ax, [(points.grad_norm, points.smoothness)], extend=not shared)
    if shared:
        _set_axes(axes[0], series, linear, 3)
        # An Axes above a place that stays empty has no neighbour below to carry its labels.
        for ax in axes[max(0, len(series) - columns) :]:
            ax.tick_params(labelbottom=True)
    size = matplotlib.rcParams["axes.labelsize"]
    figure.supxlabel(x_text, size=size)
    figure.supylabel(y_label(series[0].norm), size=size)
    bar = add_colorbar(list(axes), colours, above=True)
    if legend and drawn:
        # Beside the bar's label, where there is room; below the panels it would meet the label of all x axes.
        bar.set_label("iteration", loc="left")
        bar.ax.legend(
            list(drawn.values()),
            list(drawn),
            loc="lower right",
            bbox_to_anchor=(1, 1),
            bbox_transform=bar.ax.transAxes
            + ScaledTranslation(0, 1.5 * matplotlib.rcParams["font.size"] / 72, figure.figure.dpi_scale_trans),
            borderaxespad=0,
            borderpad=0,
            ncols=len(drawn),
        )
    return axes


def panels_height(rows: int, lines: int = 0) -> float:
    """Return how high, in inches, a figure with so many rows of panels, and lines in them, is."""
    return 0.7 + (1.35 + 0.13 * lines) * rows + (0.2 if lines else 0.0)


def x_label(points: Points) -> str:
    """Return what stands below an axis of gradient norms."""
    if points.by == "coordinate":
        return BOTH_ENDS_LABEL
    return rf"gradient norm $\|\nabla f(x_t)\|{GEOMETRIES[points.norm].dual_symbol}$"


def y_label(norm: str) -> str:
    """Return what stands beside an axis of smoothness."""
    label = GEOMETRIES[norm].label
    # A line of its own: one line of both is longer than a figure of a single column is high.
    return f"{Y_LABEL}\n({label})" if label else Y_LABEL


def step_colours(series: Sequence[Points]) -> Normalize:
    """Return the colour scale over the iterations of all series."""
    steps = [points.steps for points in series if len(points)]
    low = min(int(part.min()) for part in steps)
    high = max(int(part.max()) for part in steps)
    return Normalize(low, high if high > low else low + 1)


def draw_points(
    ax: Axes, points: Points, colours: Normalize, *, linear: bool, most_ticks: int = 5, size: float = 5.0
) -> None:
    """Draw the usable points in the colours of their iterations, and flagged ones as grey crosses; set up the axes.

    Args:
        ax: Where to draw.
        points: What to draw.
        colours: Colour scale over iterations.
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
        _draw_good(ax, points, good, colours, size)
    if left_out:
        ax.plot([], [], linestyle="none", label=f"not shown ({left_out:,})")
    _set_axes(ax, [points], linear, most_ticks)


def _draw_good(ax: Axes, points: Points, good: NDArray[np.bool_], colours: Normalize, size: float) -> None:
    places = np.flatnonzero(good)
    np.random.default_rng(_ORDER_SEED).shuffle(places)
    total = len(places)
    # Many points are drawn smaller, so that the shape of the cloud stays visible; a few, so that they are seen at all.
    area = size * (2.0 if total < 100 else min(1.0, max(0.06, (1500 / total) ** 0.5)))
    look: dict[str, Any] = {"zorder": 2.0, "rasterized": total > VECTOR}
    x, y, step = points.grad_norm[places], points.smoothness[places], points.steps[places]
    if total <= _EXACT:
        ax.scatter(x, y, s=area, c=step, cmap=sequential(), norm=colours, linewidths=0, **look)
        return
    shades = np.minimum((np.asarray(colours(step)) * _SHADES).astype(np.int64), _SHADES - 1)
    palette = sequential()((np.arange(_SHADES) + 0.5) / _SHADES)
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
                    color=palette[shade],
                    **look,
                )


@dataclass(frozen=True)
class FittedLine:
    """A line in a figure, and what is said of it.

    Attributes:
        method: Name of the method that fitted it.
        handle: The artist.
        label: Method and constants, for a legend.
        short: The same in fewer characters, for the title of a panel: forms that take less and less width.
    """

    method: str
    handle: Line2D
    label: str
    short: tuple[str, ...]


_LINE_LOOKS: dict[str, dict[str, Any]] = {
    "trend": {"color": "black", "linestyle": "-"},
    "quantile": {"color": LINES[3], "linestyle": DASHES[2]},
    "envelope": {"color": LINES[1], "linestyle": DASHES[1]},
}


def check_lines(lines: Sequence[str]) -> None:
    """Raise InvalidArgumentError unless all names are those of lines that can be fitted."""
    for name in lines:
        if name not in _LINE_LOOKS:
            raise unknown_name("line", name, _LINE_LOOKS)


def draw_lines(ax: Axes, points: Points, lines: Sequence[str], *, linear: bool) -> list[FittedLine]:
    """Fit lines to the usable points and draw them over the range of gradient norms that was seen.

    Too few points, or all at one gradient norm, have no lines (as in `lsmooth.estimate`).
    """
    from matplotlib.patheffects import withStroke

    from lsmooth import fit
    from lsmooth.fit.groups import FEWEST
    from lsmooth.fit.lines import at_one_norm

    usable = points.usable & (points.grad_norm >= 0) & (points.smoothness >= 0)
    x, y = points.grad_norm[usable], points.smoothness[usable]
    if len(x) < FEWEST or at_one_norm(x[None])[0]:
        return []
    shown = points.grad_norm[points.drawable(log=not linear) & usable]
    if not len(shown):
        return []
    along = np.linspace(shown.min(), shown.max(), 200) if linear else np.geomspace(shown.min(), shown.max(), 200)
    fitted = []
    for name in lines:
        level, slope = getattr(fit, name)(x, y)
        (handle,) = ax.plot(
            along,
            level + slope * along,
            linewidth=1.2,
            zorder=2.4,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            label=f"_{name}",
            **_LINE_LOOKS[name],
        )
        constants = f"$L_0$ = {short_number(level)}, $L_1$ = {short_number(slope)}"
        short = tuple(
            f"{name} $L_0$ {short_number(level, digits)},{space}$L_1$ {short_number(slope, digits)}"
            for digits, space in ((3, " "), (2, " "), (3, "\n"))
        )
        fitted.append(FittedLine(name, handle, f"{name}: {constants}", short))
    return fitted


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


def add_colorbar(axes: list[Axes], colours: Normalize, *, above: bool = False) -> Colorbar:
    """Put the colour scale over iterations beside the Axes, or above them, and return it."""
    figure = axes[0].figure
    bar = figure.colorbar(
        ScalarMappable(colours, sequential()),
        ax=axes,
        label="iteration",
        # Equally thin beside one Axes and above a page of them.
        aspect=figure.bbox.width / figure.figure.dpi * 72 / 8 if above else 30,
        fraction=0.08,
        pad=0.02,
        location="top" if above else "right",
    )
    bar.outline.set_visible(False)
    make_steps(bar.ax, "x" if above else "y")
    return bar
