"""Local Lipschitz constants from norms of gradient changes and displacements: pure functions on arrays.

Throughout, d = x_{t+1} - x_t and Delta(gamma) = grad f(x_t + gamma d) - grad f(x_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsmooth.join import Join

# Beyond these, squares of float64 numbers leave its range.
_SQUARABLE = (1e-150, 1e150)


def joined_norms(norms: NDArray[Any], groups: Sequence[Sequence[int]], join: Join = Join.NORM) -> NDArray[np.float64]:
    """Return norms of groups of tensors from those of the tensors.

    Args:
        norms: Norms of p tensors, any real dtype (..., p).
        groups: For each of m groups, the positions of its tensors.
        join: NORM for the square root of the sum of squares (2-norms), MAX for the largest (inf-norms, and the norm
            of a product space that takes the largest of its parts'), SUM for the sum (the duals of those).

    Returns:
        Norms of the groups, float64 (..., m).
    """
    values = norms.astype(np.float64)
    if all(len(group) == 1 for group in groups):
        return values[..., [group[0] for group in groups]]
    if join != Join.NORM:
        reduce = np.max if join == Join.MAX else np.sum
        with np.errstate(invalid="ignore", over="ignore"):
            return np.stack([reduce(values[..., list(group)], axis=-1) for group in groups], axis=-1)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = 1.0
        low, high = _SQUARABLE
        positive = values[(values > 0) & np.isfinite(values)]
        if positive.size and (positive.min() < low or positive.max() > high):
            scale = float(positive.max())
            values /= scale
        squares = np.square(values, out=values)
        joined = np.empty((*values.shape[:-1], len(groups)))
        for column, group in enumerate(groups):
            whole = len(group) == values.shape[-1]
            joined[..., column] = (squares if whole else squares[..., list(group)]).sum(axis=-1)
        return np.sqrt(joined, out=joined) * scale


def local_lipschitz(
    grad_diff: NDArray[np.float64], step_norm: NDArray[np.float64], gammas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return max over gamma of ‖Delta(gamma)‖ / ‖gamma d‖ (the paper, Section 5.2; Zhang et al. 2020, Section H.3).

    Args:
        grad_diff: ‖Delta(gamma)‖ of n steps and m groups at g positions, (n, g, m).
        step_norm: ‖d‖, (n, m) or (n, 1).
        gammas: Positions, (g,).

    Returns:
        Local Lipschitz constants, (n, m): NaN where nothing moved, or where any of the points is not a number.
    """
    moved = gammas[None, :, None] * step_norm[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = grad_diff / moved
    ratio[~np.broadcast_to(moved > 0, ratio.shape)] = np.nan
    return ratio.max(axis=1)


def coordinate_lipschitz(
    grad: NDArray[Any], grad_along: NDArray[Any], displacement: NDArray[Any], gammas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return max over gamma of |Delta_j(gamma)| / |gamma d_j|, and the smaller gradient at that gamma.

    The second is min(|grad_j f(x_t)|, |grad_j f(x_t + gamma d)|), against which the first is held (the paper, Section
    5.2; with gamma = 1 alone, its Figure 3).

    Args:
        grad: grad_j f(x_t) of n steps and c coordinates, (n, c).
        grad_along: grad_j f(x_t + gamma d), (n, g, c).
        displacement: d_j, (n, c).
        gammas: Positions, (g,).

    Returns:
        Two arrays (n, c); the first is NaN where the coordinate did not move, or a point is not a number.
    """
    start = grad.astype(np.float64)[:, None, :]
    along = grad_along.astype(np.float64)
    moved = gammas[None, :, None] * np.abs(displacement.astype(np.float64))[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.abs(along - start) / moved
    ratio[~np.broadcast_to(moved > 0, ratio.shape)] = np.nan
    if len(gammas) == 1:
        return ratio[:, 0, :], np.minimum(np.abs(start), np.abs(along))[:, 0, :]
    # argmax takes the first NaN for the largest, so that one bad point spoils its coordinate, as it should.
    best = np.argmax(ratio, axis=1)[:, None, :]
    largest = np.take_along_axis(ratio, best, axis=1)[:, 0, :]
    smaller = np.minimum(np.abs(start[:, 0, :]), np.abs(np.take_along_axis(along, best, axis=1)[:, 0, :]))
    return largest, smaller
