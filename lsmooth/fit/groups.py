"""Fit every group of a trace, and say how well each line describes its cloud."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.fit.conditions import (
    SIMPLEST_FIRST,
    Misfit,
    against_loss,
    best_powers,
    held_out,
    known_condition,
    mean_bound,
    pinball,
    squares,
    verdicts,
)
from lsmooth.fit.densities import estimate_densities
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


def estimate(
    trace: Trace | Cloud,
    by: By = "global",
    *,
    method: str | Sequence[str] = ("trend", "envelope"),
    condition: str = "linear",
    norm: str = "l2",
    displacement: Displacement = "layer",
    endpoint: bool = False,
    q: float = 0.95,
    confidence: float | None = 0.9,
    seed: int = 0,
    f_low: float | None = None,
) -> pd.DataFrame:
    """Return L0 and L1 of each group of parameters: smoothness <= L0 + L1 grad_norm.

    Args:
        trace: An open trace, or a `Cloud` (what `Trace.cloud` takes has then been chosen already).
        by: "global", "module", "parameter", "coordinate", a mapping from parameter name to group name, or a regular
            expression whose first group names the group; or "density": all coordinates of each parameter tensor, from
            a trace recorded with `densities=True` (to the width of its bins, and without intervals).
        method: Which lines: "trend", "quantile", "envelope", or several of them.
        condition: "linear", "power" (smoothness <= L0 + Lrho grad_norm^rho, rho in [0, 2]) or "suboptimality"
            (smoothness <= H0 + H1 (loss - f_low)).
        norm: As for `Trace.cloud`.
        displacement: As for `Trace.cloud`.
        endpoint: As for `Trace.cloud`.
        q: Share of the points below the line of method "quantile".
        confidence: Share of the intervals that are to hold the true constants; None for no intervals, which saves
            most of the time where groups are many.
        seed: Of the random numbers that the intervals are made with.
        f_low: For "suboptimality", a lower bound of the loss; by default the lowest loss of a step measured well.

    Returns:
        One row a group and method, groups in the network's order, with columns

        * `group`, `method`;
        * `L0`, `L1`: in the unit of smoothness, and in that of smoothness over gradient norm;
        * `L0_low`, `L0_high`, `L1_low`, `L1_high`: ends of the intervals, NaN where there is none;
        * for "power", `rho` and `Lrho` in place of `L1`, the intervals being those at this rho; for "suboptimality",
          `H0` and `H1`, and `f_low`;
        * `spearman`: rank correlation of smoothness and gradient norm (or loss);
        * `coverage`: share of points not above the line;
        * `points`, `left_out`: how many entered the fit, and how many did not;
        * `reason`: why points were left out, or why there are no numbers or intervals.

    Raises:
        InvalidArgumentError: There is no such method or condition, q or confidence is not between 0 and 1, the seed is
            negative, f_low is no lower bound, or as for `Trace.cloud`.
        TraceError: The trace lacks what is asked for, or is damaged.

    Example:
        >>> lsmooth.estimate(lsmooth.Trace("run.h5"), by="module")  # doctest: +SKIP
    """
    methods = (method,) if isinstance(method, str) else tuple(method)
    for name in methods:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    form = known_condition(condition)
    check_quantile(q)
    if f_low is not None and condition != "suboptimality":
        raise InvalidArgumentError(f"f_low belongs to condition='suboptimality', not to {condition!r}; leave it out.")
    if confidence is not None and not 0 < confidence < 1:
        raise InvalidArgumentError(
            f"confidence={confidence!r} is no share; give a number between 0 and 1, such as 0.9."
        )
    if seed < 0:
        raise InvalidArgumentError(f"seed={seed!r} is negative; give 0 or a positive integer.")
    if isinstance(by, str) and by == "density":
        if isinstance(trace, Cloud):
            raise InvalidArgumentError("by='density' needs the trace, not a cloud of it; give lsmooth.Trace(path).")
        if condition != "linear" or norm != "l2" or displacement != "layer" or endpoint:
            raise InvalidArgumentError(
                "by='density' knows each coordinate's gradient and own displacement alone; leave condition, norm, "
                "displacement and endpoint at their defaults."
            )
        return estimate_densities(trace, methods, q, FEWEST)
    cloud = _cloud(trace, by, norm, displacement, endpoint)
    if condition == "suboptimality":
        cloud, f_low = against_loss(cloud, f_low)
    size = len(cloud.groups)
    ends = [f"{constant}{end}" for constant in (form.level, form.slope) for end in ("_low", "_high")]
    extra = {"power": ["rho"], "suboptimality": ["f_low"]}.get(condition, [])
    names = [*extra, form.level, form.slope, *ends, "spearman", "coverage"]
    table = {name: np.full((size, len(methods)), np.nan) for name in names}
    points = cloud.usable.sum(axis=0)
    refusals: dict[int, str] = {}
    notes: dict[tuple[int, int], str] = {}

    def fit(members: NDArray[np.intp], x: Floats, y: Floats) -> None:
        unit_x, unit_y = x.max(axis=1), y.max(axis=1)
        unit_y[unit_y == 0] = 1.0
        x /= unit_x[:, None]
        y /= unit_y[:, None]
        table["spearman"][members] = _spearman(x, y)[:, None]
        for column, name in enumerate(methods):
            at, unit_at = x, unit_x
            if condition == "power":
                rho = best_powers(x, y, *_objective(name, q))
                at, unit_at = x ** rho[:, None], unit_x**rho
                table["rho"][members, column] = rho
            elif condition == "suboptimality":
                table["f_low"][members, column] = f_low
            lines = np.array(_fitted(name, at, y, q))
            table["coverage"][members, column] = _coverage(at, y, *lines)
            low, high = np.full(lines.shape, np.nan), np.full(lines.shape, np.nan)
            if confidence is not None:
                for row, member in enumerate(members):
                    interval = _interval(name, at[row], y[row], lines[:, row], q, confidence, [seed, member, column])
                    low[:, row], high[:, row] = interval.low, interval.high
                    notes[member, column] = interval.reason
            for position, (constant, unit) in enumerate(((form.level, unit_y), (form.slope, unit_y / unit_at))):
                table[constant][members, column] = lines[position] * unit
                table[f"{constant}_low"][members, column] = low[position] * unit
                table[f"{constant}_high"][members, column] = high[position] * unit

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for done in [pool.submit(fit, *batch) for batch in _batches(cloud, form.against, refusals)]:
            done.result()
    reasons = _reasons(cloud, refusals)
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


def compare(
    trace: Trace | Cloud,
    by: By = "global",
    *,
    norm: str = "l2",
    displacement: Displacement = "layer",
    endpoint: bool = False,
    q: float = 0.95,
    f_low: float | None = None,
) -> pd.DataFrame:
    """Return how well each smoothness condition describes steps that it was not fitted to.

    Steps are cut into five blocks in time. The q-quantile line of each condition (`lsmooth.fit.conditions`) is fitted
    to four blocks, and its mean pinball loss taken on the fifth. The best condition is the simplest one (constant,
    linear, suboptimality, power, in this order) that is worse than the lowest by no more than two standard errors
    of the difference over the blocks.

    Args:
        trace: An open trace, or a `Cloud`.
        by: As for `estimate`.
        norm: As for `Trace.cloud`.
        displacement: As for `Trace.cloud`.
        endpoint: As for `Trace.cloud`.
        q: Share of the points to lie below the lines.
        f_low: A lower bound of the loss; by default the lowest loss of a step measured well.

    Returns:
        One row a group and condition: `group`, `condition` ("constant" is plain smoothness, L1 = 0), `pinball` (mean
        held-out loss, in the unit of smoothness), `relative` (to that of "constant"), `best` (True for one condition a
        group), `f_low` (what "suboptimality" is held against; NaN for the others), `points` and `reason` (why there are
        no numbers).

    Raises:
        InvalidArgumentError: q is not between 0 and 1, f_low is no lower bound, by is "density", or as for
            `Trace.cloud`.
        TraceError: The trace lacks what is asked for, or is damaged.
    """
    check_quantile(q)
    if isinstance(by, str) and by == "density":
        raise InvalidArgumentError(
            "by='density' keeps neither the order of steps nor losses, which comparing needs; use coordinate instead."
        )
    cloud = _cloud(trace, by, norm, displacement, endpoint)
    gaps, f_low = against_loss(cloud, f_low)
    # Only steps that every condition can say something about.
    both = replace(cloud, grad_norm=np.where(np.isfinite(gaps.grad_norm), cloud.grad_norm, np.nan))
    size = len(cloud.groups)
    losses = np.full((size, len(SIMPLEST_FIRST)), np.nan)
    best = np.zeros((size, len(SIMPLEST_FIRST)), dtype=bool)
    refusals: dict[int, str] = {}
    usable = both.usable
    for members, x, y in _batches(both, "gradient norm", refusals):
        gap = gaps.grad_norm[:, members].T[usable[:, members].T].reshape(x.shape)
        unit_y = y.max(axis=1, keepdims=True)
        unit_y[unit_y == 0] = 1.0
        largest = gap.max(axis=1, keepdims=True)
        found = held_out(x / x.max(axis=1, keepdims=True), gap / np.where(largest > 0, largest, 1), y / unit_y, q)
        losses[members] = np.array([found[name].mean(axis=1) for name in SIMPLEST_FIRST]).T * unit_y
        best[members, verdicts(found)] = True
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = losses / losses[:, :1]
    return pd.DataFrame(
        {
            "group": np.repeat(np.array(cloud.groups, dtype=object), len(SIMPLEST_FIRST)),
            "condition": np.tile(np.array(SIMPLEST_FIRST, dtype=object), size),
            "pinball": losses.ravel(),
            "relative": relative.ravel(),
            "best": best.ravel(),
            "f_low": np.tile([f_low if name == "suboptimality" else np.nan for name in SIMPLEST_FIRST], size),
            "points": np.repeat(usable.sum(axis=0), len(SIMPLEST_FIRST)),
            "reason": np.repeat(
                np.array([refusals.get(i, "") for i in range(size)], dtype=object), len(SIMPLEST_FIRST)
            ),
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


def _fitted(method: str, x: Floats, y: Floats, q: float) -> Lines:
    """Return the lines of a method; flat ones where all points of a row lie at one abscissa."""
    lines, _ = _objective(method, q)
    alike = at_one_norm(x)
    if not alike.any():
        return lines(x, y)
    level, slope = np.zeros(len(x)), np.zeros(len(x))
    if not alike.all():
        level[~alike], slope[~alike] = lines(x[~alike], y[~alike])
    heights = np.sort(y[alike], axis=1)
    if method == "trend":
        level[alike] = heights.mean(axis=1)
    else:
        level[alike] = heights[:, -1 if method == "envelope" else int(np.ceil(q * y.shape[1])) - 1]
    return level, slope


def _objective(method: str, q: float) -> tuple[Callable[[Floats, Floats], Lines], Misfit]:
    """Return a method's lines, and what they make small."""
    if method == "trend":
        return trends, squares
    return (partial(quantiles, q=q), pinball(q)) if method == "quantile" else (envelopes, mean_bound)


def _cloud(trace: Trace | Cloud, by: By, norm: str, displacement: Displacement, endpoint: bool) -> Cloud:
    if isinstance(trace, Cloud):
        return trace
    return trace.cloud(by, norm=norm, displacement=displacement, endpoint=endpoint)


def _batches(cloud: Cloud, against: str, refusals: dict[int, str]) -> Iterator[tuple[NDArray[np.intp], Floats, Floats]]:
    """Yield groups that have equally many usable points together: their columns, and x and y as matrices (m, n).

    Groups that cannot be fitted go to `refusals`, with the reason.
    """
    usable = cloud.usable
    points = usable.sum(axis=0)
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
                refusals.update(dict.fromkeys(members[alike].tolist(), f"all points lie at one {against}"))
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


def _reasons(cloud: Cloud, refusals: dict[int, str]) -> list[str]:
    """Return for each group why it has no numbers, and why points were left out of it."""
    usable = cloud.usable
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
