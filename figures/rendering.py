"""A figure as the bytes of a file, or the reason why it would not be legible."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure

from lsmooth.errors import InvalidArgumentError

# Inches, half a letter: the width of letters depends on the resolution, which the file and the figure may not share.
_SLACK = 0.05


def empty_figure() -> Figure:
    """Return a figure that pyplot does not know, so that it is freed when nothing refers to it."""
    return Figure(layout="constrained")


# An image takes four bytes a pixel while it is drawn, and viewers refuse much larger ones.
_MOST_PIXELS = 100_000_000


def _check_pixels(figure: Figure, suffix: str, dpi: float | str) -> None:
    """Refuse an image that would fill the memory."""
    if suffix.lower() != ".png":
        return
    width, height = figure.get_size_inches()
    dots = figure.dpi if isinstance(dpi, str) else dpi
    pixels = width * dots * height * dots
    if pixels > _MOST_PIXELS:
        raise InvalidArgumentError(
            f"{width:g}x{height:g} inches at {dots:g} dots an inch are {pixels / 1e6:,.0f} million pixels, and an "
            f"image has at most {_MOST_PIXELS / 1e6:.0f} million; take a smaller --size or --dpi, or write a .pdf."
        )


def render(figure: Figure, suffix: str, dpi: int | None = None) -> bytes:
    """Return the figure as the content of a file.

    Args:
        figure: What has been drawn.
        suffix: Of the file, such as ".png".
        dpi: Dots an inch of images; that of the style by default.

    Raises:
        InvalidArgumentError: The image has too many pixels; the figure is too small for its labels or its legend; or
            its style wants LaTeX, which is not there.
    """
    dpi = dpi or matplotlib.rcParams["savefig.dpi"]
    _check_pixels(figure, suffix, dpi)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="constrained_layout not applied")
        try:
            figure.savefig(content, format=suffix.lower()[1:], dpi=dpi)
            complete = _fits(figure)
            if not complete:
                # At a low resolution letters are wider than in the figure itself, so the layout is made at that
                # resolution too.
                figure.draw_without_rendering()
                complete = _fits(figure)
        except UserWarning:
            complete = False
        except RuntimeError as error:
            if not matplotlib.rcParams["text.usetex"]:
                raise
            reason = str(error).splitlines()[0]
            raise InvalidArgumentError(
                f"The style sets text.usetex, and LaTeX could not set the text ({reason}); install LaTeX, or set "
                "text.usetex: False in --style."
            ) from None
    if not complete:
        width, height = figure.get_size_inches()
        raise InvalidArgumentError(
            f"A figure of {width:g}x{height:g} inches is too small for its labels; give a larger --size."
        )
    return content.getvalue()


@contextmanager
def missing_glyphs_told_once() -> Iterator[None]:
    """Name in one warning all letters that the fonts lack; matplotlib warns of each letter at each use."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=r"Glyph \d+")
        yield
    glyphs: dict[str, None] = {}
    fonts = ""
    for warning in caught:
        found = re.match(r"Glyph (\d+) .* missing from (?:font\(s\) |current font)(.*?)\.?$", str(warning.message))
        if found is None:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        else:
            glyphs[chr(int(found[1]))] = None
            fonts = found[2] or fonts
    if glyphs:
        warnings.warn(
            f"The font {fonts or matplotlib.rcParams['font.family'][0]} lacks {', '.join(map(_with_code, glyphs))}; "
            "boxes stand in their places: set font.family to one that has them.",
            stacklevel=3,
        )


def _with_code(letter: str) -> str:
    """Return a letter with its code point, which is legible where the letter is not."""
    return f"{letter} (U+{ord(letter):04X})"


def _fits(figure: Figure) -> bool:
    """Return whether all parts of a drawn figure are inside it, and each legend inside its Axes."""
    width, height = figure.get_size_inches()
    edges = figure.get_tightbbox()
    if min(edges.x0, edges.y0, width - edges.x1, height - edges.y1) < -_SLACK:
        return False
    for ax in figure.axes:
        legend = ax.get_legend()
        if legend is None:
            continue
        box, panel = legend.get_window_extent(), ax.get_window_extent()
        if box.y1 < panel.y0:
            # Below its Axes, the edges of the figure alone are in its way.
            continue
        # A legend above its Axes was placed there on purpose.
        down = 0.0 if box.y0 > panel.y1 else min(box.y0 - panel.y0, panel.y1 - box.y1)
        if min(box.x0 - panel.x0, panel.x1 - box.x1, down) < -_SLACK * figure.dpi:
            return False
    return True
