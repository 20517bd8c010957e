"""Envelopes, the lowest lines above all points: computed exactly, for many clouds at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lsmooth.fit.lines import Floats, Lines, line_of


def envelope(grad_norm: ArrayLike, smoothness: ArrayLike) -> tuple[float, float]:
    """Return the lowest line above all points of a cloud.

        (L0, L1) = argmin of mean_i (L0 + L1 grad_norm_i)  over  L0, L1 >= 0  with
        smoothness_i <= L0 + L1 grad_norm_i for every i

    The line extends the edge of the cloud's upper convex hull over the mean gradient norm. If the mean lies exactly
    under a corner, many lines are equally low, and the one with the smallest L1 is returned.

    Args:
        grad_norm: Gradient norms, finite and non-negative, (n,).
        smoothness: Local Lipschitz constants, finite and non-negative, (n,).

    Returns:
        L0 in the unit of smoothness, L1 in that of smoothness over gradient norm.

    Raises:
        InvalidArgumentError: The arrays do not match, hold anything else, or all points lie at one gradient norm.
    """
    return line_of(envelopes, grad_norm, smoothness)


def envelopes(x: Floats, y: Floats, mean: Floats | None = None) -> Lines:
    """Return `envelope` of each row of two matrices (m, n): L0 and L1, each (m,).

    `mean` is the gradient norm of each row at which the line is lowest; by default the mean of x.

    The mean bound M(L1) + L1 mean(x), with M(L1) = max(0, max_i (y_i - L1 x_i)), is convex and piecewise linear in L1.
    Its slope is mean(x) minus the x of the point that attains M. Each round takes the line through two points that
    bracket the optimum, and looks for a point above it. There is none once the line is an edge of the hull. The origin
    stands for the constraint L0 >= 0.
    """
    rows = np.arange(len(x))
    if mean is None:
        mean = x.mean(axis=1)
    first = y.argmax(axis=1)
    right_x, right_y = x[rows, first], y[rows, first]
    left_x, left_y = np.zeros(len(x)), np.zeros(len(x))
    level, slope = right_y.copy(), np.zeros(len(x))
    # If the highest point is not to the right of the mean, a flat line is lowest.
    active = np.flatnonzero(right_x > mean)
    sub_x, sub_y = (x, y) if len(active) == len(x) else (x[active], y[active])
    while len(active):
        steepness = (right_y[active] - left_y[active]) / (right_x[active] - left_x[active])
        steepness = np.maximum(steepness, 0.0)
        residual = sub_y - steepness[:, None] * sub_x
        highest = residual.argmax(axis=1)
        picked = np.arange(len(active))
        top_x, top_y = sub_x[picked, highest], sub_y[picked, highest]
        above = residual[picked, highest]
        edge = np.maximum(left_y[active] - steepness * left_x[active], right_y[active] - steepness * right_x[active])
        # A corner that is one of the two already, or lies on their line but for rounding, ends the search.
        scale = np.maximum(np.abs(edge), right_y[active])
        known = ((top_x == right_x[active]) & (top_y == right_y[active])) | (
            (top_x == left_x[active]) & (top_y == left_y[active])
        )
        done = known | (above <= edge + 4e-16 * scale)
        slope[active] = steepness
        level[active] = np.where(left_x[active] + left_y[active] == 0, 0.0, np.maximum(above, edge))
        to_right = ~done & (top_x > mean[active])
        to_left = ~done & ~to_right
        right_x[active[to_right]], right_y[active[to_right]] = top_x[to_right], top_y[to_right]
        left_x[active[to_left]], left_y[active[to_left]] = top_x[to_left], top_y[to_left]
        if done.any():
            keep = ~done
            active, sub_x, sub_y = active[keep], sub_x[keep], sub_y[keep]
    return np.maximum(level, 0.0), slope


def mean_bound(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the mean height of each row's line, which an envelope minimises."""
    return level + slope * x.mean(axis=1)
