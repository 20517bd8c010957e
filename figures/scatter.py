"""Figure 1: local smoothness against gradient norm, coloured by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures.axis_labels import x_label, y_label
from lsmooth.figures.fitted_lines import check_lines, draw_lines
from lsmooth.figures.house import drawing
from lsmooth.figures.legend import place_legend
from lsmooth.figures.marks import add_colorbar, draw_points, step_colours
from lsmooth.figures.points import Data, choose_group, points_of
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
