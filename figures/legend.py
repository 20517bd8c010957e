"""Where a legend hides least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties
from numpy.typing import ArrayLike

from lsmooth.figures.labels import text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CORNERS = {"upper left": (0, 1), "upper right": (1, 1), "lower right": (1, 0), "lower left": (0, 0)}
# So many points of each series are looked at; matplotlib's own "best" looks at all of them, which takes long.
_SAMPLE = 4000


def place_legend(ax: Axes, series: Sequence[tuple[ArrayLike, ArrayLike]] = ()) -> None:
    """Draw a legend of what is labelled in the corner where it hides the fewest points; none where nothing is labelled.

    Args:
        ax: The Axes, with their limits and scales set.
        series: x and y of what should stay visible.
    """
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    settings = matplotlib.rcParams
    size = FontProperties(size=settings["legend.fontsize"]).get_size_in_points()
    figure = ax.figure.figure
    # Before layout, Axes are taken to be as large as their part of the figure, less the labels beside them.
    grid = ax.get_subplotspec()
    rows, columns = grid.get_gridspec().get_geometry() if grid is not None else (1, 1)
    wide = max(40.0, (ax.figure.bbox.width / figure.dpi * 72 - 40) / columns - 35)
    high = max(30.0, (ax.figure.bbox.height / figure.dpi * 72 - 15) / rows - 25)
    width = max(text_width(label, size) for label in labels) + size * (settings["legend.handlelength"] + 1.5)
    height = len(labels) * size * 1.35 + size * 0.8
    share = np.array([min(1.0, width / wide), min(1.0, height / high)])
    places = [np.empty((0, 2))]
    for x, y in series:
        both = np.column_stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
        both = both[:: max(1, len(both) // _SAMPLE)]
        with np.errstate(all="ignore"):
            where = ax.transAxes.inverted().transform(ax.transData.transform(both))
        places.append(where[np.isfinite(where).all(axis=1)])
    seen = np.concatenate(places)
    hidden = {}
    for name, (right, top) in _CORNERS.items():
        inside_x = seen[:, 0] >= 1 - share[0] if right else seen[:, 0] <= share[0]
        inside_y = seen[:, 1] >= 1 - share[1] if top else seen[:, 1] <= share[1]
        hidden[name] = int((inside_x & inside_y).sum())
    corner: Any = min(hidden, key=lambda name: hidden[name])
    ax.legend(handles, labels, loc=corner)
