"""`lsmooth export`: write a trace as a table for other tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from lsmooth.trace.reader import Displacement, Trace


@click.command("export", epilog="Example: lsmooth export run.h5 -o run.csv --by module")
@click.argument("trace", type=click.Path())
@click.option(
    "-o", "--output", required=True, type=click.Path(), help="File to write: .csv, .parquet or .nc (netCDF-4)."
)
@click.option(
    "--by",
    default=None,
    help="Write a row per step and group: global, module, parameter, coordinate, or a regular expression whose first "
    "group names the group.  [default: a row per step; all data sets for .nc]",
)
@click.option(
    "--displacement",
    type=click.Choice(["layer", "global"]),
    default="layer",
    show_default=True,
    help="With --by: divide the change of a group's gradient by the group's part of the step, or by the whole step.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(trace: str, output: str, by: str | None, displacement: Displacement, force: bool) -> None:
    """Write TRACE as a table: steps, losses, learning rates, gradient norms and local smoothness."""
    from pathlib import Path

    from lsmooth.cli.outputs import check_output
    from lsmooth.errors import InvalidArgumentError
    from lsmooth.trace.reader import Trace

    if by is None and displacement != "layer":
        raise click.UsageError("--displacement goes with --by.")
    path = Path(output)
    if path.suffix.lower() not in (".csv", ".parquet", ".nc"):
        raise InvalidArgumentError(f"{output} ends in none of .csv, .parquet and .nc; give it one of these suffixes.")
    check_output(path, force)
    if path.exists() and path.samefile(trace):
        raise InvalidArgumentError(f"{output} is the trace itself; choose another name.")
    with Trace(trace) as opened:
        if path.suffix.lower() == ".nc":
            dataset = opened.to_xarray() if by is None else _groups(opened, by, displacement)
            dataset.to_netcdf(path, engine="h5netcdf")
            rows = len(opened)
        else:
            frame = opened.to_frame() if by is None else opened.smoothness(by, displacement=displacement)
            _write_table(frame, path)
            rows = len(frame)
    click.echo(f"Wrote {path} ({rows} rows).")


def _groups(trace: Trace, by: str, displacement: Displacement) -> Any:
    """Return the table of `Trace.smoothness` as an xarray.Dataset over step and group."""
    import xarray

    table = trace.smoothness(by, displacement=displacement)
    groups = list(table.group.cat.categories)
    by_group = table.drop(columns=["step", "group", "loss", "lr"]).astype({"usable": "int8"})
    return xarray.Dataset(
        {name: (("step", "group"), values.to_numpy().reshape(-1, len(groups))) for name, values in by_group.items()},
        {"step": trace.steps, "group": groups},
    )


def _write_table(frame: pd.DataFrame, path: Path) -> None:
    from lsmooth.cli.spreadsheet import to_csv
    from lsmooth.errors import InvalidArgumentError

    if path.suffix.lower() == ".csv":
        to_csv(frame, path)
        return
    try:
        frame.to_parquet(path, index=False)
    except ImportError:
        raise InvalidArgumentError(
            "Parquet files need pyarrow, which is not installed; `pip install pyarrow`, or export to .csv."
        ) from None
