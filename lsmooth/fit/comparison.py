"""Compares smoothness conditions by how well they predict steps that their lines were not fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.fit.autoregression import autoregressions, innovations
from lsmooth.fit.batches import batches, chosen_cloud
from lsmooth.fit.conditions import against_loss, best_powers
from lsmooth.fit.lines import Floats, at_one_norm
from lsmooth.fit.trends import log_misfit, logarithms, middles, scales, trends
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement, Trace

# Among conditions that describe a run equally well, the first in this order is chosen.
SIMPLEST_FIRST = ("constant", "linear", "suboptimality", "power")
_FORMULAS = {
    "linear": "L <= L0 + L1 ‖g‖",
    "power": "L <= L0 + Lrho ‖g‖^rho",
    "suboptimality": "L <= H0 + H1 (f - f_low)",
}
_BLOCKS = 10
# Probability with which a condition that holds may be rejected in favour of another.
LEVEL = 0.025
# Innovations are cut off at this many scales.
_CUT = 1.5
# Number of constants of the condition with most.
_CONSTANTS = 3
# Lines count as the same if the difference of their logarithms varies by no more than this along the run.
_SAME = 1e-6


def compare(
    trace: Trace | Cloud,
    by: By = "global",
    *,
    norm: str = "l2",
    displacement: Displacement = "layer",
    endpoint: bool = False,
    f_low: float | None = None,
) -> pd.DataFrame:
    """Return how well each smoothness condition predicts steps that it was not fitted to.

    Steps are cut into ten blocks in time. The trend of each condition is fitted to nine blocks, and compared with the
    logarithm of smoothness on the tenth. The best condition is the first of constant, linear, suboptimality and power
    whose residuals do not correlate with the difference to another condition's line; see `chances_of` for the test.

    Args:
        trace: An open trace, or a `Cloud`.
        by: As for `estimate`.
        norm: As for `Trace.cloud`.
        displacement: As for `Trace.cloud`.
        endpoint: As for `Trace.cloud`.
        f_low: A lower bound of the loss; by default the lowest loss of a well measured step.

    Returns: One row for each group and condition: `group`, `condition` ("constant" is plain smoothness, L1 = 0),
    `log_error` (mean absolute error of held-out log smoothness), `relative` (`log_error` over that of "constant"),
    `chance` (p-value: probability that residuals point as clearly to another condition if this one holds), `best` (True
    for one condition a group), `f_low` (NaN except for "suboptimality"), `points` and `reason` (why there are no
    numbers).

    Raises:
        InvalidArgumentError: f_low is no lower bound, `by` is "density", or an error of `Trace.cloud`.
        TraceError: The trace lacks what is asked for, or is damaged.
    """
    if isinstance(by, str) and by == "density":
        raise InvalidArgumentError(
            "by='density' keeps neither the order of steps nor losses, which comparing needs; use coordinate instead."
        )
    cloud = chosen_cloud(trace, by, norm, displacement, endpoint)
    gaps, f_low = against_loss(cloud, f_low)
    # Only steps at which every condition is defined.
    both = replace(cloud, grad_norm=np.where(np.isfinite(gaps.grad_norm), cloud.grad_norm, np.nan))
    return _table(both, *_compared(both, gaps), f_low)


def _compared(cloud: Cloud, gaps: Cloud) -> tuple[Floats, Floats, NDArray[np.bool_], dict[int, str]]:
    """Return errors, chances and the best condition of each group, (m, conditions) each, and reasons for gaps."""
    errors = np.full((len(cloud.groups), len(SIMPLEST_FIRST)), np.nan)
    chances, best = errors.copy(), np.zeros(errors.shape, dtype=bool)
    refusals: dict[int, str] = {}
    usable = cloud.usable
    for members, x, y in batches(cloud, "gradient norm", refusals):
        gap = gaps.grad_norm[:, members].T[usable[:, members].T].reshape(x.shape)
        largest = gap.max(axis=1, keepdims=True)
        z = logarithms(y)
        z -= z.max(axis=1, keepdims=True)
        scaled = x / x.max(axis=1, keepdims=True), gap / np.where(largest > 0, largest, 1), np.exp(z)
        error = np.abs(z - held_out(*scaled)).mean(axis=2)
        every = np.arange(x.shape[1])
        chance = chances_of(z, log_lines(*scaled, every, every))
        errors[members], chances[members] = error.T, chance.T
        best[members, chosen(chance, error)] = True
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
    """Return the log smoothness that each condition's trend predicts for held-out steps, (conditions, m, n).

    Steps are cut into ten blocks in time, and each block is predicted by the trend fitted to the other nine.

    Args:
        norms: Gradient norms, at most 1 each, (m, n).
        losses: f - f_low, at most 1 each, (m, n).
        y: Smoothness, all positive, (m, n).
    """
    steps = np.arange(y.shape[1])
    blocks = np.array_split(steps, _BLOCKS)
    return np.concatenate(
        [log_lines(norms, losses, y, np.setdiff1d(steps, inside), inside) for inside in blocks], axis=2
    )


def log_lines(norms: Floats, losses: Floats, y: Floats, seen: NDArray[np.intp], asked: NDArray[np.intp]) -> Floats:
    """Return the logarithm of each condition's trend, fitted to some steps, at other steps, (conditions, m, asked).

    Lines are raised to at least the smallest measured smoothness.

    Args:
        norms: As for `held_out`.
        losses: As for `held_out`.
        y: As for `held_out`.
        seen: Positions of the steps that trends are fitted to.
        asked: Positions of the steps at which they are evaluated.
    """
    known = y[:, seen]
    power = best_powers(norms[:, seen], known, trends, log_misfit)[:, None]
    lines = np.empty((len(SIMPLEST_FIRST), len(y), len(asked)))
    lines[0] = middles(known)[:, None]
    for place, at in ((1, norms), (2, losses), (3, norms**power)):
        level, slope = trends(at[:, seen], known)
        flat = at_one_norm(at[:, seen])
        level[flat], slope[flat] = middles(known[flat]), 0.0
        lines[place] = level[:, None] + slope[:, None] * at[:, asked]
    return np.log(np.maximum(lines, y.min(axis=1, keepdims=True)))


def chances_of(z: Floats, lines: Floats) -> Floats:
    """Return the p-value of each condition against all others, (conditions, m).

    If condition A holds, its residuals are noise, and do not correlate with the difference to another condition B. Let
    a and b be log lines and r = z - a the residuals. Both r and b - a are filtered by the autoregression of z - b,
    which makes correlated noise white. The covariance of r and b - a is then 0 if A holds, and the variance of b - a if
    B holds. Its standard error is that of (z - b) (b - a), which does not contain the difference itself: the larger of
    the errors for uneven and for even noise. Innovations are cut off at 1.5 scales. The p-value is that of Student's t,
    times the number of other conditions (Bonferroni), and the smallest one counts.

    Generalized least squares: Cochrane and Orcutt, "Application of least squares regression to relationships containing
    auto-correlated error terms", Journal of the American Statistical Association 1949. The standard error: Clark and
    West, "Approximately normal tests for equal predictive accuracy in nested models", Journal of Econometrics 2007.

    Args:
        z: Log smoothness in the order of steps, (m, n).
        lines: Log lines of the conditions, fitted to all of these steps, (conditions, m, n).
    """
    from scipy.stats import t

    chances = np.ones(lines.shape[:2])
    for other, theirs in enumerate(lines):
        scale = _CUT * np.sqrt(scales(z - theirs))[:, None]
        past = autoregressions(np.clip(z - theirs, -scale, scale))
        left = innovations(z - theirs, past)
        scale = _CUT * np.sqrt(scales(left))[:, None]
        left = np.clip(left, -scale, scale)
        n = left.shape[1]
        for one, mine in enumerate(lines):
            if one == other:
                continue
            away = innovations(theirs - mine, past)
            # Each condition has its own level, so that only shapes of lines are compared.
            away -= away.mean(axis=1, keepdims=True)
            pointer = np.mean(np.clip(innovations(z - mine, past), -scale, scale) * away, axis=1)
            uneven, even = np.mean((left * away) ** 2, axis=1), np.mean(left**2, axis=1) * np.mean(away**2, axis=1)
            error = np.sqrt(np.maximum(uneven, even) / n)
            with np.errstate(divide="ignore", invalid="ignore"):
                chance = np.where(error > 0, t.sf(pointer / error, n - _CONSTANTS), np.where(pointer > 0, 0.0, 1.0))
            chance[np.ptp(theirs - mine, axis=1) < _SAME] = 1.0
            chances[one] = np.minimum(chances[one], (len(lines) - 1) * chance)
    return chances


def chosen(chances: Floats, errors: Floats) -> NDArray[np.intp]:
    """Return the first condition that is not rejected, (m,); if all are, the one with the least error."""
    stays = chances >= LEVEL
    return np.where(stays.any(axis=0), stays.argmax(axis=0), errors.argmin(axis=0))


def verdict(table: pd.DataFrame, group: str) -> str:
    """Return which condition describes a group best, and how sure that is, in one or two sentences.

    Args:
        table: The result of `compare`.
        group: Name of the group.
    """
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
    errs = f"{gain:.0%} less than" if gain > 0 else "no less than"
    said = (
        f"{group}: {best}, {_FORMULAS[best]}, describes this run best; held out, it errs {errs} a constant on the log "
        "scale, and chance alone would point away from a constant so clearly in "
        f"{_percent(rows.loc['constant', 'chance'])} of runs."
    )
    if nearest != best:
        said += f" {nearest} errs least, but not surely so ({_percent(rows.loc[best, 'chance'])})."
    return said


def _percent(chance: float) -> str:
    """Return a p-value as text, no more exact than the tail of Student's t."""
    return "fewer than 0.1 %" if chance < 1e-3 else f"{float(f'{100 * chance:.2g}'):g} %"
