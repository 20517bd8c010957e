"""`lsmooth plot`: draw the figures of traces."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lsmooth.cli.outputs import check_output
from lsmooth.cli.progress import plain_warnings
from lsmooth.errors import InvalidArgumentError, LsmoothError, unknown_name
from lsmooth.figures.kinds import KINDS, RUNS, Options, check_options, draw_kind
from lsmooth.trace.layout import NORMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsmooth.trace.reader import Trace

SUFFIXES = (".png", ".pdf", ".svg")


class _Size(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        try:
            width, height = (float(part) for part in str(value).lower().split("x"))
        except ValueError:
            self.fail(f"{value!r} is not a size; give width and height in inches, such as 3.25x2.6.", param, ctx)
        if not (0.5 <= width <= 50 and 0.5 <= height <= 50):
            self.fail(f"{value!r} is not between 0.5 and 50 inches in both directions.", param, ctx)
        return width, height


@click.command("plot", epilog="Example: lsmooth plot run.h5 -o figure1.png --kind scatter")
@click.argument("traces", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="File to write: .png, .pdf or .svg; with --all, a folder.  [default: a window, where there is a display]",
)
@click.option("--kind", default=None, help="Kind of figure, from the list above.  [default: scatter]")
@click.option("--all", "everything", is_flag=True, help="Draw every kind that the trace can give.")
@click.option(
    "--by",
    default=None,
    help="Groups of parameters: global, module, parameter, coordinate, or a regular expression whose first group names "
    "the group. For curves: run or optimizer.  [default: global for scatter and edge, module for layers and heatmap]",
)
@click.option(
    "--norm",
    type=click.Choice(NORMS),
    default="l2",
    show_default=True,
    help="Norm of displacements; gradients have its dual norm. Any norm but l2 must have been recorded.",
)
@click.option(
    "--dpi",
    type=click.IntRange(30, 2400),
    default=None,
    metavar="COUNT",
    help="Dots per inch of images.  [default: 300]",
)
@click.option(
    "--size",
    type=_Size(),
    metavar="WIDTHxHEIGHT",
    default=None,
    help="Width and height in inches, such as 3.25x2.6.  [default: what the kind needs]",
)
@click.option("--title", default=None, help="Title above the figure.")
@click.option("--linear", is_flag=True, help="Draw linear axes in place of logarithmic ones.")
@click.option("--marginals", is_flag=True, help="Draw the distributions beside the scatter.")
@click.option("--style", "style_name", default=None, help="matplotlib style, or style file, on top of lsmooth's own.")
@click.option("--force", is_flag=True, help="Replace existing files.")
def command(
    traces: tuple[str, ...],
    output: str | None,
    kind: str | None,
    everything: bool,
    by: str | None,
    norm: str,
    dpi: int | None,
    size: tuple[float, float] | None,
    title: str | None,
    linear: bool,
    marginals: bool,
    style_name: str | None,
    force: bool,
) -> None:
    """Draw one figure of TRACES, or with --all each that they can give.

    \b
    scatter      smoothness against gradient norm, with trend and envelope
    coordinates  the same of single followed coordinates
    density      all coordinates at once (recorded with densities=True)
    layers       L0 and L1 of each layer
    heatmap      smoothness of each layer over iterations
    stability    smoothness over iterations, against 2/lr
    edge         edge ratio over iterations, against 2
    curves       training loss, of one trace or several
    segments     loss and gradient along single steps
    """  # noqa: D301 (\b is click's mark for lines to be kept)
    if everything and kind is not None:
        raise click.UsageError("--all draws every kind; leave out --kind.")
    kind = kind or "scatter"
    if kind not in KINDS:
        raise unknown_name("kind of figure", kind, KINDS)
    if everything:
        if output is None:
            raise click.UsageError("--all needs a folder: -o DIR.")
        paths = _folder(output, force)
    else:
        check_options(kind, traces, Options(by, norm, linear, marginals=marginals))
        if output is not None:
            paths = {kind: _checked_output(output, force)}
    from lsmooth.figures.house import style
    from lsmooth.figures.rendering import missing_glyphs_told_once
    from lsmooth.trace.reader import Trace

    with ExitStack() as stack:
        stack.enter_context(plain_warnings())
        stack.enter_context(missing_glyphs_told_once())
        stack.enter_context(style(style_name))
        opened = [stack.enter_context(Trace(trace)) for trace in traces]
        options = Options(by, norm, linear, size, title, marginals)
        if everything:
            _draw_all(opened, paths, options, dpi)
        elif output is None:
            _show(opened, kind, options, dpi, force)
        else:
            _write(kind, opened, options, paths[kind], dpi)
            click.echo(f"Wrote {paths[kind]}.")


def _checked_output(output: str, force: bool) -> Path:
    """Return the path for a figure; raise InvalidArgumentError where none can be written there."""
    path = Path(output)
    suffix = path.suffix.lower()
    if not suffix:
        raise InvalidArgumentError(f"{output} has no suffix; end it in one of {', '.join(SUFFIXES)}.")
    if suffix not in SUFFIXES:
        raise unknown_name("figure format", suffix, SUFFIXES)
    check_output(path, force)
    return path


def _folder(output: str, force: bool) -> dict[str, Path]:
    """Return the path for each kind in a folder; raise InvalidArgumentError where they cannot be written there."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InvalidArgumentError(f"{output} is a file; --all writes into a folder.")
    paths = {name: folder / f"{name}.png" for name in KINDS}
    existing = [path.name for path in paths.values() if path.exists()]
    if existing and not force:
        raise InvalidArgumentError(
            f"{output} holds {', '.join(existing)} already; choose another folder, or --force to replace them."
        )
    return paths


def _write(kind: str, traces: Sequence[Trace], options: Options, path: Path, dpi: int | None) -> None:
    """Render first and write afterwards: a figure that fails leaves no broken file, and no folder."""
    from lsmooth.figures.rendering import empty_figure, render

    content = render(draw_kind(kind, traces, empty_figure(), options), path.suffix, dpi)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _draw_all(traces: Sequence[Trace], paths: dict[str, Path], options: Options, dpi: int | None) -> None:
    """Draw every kind that can be drawn, and say which cannot and why."""
    wrote, reasons = [], {}
    for kind, path in paths.items():
        known = KINDS[kind]
        # `--by module` groups parameters, and `--by run` groups runs, which only curves have.
        by = options.by if known.by and (kind == "curves") == (options.by in RUNS) else None
        mine = replace(
            options, by=by, linear=options.linear and known.linear, marginals=options.marginals and known.marginals
        )
        if not known.norm:
            mine = replace(mine, norm="l2")
        try:
            _write(kind, traces, mine, path, dpi)
        except LsmoothError as error:
            reasons[kind] = str(error)
        else:
            wrote.append(path)
            click.echo(f"Wrote {path}.")
    for kind, reason in reasons.items():
        click.echo(f"Left out {kind}: {reason}")
    if not wrote:
        raise InvalidArgumentError("No kind of figure could be drawn; the reasons stand above.")


def _show(traces: Sequence[Trace], kind: str, options: Options, dpi: int | None, force: bool) -> None:
    """Open a window, or where there is none, write a file named after trace and kind."""
    window = _window()
    if window is None:
        path = _checked_output(f"{traces[0].path.stem}-{kind}.png", force)
        _write(kind, traces, options, path, dpi)
        click.echo(f"Wrote {path}, since there is no display.")
        return
    draw_kind(kind, traces, window, options)
    import matplotlib.pyplot as plt

    plt.show()


def _window() -> Figure | None:
    """Return a figure in a window, or None without a display or a matplotlib backend for it."""
    import os
    import sys

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    import matplotlib.pyplot as plt

    # Backends of matplotlib that only write files; agg is its choice where no window can be opened.
    if plt.get_backend().lower() in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template"):
        return None
    return plt.figure(layout="constrained")
