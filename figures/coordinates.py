"""Figure 3: smoothness of single followed coordinates, one a panel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.figures.points import Data, Points, points_of, spread
from lsmooth.figures.scatter import check_lines, draw_panels
from lsmooth.trace.grouping import module_of
from lsmooth.trace.reader import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

ENDPOINT_LABEL = r"$\min(|\partial_j f(x_t)|,\ |\partial_j f(x_{t+1})|)$"
INTERPOLATED_LABEL = r"$\min(|\partial_j f(x_t)|,\ |\partial_j f(x_t + \gamma d)|)$"


def coordinate_grid(
    data: Data,
    *,
    coordinates: Sequence[str] | None = None,
    endpoint: bool | None = None,
    panels: int = 6,
    columns: int | None = None,
    figure: Figure | SubFigure | None = None,
    lines: Sequence[str] = (),
    linear: bool = False,
    legend: bool = True,
) -> NDArray[np.object_]:
    """Draw the smoothness of followed coordinates, one a panel, against the smaller of its ends' derivatives.

    Each panel has its own axes, since coordinates differ by orders of magnitude; colours are iterations on one scale.
    Without `coordinates`, panels come from different layers, evenly from the first to the last, and of each layer the
    coordinate with the most points is taken (one that hardly ever moved has little to show).

    Args:
        data: A trace, its path, `Trace.cloud("coordinate", …)`, or its DataFrame.
        coordinates: Names of those to draw, as in `Trace.coordinate_names`.
        endpoint: Use gamma = 1 alone, the definition of Figure 3, or else the largest over the points between. By
            default the endpoint, where the trace has it.
        panels: How many panels there are at most, where `coordinates` does not say it.
        columns: Panels in a row; 2 by default.
        figure: An empty figure or subfigure to draw in; a new one in the house style by default.
        lines: Which lines are fitted and drawn, as for `smoothness_scatter`; their constants stand above each panel.
        linear: Linear axes in place of logarithmic ones.
        legend: Whether flagged and left-out points are explained in legends.

    Returns:
        The Axes of the panels, object (panels,).

    Raises:
        InvalidArgumentError: No coordinate has a point that can be drawn, or a name is not that of a followed one.
        TraceError: The trace follows no coordinates, or lacks the endpoint that was asked for.

    Source: Crawshaw et al. 2022, Figure 3 and Section 5.2.
    """
    check_lines(lines)
    if isinstance(data, (str, os.PathLike)):
        with Trace(data) as trace:
            return coordinate_grid(
                trace,
                coordinates=coordinates,
                endpoint=endpoint,
                panels=panels,
                columns=columns,
                figure=figure,
                lines=lines,
                linear=linear,
                legend=legend,
            )
    if isinstance(data, Trace) and endpoint is None:
        endpoint = data.has("coordinate/grad_next")
    series = points_of(data, "coordinate", endpoint=bool(endpoint))
    if coordinates is not None:
        by_name = {points.group: points for points in series}
        for name in coordinates:
            if name not in by_name:
                raise unknown_name("followed coordinate", name, by_name)
        chosen = [by_name[name] for name in coordinates]
        if not any(points.drawable(log=not linear).any() for points in chosen):
            raise InvalidArgumentError(
                chosen[0].explain_nothing(log=not linear) if chosen else "No coordinate is named."
            )
    else:
        chosen = _from_different_layers(series, panels, linear)
    return draw_panels(
        chosen,
        [points.group for points in chosen],
        figure=figure,
        columns=columns,
        lines=lines,
        linear=linear,
        legend=legend,
        shared=False,
        x_text=INTERPOLATED_LABEL if endpoint is False else ENDPOINT_LABEL,
    )


def _from_different_layers(series: list[Points], panels: int, linear: bool) -> list[Points]:
    """Choose coordinates: layers in turn, in each those with the most points first."""
    layers: dict[str, list[tuple[int, int]]] = {}
    for place, points in enumerate(series):
        shown = int((points.drawable(log=not linear) & points.usable).sum())
        if shown or points.drawable(log=not linear).any():
            layers.setdefault(module_of(points.group.partition("[")[0]), []).append((-shown, place))
    if not layers:
        raise InvalidArgumentError(
            series[0].explain_nothing(log=not linear)
            if series
            else "No coordinate is followed; there is nothing to draw."
        )
    queues = [sorted(found) for found in layers.values()]
    queues = [queues[place] for place in spread(len(layers), panels)]
    chosen: list[int] = []
    while len(chosen) < panels and any(queues):
        for queue in queues:
            if queue and len(chosen) < panels:
                chosen.append(queue.pop(0)[1])
    return [series[place] for place in sorted(chosen)]


def _why_nothing(series: list[Points], linear: bool) -> str:
    if not series:
        return "No coordinate is named or followed; there is nothing to draw."
    return series[0].explain_nothing(log=not linear)
