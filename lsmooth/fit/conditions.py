"""Smoothness conditions: what the local Lipschitz constant is bounded by, and which bound describes a run best.

constant        L <= L0                              plain smoothness
linear          L <= L0 + L1 ‖g‖                     Zhang et al., ICLR 2020
power           L <= L0 + Lrho ‖g‖^rho               Li et al., NeurIPS 2023; rho in [0, 2]
suboptimality   L <= H0 + H1 (f - f_low)             Alimisis et al., 2025
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.fit.lines import Floats, Lines, quantiles
from lsmooth.trace.cloud import Cloud

LARGEST_POWER = 2.0
# Grid of powers that is searched first, and the precision to which the best is then refined.
_GRID = np.linspace(0, LARGEST_POWER, 21)
_PRECISION = 1e-3
_BLOCKS = 5


@dataclass(frozen=True)
class Condition:
    """A smoothness condition, by the names of its two constants and of what they are held against."""

    name: str
    level: str
    slope: str
    against: str


CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("linear", "L0", "L1", "gradient norm"),
        Condition("power", "L0", "Lrho", "gradient norm"),
        Condition("suboptimality", "H0", "H1", "loss"),
    )
}
# In the order in which one gives way to another that describes a run no better.
SIMPLEST_FIRST = ("constant", "linear", "suboptimality", "power")


def known_condition(name: str) -> Condition:
    """Return a condition by its name; raise InvalidArgumentError where there is none."""
    if name not in CONDITIONS:
        raise unknown_name("condition", name, CONDITIONS)
    return CONDITIONS[name]


def against_loss(cloud: Cloud, f_low: float | None) -> tuple[Cloud, float]:
    """Return a cloud with f(x_t) - f_low in place of gradient norms, and f_low.

    Args:
        cloud: Any cloud.
        f_low: A lower bound of the loss; None for the lowest loss among the steps measured well. The constants depend
            on it: the larger it is, the larger is H0.

    Raises:
        InvalidArgumentError: f_low lies above a loss that was measured, or is not finite.
    """
    good = cloud.measured_well & np.isfinite(cloud.loss)
    lowest = float(cloud.loss[good].min()) if good.any() else 0.0
    if f_low is None:
        f_low = lowest
    elif not f_low <= lowest:
        raise InvalidArgumentError(
            f"f_low={f_low!r} is no lower bound of the loss: one of {lowest:.6g} was measured; give that or less."
        )
    elif not np.isfinite(f_low):
        raise InvalidArgumentError(f"f_low={f_low!r} is not finite; give a lower bound of the loss, such as 0.")
    gap = np.where(good, cloud.loss - f_low, np.nan)
    kept = np.where(np.isfinite(cloud.grad_norm), gap[:, None], np.nan)
    return replace(cloud, grad_norm=kept), f_low


def best_powers(x: Floats, y: Floats, lines: Callable[[Floats, Floats], Lines], misfit: Misfit) -> Floats:
    """Return the rho in [0, 2] of each row at which lines against x^rho fit best, (m,).

    For every rho the two constants have an exact optimum, so that one number is left to search (variable projection):
    on a grid, then by golden section between the grid's neighbours of its best. Where a flat line is best, rho is 0.

    Args:
        x: Gradient norms, at most 1 each, (m, n).
        y: Smoothness, (m, n).
        lines: Which line, for many clouds.
        misfit: What is to be small: x, y, L0, L1 to one number a row.
    """

    def at(power: Floats) -> Floats:
        raised = x ** power[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            level, slope = lines(raised, y)
        values = misfit(raised, y, level, slope)
        return np.where(np.isnan(values), np.inf, values)

    m = len(x)
    # At rho = 0 all points lie at one abscissa: a flat line is what a slope of zero is at any other rho.
    grid = _GRID[1:]
    values = np.array([at(np.full(m, power)) for power in grid])
    best = values.argmin(axis=0)
    step = grid[1] - grid[0]
    low = np.maximum(grid[best] - step, _PRECISION)
    high = np.minimum(grid[best] + step, LARGEST_POWER)
    ratio = (np.sqrt(5) - 1) / 2
    inner, outer = high - ratio * (high - low), low + ratio * (high - low)
    at_inner, at_outer = at(inner), at(outer)
    while (high - low).max() > _PRECISION:
        left = at_inner <= at_outer
        low, high = np.where(left, low, inner), np.where(left, outer, high)
        fresh = np.where(left, high - ratio * (high - low), low + ratio * (high - low))
        value = at(fresh)
        inner, outer = np.where(left, fresh, outer), np.where(left, inner, fresh)
        at_inner, at_outer = np.where(left, value, at_outer), np.where(left, at_inner, value)
    candidates = np.array([grid[best], 0.5 * (low + high), np.full(m, LARGEST_POWER)])
    found = candidates[np.array([at(power) for power in candidates]).argmin(axis=0), np.arange(m)]
    _, slope = lines(x ** found[:, None], y)
    return np.where(slope > 0, found, 0.0)


Misfit = Callable[[Floats, Floats, Floats, Floats], Floats]


def squares(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the mean squared residual of each row: what a trend makes small."""
    return np.mean((y - level[:, None] - slope[:, None] * x) ** 2, axis=1)


def pinball(q: float) -> Misfit:
    """Return the mean pinball loss of each row: what a quantile line makes small."""

    def misfit(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
        residual = y - level[:, None] - slope[:, None] * x
        return np.mean(np.maximum(q * residual, (q - 1) * residual), axis=1)

    return misfit


def mean_bound(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the mean height of each row's line: what an envelope makes small."""
    return level + slope * x.mean(axis=1)


def held_out(norms: Floats, losses: Floats, y: Floats, q: float) -> dict[str, Floats]:
    """Return each condition's pinball loss on steps that its line has not seen, (m, blocks).

    Steps are cut into five blocks in time; the quantile line of the other four is held against each.

    Args:
        norms: Gradient norms, at most 1 each, (m, n).
        losses: f - f_low, at most 1 each, (m, n).
        y: Smoothness, (m, n).
        q: Share of the points to lie below the lines.
    """
    n = y.shape[1]
    found = {name: np.empty((len(y), _BLOCKS)) for name in SIMPLEST_FIRST}
    measure = pinball(q)

    def lines(x: Floats, y: Floats) -> Lines:
        return quantiles(x, y, q)

    for block, inside in enumerate(np.array_split(np.arange(n), _BLOCKS)):
        outside = np.setdiff1d(np.arange(n), inside)
        seen, hidden = y[:, outside], y[:, inside]
        level = np.sort(seen, axis=1)[:, max(int(np.ceil(q * len(outside))) - 1, 0)]
        found["constant"][:, block] = measure(norms[:, inside], hidden, level, np.zeros(len(y)))
        found["linear"][:, block] = measure(norms[:, inside], hidden, *lines(norms[:, outside], seen))
        found["suboptimality"][:, block] = measure(losses[:, inside], hidden, *lines(losses[:, outside], seen))
        powers = best_powers(norms[:, outside], seen, lines, measure)[:, None]
        fitted = lines(norms[:, outside] ** powers, seen)
        found["power"][:, block] = measure(norms[:, inside] ** powers, hidden, *fitted)
    return found


def verdicts(found: dict[str, Floats]) -> NDArray[np.intp]:
    """Return which condition describes each row best, as a position in `SIMPLEST_FIRST`, (m,).

    The simplest one whose held-out loss is larger than the smallest by no more than two standard errors of that
    difference over the blocks. (On clouds of 400 steps with no law but noise, one in 25 is then said to have one; with
    one standard error, one in 8.)
    """
    losses = np.array([found[name] for name in SIMPLEST_FIRST])
    smallest = losses.mean(axis=2).argmin(axis=0)
    excess = losses - np.take_along_axis(losses, smallest[None, :, None], axis=0)
    error = excess.std(axis=2, ddof=1) / np.sqrt(losses.shape[2])
    return (excess.mean(axis=2) <= 2 * error + 1e-12).argmax(axis=0)


def verdict(table: pd.DataFrame, group: str) -> str:
    """Return in one sentence which condition describes a group best, from the table of `compare`."""
    rows = table[table["group"] == group].set_index("condition")
    if rows["best"].sum() == 0:
        return f"{group}: no comparison ({rows['reason'].iloc[0]})."
    best = str(rows.index[rows["best"].astype(bool)][0])
    if best == "constant":
        plain = f"{group}: plain smoothness (a constant, L1 = 0)"
        nearest = str(rows["pinball"].idxmin())
        gain = 1 - rows.loc[nearest, "relative"]
        if not gain > 0:
            return f"{plain} describes this run as well as any of the conditions."
        return (
            f"{plain} cannot be ruled out: held out, {nearest} errs {gain:.0%} less, but not by more than two standard "
            f"errors over {_BLOCKS} blocks of the run."
        )
    formula = {
        "linear": "L <= L0 + L1 ‖g‖",
        "power": "L <= L0 + Lrho ‖g‖^rho",
        "suboptimality": "L <= H0 + H1 (f - f_low)",
    }[best]
    gain = 1 - rows.loc[best, "relative"]
    return f"{group}: {best}, {formula}, describes this run best; held out, it errs {gain:.0%} less than a constant."
