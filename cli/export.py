"""`lsmooth export`: write a trace as a table for other tools."""

from __future__ import annotations

import click


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
def command(trace: str, output: str, by: str | None, displacement: str, force: bool) -> None:
    """Write TRACE as a table: steps, losses, learning rates, gradient norms and local smoothness."""
    from pathlib import Path
    from typing import Any

    from lsmooth.cli.outputs import check_output
    from lsmooth.errors import InvalidArgumentError
    from lsmooth.trace.reader import Trace

    if by is None and displacement != "layer":
        raise click.UsageError("--displacement goes with --by.")
    path = Path(output)
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet", ".nc"):
        raise InvalidArgumentError(f"{output} ends in none of .csv, .parquet and .nc; give it one of these suffixes.")
    check_output(path, force)
    if path.exists() and path.samefile(trace):
        raise InvalidArgumentError(f"{output} is the trace itself; choose another name.")
    with Trace(trace) as opened:
        if kind == ".nc":
            dataset: Any = opened.to_xarray()
            if by is not None:
                import xarray

                table = opened.smoothness(by, displacement=displacement)  # type: ignore[arg-type]
                groups = list(table.group.cat.categories)
                by_group = table.drop(columns=["step", "group", "loss", "lr"]).astype({"usable": "int8"})
                dataset = xarray.Dataset(
                    {
                        name: (("step", "group"), values.to_numpy().reshape(-1, len(groups)))
                        for name, values in by_group.items()
                    },
                    {"step": opened.steps, "group": groups},
                )
            dataset.to_netcdf(path, engine="h5netcdf")
            rows = len(opened)
        else:
            frame = (
                opened.to_frame() if by is None else opened.smoothness(by, displacement=displacement)  # type: ignore[arg-type]
            )
            rows = len(frame)
            if kind == ".csv":
                frame.to_csv(path, index=False)
            else:
                try:
                    frame.to_parquet(path, index=False)
                except ImportError:
                    raise InvalidArgumentError(
                        "Parquet files need pyarrow, which is not installed; `pip install pyarrow`, or export to .csv."
                    ) from None
    click.echo(f"Wrote {path} ({rows} rows).")
