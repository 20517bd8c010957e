"""Figures 2, 4 and 5: training curves, the mean over seeds and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.figures.house import DASHES, LINES, drawing
from lsmooth.figures.legend import place_legend
from lsmooth.figures.points import run_names
from lsmooth.figures.scales import linear_limits, log_limits, make_linear, make_log, make_steps
from lsmooth.trace.reader import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training_curves(
    frame: pd.DataFrame,
    *,
    x: str = "epoch",
    y: str = "train_loss",
    hue: str = "optimizer",
    ax: Axes | None = None,
    log: bool = False,
    legend: bool = True,
) -> Axes:
    """Draw the mean of `y` over seeds against `x`, with its 95 % interval as a band, one line for each value of `hue`.

    The interval is Student's, mean +- t s / sqrt(n) over the n seeds at each x: with the three to five seeds that runs
    usually have, percentile bootstrap intervals are too narrow. A line stops where one of its seeds has no finite
    value, since the mean of those that are left would flatter it; the legend says how many seeds diverged.

    Args:
        frame: One row for each run and x, with columns `x`, `y`, `hue` and, where there are several runs, "seed".
        x: Column that goes to the right, such as "epoch" or "step".
        y: Column that goes up, such as "train_loss" or "valid_accuracy".
        hue: Column that tells lines apart.
        ax: Where to draw; a new figure in the house style by default.
        log: A logarithmic y axis in place of a linear one.
        legend: Whether a legend is drawn.

    Returns:
        The Axes.

    Raises:
        InvalidArgumentError: A column is missing, there is nothing to draw, or rows share line, seed and x.

    Source: Crawshaw et al. 2022, Figures 2, 4 and 5.
    """
    seed = _check(frame, x, y, hue)
    with drawing(ax) as ax:
        labels = [name for name in frame[hue].drop_duplicates() if not pd.isna(name)]
        curves = [
            _draw_curve(ax, frame[frame[hue] == label], str(label), place, x, y, seed)
            for place, label in enumerate(labels)
        ]
        every_x = np.concatenate([curve.index.to_numpy(dtype=np.float64) for curve in curves])
        values = np.concatenate([curve[column].to_numpy() for curve in curves for column in ("mean", "low", "high")])
        if not np.isfinite(values).any():
            raise InvalidArgumentError(f"{y} has no finite value; there is no curve to draw.")
        if log:
            make_log(ax, "y", log_limits(values))
        else:
            make_linear(ax, "y", linear_limits(values))
        reach = 0.02 * float(np.ptp(every_x)) or 0.5
        ax.set_xlim(float(every_x.min()) - reach, float(every_x.max()) + reach)
        make_steps(ax, "x")
        ax.set(xlabel="iteration" if x == "step" else x.replace("_", " "), ylabel=y.replace("_", " "))
        if legend:
            place_legend(
                ax, [(curve.index.to_numpy(), curve[column]) for curve in curves for column in ("mean", "low", "high")]
            )
    return ax


def _check(frame: pd.DataFrame, x: str, y: str, hue: str) -> str | None:
    """Return the column of seeds, where there is one; raise InvalidArgumentError of a frame that has no curves."""
    for column in (x, y, hue):
        if column not in frame.columns:
            raise unknown_name("column in the frame", column, map(str, frame.columns))
    if not len(frame):
        raise InvalidArgumentError("The frame has no rows; there is no curve to draw.")
    seed = "seed" if "seed" in frame.columns else None
    keys = [hue, x] if seed is None else [hue, seed, x]
    twice = frame.duplicated(keys, keep=False)
    if twice.any():
        row = frame.loc[twice, keys].iloc[0]
        what = ", ".join(f"{key}={row[key]}" for key in keys)
        raise InvalidArgumentError(
            f"{int(twice.sum())} rows share their line, seed and {x} (such as {what}); add a column that tells the "
            "runs apart, and name it with hue=."
        )
    return seed


def _draw_curve(ax: Axes, mine: pd.DataFrame, label: str, place: int, x: str, y: str, seed: str | None) -> pd.DataFrame:
    """Draw one line and its band, and return their `mean_and_interval`."""
    curve = mean_and_interval(mine, x, y, seed)
    runs, diverged = len(mine[seed].unique()) if seed else 1, int(curve.attrs["diverged"])
    note = f" ({diverged} of {runs} diverged)" if diverged and runs > 1 else " (diverged)" if diverged else ""
    colour = LINES[place % len(LINES)]
    ax.plot(
        curve.index,
        curve["mean"],
        color=colour,
        linestyle=DASHES[place % len(DASHES)],
        marker="o" if len(curve) == 1 else None,
        markersize=3,
        label=f"{label}{note}".replace("$", r"\$"),
    )
    if runs > 1:
        # Arrays: numpy 1.24 takes the `_data` of a Series for that of a masked array.
        low, high = curve["low"].to_numpy(), curve["high"].to_numpy()
        ax.fill_between(curve.index, low, high, color=colour, alpha=0.18, linewidth=0)
    return curve


def mean_and_interval(frame: pd.DataFrame, x: str, y: str, seed: str | None) -> pd.DataFrame:
    """Return mean, low and high of `y` over seeds at each `x`, indexed by x; `attrs["diverged"]` counts seeds.

    Where a seed has no finite value, all three are NaN.
    """
    from scipy.special import stdtrit

    table = (frame.pivot(index=x, columns=seed, values=y) if seed is not None else frame.set_index(x)[[y]]).sort_index()
    values = table.to_numpy(dtype=np.float64)
    # A seed that has no row yet at some x has not diverged.
    broken = frame[~np.isfinite(frame[y].to_numpy(dtype=np.float64))]
    diverged = broken[seed].nunique() if seed is not None else int(len(broken) > 0)
    count = values.shape[1]
    with np.errstate(invalid="ignore"):
        complete = np.isfinite(values).all(axis=1)
        mean = np.where(complete, values.mean(axis=1), np.nan)
        if count > 1:
            half = stdtrit(count - 1, 0.975) * values.std(axis=1, ddof=1) / np.sqrt(count)
        else:
            half = np.zeros(len(values))
    curve = pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half}, index=table.index)
    curve.attrs["diverged"] = diverged
    return curve


def loss_frame(traces: Sequence[Trace], *, most: int = 100) -> pd.DataFrame:
    """Return the training loss of traces as `training_curves` takes it: columns run, optimizer, seed, step, train_loss.

    Losses are those of single batches; where more than `most` steps were measured, stretches of the run are averaged,
    the same for all traces. Traces of one optimizer are numbered as its seeds, in the order in which they are given.

    Args:
        traces: Open traces.
        most: How many points a curve has at most.

    Raises:
        InvalidArgumentError: A trace has no measured step.
        TraceError: A trace cannot be read.
    """
    for trace in traces:
        if not len(trace):
            raise InvalidArgumentError(f"{trace.path}: no step has been measured yet; there is no curve to draw.")
    first = min(int(trace.steps.min()) for trace in traces)
    last = max(int(trace.steps.max()) for trace in traces)
    stretches = min(most, *(len(trace) for trace in traces))
    edges = np.linspace(first, last + 1, stretches + 1)
    seeds: dict[str, int] = {}
    parts = []
    for trace, name in zip(traces, run_names(traces), strict=True):
        optimizer = str(trace.metadata.get("optimizer", "unknown"))
        seeds[optimizer] = seeds.get(optimizer, -1) + 1
        stretch = np.searchsorted(edges, trace.steps, side="right") - 1
        with np.errstate(over="ignore", invalid="ignore"):
            # The mean of a stretch with a loss that is not finite is not finite either.
            total = np.bincount(stretch, trace.loss, minlength=stretches)
            count = np.bincount(stretch, minlength=stretches)
            loss = total[count > 0] / count[count > 0]
        centres = (edges[:-1] + edges[1:] - 1) / 2
        parts.append(
            pd.DataFrame({"run": name, "optimizer": optimizer, "step": centres[count > 0], "train_loss": loss}).assign(
                seed=seeds[optimizer]
            )
        )
    return pd.concat(parts, ignore_index=True)
