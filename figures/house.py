"""The house style: sizes for a single-column figure, and colours that survive colour blindness and grey print."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
import seaborn as sns
from matplotlib.colors import Colormap

from lsmooth.errors import InvalidArgumentError, unknown_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Inches: one column of a two-column page, and both.
COLUMN = 3.25
PAGE = 6.75
# Points, of all text.
TEXT = 8

# What seaborn's "ticks" style and "paper" context leave open, or set for other sizes. `Any`, since matplotlib types the
# names of its settings one by one, version by version.
_SETTINGS: Any = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "legend.fontsize": TEXT,
    "legend.title_fontsize": TEXT,
    "figure.titlesize": TEXT,
    "figure.labelsize": TEXT,
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.25",
    "axes.linewidth": 0.6,
    "axes.labelpad": 2.5,
    "axes.titlepad": 4,
    "patch.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "xtick.major.pad": 2,
    "ytick.major.pad": 2,
    "legend.frameon": True,
    "legend.framealpha": 0.85,
    "legend.edgecolor": "none",
    "legend.borderpad": 0.3,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.labelspacing": 0.3,
    "legend.borderaxespad": 0.3,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
    # Letters stay letters in PDF: they can be searched, and edited afterwards.
    "pdf.fonttype": 42,
}

# Of seaborn's palette for colour-blind readers, the colours that are dark enough for lines on white; used together with
# dashes and markers.
LINES: tuple[str, ...] = tuple(sns.color_palette("colorblind").as_hex()[place] for place in (0, 3, 2, 4, 7, 9, 1))
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
FLAGGED = "#8C8C8C"


@contextmanager
def style(extra: str | os.PathLike[str] | dict[str, Any] | None = None) -> Iterator[None]:
    """Put figures that are made and drawn inside the `with` block into the house style.

    Args:
        extra: Settings on top of it: a matplotlib style file, the name of a matplotlib style, or a dict of rcParams.

    Raises:
        InvalidArgumentError: There is no such style, or its file cannot be read as one.

    Examples:
        >>> with lsmooth.figures.style():  # doctest: +SKIP
        ...     figure, axes = plt.subplots(1, 2, layout="constrained")
        ...     lsmooth.figures.smoothness_scatter(trace, ax=axes[0])
    """
    interactive = matplotlib.is_interactive()
    try:
        with matplotlib.rc_context(_house_settings()):
            if extra is not None:
                _use_style(extra if isinstance(extra, dict) else os.fspath(extra))
            try:
                yield
            finally:
                interactive = matplotlib.is_interactive()
    finally:
        # A notebook's first figure turns this setting on. Put back with the others, it would hide all later figures.
        matplotlib.interactive(interactive)


def _house_settings() -> Any:
    """Return seaborn's style and context with the house's sizes on top; fonts stay the reader's own."""
    settings: dict[str, Any] = sns.axes_style("ticks") | sns.plotting_context("paper") | _SETTINGS
    return {name: value for name, value in settings.items() if name not in ("font.family", "font.sans-serif")}


def _use_style(name: str | dict[str, Any]) -> None:
    """Apply settings: a dict, a style file, or a style that matplotlib knows."""
    import matplotlib.style

    if isinstance(name, dict):
        matplotlib.style.use(name)
        return
    if not os.path.isfile(name) and name not in matplotlib.style.available:
        if os.path.splitext(name)[1] or "/" in name:
            raise InvalidArgumentError(f"There is no style file {name}.")
        raise unknown_name("matplotlib style", name, matplotlib.style.available)
    try:
        matplotlib.style.use(name)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(f"{name} cannot be used as a matplotlib style ({reason}).") from None


def sequential() -> Colormap:
    """Return the colour map for quantities that grow: viridis without its end that vanishes on white paper."""
    colours: Colormap = sns.blend_palette(sns.color_palette("viridis", 256)[:230], n_colors=256, as_cmap=True)
    return colours


def new_figure(width: float = COLUMN, height: float = 2.6) -> Figure:
    """Return an empty figure that pyplot knows, so that notebooks and windows show it; sizes in inches."""
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(width, height), layout="constrained")


@contextmanager
def drawing(ax: Axes | None, height: float = 2.6) -> Iterator[Axes]:
    """Give the Axes to draw in: the caller's, in the caller's style, or new ones in the house style, inches high."""
    if ax is not None:
        yield ax
        return
    with arranging(None, COLUMN, height) as figure:
        yield figure.add_subplot()


@contextmanager
def arranging(figure: Figure | SubFigure | None, width: float, height: float) -> Iterator[Figure | SubFigure]:
    """Give the figure to arrange Axes in: the caller's, or a new one in the house style; sizes in inches."""
    if figure is not None:
        yield figure
        return
    with style():
        figure = new_figure(width, height)
        yield figure
        settle(figure)


def settle(figure: Figure | SubFigure) -> None:
    """Make the ticks now: otherwise matplotlib makes them when drawing, in the style of that moment."""
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_major_ticks()
            axis.get_minor_ticks()
