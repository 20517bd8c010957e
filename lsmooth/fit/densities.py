"""Fit all coordinates of a tensor, from how often which gradient met which local Lipschitz constant.

A density has forgotten single points; each of its bins stands for as many points as it counts, at the middle of the bin
on both logarithmic scales. An envelope that is to lie above every point takes the corner of the bin where it is hardest
to do so: the largest smoothness at the smallest gradient.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lsmooth.fit.lines import Floats, bounded_trends, envelopes
from lsmooth.trace.density import Density
from lsmooth.trace.reader import Trace

NO_INTERVAL = "no intervals: densities do not keep the order of steps"


def estimate_densities(trace: Trace, methods: tuple[str, ...], q: float, fewest: int) -> pd.DataFrame:
    """Return L0 and L1 over all coordinates of each parameter tensor; columns as for `lsmooth.estimate`.

    Args:
        trace: A trace with densities.
        methods: Some of "trend", "quantile", "envelope".
        q: Share of the points below the line of "quantile".
        fewest: Fewer points than this give no number.

    Raises:
        TraceError: The trace has no densities, or they are damaged.
    """
    rows = []
    for parameter in trace.parameters:
        density = trace.density(parameter)
        points = int(density.counts.sum())
        used = np.flatnonzero(density.counts.any(axis=1))
        refusal = ""
        if points < fewest:
            refusal = f"{points} usable points, {fewest} are needed"
        elif len(used) == 1:
            refusal = "all points lie in one bin of gradients"
        notes = [refusal or NO_INTERVAL]
        if density.left_out:
            notes.append(f"left out: {density.left_out} did not move, are zero or beyond the bins")
        for method in methods:
            row = dict.fromkeys(("L0", "L1", "L0_low", "L0_high", "L1_low", "L1_high", "spearman", "coverage"), np.nan)
            if not refusal:
                x, y, weights = bin_points(density)
                row["L0"], row["L1"] = weighted_line(density, method, q)
                below = y <= row["L0"] + row["L1"] * x
                row["coverage"] = float(weights[below].sum() / points) if method != "envelope" else 1.0
                row["spearman"] = rank_correlation(density)
            rows.append(
                {"group": parameter, "method": method, **row, "points": points, "left_out": density.left_out}
                | {"reason": "; ".join(notes)}
            )
    return pd.DataFrame(rows)


def bin_points(density: Density) -> tuple[Floats, Floats, Floats]:
    """Return gradient, smoothness and count of each bin that holds points, at its logarithmic middle, (b,)."""
    column, row = np.nonzero(density.counts)
    grad, smoothness = density.grad_edges, density.smoothness_edges
    x = np.sqrt(grad[column] * grad[column + 1])
    y = np.sqrt(smoothness[row] * smoothness[row + 1])
    return x, y, density.counts[column, row].astype(np.float64)


def weighted_line(density: Density, method: str, q: float) -> tuple[float, float]:
    """Return the line of a method through the bins of a density, each weighing as many points as it counts."""
    x, y, weights = bin_points(density)
    unit_x, unit_y = x.max(), y.max()
    x, y, weights = x / unit_x, y / unit_y, weights / weights.sum()
    centre, height = weights @ x, weights @ y
    if method == "trend":
        offset = x - centre
        slope = (weights * offset) @ y / ((weights * offset) @ offset)
        through_origin = np.array([(weights * x) @ y / ((weights * x) @ x)])
        level, rise = bounded_trends(np.array([slope]), np.array([centre]), np.array([height]), lambda: through_origin)
        found = level[0], rise[0]
    elif method == "envelope":
        column, row = np.nonzero(density.counts)
        corner_x, corner_y = density.grad_edges[column] / unit_x, density.smoothness_edges[row + 1] / unit_y
        level, rise = envelopes(corner_x[None], corner_y[None], mean=np.array([centre]))
        found = level[0], rise[0]
    else:
        found = _weighted_quantile(x, y, weights, q)
    return float(found[0] * unit_y), float(found[1] * unit_y / unit_x)


def _weighted_quantile(x: Floats, y: Floats, weights: Floats, q: float) -> tuple[float, float]:
    """Return the quantile line of weighted points: the dual of its linear programme, by HiGHS."""
    from scipy.optimize import linprog

    # max w y  over  w in [weights (q - 1), weights q]  with  sum w <= 0, sum w x <= 0, whose multipliers are L0 and L1.
    solution = linprog(
        -y,
        A_ub=np.array([np.ones_like(x), x]),
        b_ub=np.zeros(2),
        bounds=np.column_stack([weights * (q - 1), weights * q]),
        method="highs",
    )
    level, slope = np.maximum(-solution.ineqlin.marginals, 0.0)
    return float(level), float(slope)


def rank_correlation(density: Density) -> float:
    """Return Spearman's rank correlation of gradient and smoothness, points of one bin sharing their mean rank."""
    counts = density.counts.astype(np.float64)
    total = counts.sum()
    ranks = []
    for axis in (1, 0):
        held = counts.sum(axis=axis)
        ranks.append(np.cumsum(held) - held / 2 - total / 2)
    left, right = ranks
    joint = left @ counts @ right
    spread = np.sqrt((counts.sum(axis=1) @ left**2) * (counts.sum(axis=0) @ right**2))
    return float(joint / spread) if spread > 0 else float("nan")
