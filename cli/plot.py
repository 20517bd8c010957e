"""`lsmooth plot`: draw the figures of traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lsmooth.errors import InvalidArgumentError, LsmoothError, unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsmooth.trace.reader import Trace

SUFFIXES = (".png", ".pdf", ".svg")
# What --by tells apart in curves.
RUNS = ("run", "optimizer")


class _Size(click.ParamType):
    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        try:
            width, height = (float(part) for part in str(value).lower().split("x"))
        except ValueError:
            self.fail(f"{value!r} is not a size; give width and height in inches, such as 3.25x2.6.", param, ctx)
        if not (0.5 <= width <= 50 and 0.5 <= height <= 50):
            self.fail(f"{value!r} is not between 0.5 and 50 inches in both directions.", param, ctx)
        return width, height


@dataclass(frozen=True)
class Options:
    """How a figure is drawn.

    Attributes:
        by: Groups; None for those of the kind.
        norm: The geometry, as for `Trace.cloud`.
        linear: Linear axes in place of logarithmic ones.
        size: Width and height in inches; None for what the kind needs.
        title: A title above the figure.
    """

    by: str | None = None
    norm: str = "l2"
    linear: bool = False
    size: tuple[float, float] | None = None
    title: str | None = None


@dataclass(frozen=True)
class _Kind:
    """One kind of figure.

    Attributes:
        draw: Draws traces into an empty figure and returns nothing; sets the figure's size first.
        several: Whether it takes several traces.
        by: What `--by` is when it is not given; None where the kind does not group parameters.
        linear: Whether it has logarithmic axes that `--linear` makes linear.
        norm: Whether it depends on the geometry.
    """

    draw: Callable[[Sequence[Trace], Figure, Options], None]
    several: bool = False
    by: str | None = None
    linear: bool = True
    norm: bool = True


@click.command("plot", epilog="Example: lsmooth plot run.h5 -o figure1.png --kind scatter")
@click.argument("traces", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="File (.png, .pdf, .svg), or with --all a folder. Without it, a window where there is a display.",
)
@click.option("--kind", default=None, help="Which figure (see above); scatter by default.")
@click.option("--all", "everything", is_flag=True, help="Draw every kind that the trace can give.")
@click.option(
    "--by",
    default=None,
    help="Groups of scatter (default global), layers and heatmap (module): global, module, parameter, coordinate, or a "
    "regular expression whose first group names the group; of curves: run or optimizer.",
)
@click.option(
    "--norm",
    type=click.Choice(["l2", "linf", "spectral"]),
    default="l2",
    show_default=True,
    help="The geometry, of those that the trace was recorded with.",
)
@click.option("--dpi", type=click.IntRange(30, 2400), default=None, help="Dots an inch of images (300).")
@click.option("--size", type=_Size(), default=None, help="Inches, such as 3.25x2.6; by default what the kind needs.")
@click.option("--title", default=None, help="A title above the figure.")
@click.option("--linear", is_flag=True, help="Linear axes in place of logarithmic ones.")
@click.option("--style", "style_name", default=None, help="A matplotlib style, or style file, on top of lsmooth's own.")
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
    style_name: str | None,
    force: bool,
) -> None:
    """Draw a figure of TRACES.

    \b
    scatter      smoothness against gradient norm, with trend and envelope
    coordinates  the same of single followed coordinates
    density      all coordinates at once (recorded with densities=True)
    layers       L0 and L1 of each layer
    heatmap      smoothness of each layer over iterations
    stability    smoothness over iterations, against 2/lr
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
        _check_options(kind, traces, Options(by, norm, linear))
        if output is not None:
            paths = {kind: _checked_output(output, force)}
    with ExitStack() as stack:
        stack.enter_context(_style(style_name))
        from lsmooth.trace.reader import Trace

        opened = [stack.enter_context(Trace(trace)) for trace in traces]
        options = Options(by, norm, linear, size, title)
        if everything:
            _draw_all(opened, paths, options, dpi)
        elif output is None:
            _show(opened, kind, options, dpi, force)
        else:
            _write(draw_kind(kind, opened, _blank(), options), paths[kind], dpi)
            click.echo(f"Wrote {paths[kind]}.")


def _check_options(name: str, traces: Sequence[object], options: Options) -> None:
    """Raise InvalidArgumentError where a kind of figure does not have what is asked of it."""
    kind = KINDS[name]
    if len(traces) > 1 and not kind.several:
        several = ", ".join(known for known, other in KINDS.items() if other.several)
        raise InvalidArgumentError(f"{name} draws one trace at a time; of several traces there are {several}.")
    if options.by is not None and kind.by is None:
        grouped = ", ".join(known for known, other in KINDS.items() if other.by is not None)
        raise InvalidArgumentError(f"{name} does not group parameters; --by goes with {grouped}.")
    if options.linear and not kind.linear:
        raise InvalidArgumentError(f"{name} has no choice between linear and logarithmic axes; leave out --linear.")
    if options.norm != "l2" and not kind.norm:
        raise InvalidArgumentError(f"{name} is the same in every geometry; leave out --norm.")


def _checked_output(output: str, force: bool) -> Path:
    """Return where a figure goes, or say why it cannot go there."""
    path = Path(output)
    suffix = path.suffix.lower()
    if not suffix:
        raise InvalidArgumentError(f"{output} has no suffix; end it in one of {', '.join(SUFFIXES)}.")
    if suffix not in SUFFIXES:
        raise unknown_name("figure format", suffix, SUFFIXES)
    if path.exists() and not force:
        raise InvalidArgumentError(f"{output} exists already; choose another name, or --force to replace it.")
    if path.is_dir():
        raise InvalidArgumentError(f"{output} is a folder; choose another name.")
    if not path.parent.is_dir():
        raise InvalidArgumentError(f"There is no folder {path.parent}; make it first, or choose another place.")
    return path


def _folder(output: str, force: bool) -> dict[str, Path]:
    """Return the file of each kind in a folder, or say why they cannot go there."""
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


@contextmanager
def _style(name: str | None) -> Iterator[None]:
    """Enter the house style, with the user's on top."""
    from lsmooth.figures.house import style

    if name is not None:
        import matplotlib.style

        if not Path(name).is_file() and name not in matplotlib.style.available:
            if Path(name).suffix or "/" in name:
                raise InvalidArgumentError(f"There is no style file {name}.")
            raise unknown_name("matplotlib style", name, matplotlib.style.available)
    stack = ExitStack()
    try:
        stack.enter_context(style(name))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidArgumentError(f"{name} cannot be used as a matplotlib style ({reason}).") from None
    with stack:
        yield


def draw_kind(kind: str, traces: Sequence[Trace], figure: Figure, options: Options) -> Figure:
    """Draw a kind of figure into an empty one, and return it."""
    _check_options(kind, traces, options)
    # Sizes count while a figure is drawn: names are shortened to what there is room for.
    figure.set_size_inches(*(options.size or _size(kind, traces, options)))
    KINDS[kind].draw(traces, figure, options)
    if options.title is not None:
        import matplotlib
        from matplotlib.font_manager import FontProperties

        from lsmooth.figures.labels import wrap_words

        points = FontProperties(size=matplotlib.rcParams["figure.titlesize"]).get_size_in_points()
        width = figure.get_size_inches()[0] * 72 - 8
        figure.suptitle(wrap_words(options.title, width, points), parse_math=False)
    return figure


def _blank() -> Figure:
    from matplotlib.figure import Figure

    return Figure(layout="constrained")


def _write(figure: Figure, path: Path, dpi: int | None) -> None:
    """Render first and write afterwards: a figure that fails leaves no broken file."""
    import io
    import warnings

    import matplotlib

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="constrained_layout not applied")
        try:
            figure.savefig(buffer, format=path.suffix.lower()[1:], dpi=dpi or matplotlib.rcParams["savefig.dpi"])
            fits = _fits(figure)
        except UserWarning:
            fits = False
    if not fits:
        width, height = figure.get_size_inches()
        raise InvalidArgumentError(
            f"A figure of {width:g}x{height:g} inches is too small for its labels; give a larger --size."
        )
    path.write_bytes(buffer.getvalue())


def _fits(figure: Figure) -> bool:
    """Say of a figure that has been drawn whether all of it is inside, and legends inside of what they explain."""
    width, height = figure.get_size_inches()
    edges = figure.get_tightbbox()
    # Inches, half a letter: letters are not equally wide at the resolution of the file and at that of the figure.
    slack = 0.05
    if min(edges.x0, edges.y0, width - edges.x1, height - edges.y1) < -slack:
        return False
    for ax in figure.axes:
        legend = ax.get_legend()
        if legend is None:
            continue
        box, panel = legend.get_window_extent(), ax.get_window_extent()
        # One that stands above its Axes is where it should be.
        down = 0.0 if box.y0 > panel.y1 else min(box.y0 - panel.y0, panel.y1 - box.y1)
        if min(box.x0 - panel.x0, panel.x1 - box.x1, down) < -slack * figure.dpi:
            return False
    return True


def _draw_all(
    traces: Sequence[Trace],
    paths: dict[str, Path],
    options: Options,
    dpi: int | None,
) -> None:
    """Draw every kind that can be drawn, and say which cannot and why."""
    wrote, reasons = [], {}
    for kind, path in paths.items():
        known = KINDS[kind]
        # Groups of parameters are none of runs, and the other way round.
        by = options.by if known.by and (kind == "curves") == (options.by in RUNS) else None
        mine = replace(options, by=by, linear=options.linear and known.linear)
        if not known.norm:
            mine = replace(mine, norm="l2")
        try:
            figure = draw_kind(kind, traces, _blank(), mine)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(figure, path, dpi)
        except LsmoothError as error:
            reasons[kind] = str(error)
        else:
            wrote.append(path)
            click.echo(f"Wrote {path}.")
    for kind, reason in reasons.items():
        click.echo(f"Left out {kind}: {reason}")
    if not wrote:
        raise InvalidArgumentError("No kind of figure could be drawn; the reasons stand above.")


def _show(
    traces: Sequence[Trace],
    kind: str,
    options: Options,
    dpi: int | None,
    force: bool,
) -> None:
    """Open a window, or where there is none, write a file named after trace and kind."""
    window = _window()
    if window is None:
        path = _checked_output(f"{traces[0].path.stem}-{kind}.png", force)
        _write(draw_kind(kind, traces, _blank(), options), path, dpi)
        click.echo(f"Wrote {path}, since there is no display.")
        return
    draw_kind(kind, traces, window, options)
    import matplotlib.pyplot as plt

    plt.show()


def _window() -> Figure | None:
    """Return a figure in a window, or None where there is no display or nothing that could draw on it."""
    import os
    import sys

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    import matplotlib.pyplot as plt

    # Those of matplotlib's backends that only write files; it falls back to agg where no other can be loaded.
    if plt.get_backend().lower() in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template"):
        return None
    return plt.figure(layout="constrained")


# --- the kinds ---


def _size(kind: str, traces: Sequence[Trace], options: Options) -> tuple[float, float]:
    """Return the size in inches that a kind needs by default: a single column where it can."""
    from lsmooth.figures.constants import constants_height
    from lsmooth.figures.heatmap import heatmap_height
    from lsmooth.figures.house import COLUMN, PAGE
    from lsmooth.figures.scatter import panels_height
    from lsmooth.trace.grouping import group_parameters

    if kind == "coordinates":
        return COLUMN, panels_height(3)
    if kind == "segments":
        return COLUMN, 4.2
    if kind in ("layers", "heatmap", "scatter"):
        by = options.by or KINDS[kind].by or "global"
        groups = (
            len(traces[0].coordinate_names) if by == "coordinate" else len(group_parameters(traces[0].parameters, by))
        )
        if kind == "layers":
            return COLUMN, constants_height(groups)
        if kind == "heatmap":
            return COLUMN, heatmap_height(groups)
        panels = _panels(groups, len(traces))
        if panels > 1:
            columns = _columns(panels)
            return COLUMN if columns <= 2 else PAGE, panels_height(-(-panels // columns), 2)
    if kind == "stability" and len(traces) > 1:
        return COLUMN, 0.5 + 1.7 * len(traces)
    return COLUMN, 2.6


# Panels of one figure at most; of more groups, an even choice is drawn.
_PANELS = 12


def _panels(groups: int, runs: int) -> int:
    """Return how many panels there are of so many groups of each run."""
    return min(_PANELS, runs * min(groups, max(1, _PANELS // runs)))


def _columns(panels: int) -> int:
    return 2 if panels <= 6 else 4


def _scatter(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.points import points_of
    from lsmooth.figures.scatter import smoothness_panels, smoothness_scatter

    by = options.by or "global"
    if len(traces) == 1 and (by == "global" or len(points_of(traces[0], by)) == 1):
        smoothness_scatter(traces[0], by=by, norm=options.norm, ax=figure.add_subplot(), linear=options.linear)
        return
    panels = _panels(max(len(points_of(trace, by)) for trace in traces), len(traces))
    smoothness_panels(
        list(traces),
        by=by,
        norm=options.norm,
        figure=figure,
        linear=options.linear,
        panels=panels,
        columns=_columns(panels),
    )


def _coordinates(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.coordinates import coordinate_grid

    coordinate_grid(traces[0], figure=figure, linear=options.linear)


def _density(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.density import coordinate_density

    coordinate_density(traces[0], ax=figure.add_subplot())


def _layers(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.constants import constants_panels

    constants_panels(traces[0], by=options.by or "module", norm=options.norm, figure=figure, linear=options.linear)


def _heatmap(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.heatmap import layer_heatmap

    layer_heatmap(
        traces[0], by=options.by or "module", norm=options.norm, ax=figure.add_subplot(), linear=options.linear
    )


def _stability(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.labels import title
    from lsmooth.figures.points import run_names
    from lsmooth.figures.stability_limit import stability

    axes = figure.subplots(len(traces), 1, squeeze=False)[:, 0]
    for ax, trace, name in zip(axes, traces, run_names(traces), strict=True):
        stability(trace, norm=options.norm, ax=ax, linear=options.linear)
        if len(traces) > 1:
            title(ax, name, figure.get_size_inches()[0] * 72 - 50)
            ax.set_xlabel("iteration" if ax is axes[-1] else "")


def _curves(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.curves import loss_frame, training_curves

    by = options.by or "run"
    if by not in RUNS:
        raise unknown_name("way to tell curves apart", by, RUNS)
    frame = loss_frame(traces)
    training_curves(
        frame if by == "optimizer" else frame.assign(seed=0), x="step", hue=by, ax=figure.add_subplot(), legend=True
    )


def _segments(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.segments import segment_profile

    loss, gradient = figure.subplots(2, 1, sharex=True)
    segment_profile(traces[0], quantity="loss", ax=loss)
    segment_profile(traces[0], quantity="gradient", ax=gradient, legend=False)
    loss.set_xlabel("")


KINDS = {
    "scatter": _Kind(_scatter, several=True, by="global"),
    "coordinates": _Kind(_coordinates, norm=False),
    "density": _Kind(_density, linear=False, norm=False),
    "layers": _Kind(_layers, by="module"),
    "heatmap": _Kind(_heatmap, by="module"),
    "stability": _Kind(_stability, several=True),
    "curves": _Kind(_curves, several=True, by="run", linear=False, norm=False),
    "segments": _Kind(_segments, linear=False, norm=False),
}
