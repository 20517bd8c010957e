"""What is drawn: the points of each group, from a trace, its path, a cloud, or a DataFrame of points."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement, Trace

if TYPE_CHECKING:
    from typing import TypeAlias

# `Union`, since a string in a runtime `|` is not a type.
Data: TypeAlias = Union[Trace, Cloud, pd.DataFrame, str, "os.PathLike[str]"]

_COLUMNS = ("step", "smoothness", "grad_norm")


@contextmanager
def opened(data: Data) -> Iterator[Data]:
    """Open the trace that a path names, and close it afterwards; pass other data through."""
    if isinstance(data, (str, os.PathLike)):
        with Trace(data) as trace:
            yield trace
    else:
        yield data


@dataclass(frozen=True)
class Points:
    """The points of one group of one run.

    Attributes:
        run: Name of the run: the trace's file name without suffix, or "".
        group: Name of the group.
        steps: Optimizer step index, int64 (n,).
        grad_norm: Gradient norm, float64 (n,).
        smoothness: Local Lipschitz constant, float64 (n,).
        usable: Which points enter fits, bool (n,); the others are flagged.
        lr: Learning rate, float64 (n,), NaN where it is not known.
        norm: The geometry, as in `Cloud`.
        by: How parameters are grouped, as in `Cloud`; "" where it is not known.
    """

    run: str
    group: str
    steps: NDArray[np.int64]
    grad_norm: NDArray[np.float64]
    smoothness: NDArray[np.float64]
    usable: NDArray[np.bool_]
    lr: NDArray[np.float64]
    norm: str = "l2"
    by: str = ""

    def __len__(self) -> int:
        return len(self.steps)

    def drawable(self, log: bool) -> NDArray[np.bool_]:
        """Which points have a place in the figure: finite, and above 0 where the axes are logarithmic."""
        known = np.isfinite(self.grad_norm) & np.isfinite(self.smoothness)
        return known & (self.grad_norm > 0) & (self.smoothness > 0) if log else known

    def explain_nothing(self, log: bool) -> str:
        """Say why no point can be drawn, as one sentence."""
        who = f"{self.run}: " if self.run else ""
        what = "" if self.group == "global" else f" of {self.group}"
        if not len(self):
            return f"{who}no step has been measured yet; there is nothing to draw."
        finite = int((np.isfinite(self.grad_norm) & np.isfinite(self.smoothness)).sum())
        if finite and log:
            return (
                f"{who}none of the {len(self)} points{what} has a smoothness and a gradient norm above 0, which "
                "logarithmic axes need; draw with linear axes."
            )
        return (
            f"{who}none of the {len(self)} points{what} is finite; see `lsmooth info` for why their steps were flagged."
        )


def points_of(
    data: Data,
    by: By = "global",
    *,
    displacement: Displacement = "layer",
    endpoint: bool = False,
    norm: str = "l2",
) -> list[Points]:
    """Return the points of each group, in the network's order.

    Args:
        data: A trace, the path of one, `Trace.cloud(…)`, or a DataFrame such as `Trace.smoothness(…)` with columns
            step, smoothness, grad_norm and, where there are, group, usable, lr.
        by: How a trace's parameters are grouped, as for `Trace.cloud`; clouds and frames have their groups already.
        displacement: As for `Trace.cloud`.
        endpoint: As for `Trace.cloud`.
        norm: As for `Trace.cloud`.

    Raises:
        InvalidArgumentError: `data` is none of these, or a column is missing.
        TraceError: The trace cannot be read.
    """
    if isinstance(data, pd.DataFrame):
        return _from_frame(data)
    if isinstance(data, Cloud):
        return _from_cloud(data, "")
    if isinstance(data, (str, os.PathLike)):
        with Trace(data) as trace:
            return points_of(trace, by, displacement=displacement, endpoint=endpoint, norm=norm)
    if isinstance(data, Trace):
        return _from_cloud(data.cloud(by, displacement=displacement, endpoint=endpoint, norm=norm), data.path.stem)
    raise InvalidArgumentError(
        f"A figure is drawn from a Trace, its path, a Cloud or a DataFrame, not from {type(data).__name__}."
    )


def choose_group(groups: list[Points], group: str | None) -> Points:
    """Return the points of one group by its name, or the only one.

    Raises:
        InvalidArgumentError: There is no such group, or there are several and none was named.
    """
    if group is None:
        if len(groups) == 1:
            return groups[0]
        raise InvalidArgumentError(
            f"There are {len(groups)} groups; name one with group=, such as {groups[0].group!r}, or draw them all with "
            "smoothness_panels."
            if groups
            else "There is no group of parameters to draw."
        )
    for points in groups:
        if points.group == group:
            return points
    raise unknown_name("group", group, [points.group for points in groups])


def spread(total: int, most: int) -> list[int]:
    """Return at most `most` positions among `total`, evenly spread from the first to the last."""
    if total <= most:
        return list(range(total))
    return sorted({round(position) for position in np.linspace(0, total - 1, most)})


def run_names(runs: Sequence[Data]) -> list[str]:
    """Return short names of runs: the file names of their traces, with as many folders as tell them apart.

    Runs that are not files, and files given twice, are named by their position.
    """
    stems = [
        Path(run.path if isinstance(run, Trace) else run).with_suffix("")
        if isinstance(run, (Trace, str, os.PathLike))
        else None
        for run in runs
    ]
    files = [stem for stem in stems if stem is not None]
    for kept in range(1, max((len(stem.parts) for stem in files), default=0) + 1):
        names = ["/".join(stem.parts[-kept:]) if stem else f"run {place}" for place, stem in enumerate(stems, 1)]
        if len(set(names)) == len(names):
            return names
    return [f"run {place}" for place in range(1, len(runs) + 1)]


def _from_cloud(cloud: Cloud, run: str) -> list[Points]:
    usable = cloud.usable
    return [
        Points(
            run=run,
            group=group,
            steps=cloud.steps,
            grad_norm=cloud.grad_norm[:, column],
            smoothness=cloud.smoothness[:, column],
            usable=usable[:, column],
            lr=cloud.lr,
            norm=cloud.norm,
            by=cloud.by,
        )
        for column, group in enumerate(cloud.groups)
    ]


def _from_frame(frame: pd.DataFrame) -> list[Points]:
    for column in _COLUMNS:
        if column not in frame.columns:
            raise InvalidArgumentError(
                f"The DataFrame has no column {column!r}; a frame of points has {', '.join(_COLUMNS)} and may have "
                "group, usable and lr, as Trace.smoothness() returns it."
            )
    if "group" not in frame.columns:
        parts = [("global", frame)]
    else:
        parts = [(str(name), part) for name, part in frame.groupby("group", sort=False, observed=True) if len(part) > 0]
        if isinstance(frame["group"].dtype, pd.CategoricalDtype):
            order = {str(name): place for place, name in enumerate(frame["group"].cat.categories)}
            parts.sort(key=lambda part: order[part[0]])
    found = []
    for name, part in parts:
        smoothness = part["smoothness"].to_numpy(dtype=np.float64)
        grad_norm = part["grad_norm"].to_numpy(dtype=np.float64)
        finite = np.isfinite(smoothness) & np.isfinite(grad_norm)
        found.append(
            Points(
                run="",
                group=name,
                steps=part["step"].to_numpy(dtype=np.int64),
                grad_norm=grad_norm,
                smoothness=smoothness,
                usable=part["usable"].to_numpy(dtype=bool) & finite if "usable" in part.columns else finite,
                lr=part["lr"].to_numpy(dtype=np.float64) if "lr" in part.columns else np.full(len(part), np.nan),
            )
        )
    return found
