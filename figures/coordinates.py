"""Figure 3: smoothness of single followed coordinates, one a panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.figures.axis_labels import ENDPOINT_LABEL, INTERPOLATED_LABEL
from lsmooth.figures.fitted_lines import check_lines
from lsmooth.figures.panels import PanelLayout, draw_panels
from lsmooth.figures.points import Data, Points, opened, points_of, spread
from lsmooth.trace.grouping import module_of
from lsmooth.trace.reader import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure


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
    coordinate that moved at the most steps is taken. Coordinates that moved at less than half as many steps as the best
    one come last: of an embedding, most rows hardly ever have a gradient.

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
    with opened(data) as data:
        if isinstance(data, Trace) and endpoint is None:
            endpoint = data.has("coordinate/grad_next")
        series = points_of(data, "coordinate", endpoint=bool(endpoint))
    if coordinates is not None:
        chosen = _named(series, coordinates, linear)
    else:
        chosen = _from_different_layers(series, panels, linear)
    x_text = INTERPOLATED_LABEL if endpoint is False else ENDPOINT_LABEL
    layout = PanelLayout(columns, lines, linear, legend, shared=False, x_text=x_text)
    return draw_panels(chosen, [points.group for points in chosen], figure, layout)


def _named(series: list[Points], coordinates: Sequence[str], linear: bool) -> list[Points]:
    """Return the coordinates with these names; raise InvalidArgumentError if one is unknown or none can be drawn."""
    by_name = {points.group: points for points in series}
    for name in coordinates:
        if name not in by_name:
            raise unknown_name("followed coordinate", name, by_name)
    chosen = [by_name[name] for name in coordinates]
    if not any(points.drawable(log=not linear).any() for points in chosen):
        raise InvalidArgumentError(chosen[0].explain_nothing(log=not linear) if chosen else "No coordinate is named.")
    return chosen


def _from_different_layers(series: list[Points], panels: int, linear: bool) -> list[Points]:
    """Choose coordinates: layers in turn, in each those with the most points first.

    Coordinates with less than half as many points as the best one only fill panels that would stay empty.
    """
    shown: dict[int, int] = {}
    for place, points in enumerate(series):
        drawable = points.drawable(log=not linear)
        if drawable.any():
            shown[place] = int((drawable & points.usable).sum())
    if not shown:
        raise InvalidArgumentError(
            series[0].explain_nothing(log=not linear)
            if series
            else "No coordinate is followed; there is nothing to draw."
        )
    # A coordinate may have flagged points alone, where it moved at no well-measured step.
    shown = {place: count for place, count in shown.items() if count} or shown
    enough = max(shown.values()) / 2
    chosen: list[int] = []
    for places in (
        [place for place, count in shown.items() if count >= enough],
        [place for place, count in shown.items() if count < enough],
    ):
        layers: dict[str, list[tuple[int, int]]] = {}
        for place in places:
            layers.setdefault(module_of(series[place].group.partition("[")[0]), []).append((-shown[place], place))
        queues = [sorted(found) for found in layers.values()]
        queues = [queues[layer] for layer in spread(len(queues), panels - len(chosen))] if len(chosen) < panels else []
        while len(chosen) < panels and any(queues):
            for queue in queues:
                if queue and len(chosen) < panels:
                    chosen.append(queue.pop(0)[1])
    return [series[place] for place in sorted(chosen)]
