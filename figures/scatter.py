"""Figure 1: local smoothness against gradient norm, coloured by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import seaborn as sns

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.axis_labels import x_label, y_label
from lsmooth.figures.fitted_lines import FittedLine, check_lines, draw_lines, why_no_line
from lsmooth.figures.house import FLAGGED, drawing
from lsmooth.figures.legend import place_legend
from lsmooth.figures.marks import add_colorbar, draw_points, step_colours
from lsmooth.figures.points import Data, Points, choose_group, points_of
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize


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
    marginals: bool = False,
) -> Axes:
    """Draw local smoothness against gradient norm, one point a measured step, coloured by iteration.

    On logarithmic axes a loss with L <= L0 + L1 ‖grad f‖ lies on or below a curve that is flat at L0 to the left and
    rises with slope 1 to the right. The trend runs through the middle of the usable points, the envelope above all of
    them. Steps that were not measured well are grey crosses. The legend has the lines' constants, or why there is no
    line, and how many points have no place (zero on a logarithmic axis).

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
        marginals: Whether the distributions of gradient norm and smoothness stand above and beside the points.

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
        ax.set(xlabel=x_label(points), ylabel=y_label(points.norm))
        if colorbar:
            add_colorbar([ax], colours, above=marginals)
        if marginals:
            _draw_marginals(ax, points, linear)
        _explain(ax, points, fitted, bool(lines), legend)
    return ax


def _explain(ax: Axes, points: Points, fitted: Sequence[FittedLine], wanted: bool, legend: bool) -> None:
    """Label the lines with their constants, or say why there is none, and draw the legend."""
    for line in fitted:
        line.handle.set_label(line.label)
    if wanted and not fitted:
        reason = why_no_line(points) or "numbers beyond float64"
        ax.plot([], [], linestyle="none", label=f"no line: {reason}")
    if legend:
        place_legend(ax, [(points.grad_norm, points.smoothness), *(line.handle.get_data() for line in fitted)])


def _draw_marginals(ax: Axes, points: Points, linear: bool) -> None:
    """Draw the distribution of the usable points along each axis, above and to the right."""
    shown = points.drawable(log=not linear) & points.usable
    above = ax.inset_axes((0.0, 1.02, 1.0, 0.16), sharex=ax)
    beside = ax.inset_axes((1.02, 0.0, 0.16, 1.0), sharey=ax)
    limits = ax.get_xlim(), ax.get_ylim()
    look: dict[str, Any] = {"bins": 30, "element": "step", "color": FLAGGED, "linewidth": 0.6, "legend": False}
    # seaborn counts on the scale that the axis has.
    sns.histplot(x=points.grad_norm[shown], ax=above, **look)
    sns.histplot(y=points.smoothness[shown], ax=beside, **look)
    for inset in (above, beside):
        inset.set_axis_off()
    ax.set(xlim=limits[0], ylim=limits[1])
