"""Least squares lines with non-negative constants, in closed form; and asymmetric least squares (expectiles)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from lsmooth.fit.lines import Floats, Lines, Misfit, line_of, share_between

# Limit of iterations; the weights of an expectile settle within a few.
_MOST_TURNS = 100


def least_squares(grad_norm: ArrayLike, smoothness: ArrayLike) -> tuple[float, float]:
    """Return the least squares line of a cloud, both constants non-negative.

        (L0, L1) = argmin over L0, L1 >= 0 of sum_i (smoothness_i - L0 - L1 grad_norm_i)^2

    Smoothness has noise in proportion to itself, so that few large points decide the line; see `trend`.

    Args:
        grad_norm: Gradient norms, finite and non-negative, (n,).
        smoothness: Local Lipschitz constants, finite and non-negative, (n,).

    Returns:
        L0 in the unit of smoothness, L1 in that of smoothness over gradient norm.

    Raises:
        InvalidArgumentError: The arrays do not match, hold anything else, or all points lie at one gradient norm.
    """
    return line_of(least_squares_lines, grad_norm, smoothness)


def expectile(grad_norm: ArrayLike, smoothness: ArrayLike, tau: float = 0.9) -> tuple[float, float]:
    """Return the asymmetric least squares line of a cloud, both constants non-negative.

        (L0, L1) = argmin over L0, L1 >= 0 of sum_i |tau - 1(r_i < 0)| r_i^2,  r_i = smoothness_i - L0 - L1 grad_norm_i

    (Newey and Powell, "Asymmetric least squares estimation and testing", Econometrica 1987.) Points above the line
    weigh tau / (1 - tau) times as much as points below. A penalty lambda on squared underestimates, as in the protocol
    of Riabinin et al. ("Gluon", 2025), corresponds to tau = (1 + lambda) / (2 + lambda).

    Args:
        grad_norm: Gradient norms, finite and non-negative, (n,).
        smoothness: Local Lipschitz constants, finite and non-negative, (n,).
        tau: Weight of points above the line, from 1e-6 to 1 - 1e-6; 0.5 is `least_squares`.

    Returns:
        L0 in the unit of smoothness, L1 in that of smoothness over gradient norm.

    Raises:
        InvalidArgumentError: The arrays do not match, hold anything else, or all points lie at one gradient norm; or
            tau is out of range.
    """
    check_tau(tau)
    return line_of(lambda x, y: expectiles(x, y, tau), grad_norm, smoothness)


def check_tau(tau: float) -> None:
    """Raise InvalidArgumentError unless tau is between 0 and 1, and 1e-6 away from both."""
    share_between("tau", tau, "0.9")


def least_squares_lines(x: Floats, y: Floats) -> Lines:
    """Return `least_squares` of each row of two matrices (m, n): L0 and L1, each (m,)."""
    return weighted_lines(x, y, np.ones_like(x))


def expectiles(x: Floats, y: Floats, tau: float) -> Lines:
    """Return `expectile` of each row of two matrices (m, n): L0 and L1, each (m,).

    The objective is convex, and quadratic as long as the same points lie above the line. Weighted least squares are
    repeated until these points no longer change.
    """
    level, slope = least_squares_lines(x, y)
    active = np.arange(len(x))
    for _ in range(_MOST_TURNS):
        above = y > level[active, None] + slope[active, None] * x
        found = weighted_lines(x, y, np.where(above, tau, 1 - tau))
        settled = ((y > found[0][:, None] + found[1][:, None] * x) == above).all(axis=1)
        level[active], slope[active] = found
        active, x, y = active[~settled], x[~settled], y[~settled]
        if not len(active):
            break
    return level, slope


def weighted_lines(x: Floats, y: Floats, weights: Floats) -> Lines:
    """Return weighted least squares lines with L0, L1 >= 0 of each row of three matrices (m, n).

    The unconstrained line passes through the centre of the cloud, so that at most one of its constants is negative. If
    one is, it is zero at the constrained optimum, and the other follows in closed form.
    """
    total = weights.sum(axis=1)
    centre, height = np.einsum("ij,ij->i", weights, x) / total, np.einsum("ij,ij->i", weights, y) / total
    centred = x - centre[:, None]
    weighted = weights * centred
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.einsum("ij,ij->i", weighted, y) / np.einsum("ij,ij->i", weighted, centred)

    def through_origin() -> Floats:
        return np.einsum("ij,ij,ij->i", weights, x, y) / np.einsum("ij,ij,ij->i", weights, x, x)

    return bounded_lines(slope, centre, height, through_origin)


def bounded_lines(slope: Floats, centre: Floats, height: Floats, through_origin: Callable[[], Floats]) -> Lines:
    """Return least squares lines with L0, L1 >= 0, from the unconstrained slope and the centre of each cloud."""
    level = height - slope * centre
    flat, steep = slope <= 0, (level < 0) & (slope > 0)
    slope = np.where(flat, 0.0, slope)
    level = np.where(flat, height, level)
    if steep.any():
        slope = np.where(steep, through_origin(), slope)
        level = np.where(steep, 0.0, level)
    return level, slope


def squares(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the mean squared residual of each row, which a least squares line minimises."""
    return np.mean((y - level[:, None] - slope[:, None] * x) ** 2, axis=1)


def asymmetric_squares(tau: float) -> Misfit:
    """Return the function that an expectile minimises: the mean asymmetric square of each row's residuals."""

    def misfit(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
        residual = y - level[:, None] - slope[:, None] * x
        return np.mean(np.where(residual > 0, tau, 1 - tau) * residual**2, axis=1)

    return misfit
