"""`lsmooth tail`: follow a running trace in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lsmooth.cli.table import Column, heads, line

if TYPE_CHECKING:
    import pandas as pd

_BLOCKS = "▁▂▃▄▅▆▇█"
# How many values the line at the right shows.
_LOOK_BACK = 16
_COLUMNS = [
    Column("step", width=9),
    *(Column(name, width=10) for name in ("loss", "lr", "grad norm", "smoothness", "2/lr")),
    Column("smoothness so far", left=True),
]


@click.command("tail", epilog="Example: lsmooth tail run.h5")
@click.argument("trace", type=click.Path())
@click.option(
    "-n", "--lines", default=10, show_default=True, type=click.IntRange(0), help="Measured steps to begin with."
)
@click.option(
    "--follow/--no-follow", default=True, help="Go on until the run ends (default), or stop at the last step."
)
@click.option("--interval", default=1.0, show_default=True, type=click.FloatRange(0.05), help="Seconds between looks.")
def command(trace: str, lines: int, follow: bool, interval: float) -> None:
    """Follow TRACE while it is being written: loss, learning rate, gradient norm, smoothness and 2/lr of each step.

    Gradient descent is stable where the smoothness stays below 2/lr. The line at the right shows the last sixteen
    values of smoothness on a logarithmic scale. Steps that were not measured well carry their reason.
    """
    import time

    from lsmooth.trace.reader import Trace

    opened = Trace(trace)
    try:
        click.echo("\n".join(heads(_COLUMNS)))
        shown = max(0, len(opened) - lines)
        while True:
            # Asked before reading: what a run writes last is then not missed.
            writing = opened.state == "being written"
            # A resumed run may begin again before the last step shown.
            shown = min(shown, opened.refresh())
            # What the line at the right looks back on, and what is new.
            first = max(0, shown - _LOOK_BACK + 1)
            frame = opened.to_frame(slice(first, None))
            for row in range(shown - first, len(frame)):
                click.echo(_line(frame, row))
            shown = len(opened)
            if not (follow and writing):
                break
            time.sleep(interval)
        if not shown:
            click.echo("No step has been measured yet.")
        if opened.state == "cut off":
            click.echo("The run was cut off before it closed the trace; what it had flushed is above.", err=True)
    except KeyboardInterrupt:
        click.echo()
    finally:
        opened.close()


def _line(frame: pd.DataFrame, row: int) -> str:
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
        note,
    ]
    return line(_COLUMNS, cells)


def _spark(values: list[float]) -> str:
    import math

    logs = [math.log(value) if value > 0 and math.isfinite(value) else math.nan for value in values]
    known = [value for value in logs if not math.isnan(value)]
    if not known:
        return ""
    low, high = min(known), max(known)
    # Differences of less than a tenth are not worth a hill.
    span = max(high - low, 0.1)
    return "".join(
        " " if math.isnan(value) else _BLOCKS[min(len(_BLOCKS) - 1, int((value - low) / span * len(_BLOCKS)))]
        for value in logs
    )
