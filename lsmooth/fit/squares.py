"""Least squares lines with both constants non-negative, in closed form, for many clouds at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from lsmooth.fit.lines import Floats, Lines, line_of


def trend(grad_norm: ArrayLike, smoothness: ArrayLike) -> tuple[float, float]:
    """Return the line that runs through the middle of a cloud: least squares with both constants non-negative.

        (L0, L1) = argmin over L0, L1 >= 0 of sum_i (smoothness_i - L0 - L1 grad_norm_i)^2

    Args:
        grad_norm: Gradient norms, finite and non-negative, (n,).
        smoothness: Local Lipschitz constants, finite and non-negative, (n,).

    Returns:
        L0 in the unit of smoothness, L1 in that of smoothness over gradient norm.

    Raises:
        InvalidArgumentError: The arrays do not match, hold anything else, or all points lie at one gradient norm.

    Example:
        >>> [round(constant, 6) for constant in trend([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])]
        [1.0, 2.0]
    """
    return line_of(trends, grad_norm, smoothness)


def trends(x: Floats, y: Floats) -> Lines:
    """Return `trend` of each row of two matrices (m, n): L0 and L1, each (m,).

    The unconstrained line passes through the centre of the cloud, so that at most one of its constants is negative;
    where one is, the constrained optimum has it at zero, and the other follows in closed form.
    """
    centre, height = x.mean(axis=1), y.mean(axis=1)
    centred = x - centre[:, None]
    slope = np.einsum("ij,ij->i", centred, y) / np.einsum("ij,ij->i", centred, centred)
    return bounded_trends(slope, centre, height, lambda: np.einsum("ij,ij->i", x, y) / np.einsum("ij,ij->i", x, x))


def bounded_trends(slope: Floats, centre: Floats, height: Floats, through_origin: Callable[[], Floats]) -> Lines:
    """Return least squares lines with L0, L1 >= 0, given those without: slope, and centre and height of the cloud."""
    level = height - slope * centre
    flat, steep = slope <= 0, (level < 0) & (slope > 0)
    slope = np.where(flat, 0.0, slope)
    level = np.where(flat, height, level)
    if steep.any():
        slope = np.where(steep, through_origin(), slope)
        level = np.where(steep, 0.0, level)
    return level, slope


def squares(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the mean squared residual of each row: what a trend makes small."""
    return np.mean((y - level[:, None] - slope[:, None] * x) ** 2, axis=1)
