"""`lsmooth estimate`: L0 and L1 of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import pandas as pd


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
    """Return the lines of a table no wider than the terminal; groups without numbers follow with their reasons."""
    import shutil

    width = shutil.get_terminal_size().columns
    fitted = frame[frame["L0"].notna()]
    cells = [
        [
            str(row.group),
            str(row.method),
            _number(row.L0),
            _number(row.L1),
            f"{row.spearman:.2f}",
            f"{row.coverage:.0%}",
            str(row.points),
        ]
        for row in fitted.itertuples()
    ]
    heads = ["group", "method", "L0", "L1", "rank corr", "below", "points"]
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(heads))]
    widths[0] = max(min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)), 8)
    lines = []
    previous = None
    for cell in [heads, *cells] if cells else []:
        name = "" if cell[0] == previous else _shortened(cell[0], widths[0])
        previous = cell[0]
        rest = [text.rjust(size) for text, size in zip(cell[2:], widths[2:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), cell[1].ljust(widths[1]), *rest]).rstrip())
    for group, reason in frame.drop_duplicates("group")[["group", "reason"]].itertuples(index=False):
        if reason:
            lines.append(f"{group}: {reason}")
    return lines


def _number(value: float) -> str:
    return f"{value:.3g}"


def _shortened(name: str, width: int) -> str:
    """Return a name in at most `width` characters, its middle left out: layers differ at both ends."""
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"
