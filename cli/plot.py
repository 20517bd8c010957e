"""`lsmooth plot`: draw the figures of a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsmooth.trace.reader import Trace

SUFFIXES = (".png", ".pdf", ".svg")


@click.command("plot", epilog="Example: lsmooth plot run.h5 -o figure1.png")
@click.argument("trace", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Where to: .png, .pdf or .svg.")
@click.option("--kind", default="scatter", show_default=True, help="scatter or coordinates.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(trace: str, output: str, kind: str, force: bool) -> None:
    """Draw a figure of TRACE: smoothness against gradient norm (scatter), or of single coordinates (coordinates)."""
    from lsmooth.errors import unknown_name

    if kind not in KINDS:
        raise unknown_name("kind of figure", kind, KINDS)
    path = _checked_output(output, force)
    from matplotlib.figure import Figure

    from lsmooth.figures import style
    from lsmooth.trace.reader import Trace

    with Trace(trace) as opened, style():
        figure = Figure(layout="constrained")
        KINDS[kind](opened, figure)
        _save(figure, path)
    click.echo(f"Wrote {path}.")


def _checked_output(output: str, force: bool) -> Path:
    """Return where a figure goes, or say why it cannot go there."""
    from lsmooth.errors import InvalidArgumentError, unknown_name

    path = Path(output)
    suffix = path.suffix.lower()
    if not suffix:
        raise InvalidArgumentError(f"{output} has no suffix; end it in one of {', '.join(SUFFIXES)}.")
    if suffix not in SUFFIXES:
        raise unknown_name("figure format", suffix, SUFFIXES)
    if path.exists() and not force:
        raise InvalidArgumentError(f"{output} exists already; choose another name, or --force to replace it.")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"There is no folder {path.parent}; make it first, or choose another place.")
    return path


def _save(figure: Figure, path: Path) -> None:
    """Render first and write afterwards: a figure that fails leaves no broken file."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.lower()[1:])
    path.write_bytes(buffer.getvalue())


def _scatter(trace: Trace, figure: Figure) -> None:
    from lsmooth.figures import smoothness_scatter

    figure.set_size_inches(3.25, 2.6)
    smoothness_scatter(trace, ax=figure.add_subplot())


def _coordinates(trace: Trace, figure: Figure) -> None:
    from lsmooth.figures import coordinate_grid

    figure.set_size_inches(3.25, 4.75)
    coordinate_grid(trace, figure=figure)


KINDS: dict[str, Callable[[Trace, Figure], None]] = {"scatter": _scatter, "coordinates": _coordinates}
