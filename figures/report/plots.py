"""The interactive figures of a page, drawn by Bokeh. Texts of a trace reach Bokeh as plain text only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from bokeh.models import (
    ColumnDataSource,
    CrosshairTool,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    PlainText,
    Range1d,
    TapTool,
    WheelZoomTool,
)
from bokeh.models.annotations import ColorBar
from bokeh.plotting import figure as new_bokeh_figure
from numpy.typing import ArrayLike, NDArray

from lsmooth.errors import TraceError
from lsmooth.figures.curves import loss_frame
from lsmooth.figures.heatmap import smoothness_table
from lsmooth.figures.house import FLAGGED, LINES, sequential
from lsmooth.figures.labels import abbreviate
from lsmooth.figures.points import Points, points_of, spread
from lsmooth.figures.scales import log_limits
from lsmooth.figures.stability_limit import running_median
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.reader import Trace

# Largest width of a layer's name, in typographic points.
_NAME = 105
# Points of all runs together, which keeps a page below 6 MB: 20 bytes a point, a third more as text.
MOST_POINTS = 100_000
MOST_LAYER_POINTS = 30_000
_MOST_ON_LINES = 1_000
_MOST_EDGES = 10_000
_HOVER = [
    ("step", "@step"),
    ("loss", "@loss{%.5g}"),
    ("lr", "@lr{%.3g}"),
    ("gradient norm", "@grad_norm{%.4g}"),
    ("smoothness", "@smoothness{%.4g}"),
]
_TREND, _ENVELOPE = "solid", "dashed"


@dataclass(frozen=True)
class RunPlots:
    """The figures of one run; None where there is nothing to draw.

    Attributes:
        cloud: Figure 1.
        layer: Figure 1 of one layer, of `groups[0]` at first.
        heatmap: Smoothness of every layer over iterations.
        stability: Smoothness over iterations, against 2/lr.
        edge: Edge ratio over iterations, against 2.
        groups: Names of the layers, in the order of the sources that `layer` can show.
        thinned: Number of steps drawn in `cloud`, where not all are; 0 where all are drawn.
    """

    cloud: Any
    layer: Any
    heatmap: Any
    stability: Any
    edge: Any
    groups: list[str]
    thinned: int


def palette() -> list[str]:
    """Return the colours of iterations, from the first to the last, for white paper."""
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in sequential()(np.linspace(0, 1, 256))]


def plots_of(traces: Sequence[Trace], constants: Sequence[pd.DataFrame]) -> list[RunPlots]:
    """Return the figures of each run, with axes and colours in common.

    Args:
        traces: Open traces.
        constants: What `lsmooth.estimate(trace, by="module")` says of each.
    """
    clouds = [_thin(trace.cloud(), MOST_POINTS // len(traces)) for trace in traces]
    series = [points_of(cloud)[0] for cloud in clouds]
    lines = [_lines(points, pd.DataFrame(_fits(points))) for points in series]
    shown = [points.drawable(log=True) for points in series]
    x = [points.grad_norm[keep] for points, keep in zip(series, shown, strict=True)]
    y = [points.smoothness[keep] for points, keep in zip(series, shown, strict=True)]
    y += [np.asarray(curve.data[name]) for curve in lines for name in ("trend", "envelope")]
    steps = [int(step) for points in series if len(points) for step in (points.steps.min(), points.steps.max())]
    colours = LinearColorMapper(palette=palette(), low=min(steps, default=0), high=max(steps, default=0) + 1)
    limits = log_limits(*x), log_limits(*y)
    return [
        _plots(place, trace, cloud, curve, table, colours, limits, len(traces))
        for place, (trace, cloud, curve, table) in enumerate(zip(traces, clouds, lines, constants, strict=True))
    ]


def _plots(
    place: int,
    trace: Trace,
    cloud: Cloud,
    curve: ColumnDataSource,
    table: pd.DataFrame,
    colours: LinearColorMapper,
    limits: tuple[tuple[float, float], tuple[float, float]],
    runs: int,
) -> RunPlots:
    points = points_of(cloud)[0]
    modules = trace.cloud("module")
    good = bool((points.drawable(log=True)).any())
    source = _source(cloud, 0, points.drawable(log=True) & points.usable)
    layers, sources, lines = _layer_sources(modules, table, MOST_LAYER_POINTS // runs)
    return RunPlots(
        cloud=_cloud_figure(f"cloud-{place}", source, curve, cloud, colours, limits) if good else None,
        # A mapper of its own: figures that share one are all drawn anew when the layer changes.
        layer=_layer_figure(place, sources, lines, colours.clone()) if sources else None,
        heatmap=_heatmap(place, modules, layers) if len(trace) and layers else None,
        stability=_stability(f"stability-{place}", source, points) if good else None,
        edge=_edge(f"edge-{place}", trace),
        groups=layers,
        thinned=len(cloud.steps) if len(cloud.steps) < len(trace) else 0,
    )


def _thin(cloud: Cloud, most: int) -> Cloud:
    """Return an even choice of steps; all of them where they are not more than `most`."""
    from lsmooth.figures.report.facts import every_nth

    return every_nth(cloud, max(1, -(-len(cloud.steps) // max(1, most))))


def _compact(values: ArrayLike) -> NDArray[Any]:
    """Return numbers in single precision, half the size, where its range holds them."""
    array = np.asarray(values, dtype=np.float64)
    size = np.abs(array[np.isfinite(array) & (array != 0)])
    return array if len(size) and (size.min() < 1e-37 or size.max() > 1e37) else array.astype(np.float32)


def _source(cloud: Cloud, column: int, chosen: NDArray[np.bool_]) -> ColumnDataSource:
    """Return points as Bokeh takes them, in a fixed random order: late points would hide early ones."""
    rows = np.flatnonzero(chosen)
    np.random.default_rng(0).shuffle(rows)
    return ColumnDataSource(
        {
            "step": cloud.steps[rows].astype(np.int32),
            "grad_norm": _compact(cloud.grad_norm[rows, column]),
            "smoothness": _compact(cloud.smoothness[rows, column]),
            "loss": _compact(cloud.loss[rows]),
            "lr": _compact(cloud.lr[rows]),
        }
    )


def _figure(name: str, x_label: str, y_label: str, **how: Any) -> Any:
    """Return an empty figure that fills the width of its place; colours come from the page's theme."""
    made = new_bokeh_figure(
        name=name,
        height=how.pop("height", 340),
        sizing_mode="stretch_width",
        tools="box_zoom,pan,reset,save",
        active_drag="box_zoom",
        toolbar_location="above",
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        **how,
    )
    # A bare wheel scrolls the page.
    made.add_tools(WheelZoomTool(modifiers="ctrl"))
    made.toolbar.logo = None
    made.xaxis.axis_label, made.yaxis.axis_label = x_label, y_label
    made.axis.axis_label_text_font_style = "normal"
    return made


def _add_points(made: Any, source: ColumnDataSource, x: str, **look: Any) -> None:
    points = made.scatter(x, "smoothness", source=source, size=_size(source), line_color=None, name="points", **look)
    hover = HoverTool(renderers=[points], tooltips=_HOVER, point_policy="snap_to_data", limit=1)
    hover.formatters = {f"@{name}": "printf" for name in ("loss", "lr", "grad_norm", "smoothness")}
    made.add_tools(hover)


def _range(limits: tuple[float, float]) -> Range1d:
    return Range1d(start=limits[0], end=limits[1])


def _label_short_spans(axis: Any, limits: tuple[float, float]) -> None:
    """Label 1, 2 and 5 of each decade: below two decades, Bokeh's own ticks stand at the upper end alone."""
    first, last = np.floor(np.log10(limits))
    if last - first > 3:
        return
    # One decade more on both sides, for readers who zoom out.
    decades = 10.0 ** np.arange(first - 1, last + 2)
    axis.ticker = FixedTicker(
        ticks=[float(f"{digit * decade:.1g}") for decade in decades for digit in (1, 2, 5)],
        minor_ticks=[float(f"{digit * decade:.1g}") for decade in decades for digit in range(1, 10)],
    )


def _size(source: ColumnDataSource) -> float:
    count = len(source.data["step"])
    return 7.0 if count < 500 else 5.0 if count < 10_000 else 3.5


def _cloud_figure(
    name: str,
    source: ColumnDataSource,
    curve: ColumnDataSource,
    cloud: Cloud,
    colours: LinearColorMapper,
    limits: tuple[tuple[float, float], tuple[float, float]],
) -> Any:
    """Draw Figure 1 of a run, with its lines."""
    made = _figure(
        name,
        "gradient norm",
        "local Lipschitz constant",
        x_axis_type="log",
        y_axis_type="log",
        x_range=_range(limits[0]),
        y_range=_range(limits[1]),
        output_backend="webgl",
    )
    _label_short_spans(made.xaxis, limits[0])
    _label_short_spans(made.yaxis, limits[1])
    points = points_of(cloud)[0]
    flagged = _source(cloud, 0, points.drawable(log=True) & ~points.usable)
    if len(flagged.data["step"]):
        made.scatter("grad_norm", "smoothness", source=flagged, marker="x", size=6, line_color=FLAGGED, name="flagged")
    _add_points(made, source, "grad_norm", fill_color={"field": "step", "transform": colours}, fill_alpha=0.8)
    _add_lines(made, curve)
    made.add_layout(ColorBar(color_mapper=colours, width=8, title=None, background_fill_alpha=0), "right")
    return made


def _fits(points: Points) -> list[dict[str, Any]]:
    from lsmooth import fit
    from lsmooth.figures.fitted_lines import why_no_line

    if why_no_line(points):
        return []
    x, y = points.grad_norm[points.usable], points.smoothness[points.usable]
    return [
        {"method": method, **dict(zip(("L0", "L1"), getattr(fit, method)(x, y), strict=True))}
        for method in ("trend", "envelope")
    ]


def _lines(points: Points, table: pd.DataFrame) -> ColumnDataSource:
    """Return trend and envelope over the range of gradient norms that was seen, empty without a fit."""
    norms = points.grad_norm[points.drawable(log=True) & points.usable]
    data: dict[str, Any] = {"x": np.empty(0), "trend": np.empty(0), "envelope": np.empty(0)}
    if len(norms) and len(table) and np.isfinite(table["L0"]).any():
        x = np.geomspace(norms.min(), norms.max(), 80)
        data["x"] = x
        for method in ("trend", "envelope"):
            row = table[table["method"] == method].iloc[0]
            y = row["L0"] + row["L1"] * x
            data[method] = np.where(y > 0, y, np.nan)
    return ColumnDataSource({name: _compact(values) for name, values in data.items()})


def _add_lines(made: Any, lines: ColumnDataSource) -> None:
    made.line("x", "trend", source=lines, line_width=1.8, line_dash=_TREND, name="ink")
    made.line("x", "envelope", source=lines, line_width=1.8, line_dash=_ENVELOPE, line_color=LINES[1])


def _layer_sources(
    modules: Cloud, table: pd.DataFrame, most: int
) -> tuple[list[str], list[ColumnDataSource], list[ColumnDataSource]]:
    """Return names, points and lines of the layers that have a point to draw."""
    thin = _thin(modules, most // max(1, len(modules.groups)))
    names, sources, lines = [], [], []
    for column, points in enumerate(points_of(thin)):
        shown = points.drawable(log=True) & points.usable
        if shown.any():
            names.append(points.group)
            sources.append(_source(thin, column, shown))
            lines.append(_lines(points, table[table["group"] == points.group]))
    return names, sources, lines


def _layer_figure(
    place: int, sources: list[ColumnDataSource], lines: list[ColumnDataSource], colours: LinearColorMapper
) -> Any:
    """Draw the cloud of the first layer; the page's script shows the others, which `tags` carry."""
    made = _figure(
        f"layer-{place}",
        "gradient norm of the layer",
        "local Lipschitz constant",
        x_axis_type="log",
        y_axis_type="log",
        output_backend="webgl",
    )
    points = ColumnDataSource(dict(sources[0].data), name=f"layer-points-{place}", tags=list(sources))
    curve = ColumnDataSource(dict(lines[0].data), name=f"layer-lines-{place}", tags=list(lines))
    _add_points(made, points, "grad_norm", fill_color={"field": "step", "transform": colours}, fill_alpha=0.8)
    _add_lines(made, curve)
    return made


def _heatmap(place: int, modules: Cloud, names: list[str]) -> Any:
    """Draw median smoothness over iterations and layers; a click on a cell selects its layer."""
    series = [points for points in points_of(modules) if points.group in set(names)]
    edges, table = smoothness_table(series)
    row, column = np.nonzero(np.isfinite(table) & (table > 0))
    values = table[row, column]
    source = ColumnDataSource(
        {
            "left": _compact(edges[column]),
            "right": _compact(edges[column + 1]),
            "top": (row - 0.5).astype(np.float32),
            "bottom": (row + 0.5).astype(np.float32),
            "layer": row.astype(np.int32),
            "value": _compact(values),
        },
        name=f"heatmap-cells-{place}",
        tags=list(names),
    )
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 2.0)
    colours = LogColorMapper(palette=palette(), low=low, high=high if high > low else low * 2)
    made = _figure(
        f"heatmap-{place}",
        "iteration",
        "",
        height=int(min(900, max(220, 90 + 18 * len(names)))),
        y_range=_range((len(names) - 0.5, -0.5)),
    )
    cells = made.quad(
        left="left",
        right="right",
        top="top",
        bottom="bottom",
        source=source,
        fill_color={"field": "value", "transform": colours},
        line_color=None,
        nonselection_fill_alpha=1.0,
        name="cells",
    )
    shown = spread(len(names), 45)
    made.yaxis.ticker = shown
    made.yaxis.major_label_overrides = {row: PlainText(text=abbreviate(names[row], _NAME, 8)) for row in shown}
    made.grid.visible = False
    made.add_tools(TapTool(renderers=[cells]))
    hover = HoverTool(renderers=[cells], tooltips=[("from step", "@left{0}"), ("smoothness", "@value{%.4g}")])
    hover.formatters = {"@value": "printf"}
    made.add_tools(hover)
    made.add_layout(ColorBar(color_mapper=colours, width=8, background_fill_alpha=0), "right")
    return made


def _stability(name: str, source: ColumnDataSource, points: Points) -> Any:
    """Draw smoothness over iterations with its running median and 2/lr."""
    made = _figure(name, "iteration", "local Lipschitz constant", y_axis_type="log", output_backend="webgl")
    _add_points(made, source, "step", fill_color=LINES[5], fill_alpha=0.6)
    usable = points.drawable(log=True) & points.usable
    order = np.argsort(points.steps, kind="stable")
    chosen = order[usable[order]]
    median = running_median(points.smoothness[chosen], max(9, len(chosen) // 20))
    thin = spread(len(chosen), _MOST_ON_LINES)
    made.line(points.steps[chosen][thin], median[thin], line_width=1.8, legend_label="running median", name="ink")
    with np.errstate(divide="ignore"):
        limit = np.where(points.lr > 0, 2 / points.lr, np.nan)
    if np.isfinite(limit).any():
        thin = [int(order[place]) for place in spread(len(order), _MOST_ON_LINES)]
        look = {"line_width": 1.8, "line_dash": _ENVELOPE, "line_color": LINES[1]}
        made.line(points.steps[thin], limit[thin], legend_label="2/lr", **look)
    _place_legend(made)
    return made


def _edge(name: str, trace: Trace) -> Any:
    """Draw the edge ratio over iterations with its running median and 2; None where it was not measured."""
    try:
        table = trace.curvature()
    except TraceError:
        return None
    table = table[table["usable"] & np.isfinite(table["edge_ratio"])].sort_values("step")
    if not len(table):
        return None
    steps, ratio = table["step"].to_numpy(np.int32), table["edge_ratio"].to_numpy(np.float64)
    median = running_median(ratio, max(9, len(ratio) // 20))
    drawn, thin = spread(len(steps), _MOST_EDGES), spread(len(steps), _MOST_ON_LINES)
    # The middle of the ratios: steps that hardly descend have ratios without bound.
    low, high = np.percentile(ratio, [1, 99])
    reach = 0.1 * (max(high, 2.2) - min(low, 0.0))
    made = _figure(name, "iteration", "edge ratio", y_range=_range((min(low, 0.0) - reach, max(high, 2.2) + reach)))
    source = ColumnDataSource({"step": steps[drawn], "ratio": _compact(ratio[drawn])})
    points = made.scatter("step", "ratio", source=source, size=_size(source), fill_color=LINES[5], line_color=None)
    made.add_tools(HoverTool(renderers=[points], tooltips=[("step", "@step"), ("edge ratio", "@ratio{0.000}")]))
    made.line(steps[thin], median[thin], line_width=1.8, legend_label="running median", name="ink")
    ends = [int(steps[0]), int(steps[-1])]
    made.line(ends, [2, 2], line_width=1.8, line_dash=_ENVELOPE, line_color=LINES[1], legend_label="2")
    _place_legend(made)
    return made


def training_curve(traces: Sequence[Trace], names: Sequence[str]) -> Any:
    """Draw the training loss of all runs in one figure, with one legend; None where no step was measured."""
    measured = [(trace, name) for trace, name in zip(traces, names, strict=True) if len(trace)]
    if not measured:
        return None
    frame = loss_frame([trace for trace, _ in measured], most=_MOST_ON_LINES)
    made = _figure("curve", "iteration", "training loss")
    keys = list(frame["run"].drop_duplicates())
    for place, (key, (_, name)) in enumerate(zip(keys, measured, strict=True)):
        mine = frame[frame["run"] == key]
        colour = LINES[place % len(LINES)]
        look = {"line_color": colour, "line_width": 1.8, "line_dash": ("solid", "dashed", "dotted")[place % 3]}
        made.line(mine["step"].to_numpy(), _compact(mine["train_loss"]), legend_label=name, **look)
    made.add_tools(CrosshairTool(dimensions="height", line_alpha=0.4))
    made.add_tools(HoverTool(tooltips=[("step", "$x{0}"), ("loss", "$y{0.00000}")]))
    _place_legend(made)
    return made


def _place_legend(made: Any) -> None:
    made.legend.click_policy = "hide"
    made.legend.background_fill_alpha = 0
    made.legend.border_line_color = None
    made.add_layout(made.legend[0], "above")
    made.legend.orientation = "horizontal"
