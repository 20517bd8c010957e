"""The points of a cloud as marks, in the colours of their iterations, with the axes and the colour bar they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from lsmooth.figures.house import FLAGGED, sequential
from lsmooth.figures.points import Points
from lsmooth.figures.scales import linear_limits, log_limits, make_linear, make_log, make_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar

# Up to this many points, seaborn draws each in its exact colour; more are drawn by shades, which is faster.
_EXACT = 30_000
_SHADES = 64
# Points beyond this are an image in PDF and SVG: as vectors they would be megabytes.
VECTOR = 2_000
# Drawn in a fixed random order: in order of time, late points would hide early ones.
_ORDER_SEED = 0


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
        most_ticks: Largest number of labelled ticks on an axis.
        size: Area of a point, in points squared, where there are few points.
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
    set_axes(ax, [points], linear, most_ticks)


def _draw_good(ax: Axes, points: Points, good: NDArray[np.bool_], colours: Normalize, size: float) -> None:
    places = np.flatnonzero(good)
    np.random.default_rng(_ORDER_SEED).shuffle(places)
    total = len(places)
    # Many points are drawn smaller, so that the shape of the cloud stays visible, and a few larger, to be seen at all.
    area = size * (2.0 if total < 100 else min(1.0, max(0.06, (1500 / total) ** 0.5)))
    look: dict[str, Any] = {"zorder": 2.0, "rasterized": total > VECTOR}
    x, y, step = points.grad_norm[places], points.smoothness[places], points.steps[places]
    if total <= _EXACT:
        sns.scatterplot(
            x=x,
            y=y,
            hue=step,
            hue_norm=colours,
            palette=sequential(),
            s=area,
            linewidth=0,
            legend=False,
            ax=ax,
            **look,
        )
        # seaborn's list of colours would be made into an array at each drawing.
        marks = ax.collections[-1]
        marks.set_facecolor(marks.get_facecolor())
        return
    shades = np.minimum((np.asarray(colours(step)) * _SHADES).astype(np.int64), _SHADES - 1)
    palette = sequential()((np.arange(_SHADES) + 0.5) / _SHADES)
    # One artist per shade, several times over, so that shades overlap as points in random order would.
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


def set_axes(ax: Axes, series: Sequence[Points], linear: bool, most_ticks: int) -> None:
    """Give both axes the scale and limits that hold every drawable point of all series."""
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
