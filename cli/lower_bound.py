"""`lsmooth compare lower-bound`: compare gradient descent with its lower bound and with generalized SignSGD."""

from __future__ import annotations

from pathlib import Path

import click


def compare_lower_bound(output: str | None, force: bool) -> None:
    """Run the experiment, print its table, and write it with its figure.

    Args:
        output: File for the table, CSV; the figure goes next to it. "compare-lower-bound.csv" by default.
        force: Replace files that exist.

    Raises:
        InvalidArgumentError: A file cannot be written at its place, or both files would have one name.
    """
    from lsmooth.cli.outputs import check_output
    from lsmooth.cli.table import Column, table
    from lsmooth.errors import InvalidArgumentError

    results = Path(output or "compare-lower-bound.csv")
    figure = results.with_suffix(".png")
    if results == figure:
        raise InvalidArgumentError(
            f"{results} is the name of the figure; end -o in .csv, and the figure becomes {figure}."
        )
    for path in (results, figure):
        check_output(path, force)
    from matplotlib.figure import Figure

    from lsmooth import figures
    from lsmooth.figures.house import COLUMN
    from lsmooth.theory import lower_bound_experiment

    frame = lower_bound_experiment()
    counts = frame.pivot(index="M_L1", columns="optimizer", values="iterations")
    bounds = frame.drop_duplicates("M_L1").set_index("M_L1")["bound"]
    heads = ("M L1", "least for gradient descent", "gradient descent", "generalized SignSGD")
    rows = [
        [
            f"{size:g}",
            *(f"{count:,.0f}" for count in (bounds[size], row["gradient descent"], row["generalized SignSGD"])),
        ]
        for size, row in counts.iterrows()
    ]
    for line in table([Column(name) for name in heads], rows):
        click.echo(line)
    with figures.style():
        canvas = Figure(figsize=(COLUMN, 2.6), layout="constrained")
        figures.lower_bound(frame, ax=canvas.add_subplot())
        canvas.savefig(figure)
    frame.to_csv(results, index=False)
    click.echo(f"\nWrote {results} and {figure}.")
