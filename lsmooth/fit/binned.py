"""Lines fitted to the bins of a density, each bin with the weight of its points.

A density does not keep single points. Each bin stands for its points at the middle of the bin on both logarithmic
scales. An envelope must lie above every point, and so above the worst corner of the bin, with the largest smoothness
and the smallest gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from lsmooth.fit.envelopes import envelopes
from lsmooth.fit.lines import Floats, Lines

if TYPE_CHECKING:
    from lsmooth.trace.density import Density

# Larger numbers of points are reduced to this, in proportion.
_MOST_POINTS = 100_000


def bin_points(density: Density) -> tuple[Floats, Floats, Floats]:
    """Return gradient and smoothness at the logarithmic middle of each bin with points, and its count, (b,) each."""
    column, row = np.nonzero(density.counts)
    grad, smoothness = density.grad_edges, density.smoothness_edges
    x = np.sqrt(grad[column] * grad[column + 1])
    y = np.sqrt(smoothness[row] * smoothness[row + 1])
    return x, y, density.counts[column, row].astype(np.float64)


def binned_line(lines: Callable[[Floats, Floats, float], Lines], density: Density, share: float) -> tuple[float, float]:
    """Return the line of a method fitted to the bins of a density, each repeated in proportion to its count."""
    x, y, weights = bin_points(density)
    total = weights.sum()
    if total > _MOST_POINTS:
        weights = np.round(weights * (_MOST_POINTS / total))
    count = weights.astype(np.int64)
    unit_x, unit_y = x.max(), y.max()
    level, slope = lines(np.repeat(x / unit_x, count)[None], np.repeat(y / unit_y, count)[None], share)
    return float(level[0] * unit_y), float(slope[0] * unit_y / unit_x)


def binned_envelope(density: Density) -> tuple[float, float]:
    """Return the lowest line above every corner of a density's bins."""
    x, y, weights = bin_points(density)
    unit_x, unit_y = x.max(), y.max()
    column, row = np.nonzero(density.counts)
    corner_x, corner_y = density.grad_edges[column] / unit_x, density.smoothness_edges[row + 1] / unit_y
    centre = np.array([weights @ x / weights.sum() / unit_x])
    level, rise = envelopes(corner_x[None], corner_y[None], mean=centre)
    return float(level[0] * unit_y), float(rise[0] * unit_y / unit_x)


def binned_quantile(density: Density, q: float) -> tuple[float, float]:
    """Return the quantile line of a density, from the dual of its linear programme, solved by HiGHS."""
    from scipy.optimize import linprog

    x, y, weights = bin_points(density)
    unit_x, unit_y = x.max(), y.max()
    x, y, weights = x / unit_x, y / unit_y, weights / weights.sum()
    # max w y  over  w in [weights (q - 1), weights q]  with  sum w <= 0, sum w x <= 0, whose multipliers are L0 and L1.
    solution = linprog(
        -y,
        A_ub=np.array([np.ones_like(x), x]),
        b_ub=np.zeros(2),
        bounds=np.column_stack([weights * (q - 1), weights * q]),
        method="highs",
    )
    level, slope = np.maximum(-solution.ineqlin.marginals, 0.0)
    return float(level * unit_y), float(slope * unit_y / unit_x)


def rank_correlation(density: Density) -> float:
    """Return Spearman's rank correlation of gradient and smoothness; points of one bin have their mean rank."""
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
