"""Where a legend is least in the way."""

from __future__ import annotations

import math
import re
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


def place_legend(ax: Axes, series: Sequence[tuple[ArrayLike, ArrayLike]] = (), *, extend: bool = True) -> None:
    """Draw a legend of what is labelled in the corner where it is least in the way; none where nothing is labelled.

    Args:
        ax: The Axes, with their limits and scales set.
        series: x and y of what should stay visible.
        extend: Whether the y axis may be made longer, so that the legend hides nothing.
    """
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    settings = matplotlib.rcParams
    size = FontProperties(size=settings["legend.fontsize"]).get_size_in_points()
    figure = ax.figure.figure
    # Before layout, Axes are taken to be as large as their part of the figure, less the labels beside them.
    grid = ax.get_subplotspec()
    down, across = grid.get_gridspec().get_geometry() if grid is not None else (1, 1)
    wide = max(40.0, (ax.figure.bbox.width / figure.dpi * 72 - 40) / across - 35)
    high = max(30.0, (ax.figure.bbox.height / figure.dpi * 72 - 15) / down - 25)
    texts = [re.sub(r"[$_{}\\]", "", label) for label in labels]
    width = max(text_width(text, size) for text in texts) + size * (settings["legend.handlelength"] + 1.5)
    # Side by side where one column of labels would take half the height.
    columns = 1
    while size * (1.35 * math.ceil(len(labels) / columns) + 0.8) > 0.4 * high and (columns + 1) * width < 0.95 * wide:
        columns += 1
    height = size * (1.35 * math.ceil(len(labels) / columns) + 0.8)
    share = np.array([min(1.0, columns * width / wide), min(1.0, height / high)])
    places = [np.empty((0, 2))]
    for x, y in series:
        both = np.column_stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
        both = both[:: max(1, len(both) // _SAMPLE)]
        with np.errstate(all="ignore"):
            where = ax.transAxes.inverted().transform(ax.transData.transform(both))
        places.append(where[np.isfinite(where).all(axis=1)])
    seen = np.concatenate(places)
    seen = seen[((seen >= 0) & (seen <= 1)).all(axis=1)]
    lacking = {}
    for name, (right, top) in _CORNERS.items():
        inside = seen[:, 0] >= 1 - share[0] if right else seen[:, 0] <= share[0]
        heights = 1 - seen[inside, 1] if top else seen[inside, 1]
        free = float(heights.min()) if len(heights) else 1.0
        lacking[name] = (max(0.0, share[1] - free), int((heights < share[1]).sum()))
    corner: Any = min(lacking, key=lambda name: lacking[name] if extend else lacking[name][1])
    missing = lacking[corner][0]
    if extend and missing and share[1] < 0.5:
        # As a part of the axis: after it has grown by this, what was `free` has become the legend's share.
        growth = missing / (1 - share[1])
        low, high = ax.transAxes.transform([(0, -growth), (0, 1 + growth)])
        lowest, highest = ax.get_ylim()
        if _CORNERS[corner][1]:
            highest = ax.transData.inverted().transform(high)[1]
        else:
            lowest = ax.transData.inverted().transform(low)[1]
        ax.set_ylim(lowest, highest)
    ax.legend(handles, labels, loc=corner, ncols=columns)
