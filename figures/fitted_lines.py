"""Lines through a cloud of points and above it, fitted by `lsmooth.fit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lsmooth.errors import unknown_name
from lsmooth.figures.house import DASHES, LINES
from lsmooth.figures.points import Points
from lsmooth.figures.scales import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D


@dataclass(frozen=True)
class FittedLine:
    """A line in a figure, and what is said of it.

    Attributes:
        method: Name of the method that fitted it.
        handle: The artist.
        label: Method and constants, for a legend.
        short: The same in fewer characters, for the title of a panel: forms that take less and less width.
    """

    method: str
    handle: Line2D
    label: str
    short: tuple[str, ...]


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

    Too few points, or all at one gradient norm, have no lines (as in `lsmooth.estimate`).
    """
    from matplotlib.patheffects import withStroke

    from lsmooth import fit
    from lsmooth.fit.batches import FEWEST
    from lsmooth.fit.lines import at_one_norm

    usable = points.usable & (points.grad_norm >= 0) & (points.smoothness >= 0)
    x, y = points.grad_norm[usable], points.smoothness[usable]
    if len(x) < FEWEST or at_one_norm(x[None])[0]:
        return []
    shown = points.grad_norm[points.drawable(log=not linear) & usable]
    if not len(shown):
        return []
    along = np.linspace(shown.min(), shown.max(), 200) if linear else np.geomspace(shown.min(), shown.max(), 200)
    fitted = []
    for name in lines:
        level, slope = getattr(fit, name)(x, y)
        (handle,) = ax.plot(
            along,
            level + slope * along,
            linewidth=1.2,
            zorder=2.4,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
            label=f"_{name}",
            **_LINE_LOOKS[name],
        )
        constants = f"$L_0$ = {short_number(level)}, $L_1$ = {short_number(slope)}"
        short = tuple(
            f"{name} $L_0$ {short_number(level, digits)},{space}$L_1$ {short_number(slope, digits)}"
            for digits, space in ((3, " "), (2, " "), (3, "\n"))
        )
        fitted.append(FittedLine(name, handle, f"{name}: {constants}", short))
    return fitted
