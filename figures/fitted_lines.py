"""Lines through a cloud of points and above it, fitted by `lsmooth.fit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsmooth.errors import unknown_name
from lsmooth.figures.house import DASHES, LINES
from lsmooth.figures.points import Points
from lsmooth.figures.scales import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


# A line may make the y axis longer by this share of the points' own span; a longer line leaves the picture.
_MOST_EXTENSION = 0.35
# Share of the axis that stays free beyond a line's ends: a line that ends at the edge looks as if it went on.
_MARGIN = 0.02
LEAVES = "↑"


@dataclass(frozen=True)
class FittedLine:
    """A line in a figure, with the text that describes it.

    Attributes:
        method: Name of the method that fitted it.
        handle: The artist.
        level: L0.
        slope: L1.
        leaves: Whether a part of the line lies beyond the y axis.
    """

    method: str
    handle: Line2D
    level: float
    slope: float
    leaves: bool = False

    @property
    def label(self) -> str:
        """Method and constants, for a legend."""
        constants = f"{self.method}: $L_0$ = {short_number(self.level)}, $L_1$ = {short_number(self.slope)}"
        return f"{constants} (leaves the picture)" if self.leaves else constants

    @property
    def short(self) -> tuple[str, ...]:
        """Method and constants in shorter and shorter forms, for the title of a panel."""
        name = f"{self.method}{LEAVES}" if self.leaves else self.method
        return tuple(
            f"{name} $L_0$ {short_number(self.level, digits)},{space}$L_1$ {short_number(self.slope, digits)}"
            for digits, space in ((3, " "), (2, " "), (3, "\n"))
        )


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

    The points must have been drawn already: the y axis is made longer for lines that leave it a little.
    """
    from lsmooth import fit

    if not lines or why_no_line(points):
        return []
    usable = _fitted(points)
    shown = points.grad_norm[points.drawable(log=not linear) & usable]
    if not len(shown):
        return []
    along = np.linspace(shown.min(), shown.max(), 200) if linear else np.geomspace(shown.min(), shown.max(), 200)
    fitted = []
    for name in lines:
        level, slope = getattr(fit, name)(points.grad_norm[usable], points.smoothness[usable])
        if not (np.isfinite(level) and np.isfinite(slope)):
            continue
        # Thin and without a halo, which would erase the points below.
        (handle,) = ax.plot(
            along, level + slope * along, linewidth=0.9, zorder=2.4, label=f"_{name}", **_LINE_LOOKS[name]
        )
        fitted.append(FittedLine(name, handle, level, slope))
    make_room(ax, fitted, linear=linear)
    return mark_leaving(ax, fitted)


def why_no_line(points: Points) -> str:
    """Return, in few words, why no line can be fitted to the points; "" where one can."""
    from lsmooth.fit.batches import FEWEST
    from lsmooth.fit.lines import at_one_norm

    x = points.grad_norm[_fitted(points)]
    if len(x) < FEWEST:
        return f"{len(x)} point{'s' * (len(x) != 1)}, {FEWEST} needed"
    return "all points lie at one gradient norm" if at_one_norm(x[None])[0] else ""


def _fitted(points: Points) -> NDArray[np.bool_]:
    return points.usable & (points.grad_norm >= 0) & (points.smoothness >= 0)


def make_room(ax: Axes, fitted: Sequence[FittedLine], *, linear: bool) -> None:
    """Make the y axis longer for lines and a margin beyond them, by a third of its length at most."""
    if not fitted:
        return
    low, high = ax.get_ylim()
    values = np.concatenate([np.asarray(line.handle.get_ydata(), dtype=np.float64) for line in fitted])
    lowest, highest = values.min(), values.max()
    if linear:
        reach, margin = _MOST_EXTENSION * (high - low), _MARGIN * (high - low)
        ax.set_ylim(max(min(low, lowest - margin), low - reach), min(max(high, highest + margin), high + reach))
    else:
        reach, margin = (high / low) ** _MOST_EXTENSION, (high / low) ** _MARGIN
        ax.set_ylim(max(min(low, lowest / margin), low / reach), min(max(high, highest * margin), high * reach))


def mark_leaving(ax: Axes, fitted: Sequence[FittedLine]) -> list[FittedLine]:
    """Return the lines, each with whether a part of it lies beyond the y axis as it is now."""
    low, high = sorted(ax.get_ylim())
    marked = []
    for line in fitted:
        values = np.asarray(line.handle.get_ydata(), dtype=np.float64)
        marked.append(replace(line, leaves=bool(values.min() < low or values.max() > high)))
    return marked
