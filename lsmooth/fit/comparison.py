"""Which condition describes a run best: what it says of steps that its line was not fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.fit.batches import batches, chosen_cloud
from lsmooth.fit.conditions import against_loss, best_powers
from lsmooth.fit.lines import Floats, at_one_norm
from lsmooth.fit.longrun import covariances
from lsmooth.fit.trends import log_misfit, logarithms, middles, scales, trends
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement, Trace

# In the order in which one gives way to another that describes a run no better.
SIMPLEST_FIRST = ("constant", "linear", "suboptimality", "power")
_FORMULAS = {
    "linear": "L <= L0 + L1 ‖g‖",
    "power": "L <= L0 + Lrho ‖g‖^rho",
    "suboptimality": "L <= H0 + H1 (f - f_low)",
}
_BLOCKS = 10
# How rarely a condition that holds is to give way to another one.
LEVEL = 0.01
# Residuals beyond so many scales do not count more.
_CUT = 1.5


def compare(
    trace: Trace | Cloud,
    by: By = "global",
    *,
    norm: str = "l2",
    displacement: Displacement = "layer",
    endpoint: bool = False,
    f_low: float | None = None,
) -> pd.DataFrame:
    """Return how well each smoothness condition describes steps that it was not fitted to.

    Steps are cut into ten blocks in time. The trend of each condition is fitted to nine blocks, and held against the
    logarithm of smoothness on the tenth (`judged` says how). The best condition is the first one (constant, linear,
    suboptimality, power, in this order) whose residuals do not point to another that errs less.

    Args:
        trace: An open trace, or a `Cloud`.
        by: As for `estimate`.
        norm: As for `Trace.cloud`.
        displacement: As for `Trace.cloud`.
        endpoint: As for `Trace.cloud`.
        f_low: A lower bound of the loss; by default the lowest loss of a step measured well.

    Returns:
        One row a group and condition: `group`, `condition` ("constant" is plain smoothness, L1 = 0), `log_error` (mean
        held-out absolute error of log smoothness), `relative` (to that of "constant"), `chance` (that residuals would
        point to another condition so clearly if this one held, the smallest over the others), `best` (True for one
        condition a group), `f_low` (NaN but for "suboptimality"), `points` and `reason` (why there are no numbers).

    Raises:
        InvalidArgumentError: f_low is no lower bound, by is "density", or as for `Trace.cloud`.
        TraceError: The trace lacks what is asked for, or is damaged.
    """
    if isinstance(by, str) and by == "density":
        raise InvalidArgumentError(
            "by='density' keeps neither the order of steps nor losses, which comparing needs; use coordinate instead."
        )
    cloud = chosen_cloud(trace, by, norm, displacement, endpoint)
    gaps, f_low = against_loss(cloud, f_low)
    # Only steps that every condition can say something about.
    both = replace(cloud, grad_norm=np.where(np.isfinite(gaps.grad_norm), cloud.grad_norm, np.nan))
    return _table(both, *_compared(both, gaps), f_low)


def _compared(cloud: Cloud, gaps: Cloud) -> tuple[Floats, Floats, NDArray[np.bool_], dict[int, str]]:
    """Return errors, chances and the best condition of each group, (m, conditions) each, and why some have none."""
    errors = np.full((len(cloud.groups), len(SIMPLEST_FIRST)), np.nan)
    chances, best = errors.copy(), np.zeros(errors.shape, dtype=bool)
    refusals: dict[int, str] = {}
    usable = cloud.usable
    for members, x, y in batches(cloud, "gradient norm", refusals):
        gap = gaps.grad_norm[:, members].T[usable[:, members].T].reshape(x.shape)
        largest = gap.max(axis=1, keepdims=True)
        z = logarithms(y)
        unit = z.max(axis=1, keepdims=True)
        foretold = held_out(x / x.max(axis=1, keepdims=True), gap / np.where(largest > 0, largest, 1), np.exp(z - unit))
        error, chance, chosen = judged(z - unit, foretold)
        errors[members], chances[members] = error.T, chance.T
        best[members, chosen] = True
    return errors, chances, best, refusals


def _table(
    cloud: Cloud,
    errors: Floats,
    chances: Floats,
    best: NDArray[np.bool_],
    refusals: dict[int, str],
    f_low: float,
) -> pd.DataFrame:
    """Return the rows of `compare`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = errors / errors[:, :1]
    size, conditions = len(cloud.groups), len(SIMPLEST_FIRST)
    reasons = np.array([refusals.get(group, "") for group in range(size)], dtype=object)
    return pd.DataFrame(
        {
            "group": np.repeat(np.array(cloud.groups, dtype=object), conditions),
            "condition": np.tile(np.array(SIMPLEST_FIRST, dtype=object), size),
            "log_error": errors.ravel(),
            "relative": relative.ravel(),
            "chance": chances.ravel(),
            "best": best.ravel(),
            "f_low": np.tile([f_low if name == "suboptimality" else np.nan for name in SIMPLEST_FIRST], size),
            "points": np.repeat(cloud.usable.sum(axis=0), conditions),
            "reason": np.repeat(reasons, conditions),
        }
    )


def held_out(norms: Floats, losses: Floats, y: Floats) -> Floats:
    """Return the log smoothness that each condition's trend foretells of steps it has not seen, (conditions, m, n).

    Steps are cut into ten blocks in time; the trend of the other nine foretells each. A line below the smallest
    smoothness that was measured foretells that.

    Args:
        norms: Gradient norms, at most 1 each, (m, n).
        losses: f - f_low, at most 1 each, (m, n).
        y: Smoothness, all positive, (m, n).
    """
    m, n = y.shape
    foretold = np.empty((len(SIMPLEST_FIRST), m, n))
    for inside in np.array_split(np.arange(n), _BLOCKS):
        outside = np.setdiff1d(np.arange(n), inside)
        seen = y[:, outside]
        power = best_powers(norms[:, outside], seen, trends, log_misfit)[:, None]
        foretold[0][:, inside] = middles(seen)[:, None]
        for place, at in ((1, norms), (2, losses), (3, norms**power)):
            level, slope = trends(at[:, outside], seen)
            flat = at_one_norm(at[:, outside])
            level[flat], slope[flat] = middles(seen[flat]), 0.0
            foretold[place][:, inside] = level[:, None] + slope[:, None] * at[:, inside]
    return np.log(np.maximum(foretold, y.min(axis=1, keepdims=True)))


def judged(z: Floats, foretold: Floats) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Return each condition's error, how surely it gives way to another, (conditions, m) each, and the best, (m,).

    Where condition A holds, its residuals are noise: they do not point to where another condition B lies. With held-out
    log lines a and b, and residuals r = z - a, the mean of r (b - a) is then 0; where B holds, it is the mean square of
    b - a. Its standard error is that of (z - b) (b - a), which has no part of the difference in it, with correlations
    between steps allowed for (`lsmooth.fit.longrun`); residuals are cut off at 1.5 scales. (Clark and West,
    "Approximately normal tests for equal predictive accuracy in nested models", Journal of Econometrics 2007, for
    squared errors.) A gives way to B where the chance of so clear a pointer is below LEVEL and B errs less.

    Args:
        z: Log smoothness in the order of steps, (m, n).
        foretold: Held-out lines of the conditions, simplest first, (conditions, m, n).
    """
    from scipy.stats import t

    errors = np.abs(z - foretold).mean(axis=2)
    chances = np.ones(errors.shape)
    for one, mine in enumerate(foretold):
        for other, theirs in enumerate(foretold):
            if one == other:
                continue
            away = theirs - mine
            scale = _CUT * np.sqrt(scales(z - theirs))[:, None]
            covariance, degrees = covariances((np.clip(z - theirs, -scale, scale) * away)[:, None])
            pointer = np.mean(np.clip(z - mine, -scale, scale) * away, axis=1)
            error = np.sqrt(covariance[:, 0, 0])
            with np.errstate(divide="ignore", invalid="ignore"):
                chance = np.where(error > 0, t.sf(pointer / error, degrees), np.where(pointer > 0, 0.0, 1.0))
            chances[one] = np.where(errors[other] < errors[one], np.minimum(chances[one], chance), chances[one])
    stays = chances >= LEVEL
    return errors, chances, np.where(stays.any(axis=0), stays.argmax(axis=0), errors.argmin(axis=0))


def verdict(table: pd.DataFrame, group: str) -> str:
    """Return in one or two sentences which condition describes a group best, and how sure that is (from `compare`)."""
    rows = table[table["group"] == group].set_index("condition")
    if rows["best"].sum() == 0:
        return f"{group}: no comparison ({rows['reason'].iloc[0]})."
    best = str(rows.index[rows["best"].astype(bool)][0])
    nearest = str(rows["log_error"].idxmin())
    if best == "constant":
        plain = f"{group}: plain smoothness (a constant, L1 = 0)"
        gain = 1 - rows.loc[nearest, "relative"]
        if not gain > 0:
            return f"{plain} describes this run as well as any of the conditions."
        return (
            f"{plain} cannot be ruled out: held out, {nearest} errs {gain:.0%} less on the log scale, but chance alone "
            f"points so clearly in {_percent(rows.loc['constant', 'chance'])} of runs."
        )
    gain = 1 - rows.loc[best, "relative"]
    said = (
        f"{group}: {best}, {_FORMULAS[best]}, describes this run best; held out, it errs {gain:.0%} less than a "
        "constant on the log scale, and chance alone would point away from a constant so clearly in "
        f"{_percent(rows.loc['constant', 'chance'])} of runs."
    )
    if nearest != best:
        said += f" {nearest} errs least, but not surely so ({_percent(rows.loc[best, 'chance'])})."
    return said


def _percent(chance: float) -> str:
    """Return a chance in words, no more exact than Student's t is in its tail."""
    return "fewer than 0.1 %" if chance < 1e-3 else f"{100 * chance:.2g} %"
