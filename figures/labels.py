"""Names made to fit: parameters have long ones, and a panel of a printed figure is an inch wide."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.font_manager import FontProperties

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ELLIPSIS = "…"


def text_width(text: str, size: float) -> float:
    """Return how wide a line of text is in points, set in the current font at a size in points."""
    return size * _em_width(text, tuple(matplotlib.rcParams["font.family"]))


@lru_cache(maxsize=4096)
def _em_width(text: str, family: tuple[str, ...]) -> float:
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(family=list(family), size=100), ismath=False
    )
    return float(width) / 100


def shorten(text: str, width: float, size: float) -> str:
    """Return `text` with its middle left out, so that it is at most `width` points wide; the end says most."""
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = kept // 3
        short = text[:head] + ELLIPSIS + text[len(text) - (kept - head) :]
        if text_width(short, size) <= width:
            return short
    return ELLIPSIS


def wrap_name(name: str, width: float, size: float, lines: int = 2) -> str:
    """Return a parameter's or coordinate's name in at most `lines` lines of at most `width` points.

    Lines break at dots and before the index; where the name is too long, its end is kept, which says most.
    """
    rows = [""]
    for piece in re.findall(r"[^.\[]+\.?|\.|\[.*$", name):
        if rows[-1] and text_width(rows[-1] + piece, size) > width:
            rows.append("")
        rows[-1] += piece
    if len(rows) > lines:
        rows = rows[-lines:]
        rows[0] = ELLIPSIS + rows[0]
    return "\n".join(shorten(row, width, size) for row in rows)


def title(ax: Axes, name: str, width: float, lines: int = 2, **how: Any) -> None:
    """Title a panel with a name made to fit `width` points."""
    size = FontProperties(size=matplotlib.rcParams["axes.titlesize"]).get_size_in_points()
    # A name may hold a dollar sign, which is not mathematics here.
    ax.set_title(wrap_name(name, width, size, lines).replace("$", r"\$"), **how)
