"""Figures 2, 4 and 5: training curves, the mean over seeds with its confidence interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import seaborn as sns
from numpy.typing import ArrayLike
from scipy.special import stdtrit

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
        x: Column of the horizontal axis, such as "epoch" or "step".
        y: Column of the vertical axis, such as "train_loss" or "valid_accuracy".
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
        first = len(ax.lines), len(ax.collections)
        labels = [name for name in frame[hue].drop_duplicates() if not pd.isna(name)]
        for place, label in enumerate(labels):
            _draw_curve(ax, frame[frame[hue] == label], str(label), place, x, y, seed)
        shown = [np.column_stack(line.get_data()) for line in ax.lines[first[0] :]]
        shown += [np.asarray(path.vertices) for band in ax.collections[first[1] :] for path in band.get_paths()]
        every = np.concatenate(shown).astype(np.float64) if shown else np.empty((0, 2))
        if not np.isfinite(every[:, 1]).any():
            raise InvalidArgumentError(f"{y} has no finite value; there is no curve to draw.")
        if log:
            make_log(ax, "y", log_limits(every[:, 1]))
        else:
            make_linear(ax, "y", linear_limits(every[:, 1]))
        low, high = float(frame[x].min()), float(frame[x].max())
        reach = 0.02 * (high - low) or 0.5
        ax.set_xlim(low - reach, high + reach)
        make_steps(ax, "x")
        ax.set(xlabel="iteration" if x == "step" else x.replace("_", " "), ylabel=y.replace("_", " "))
        if legend:
            place_legend(ax, [(part[:, 0], part[:, 1]) for part in shown])
    return ax


def _check(frame: pd.DataFrame, x: str, y: str, hue: str) -> str | None:
    """Return the column of seeds, or None; raise InvalidArgumentError for a frame without curves."""
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


def _draw_curve(ax: Axes, mine: pd.DataFrame, label: str, place: int, x: str, y: str, seed: str | None) -> None:
    """Draw the mean of one line and, where it has several seeds, its band."""
    runs = mine[seed].nunique() if seed else 1
    broken = mine[~np.isfinite(mine[y].to_numpy(dtype=np.float64))]
    diverged = (broken[seed].nunique() if seed else 1) if len(broken) else 0
    note = f" ({diverged} of {runs} diverged)" if diverged and runs > 1 else " (diverged)" if diverged else ""
    shown = complete_rows(mine, x, y, runs)
    sns.lineplot(
        data=shown,
        x=x,
        y=y,
        errorbar=students_interval if runs > 1 else None,
        err_kws={"alpha": 0.18, "linewidth": 0},
        color=LINES[place % len(LINES)],
        linestyle=DASHES[place % len(DASHES)],
        marker="o" if shown[x].nunique() == 1 else None,
        markersize=3,
        markeredgewidth=0,
        label=f"{label}{note}".replace("$", r"\$"),
        legend=False,
        ax=ax,
    )


def complete_rows(mine: pd.DataFrame, x: str, y: str, runs: int) -> pd.DataFrame:
    """Return the rows of one line at each `x` that all its seeds have, up to where the first of them diverged.

    The mean of the seeds that are left would flatter the line.
    """
    finite = np.isfinite(mine[y].to_numpy(dtype=np.float64))
    ends = mine.loc[~finite, x].min() if not finite.all() else np.inf
    before = mine[mine[x] < ends]
    return before[before.groupby(x)[y].transform("size") == runs].astype({y: np.float64})


def students_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean, mean +- t s / sqrt(n) with Student's t of n - 1 degrees."""
    array = np.asarray(values, dtype=np.float64)
    mean, count = float(array.mean()), len(array)
    half = float(stdtrit(count - 1, 0.975)) * float(array.std(ddof=1)) / count**0.5
    return mean - half, mean + half


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
