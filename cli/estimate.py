"""`lsmooth estimate`: L0 and L1 of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import pandas as pd

_SHORTEST_NAME = 16
# A note that concerns more groups than this names some of them.
_MOST_NAMES = 4


@click.command("estimate", epilog="Example: lsmooth estimate run.h5 --by module")
@click.argument("trace", type=click.Path())
@click.option(
    "--by",
    default="global",
    show_default=True,
    help="global, module, parameter, coordinate, or a regular expression whose first group names the group.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=("trend", "envelope"),
    show_default=True,
    type=click.Choice(["trend", "quantile", "envelope"]),
    help="Which line; may be given several times.",
)
@click.option("--displacement", type=click.Choice(["layer", "global"]), default="layer", show_default=True)
@click.option("--q", "q", default=0.95, show_default=True, help="Share of the points below the line of `quantile`.")
def command(trace: str, by: str, methods: tuple[str, ...], displacement: str, q: float) -> None:
    """Print L0 and L1 of TRACE: the line smoothness = L0 + L1 x gradient norm.

    The trend runs through the middle of the points, a quantile above a share of them, the envelope above all.
    """
    from lsmooth.fit import estimate
    from lsmooth.trace.reader import Trace

    with Trace(trace) as opened:
        frame = estimate(opened, by, method=methods, displacement=displacement, q=q)  # type: ignore[arg-type]
    for line in _table(frame):
        click.echo(line)


def _table(frame: pd.DataFrame) -> list[str]:
    """Return the lines of a table no wider than the terminal, and below it what was left out and why."""
    import shutil
    import textwrap

    width = shutil.get_terminal_size().columns
    heads = ["group", "method", "L0", "L1", "rank corr", "below", "points"]
    cells = [
        [
            str(row.group),
            str(row.method),
            _with_interval(row.L0, row.L0_low, row.L0_high),
            _with_interval(row.L1, row.L1_low, row.L1_high),
            f"{row.spearman:.2f}",
            f"{row.coverage:.0%}",
            str(row.points),
        ]
        for row in frame[frame["L0"].notna()].itertuples()
    ]
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(heads))]
    shown = list(range(len(heads)))
    # What a narrow terminal can do without, in this order.
    for column in (5, 6, 4):
        if sum(widths[i] + 2 for i in shown[1:]) + min(widths[0], _SHORTEST_NAME) > width:
            shown.remove(column)
    room = width - sum(widths[i] + 2 for i in shown[1:])
    widths[0] = max(min(widths[0], room), len(heads[0]))
    lines = []
    previous = None
    for cell in [heads, *cells] if cells else []:
        name = "" if cell[0] == previous else _shortened(cell[0], widths[0])
        previous = cell[0]
        texts = [name.ljust(widths[0]), cell[1].ljust(widths[1])]
        texts += [cell[i].ljust(widths[i]) if i < 4 else cell[i].rjust(widths[i]) for i in shown[2:]]
        lines.append("  ".join(texts).rstrip())
    for reason, rows in frame[frame["reason"] != ""].groupby("reason", sort=False):
        names = rows["group"].drop_duplicates().tolist()
        if len(names) > _MOST_NAMES:
            names = [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} more"]
        note = f"{', '.join(names)}: {reason}"
        lines += textwrap.wrap(note, width, subsequent_indent="  ", break_on_hyphens=False)
    return lines


def _with_interval(value: float, low: float, high: float) -> str:
    """Return a constant to three figures, with its interval where there is one."""
    return f"{value:.3g} [{low:.3g}, {high:.3g}]" if low == low else f"{value:.3g}"


def _shortened(name: str, width: int) -> str:
    """Return a name in at most `width` characters, its middle left out: layers differ at both ends."""
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"
