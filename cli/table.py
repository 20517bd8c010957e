"""Tables in the terminal: aligned columns, no wider than the terminal, with no name cut."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

# Between two columns.
_GAP = "  "
# FIGURE SPACE puts decimal points below each other. It is printed as a space, or left out where there is no room.
_PADDING = "\N{FIGURE SPACE}"
# A longer name of a fact runs past its column.
_LONGEST_NAME = 20


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        head: Its heading; newlines make several lines.
        left: Whether cells begin at its left edge; numbers end at its right edge.
        width: Characters that it takes; `table` finds them itself.
        dispensable: Whether a terminal that is too narrow may do without it.
    """

    head: str
    left: bool = False
    width: int = 0
    dispensable: bool = False


def terminal_width() -> int:
    """Return how many characters fit on a line: the environment's COLUMNS, the terminal's, or 80."""
    return shutil.get_terminal_size().columns


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Return the lines of a table, its heads first.

    The first column names the rows; a name is not repeated below itself. Where the terminal has no room for the names
    beside the other columns, they stand on lines of their own. Where it has no room even then, dispensable columns are
    left out, the last one first, and then the padding that `numbers` puts in.

    Args:
        columns: The columns, names first.
        rows: The cells of each row.
        width: Characters on a line; by default those of the terminal.
    """
    width = terminal_width() if width is None else width
    columns = _fitted(columns, rows)
    if _room(columns) <= width:
        previous = [None, *(row[0] for row in rows)]
        cells = [["" if row[0] == before else row[0], *row[1:]] for row, before in zip(rows, previous, strict=False)]
        return [*heads(columns), *(line(columns, row) for row in cells)]
    shown = list(range(1, len(columns)))
    for i in reversed(shown):
        if columns[i].dispensable and _room([columns[j] for j in shown]) + len(_GAP) > width:
            shown.remove(i)
    names = [columns[0].head, *(row[0] for row in rows)]
    columns, rows = [columns[i] for i in shown], [[row[i] for i in shown] for row in rows]
    if _room(columns) + len(_GAP) > width:
        rows = [[cell.replace(_PADDING, "") for cell in row] for row in rows]
        columns = _fitted(columns, rows)
    lines = [names[0], *(_GAP + text for text in heads(columns))]
    for name, before, row in zip(names[1:], names, rows, strict=False):
        if name != before:
            lines += textwrap.wrap(name, width, subsequent_indent=_GAP, break_on_hyphens=False)
        lines.append(_GAP + line(columns, row))
    return lines


def _fitted(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[Column]:
    """Return the columns as wide as their cells need."""
    return [
        replace(column, width=max([*map(len, column.head.split("\n")), *(len(row[i]) for row in rows)]))
        for i, column in enumerate(columns)
    ]


def _room(columns: Sequence[Column]) -> int:
    """Return how many characters a line of these columns takes."""
    return sum(column.width + len(_GAP) for column in columns) - len(_GAP)


def line(columns: Sequence[Column], cells: Sequence[str]) -> str:
    """Return one line of a table whose columns have their widths."""
    texts = (
        cell.ljust(column.width) if column.left else cell.rjust(column.width)
        for column, cell in zip(columns, cells, strict=True)
    )
    return _GAP.join(texts).replace(_PADDING, " ").rstrip()


def heads(columns: Sequence[Column]) -> list[str]:
    """Return the lines of heads above columns that have their widths."""
    texts = [column.head.split("\n") for column in columns]
    tallest = max(map(len, texts))
    padded = [[""] * (tallest - len(lines)) + lines for lines in texts]
    return [line(columns, [lines[i] for lines in padded]) for i in range(tallest)]


def numbers(values: Iterable[float]) -> list[str]:
    """Return numbers to three figures with their decimal points below each other in a `table`, and "-" for NaN."""
    texts = ["-" if math.isnan(value) else f"{value:.3g}" for value in values]
    before = [len(text.partition("e")[0].partition(".")[0]) for text in texts]
    shifted = [_PADDING * (max(before) - size) + text for size, text in zip(before, texts, strict=True)]
    return [text.ljust(max(map(len, shifted)), _PADDING) for text in shifted]


def intervals(pairs: Iterable[tuple[float, float]]) -> list[str]:
    """Return means with half of their intervals, with the ± below each other in a `table`, and "-" for NaN.

    Means have four figures. Halves have two, and no exponent where they have at most six digits.
    """
    texts = [
        ("-" if math.isnan(mean) else f"{mean:.4g}", "" if math.isnan(half) else f" ± {float(f'{half:.2g}'):g}")
        for mean, half in pairs
    ]
    longest = max((len(half) for _, half in texts), default=0)
    return [mean + half.ljust(longest, _PADDING) for mean, half in texts]


def duration(seconds: float) -> str:
    """Return a time in words: "0.5 s", "2 min 05 s", "3 h 20 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.3g} s"


def wrapped(text: str) -> list[str]:
    """Return the lines of a sentence in the terminal's width, the later ones indented."""
    return textwrap.wrap(text, terminal_width(), subsequent_indent=_GAP, break_on_hyphens=False)


def listed(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return facts as indented lines, names in one column; a name longer than the column runs past it."""
    size = max(10, *(len(name) for name, _ in pairs if len(name) <= _LONGEST_NAME))
    return [f"{_GAP}{name:<{size}} {text}" for name, text in pairs]
