"""Where a legend is least in the way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike, NDArray

from lsmooth.figures.labels import ELLIPSIS, math_width, wrap_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

_CORNERS = {"upper left": (False, True), "upper right": (True, True), "lower right": (True, False)}
_CORNERS["lower left"] = (False, False)
# Points of each series that are looked at; matplotlib's own "best" looks at all of them, which takes long.
_SAMPLE = 4000
# A longer y axis has other tick labels, which may leave less width. The second round knows them.
_ROUNDS = 2
# Largest share of the Axes' width for a legend.
_WIDTH_SHARE = 0.94
# Largest share of the height: a higher legend would squeeze the points into the rest, and stands below the Axes.
_LARGEST_SHARE = 0.5
# Points of distance from a legend to what it must not hide; at a low resolution, rows are higher than measured here.
_CLEARANCE = 6.0
# Limits of a logarithmic axis that has been made longer.
_SMALLEST, _LARGEST = 1e-300, 1e300


def place_legend(ax: Axes, series: Sequence[tuple[ArrayLike, ArrayLike]] = ()) -> None:
    """Draw a legend of what is labelled in the corner where it is least in the way; none where nothing is labelled.

    Labels that are too long for the Axes are broken into lines. The y axis is made longer where the legend would hide
    a point otherwise. Where it would take half of the height, the legend stands below the Axes, unless the figure has
    no layout engine to make room there.

    Args:
        ax: The Axes, with their limits, scales and labels set.
        series: x and y of what should stay visible.
    """
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    shown = [_sample(x, y) for x, y in series]
    for _ in range(_ROUNDS):
        _lay_out(ax)
        wrapped, columns = _arranged(ax, labels, ax.get_window_extent().width)
        legend = ax.legend(handles, wrapped, loc="upper left", ncols=columns)
        box, panel = legend.get_window_extent(), ax.get_window_extent()
        clearance = _CLEARANCE / 72 * ax.figure.figure.dpi
        share = (min(1.0, (box.width + clearance) / panel.width), min(1.0, (box.height + clearance) / panel.height))
        corner, missing = _free_corner(_seen(ax, shown), share)
        if missing and share[1] >= _LARGEST_SHARE and ax.figure.figure.get_layout_engine() is not None:
            _place_below(ax, handles, labels)
            break
        if missing:
            # Share of the axis to add, so that the free part becomes as high as the legend.
            _lengthen(ax, missing / (1 - share[1]), upwards=_CORNERS[corner][1])
        ax.legend(handles, wrapped, loc=corner, ncols=columns).set_in_layout(False)
        if not missing:
            break


def _place_below(ax: Axes, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Draw the legend below the Axes and the labels of the x axis, as far to the left as the labels of the y axis.

    The Axes become lower. A label of the y axis that is longer than they are is broken into lines.
    """
    dpi = ax.figure.figure.dpi
    for _ in range(_ROUNDS):
        panel, whole = ax.get_window_extent(), _with_labels(ax)
        wrapped, columns = _arranged(ax, labels, panel.x1 - whole.x0)
        # Labels have the same size, however high the layout makes the Axes.
        beside = ScaledTranslation(
            (whole.x0 - panel.x0) / dpi, (whole.y0 - panel.y0) / dpi, ax.figure.figure.dpi_scale_trans
        )
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": ax.transAxes + beside}
        ax.legend(handles, wrapped, ncols=columns, **place)
        _lay_out(ax)
        label, height = ax.yaxis.label, ax.get_window_extent().height * 72 / dpi
        size = float(label.get_fontsize())
        lines = wrap_label(label.get_text(), height, size)
        fits = max(math_width(row, size) for row in label.get_text().split("\n")) <= height
        # With a word cut, the figure is too small: the whole label sticks out of it, which `render` refuses.
        if fits or ELLIPSIS in lines:
            break
        label.set_text(lines)
        _lay_out(ax)


def _with_labels(ax: Axes) -> Bbox:
    """Return where the Axes and their labels are, in pixels, without a legend."""
    legend = ax.get_legend()
    if legend is not None:
        legend.remove()
    box = ax.get_tightbbox()
    assert box is not None
    return box


def _sample(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    both = np.column_stack([np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)])
    return both[:: max(1, len(both) // _SAMPLE)]


def _lay_out(ax: Axes) -> None:
    """Give the Axes the place in the figure that they will have, as far as it is drawn by now."""
    figure = ax.figure.figure
    engine = figure.get_layout_engine()
    if engine is not None:
        with warnings.catch_warnings():
            # The warning that a figure is too small for its labels comes again when it is drawn.
            warnings.simplefilter("ignore")
            engine.execute(figure)


def _arranged(ax: Axes, labels: Iterable[str], width: float) -> tuple[list[str], int]:
    """Return labels broken into lines that fit into `width` pixels, and the number of columns."""
    settings = matplotlib.rcParams
    size = FontProperties(size=settings["legend.fontsize"]).get_size_in_points()
    panel = ax.get_window_extent()
    wide, high = (max(1.0, length * 72 / ax.figure.figure.dpi) for length in (width, panel.height))
    beside = size * (settings["legend.handlelength"] + settings["legend.handletextpad"])
    room = _WIDTH_SHARE * wide - size * 2 * (settings["legend.borderpad"] + settings["legend.borderaxespad"])
    wrapped = [wrap_label(label, room - beside, size) for label in labels]
    rows = [row for label in wrapped for row in label.split("\n")]
    widest = max(math_width(row, size) for row in rows) + beside
    apart = size * settings["legend.columnspacing"]
    # Side by side where one column would take almost half of the height.
    columns = 1
    while (
        size * (1.35 * math.ceil(len(rows) / columns) + 0.8) > 0.4 * high
        and (columns + 1) * (widest + apart) - apart < room
        and columns < len(wrapped)
    ):
        columns += 1
    return wrapped, columns


def _seen(ax: Axes, shown: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the positions of the points inside the Axes, as shares of their width and height, (n, 2)."""
    places = [np.empty((0, 2))]
    for both in shown:
        with np.errstate(all="ignore"):
            where = ax.transAxes.inverted().transform(ax.transData.transform(both))
        places.append(where[np.isfinite(where).all(axis=1)])
    seen = np.concatenate(places)
    return seen[((seen >= 0) & (seen <= 1)).all(axis=1)]


def _free_corner(seen: NDArray[np.float64], share: tuple[float, float]) -> tuple[Any, float]:
    """Return the corner that lacks the least height for a legend of this size, and the height that it lacks."""
    lacking = {}
    for name, (right, top) in _CORNERS.items():
        inside = seen[:, 0] >= 1 - share[0] if right else seen[:, 0] <= share[0]
        heights = 1 - seen[inside, 1] if top else seen[inside, 1]
        free = float(heights.min()) if len(heights) else 1.0
        lacking[name] = (max(0.0, share[1] - free), int((heights < share[1]).sum()))
    corner: Any = min(lacking, key=lambda name: lacking[name])
    return corner, lacking[corner][0]


def _lengthen(ax: Axes, growth: float, *, upwards: bool) -> None:
    """Make the y axis longer by a part of its length, at one end."""
    end = ax.transAxes.transform((0, 1 + growth if upwards else -growth))
    with np.errstate(all="ignore"):
        limit = float(ax.transData.inverted().transform(end)[1])
    if ax.get_yscale() == "log":
        limit = min(max(limit, _SMALLEST), _LARGEST)
    if upwards:
        ax.set_ylim(top=limit)
    else:
        ax.set_ylim(bottom=limit)
