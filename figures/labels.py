"""Names shortened to fit: parameters have long ones, and a panel of a printed figure may be an inch wide."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.font_manager import FontProperties

from lsmooth.figures.abbreviations import abbreviations, explain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ELLIPSIS = "…"


def text_width(text: str, size: float) -> float:
    """Return the width, in points, of a line of text in the current font at a size in points."""
    return size * _em_width(text, tuple(matplotlib.rcParams["font.family"]))


@lru_cache(maxsize=4096)
def _em_width(text: str, family: tuple[str, ...]) -> float:
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(family=list(family), size=100), ismath=False
    )
    return float(width) / 100


def shorten(text: str, width: float, size: float) -> str:
    """Return `text` with its middle left out, at most `width` points wide; the end, which says most, stays."""
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = kept // 3
        short = text[:head] + ELLIPSIS + text[len(text) - (kept - head) :]
        if text_width(short, size) <= width:
            return short
    return ELLIPSIS


def abbreviate(name: str, width: float, size: float) -> str:
    """Return a dotted name at most `width` points wide: `e.l.0.self_attn.out_proj` for encoder.layers.0.….

    As many parts as needed are cut to their first letter, from the left.
    """
    for short in abbreviations(name):
        if text_width(short, size) <= width:
            return short
    head, dot, last = short.rpartition(".")
    room = width - text_width(head + dot, size)
    # With room for a few letters at least, the numbers before them stay.
    return head + dot + shorten(last, room, size) if room >= 3 * size else shorten(short, width, size)


def wrap_name(name: str, width: float, size: float, lines: int = 2) -> str:
    """Return a parameter's or coordinate's name in at most `lines` lines of at most `width` points.

    Lines break at dots and before the index; a name that is too long for that is abbreviated from the left.
    """
    for short in abbreviations(name):
        rows = [""]
        for piece in re.findall(r"[^.\[]+\.?|\.|\[.*$", short):
            if rows[-1] and text_width(rows[-1] + piece, size) > width:
                rows.append("")
            rows[-1] += piece
        if len(rows) <= lines and all(text_width(row, size) <= width for row in rows):
            return "\n".join(rows)
    if len(rows) > lines:
        rows = rows[-lines:]
        rows[0] = ELLIPSIS + rows[0]
    return "\n".join(shorten(row, width, size) for row in rows)


def wrap_words(text: str, width: float, size: float) -> str:
    """Return a text broken into lines of at most `width` points."""
    rows: list[str] = []
    for word in text.split():
        if rows and text_width(f"{rows[-1]} {word}", size) <= width:
            rows[-1] += f" {word}"
        else:
            rows.append(word)
    return "\n".join(shorten(row, width, size) for row in rows)


# What a line of a legend does not break: a constant and its value, words in brackets, and mathematics.
_UNITS = re.compile(r"\S+ = \S+|\([^()]*\)\S*|(?<!\\)\$(?:[^$\\]|\\.)*\$\S*|\S+")


def wrap_label(text: str, width: float, size: float) -> str:
    """Return a label of a legend broken into lines of at most `width` points.

    Lines break between words, but not within `a = b`, brackets or mathematics. A single word that is too wide, such as
    a name, has its middle left out.
    """
    rows: list[str] = []
    for unit in _UNITS.findall(text):
        if rows and math_width(f"{rows[-1]} {unit}", size) <= width:
            rows[-1] += f" {unit}"
        else:
            plain = unit.replace(r"\$", "$")
            is_name = "$" not in unit.replace(r"\$", "") and " " not in unit
            rows.append(shorten(plain, width, size).replace("$", r"\$") if is_name else unit)
    return "\n".join(rows)


def title(ax: Axes, name: str, width: float, lines: int = 2, below: Sequence[Sequence[str]] = (), **how: Any) -> str:
    """Title a panel with a name made to fit `width` points, and with lines below, each in its first form that fits.

    Returns:
        The name as it stands in the title, in one line.
    """
    size = FontProperties(size=matplotlib.rcParams["axes.titlesize"]).get_size_in_points()
    fitting_name = wrap_name(name, width, size, lines)
    # A name may hold a dollar sign, which is not mathematics here.
    rows = [fitting_name.replace("$", r"\$")] if name else []
    for forms in below:
        fitting = (form for form in forms if all(math_width(row, size) <= width for row in form.split("\n")))
        rows.append(next(fitting, forms[-1]))
    ax.set_title("\n".join(rows), **how)
    return fitting_name.replace("\n", "")


def caption(ax: Axes, names: Iterable[tuple[str, str]], share: float = 0.9) -> str:
    """Return what abbreviated names stand for as lines that fit the figure, with a line break before; "" without any.

    Args:
        ax: Any Axes of the figure.
        names: Pairs of a whole name and its label.
        share: Part of the figure's width that a line may take.
    """
    text = explain(names)
    if not text:
        return ""
    size = FontProperties(size=matplotlib.rcParams["axes.labelsize"]).get_size_in_points()
    width = share * ax.figure.bbox.width / ax.figure.figure.dpi * 72
    return "\n" + wrap_words(text, width, size).replace("$", r"\$")


def math_width(text: str, size: float) -> float:
    """Return the width, in points, of a line that contains mathematics."""
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=list(matplotlib.rcParams["font.family"]), size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=True)
    return float(width)


def label_rows(ax: Axes, names: Sequence[str], width: float, height: float, first: float = 0.0) -> str:
    """Name the rows of a vertical axis from the top down, one unit apart; only as many as stay legible.

    Args:
        ax: The Axes.
        names: One name a row.
        width: Largest width of a label, in points.
        height: Height of the Axes, in points.
        first: Position of the first name on the axis.

    Returns:
        What abbreviated names stand for, to go below the label of the horizontal axis; "" where all are whole.
    """
    size = FontProperties(size=matplotlib.rcParams["ytick.labelsize"]).get_size_in_points()
    stride = max(1, math.ceil(len(names) * size * 1.15 / height))
    ax.set_ylim(first + len(names) - 0.5, first - 0.5)
    shown = [abbreviate(name, width, size) for name in names[::stride]]
    places = [first + row for row in range(0, len(names), stride)]
    ax.set_yticks(places, [name.replace("$", r"\$") for name in shown])
    ax.tick_params(axis="y", which="minor", left=False)
    # Below Axes that names have pushed to the right, a wider caption would leave the figure.
    return caption(ax, zip(names[::stride], shown, strict=True), share=0.55)
