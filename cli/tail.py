"""`lsmooth tail`: follow a running trace in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lsmooth.cli.numbers import Count, Number
from lsmooth.cli.table import Column, heads, line

if TYPE_CHECKING:
    import pandas as pd

    from lsmooth.trace.reader import Trace

_BLOCKS = "▁▂▃▄▅▆▇█"
# Number of values that the blocks at the right show.
_LOOK_BACK = 16
_COLUMNS = [
    Column("step", width=9),
    *(Column(name, width=10) for name in ("loss", "lr", "grad norm", "smoothness", "2/lr")),
    Column("smoothness so far", left=True),
]


@click.command("tail", epilog="Example: lsmooth tail run.h5")
@click.argument("trace", type=click.Path())
@click.option("-n", "--lines", default=10, show_default=True, type=Count(0), help="Number of past steps to begin with.")
@click.option(
    "--follow/--no-follow",
    default=True,
    help="Continue until the run ends, or stop at the last step.  [default: --follow]",
)
@click.option("--interval", default=1.0, show_default=True, type=Number(0.05, 86400), help="Seconds between two reads.")
def command(trace: str, lines: int, follow: bool, interval: float) -> None:
    """Follow TRACE while it is being written: print loss, learning rate, gradient norm, smoothness and 2/lr.

    Gradient descent cannot be stable where the smoothness is above 2/lr; below, it may or may not be. The column edge
    has the edge ratio: above 2, a step on a quadratic raises the loss. The column critical lr, of a run with
    --critical, has the least lr that would have raised it. The blocks at the right show the last sixteen values of
    smoothness on a logarithmic scale. A step that was not measured well has its reason there instead.
    """
    import time

    from lsmooth.trace.curvature import edge_ratios
    from lsmooth.trace.reader import Trace

    opened = Trace(trace)
    columns = _columns(opened)
    try:
        click.echo("\n".join(heads(columns)))
        shown = max(0, len(opened) - lines)
        while True:
            # The state is read before the rows, so that the last rows of a run are not missed.
            writing = opened.state == "being written"
            # A resumed run may continue from a step before the last line.
            shown = min(shown, opened.refresh())
            if shown < len(opened):
                # The new rows, and the rows before them that their blocks show.
                first = max(0, shown - _LOOK_BACK + 1)
                frame = opened.to_frame(slice(first, None)).assign(edge_ratio=edge_ratios(opened, slice(first, None)))
                for row in range(shown - first, len(frame)):
                    click.echo(_line(columns, frame, row))
                shown = len(opened)
            if not (follow and writing):
                break
            time.sleep(interval)
        if not shown:
            click.echo("No step has been measured yet.")
        if opened.state == "cut off":
            click.echo(
                "The run was cut off before it closed the trace; the lines above are all that it had flushed.", err=True
            )
    except KeyboardInterrupt:
        click.echo()
    finally:
        opened.close()


def _columns(trace: Trace) -> list[Column]:
    """Return the columns of a trace: those that only some traces have stand before the blocks."""
    further = [
        Column(name, width=10)
        for name, there in (
            ("edge", trace.has("curvature/change_next")),
            ("critical lr", trace.has("critical_gamma")),
        )
        if there
    ]
    return [*_COLUMNS[:-1], *further, _COLUMNS[-1]]


def _line(columns: list[Column], frame: pd.DataFrame, row: int) -> str:
    from lsmooth.trace.layout import Status

    values = frame.iloc[row]
    lr = values["lr"] if "lr" in frame.columns else values["lr_0"]
    status = Status(int(values["status"]))
    if status == Status.MEASURED:
        note = _spark(frame["smoothness"].iloc[max(0, row - _LOOK_BACK + 1) : row + 1].tolist())
    else:
        note = ", ".join(str(flag.name).lower().replace("_", " ") for flag in Status if flag & status)
    cells = [
        str(int(values["step"])),
        f"{values['loss']:.4g}",
        f"{lr:.3g}",
        f"{values['grad_norm']:.4g}",
        f"{values['smoothness']:.4g}",
        f"{2 / lr:.4g}" if lr > 0 else "-",
    ]
    shown = {column.head for column in columns}
    if "edge" in shown:
        cells.append(f"{values['edge_ratio']:.3g}")
    if "critical lr" in shown:
        cells.append(f"{lr * values['critical_gamma']:.3g}")
    return line(columns, [*cells, note])


def _spark(values: list[float]) -> str:
    import math

    logs = [math.log(value) if value > 0 and math.isfinite(value) else math.nan for value in values]
    known = [value for value in logs if not math.isnan(value)]
    if not known:
        return ""
    low, high = min(known), max(known)
    # A difference of less than a tenth is drawn flat.
    span = max(high - low, 0.1)
    return "".join(
        " " if math.isnan(value) else _BLOCKS[min(len(_BLOCKS) - 1, int((value - low) / span * len(_BLOCKS)))]
        for value in logs
    )
