"""Which condition describes a run best: errors on steps that its line was not fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError
from lsmooth.fit.batches import batches, chosen_cloud
from lsmooth.fit.conditions import against_loss, best_powers
from lsmooth.fit.lines import Floats, Lines
from lsmooth.fit.quantiles import check_quantile, pinball, quantiles
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.grouping import By
from lsmooth.trace.reader import Displacement, Trace

# In the order in which one gives way to another that describes a run no better.
SIMPLEST_FIRST = ("constant", "linear", "suboptimality", "power")
_BLOCKS = 5


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
    cloud = chosen_cloud(trace, by, norm, displacement, endpoint)
    gaps, f_low = against_loss(cloud, f_low)
    # Only steps that every condition can say something about.
    both = replace(cloud, grad_norm=np.where(np.isfinite(gaps.grad_norm), cloud.grad_norm, np.nan))
    losses, best, refusals = _judged(both, gaps, q)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = losses / losses[:, :1]
    size, conditions = len(cloud.groups), len(SIMPLEST_FIRST)
    reasons = np.array([refusals.get(group, "") for group in range(size)], dtype=object)
    return pd.DataFrame(
        {
            "group": np.repeat(np.array(cloud.groups, dtype=object), conditions),
            "condition": np.tile(np.array(SIMPLEST_FIRST, dtype=object), size),
            "pinball": losses.ravel(),
            "relative": relative.ravel(),
            "best": best.ravel(),
            "f_low": np.tile([f_low if name == "suboptimality" else np.nan for name in SIMPLEST_FIRST], size),
            "points": np.repeat(both.usable.sum(axis=0), conditions),
            "reason": np.repeat(reasons, conditions),
        }
    )


def _judged(cloud: Cloud, gaps: Cloud, q: float) -> tuple[Floats, NDArray[np.bool_], dict[int, str]]:
    """Return held-out losses and the best condition of each group, (m, conditions) each, and why some have none."""
    losses = np.full((len(cloud.groups), len(SIMPLEST_FIRST)), np.nan)
    best = np.zeros(losses.shape, dtype=bool)
    refusals: dict[int, str] = {}
    usable = cloud.usable
    for members, x, y in batches(cloud, "gradient norm", refusals):
        gap = gaps.grad_norm[:, members].T[usable[:, members].T].reshape(x.shape)
        unit_y = y.max(axis=1, keepdims=True)
        unit_y[unit_y == 0] = 1.0
        largest = gap.max(axis=1, keepdims=True)
        found = held_out(x / x.max(axis=1, keepdims=True), gap / np.where(largest > 0, largest, 1), y / unit_y, q)
        losses[members] = np.array([found[name].mean(axis=1) for name in SIMPLEST_FIRST]).T * unit_y
        best[members, verdicts(found)] = True
    return losses, best, refusals


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
