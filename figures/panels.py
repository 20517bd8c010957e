"""Clouds of points side by side: of runs, of layers, of coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.axis_labels import x_label, y_label
from lsmooth.figures.fitted_lines import (
    LEAVES,
    FittedLine,
    check_lines,
    draw_lines,
    make_room,
    mark_leaving,
    why_no_line,
)
from lsmooth.figures.house import COLUMN, PAGE, arranging
from lsmooth.figures.labels import caption, title
from lsmooth.figures.marks import add_colorbar, draw_points, set_axes, step_colours
from lsmooth.figures.points import Data, Points, points_of, run_names, spread
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement

if TYPE_CHECKING:
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure, SubFigure


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
    chosen = _choose(series, len(runs), panels, linear)
    several_groups = len({points.group for points in series}) > 1
    layout = PanelLayout(columns, lines, linear, legend, shared=True, x_text=x_label(chosen[0]))
    return draw_panels(chosen, [_name(points, len(runs) > 1, several_groups) for points in chosen], figure, layout)


def _choose(series: list[Points], runs: int, panels: int, linear: bool) -> list[Points]:
    """Return an even choice of the series that have a point to draw.

    Raises:
        InvalidArgumentError: None has.
    """
    with_points = [points for points in series if points.drawable(log=not linear).any()]
    if not with_points:
        raise InvalidArgumentError(
            series[0].explain_nothing(log=not linear) if series else "There is nothing to draw: no run was given."
        )
    groups = list(dict.fromkeys(points.group for points in series))
    if runs > 1 and len(groups) > 1:
        # The same groups of every run, and those of one group next to each other: they are there to be compared.
        kept = [groups[place] for place in spread(len(groups), max(1, panels // runs))]
        with_points = [points for group in kept for points in with_points if points.group == group]
        if not with_points:
            raise InvalidArgumentError(f"No run has a point of {', '.join(kept)} that can be drawn.")
    return [with_points[place] for place in spread(len(with_points), panels)]


def _name(points: Points, several_runs: bool, several_groups: bool) -> str:
    """Return what tells a panel's points from those of the other panels."""
    parts = [points.run] * several_runs + [points.group] * several_groups
    return ": ".join(part for part in parts if part)


@dataclass(frozen=True)
class PanelLayout:
    """How panels are arranged and drawn.

    Attributes:
        columns: Panels in a row; None for two.
        lines: Lines that are fitted, as for `smoothness_scatter`.
        linear: Linear axes in place of logarithmic ones.
        legend: Whether lines, flagged and left-out points are explained.
        shared: Whether all panels have the same limits.
        x_text: Label of all x axes.
    """

    columns: int | None
    lines: Sequence[str]
    linear: bool
    legend: bool
    shared: bool
    x_text: str


def draw_panels(
    series: Sequence[Points], names: Sequence[str], figure: Figure | SubFigure | None, layout: PanelLayout
) -> NDArray[np.object_]:
    """Draw each series of points in a panel with its name above it, and return the panels' Axes."""
    columns = min(layout.columns or 2, len(series))
    rows = math.ceil(len(series) / columns)
    width = COLUMN if columns <= 2 else PAGE
    with arranging(figure, width, panels_height(rows, len(layout.lines))) as figure:
        colours = step_colours(series)
        axes = _grid(figure, rows, columns, len(series), layout.shared)
        drawn = _draw_each(axes, series, colours, layout)
        meaning = _set_titles(axes, series, names, drawn, columns, layout)
        size = matplotlib.rcParams["axes.labelsize"]
        figure.supxlabel(f"{layout.x_text}{meaning}", size=size)
        figure.supylabel(y_label(series[0].norm), size=size)
        bar = add_colorbar(list(axes), colours, above=True)
        if layout.legend and any(drawn):
            _explain_beside(bar, drawn)
    return axes


def _grid(figure: Figure | SubFigure, rows: int, columns: int, panels: int, shared: bool) -> NDArray[np.object_]:
    """Return the Axes of this many panels, row by row."""
    axes = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel()
    for ax in axes[panels:]:
        ax.remove()
    if shared:
        # Axes above an empty place have no neighbour below to carry their labels.
        for ax in axes[max(0, panels - columns) : panels]:
            ax.tick_params(labelbottom=True)
    kept: NDArray[np.object_] = axes[:panels]
    return kept


def _draw_each(
    axes: NDArray[np.object_], series: Sequence[Points], colours: Normalize, layout: PanelLayout
) -> list[list[FittedLine]]:
    """Draw points and lines of each panel, and return its lines."""
    drawn = []
    for ax, points in zip(axes, series, strict=True):
        draw_points(ax, points, colours, linear=layout.linear, most_ticks=3, size=3.5)
        drawn.append(draw_lines(ax, points, layout.lines, linear=layout.linear))
    if layout.shared:
        set_axes(axes[0], series, layout.linear, 3)
        make_room(axes[0], [line for fitted in drawn for line in fitted], linear=layout.linear)
    return [mark_leaving(ax, fitted) for ax, fitted in zip(axes, drawn, strict=True)]


def _set_titles(
    axes: NDArray[np.object_],
    series: Sequence[Points],
    names: Sequence[str],
    drawn: Sequence[Sequence[FittedLine]],
    columns: int,
    layout: PanelLayout,
) -> str:
    """Title each panel with its name, the constants of its lines, and its numbers of flagged and left-out points.

    Returns:
        What abbreviated names stand for.
    """
    figure = axes[0].figure
    # A title may reach over the tick labels to the left of its panel, not beyond the figure to the right.
    width = (figure.bbox.width / figure.figure.dpi * 72 - 16) / columns - 8
    shown = []
    for ax, points, name, fitted in zip(axes, series, names, drawn, strict=True):
        below = [line.short for line in fitted]
        if layout.legend:
            below += [forms for forms in (_no_line(points, fitted, layout), _counts(points, layout.linear)) if forms]
        shown.append((name, title(ax, name, width, lines=3, below=below, loc="right")))
    return caption(axes[0], shown)


def _no_line(points: Points, fitted: Sequence[FittedLine], layout: PanelLayout) -> tuple[str, ...]:
    """Return the reason why a panel has no line, in shorter and shorter forms; no form where it has one."""
    reason = why_no_line(points) if layout.lines and not fitted else ""
    return (f"no line: {reason}", f"no line:\n{reason}", "no line") if reason else ()


def _counts(points: Points, linear: bool) -> tuple[str, ...]:
    """Return the numbers of flagged points and of points without a place, in shorter and shorter forms."""
    shown = points.drawable(log=not linear)
    numbers = [
        f"{count:,} {what}"
        for count, what in ((int((shown & ~points.usable).sum()), "flagged"), (int((~shown).sum()), "not shown"))
        if count
    ]
    return (", ".join(numbers), "\n".join(numbers)) if numbers else ()


def _explain_beside(bar: Colorbar, drawn: Sequence[Sequence[FittedLine]]) -> None:
    """Name the lines beside the bar's label: below the panels the names would meet the label of all x axes."""
    one_of_each = {line.method: line.handle for fitted in drawn for line in fitted}
    leaving = any(line.leaves for fitted in drawn for line in fitted)
    names = [*list(one_of_each)[:-1], f"{list(one_of_each)[-1]} ({LEAVES} leaves)"] if leaving else list(one_of_each)
    bar.set_label("iteration", loc="left")
    scale = bar.ax.figure.figure.dpi_scale_trans
    bar.ax.legend(
        list(one_of_each.values()),
        names,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        bbox_transform=bar.ax.transAxes + ScaledTranslation(0, 1.85 * matplotlib.rcParams["font.size"] / 72, scale),
        # A frame would cut off the tops of the numbers below.
        frameon=False,
        borderaxespad=0,
        borderpad=0,
        ncols=len(names),
    )


def panels_height(rows: int, lines: int = 0) -> float:
    """Return the height, in inches, of a figure with this many rows of panels and lines in them."""
    return 0.7 + (1.35 + 0.13 * lines) * rows + (0.2 if lines else 0.0)
