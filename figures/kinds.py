"""The kinds of figure that `lsmooth plot` and the gallery draw: what each takes, its size, and its function.

This table loads no drawing library: commands ask it before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lsmooth.errors import InvalidArgumentError, unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lsmooth.trace.reader import Trace

# What --by tells apart in curves.
RUNS = ("run", "optimizer")


@dataclass(frozen=True)
class Options:
    """How a figure is drawn.

    Attributes:
        by: Groups; None for those of the kind.
        norm: The geometry, as for `Trace.cloud`.
        linear: Linear axes in place of logarithmic ones.
        size: Width and height in inches; None for what the kind needs.
        title: A title above the figure.
        marginals: Distributions beside a scatter of one cloud.
    """

    by: str | None = None
    norm: str = "l2"
    linear: bool = False
    size: tuple[float, float] | None = None
    title: str | None = None
    marginals: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of figure.

    Attributes:
        draw: Draws traces into an empty figure of the size that it will have.
        size: Returns the width and height in inches that the kind needs by default: a single column where it can.
        several: Whether it takes several traces.
        by: Default of `--by`; None where the kind does not group parameters.
        linear: Whether it has logarithmic axes that `--linear` makes linear.
        norm: Whether it depends on the geometry.
        marginals: Whether distributions can stand beside it.
    """

    draw: Callable[[Sequence[Trace], Figure, Options], None]
    size: Callable[[Sequence[Trace], Options], tuple[float, float]]
    several: bool = False
    by: str | None = None
    linear: bool = True
    norm: bool = True
    marginals: bool = False


def check_options(name: str, traces: Sequence[object], options: Options) -> None:
    """Raise InvalidArgumentError for an option that a kind of figure does not have."""
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
    if options.marginals and not (kind.marginals and len(traces) == 1):
        raise InvalidArgumentError("--marginals goes with the scatter of one trace.")


def draw_kind(kind: str, traces: Sequence[Trace], figure: Figure, options: Options) -> Figure:
    """Draw a kind of figure into an empty one, and return it."""
    check_options(kind, traces, options)
    # The size is set before drawing, since names are shortened to the room that they have.
    figure.set_size_inches(*(options.size or KINDS[kind].size(traces, options)))
    if options.title is not None:
        _title(figure, options.title)
    KINDS[kind].draw(traces, figure, options)
    return figure


def _title(figure: Figure, text: str) -> None:
    """Put a title above everything that will be drawn, in as many lines as it takes."""
    import matplotlib
    from matplotlib.font_manager import FontProperties

    from lsmooth.figures.labels import wrap_words

    points = FontProperties(size=matplotlib.rcParams["figure.titlesize"]).get_size_in_points()
    width = figure.get_size_inches()[0] * 72 - 8
    figure.suptitle(wrap_words(text, width, points), parse_math=False)


def _column(height: float) -> Callable[[Sequence[Trace], Options], tuple[float, float]]:
    """Return the size of kinds that are one column wide and always equally high."""

    def size(traces: Sequence[Trace], options: Options) -> tuple[float, float]:
        from lsmooth.figures.house import COLUMN

        return COLUMN, height

    return size


def _group_count(trace: Trace, by: str) -> int:
    """Return how many groups of parameters a trace has."""
    from lsmooth.trace.grouping import group_parameters

    return len(trace.coordinate_names) if by == "coordinate" else len(group_parameters(trace.parameters, by))


# Largest number of panels in a figure; of more groups, evenly chosen ones are drawn.
_PANELS = 12


def _panels(groups: int, runs: int) -> int:
    """Return the number of panels for this many groups of each run."""
    return min(_PANELS, runs * min(groups, max(1, _PANELS // runs)))


def _columns(panels: int) -> int:
    return 2 if panels <= 6 else 4


def _scatter_size(traces: Sequence[Trace], options: Options) -> tuple[float, float]:
    from lsmooth.figures.house import COLUMN, PAGE
    from lsmooth.figures.panels import panels_height

    panels = _panels(_group_count(traces[0], options.by or "global"), len(traces))
    if panels <= 1:
        # Distributions beside the points leave less room for the legend.
        return (COLUMN + 0.75, 3.2) if options.marginals else (COLUMN, 2.6)
    columns = _columns(panels)
    return COLUMN if columns <= 2 else PAGE, panels_height(-(-panels // columns), 2)


def _scatter(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.panels import smoothness_panels
    from lsmooth.figures.points import points_of
    from lsmooth.figures.scatter import smoothness_scatter

    by = options.by or "global"
    if len(traces) == 1 and (by == "global" or len(points_of(traces[0], by)) == 1):
        smoothness_scatter(
            traces[0],
            by=by,
            norm=options.norm,
            ax=figure.add_subplot(),
            linear=options.linear,
            marginals=options.marginals,
        )
        return
    if options.marginals:
        raise InvalidArgumentError("--marginals goes with a single cloud; leave out --by.")
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


def _coordinates_size(traces: Sequence[Trace], options: Options) -> tuple[float, float]:
    from lsmooth.figures.house import COLUMN
    from lsmooth.figures.panels import panels_height

    return COLUMN, panels_height(3)


def _coordinates(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.coordinates import coordinate_grid

    coordinate_grid(traces[0], figure=figure, linear=options.linear)


def _density(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.density import coordinate_density

    coordinate_density(traces[0], ax=figure.add_subplot())


def _layers_size(traces: Sequence[Trace], options: Options) -> tuple[float, float]:
    from lsmooth.figures.constants import constants_height
    from lsmooth.figures.house import COLUMN

    return COLUMN, constants_height(_group_count(traces[0], options.by or "module"))


def _layers(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.constants import constants_panels

    constants_panels(traces[0], by=options.by or "module", norm=options.norm, figure=figure, linear=options.linear)


def _heatmap_size(traces: Sequence[Trace], options: Options) -> tuple[float, float]:
    from lsmooth.figures.heatmap import heatmap_height
    from lsmooth.figures.house import COLUMN

    return COLUMN, heatmap_height(_group_count(traces[0], options.by or "module"))


def _heatmap(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.heatmap import layer_heatmap

    layer_heatmap(
        traces[0], by=options.by or "module", norm=options.norm, ax=figure.add_subplot(), linear=options.linear
    )


def _stability_size(traces: Sequence[Trace], options: Options) -> tuple[float, float]:
    from lsmooth.figures.house import COLUMN

    return COLUMN, 2.6 if len(traces) == 1 else 0.5 + 1.7 * len(traces)


def _stability(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.labels import title
    from lsmooth.figures.points import run_names
    from lsmooth.figures.stability_limit import stability

    axes = figure.subplots(len(traces), 1, squeeze=False)[:, 0]
    for ax, trace, name in zip(axes, traces, run_names(traces), strict=True):
        if len(traces) > 1:
            title(ax, name, figure.get_size_inches()[0] * 72 - 50)
        stability(trace, norm=options.norm, ax=ax, linear=options.linear)
        if ax is not axes[-1]:
            ax.set_xlabel("")


def _edge(traces: Sequence[Trace], figure: Figure, options: Options) -> None:
    from lsmooth.figures.edge import edge_ratio

    edge_ratio(traces[0], by=options.by or "global", ax=figure.add_subplot())


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
    "scatter": Kind(_scatter, _scatter_size, several=True, by="global", marginals=True),
    "coordinates": Kind(_coordinates, _coordinates_size, norm=False),
    "density": Kind(_density, _column(2.6), linear=False, norm=False),
    "layers": Kind(_layers, _layers_size, by="module"),
    "heatmap": Kind(_heatmap, _heatmap_size, by="module"),
    "stability": Kind(_stability, _stability_size, several=True),
    "edge": Kind(_edge, _column(2.6), by="global", linear=False, norm=False),
    "curves": Kind(_curves, _column(2.6), several=True, by="run", linear=False, norm=False),
    "segments": Kind(_segments, _column(4.2), linear=False, norm=False),
}
