"""A figure as the bytes of a file, or the reason why it would not be legible."""

from __future__ import annotations

import io
import warnings

import matplotlib
from matplotlib.figure import Figure

from lsmooth.errors import InvalidArgumentError

# Inches, half a letter: letters are not equally wide at the resolution of the file and at that of the figure.
_SLACK = 0.05


def empty_figure() -> Figure:
    """Return a figure that pyplot does not know, so that it is freed when nothing refers to it."""
    return Figure(layout="constrained")


def render(figure: Figure, suffix: str, dpi: int | None = None) -> bytes:
    """Return the figure as the content of a file.

    Args:
        figure: What has been drawn.
        suffix: Of the file, such as ".png".
        dpi: Dots an inch of images; that of the style by default.

    Raises:
        InvalidArgumentError: The figure is too small for its labels or its legend.
    """
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="constrained_layout not applied")
        try:
            figure.savefig(content, format=suffix.lower()[1:], dpi=dpi or matplotlib.rcParams["savefig.dpi"])
            complete = _fits(figure)
        except UserWarning:
            complete = False
    if not complete:
        width, height = figure.get_size_inches()
        raise InvalidArgumentError(
            f"A figure of {width:g}x{height:g} inches is too small for its labels; give a larger --size."
        )
    return content.getvalue()


def _fits(figure: Figure) -> bool:
    """Say of a figure that has been drawn whether all of it is inside, and legends inside of what they explain."""
    width, height = figure.get_size_inches()
    edges = figure.get_tightbbox()
    if min(edges.x0, edges.y0, width - edges.x1, height - edges.y1) < -_SLACK:
        return False
    for ax in figure.axes:
        legend = ax.get_legend()
        if legend is None:
            continue
        box, panel = legend.get_window_extent(), ax.get_window_extent()
        # One that stands above its Axes is where it should be.
        down = 0.0 if box.y0 > panel.y1 else min(box.y0 - panel.y0, panel.y1 - box.y1)
        if min(box.x0 - panel.x0, panel.x1 - box.x1, down) < -_SLACK * figure.dpi:
            return False
    return True
