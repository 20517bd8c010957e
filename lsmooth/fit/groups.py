"""Fit every group of a trace, and say how well each line describes its cloud."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.fit.lines import Floats, Lines, at_one_norm, check_quantile, envelopes, quantiles, trends
from lsmooth.fit.uncertainty import Interval, envelope_interval, resampled_interval
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.grouping import By
from lsmooth.trace.layout import Status
from lsmooth.trace.reader import Displacement, Trace

METHODS = ("trend", "quantile", "envelope")
# With fewer points than this there is no number, only the reason.
FEWEST = 10
# Numbers that one pass holds at a time: few enough to stay in the processor's cache.
_CHUNK = 1 << 18
_MOST_THREADS = 8
# Clouds drawn for each interval.
_RESAMPLES = 400
COLUMNS = (
    "group",
    "method",
    "L0",
    "L1",
    "L0_low",
    "L0_high",
    "L1_low",
    "L1_high",
    "spearman",
    "coverage",
    "points",
    "left_out",
    "reason",
)


def estimate(
    trace: Trace | Cloud,
    by: By = "global",
    *,
    method: str | Sequence[str] = ("trend", "envelope"),
    displacement: Displacement = "layer",
    q: float = 0.95,
    confidence: float | None = 0.9,
    seed: int = 0,
) -> pd.DataFrame:
    """Return L0 and L1 of each group of parameters: smoothness <= L0 + L1 grad_norm.

    Args:
        trace: An open trace, or a `Cloud` (`by` and `displacement` then have been chosen already).
        by: "global", "module", "parameter", "coordinate", a mapping from parameter name to group name, or a regular
            expression whose first group names the group.
        method: Which lines: "trend", "quantile", "envelope", or several of them.
        displacement: "layer" or "global", as for `Trace.cloud`.
        q: Share of the points below the line of method "quantile".
        confidence: Share of the intervals that are to hold the true constants; None for no intervals, which saves
            most of the time where groups are many.
        seed: Of the random numbers that the intervals are made with.

    Returns:
        One row a group and method, groups in the network's order, with columns

        * `group`, `method`;
        * `L0`, `L1`: in the unit of smoothness, and in that of smoothness over gradient norm;
        * `L0_low`, `L0_high`, `L1_low`, `L1_high`: ends of the intervals, NaN where there is none;
        * `spearman`: rank correlation of smoothness and gradient norm;
        * `coverage`: share of points not above the line;
        * `points`, `left_out`: how many entered the fit, and how many did not;
        * `reason`: why points were left out, or why there are no numbers or intervals.

    Raises:
        InvalidArgumentError: There is no such method, q or confidence is not between 0 and 1, the seed is negative,
            or as for `Trace.cloud`.
        TraceError: The trace lacks what is asked for, or is damaged.

    Example:
        >>> lsmooth.estimate(lsmooth.Trace("run.h5"), by="module")  # doctest: +SKIP
    """
    methods = (method,) if isinstance(method, str) else tuple(method)
    for name in methods:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    check_quantile(q)
    if confidence is not None and not 0 < confidence < 1:
        raise InvalidArgumentError(f"confidence={confidence!r} is no share; give a number between 0 and 1, or None.")
    if seed < 0:
        raise InvalidArgumentError(f"seed={seed!r} is negative; give 0 or a positive integer.")
    cloud = trace if isinstance(trace, Cloud) else trace.cloud(by, displacement=displacement)
    size = len(cloud.groups)
    table = {column: np.full((size, len(methods)), np.nan) for column in COLUMNS[2:10]}
    usable = cloud.usable
    points = usable.sum(axis=0)
    refusals: dict[int, str] = {}
    notes: dict[tuple[int, int], str] = {}

    def fit(members: NDArray[np.intp], x: Floats, y: Floats) -> None:
        unit_x, unit_y = x.max(axis=1), y.max(axis=1)
        unit_y[unit_y == 0] = 1.0
        x /= unit_x[:, None]
        y /= unit_y[:, None]
        units = {"L0": unit_y, "L1": unit_y / unit_x}
        table["spearman"][members] = _spearman(x, y)[:, None]
        for column, name in enumerate(methods):
            lines = np.array(_lines(name, x, y, q))
            table["coverage"][members, column] = _coverage(x, y, *lines)
            ends = np.full((2, *lines.shape), np.nan)
            if confidence is not None:
                for row, member in enumerate(members):
                    interval = _interval(name, x[row], y[row], lines[:, row], q, confidence, [seed, member, column])
                    ends[:, :, row] = interval.low, interval.high
                    notes[member, column] = interval.reason
            for constant, (unit, *values) in enumerate(zip(units.values(), lines, *ends, strict=True)):
                for suffix, value in zip(("", "_low", "_high"), values, strict=True):
                    table[f"L{constant}{suffix}"][members, column] = value * unit

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for done in [pool.submit(fit, *batch) for batch in _batches(cloud, usable, points, refusals)]:
            done.result()
    reasons = _reasons(cloud, usable, refusals)
    return pd.DataFrame(
        {
            "group": np.repeat(np.array(cloud.groups, dtype=object), len(methods)),
            "method": np.tile(np.array(methods, dtype=object), size),
            **{column: values.ravel() for column, values in table.items()},
            "points": np.repeat(points, len(methods)),
            "left_out": np.repeat(len(cloud.steps) - points, len(methods)),
            "reason": [
                "; ".join(part for part in (reasons[group], notes.get((group, column), "")) if part)
                for group in range(size)
                for column in range(len(methods))
            ],
        }
    )


def _interval(
    method: str, x: Floats, y: Floats, line: Floats, q: float, confidence: float, seed: list[int]
) -> Interval:
    generator = np.random.default_rng(seed)
    if method == "envelope":
        return envelope_interval(x, y, line, confidence=confidence, resamples=_RESAMPLES, generator=generator)
    share = q if method == "quantile" else None
    return resampled_interval(x, y, line, q=share, confidence=confidence, resamples=_RESAMPLES, generator=generator)


def _lines(method: str, x: Floats, y: Floats, q: float) -> Lines:
    if method == "trend":
        return trends(x, y)
    return quantiles(x, y, q) if method == "quantile" else envelopes(x, y)


def _batches(
    cloud: Cloud, usable: NDArray[np.bool_], points: NDArray[np.intp], refusals: dict[int, str]
) -> Iterator[tuple[NDArray[np.intp], Floats, Floats]]:
    """Yield groups that have equally many usable points together: their columns, and x and y as matrices (m, n).

    Groups that cannot be fitted go to `refusals`, with the reason.
    """
    for count in np.unique(points):
        same = np.flatnonzero(points == count)
        if count < FEWEST:
            refusals.update(dict.fromkeys(same.tolist(), f"{count} usable points, {FEWEST} are needed"))
            continue
        width = max(1, _CHUNK // int(count))
        for start in range(0, len(same), width):
            members = same[start : start + width]
            chosen = usable[:, members].T
            x = cloud.grad_norm[:, members].T[chosen].reshape(len(members), count)
            y = cloud.smoothness[:, members].T[chosen].reshape(len(members), count)
            alike = at_one_norm(x)
            if alike.any():
                refusals.update(dict.fromkeys(members[alike].tolist(), "all points lie at one gradient norm"))
                members, x, y = members[~alike], x[~alike], y[~alike]
            if len(members):
                yield members, x, y


def _spearman(x: Floats, y: Floats) -> Floats:
    """Return Spearman's rank correlation of each row, (m,): NaN where one of the two is constant."""
    left, right = _ranks(x), _ranks(y)
    middle = (x.shape[1] + 1) / 2
    left -= middle
    right -= middle
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("ij,ij->i", left, right) / np.sqrt(
            np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right)
        )


def _ranks(values: Floats) -> Floats:
    """Return ranks along rows from 1, equal values sharing their mean rank."""
    from scipy.stats import rankdata

    order = values.argsort(axis=1)
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, np.arange(1.0, values.shape[1] + 1)[None], axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if tied.any():
        ranks[tied] = rankdata(values[tied], axis=1)
    return ranks


def _coverage(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the share of points on or below each row's line, a rounding error of the largest value allowed."""
    return np.mean(y <= level[:, None] + slope[:, None] * x + 1e-12, axis=1)


def _reasons(cloud: Cloud, usable: NDArray[np.bool_], refusals: dict[int, str]) -> list[str]:
    """Return for each group why it has no numbers, and why points were left out of it."""
    well = cloud.measured_well
    flagged = []
    for flag in Status:
        if flag != Status.MEASURED:
            count = int(((cloud.status & flag) != 0).sum())
            if count:
                flagged.append(f"{count} {str(flag.name).lower().replace('_', ' ')}")
    still = (well[:, None] & ~usable).sum(axis=0)
    reasons = []
    for group in range(len(cloud.groups)):
        parts: list[Any] = [refusals[group]] if group in refusals else []
        missing = [*flagged, f"{still[group]} did not move"] if still[group] else flagged
        if missing:
            parts.append(f"left out: {', '.join(missing)}")
        reasons.append("; ".join(parts))
    return reasons
