"""Formulas of local Lipschitz constants, as functions on arrays of norms of gradient changes and displacements.

Throughout, d = x_{t+1} - x_t and Delta(gamma) = grad f(x_t + gamma d) - grad f(x_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsmooth.join import Join

# Squares of float64 numbers beyond these limits may leave the range of float64.
_SQUARABLE = (1e-150, 1e150)
# Powers of gamma in the model of a squared change of gradient: 0 for rounding, and the others for a smooth change.
_POWERS = (0, 2, 3)
_MORE_POWERS = (0, 2, 3, 4)


def joined_norms(norms: NDArray[Any], groups: Sequence[Sequence[int]], join: Join = Join.NORM) -> NDArray[np.float64]:
    """Return norms of groups of tensors from norms of the tensors.

    Args:
        norms: Norms of p tensors, any real dtype (..., p).
        groups: For each of m groups, the positions of its tensors.
        join: NORM for the square root of the sum of squares (2-norms), MAX for the largest (inf-norms, spectral norms),
            SUM for the sum (their dual norms).

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
        Local Lipschitz constants, (n, m); NaN where nothing moved, or where any point is NaN.
    """
    moved = gammas[None, :, None] * step_norm[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = grad_diff / moved
    ratio[~np.broadcast_to(moved > 0, ratio.shape)] = np.nan
    return ratio.max(axis=1)


def coordinate_lipschitz(
    grad: NDArray[Any], grad_along: NDArray[Any], displacement: NDArray[Any], gammas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return max over gamma of |Delta_j(gamma)| / |gamma d_j|, and the smaller gradient of both ends at that gamma.

    The second is min(|grad_j f(x_t)|, |grad_j f(x_t + gamma d)|), with which the first is compared (the paper, Section
    5.2; with gamma = 1 alone, its Figure 3).

    Args:
        grad: grad_j f(x_t) of n steps and c coordinates, (n, c).
        grad_along: grad_j f(x_t + gamma d), (n, g, c).
        displacement: d_j, (n, c).
        gammas: Positions, (g,).

    Returns:
        Two arrays (n, c); the first is NaN where the coordinate did not move, or where any point is NaN.
    """
    start = grad.astype(np.float64)[:, None, :]
    along = grad_along.astype(np.float64)
    moved = gammas[None, :, None] * np.abs(displacement.astype(np.float64))[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.abs(along - start) / moved
    ratio[~np.broadcast_to(moved > 0, ratio.shape)] = np.nan
    if len(gammas) == 1:
        return ratio[:, 0, :], np.minimum(np.abs(start), np.abs(along))[:, 0, :]
    # argmax treats NaN as the largest number, so that one NaN makes the result NaN, as it should.
    best = np.argmax(ratio, axis=1)[:, None, :]
    largest = np.take_along_axis(ratio, best, axis=1)[:, 0, :]
    smaller = np.minimum(np.abs(start[:, 0, :]), np.abs(np.take_along_axis(along, best, axis=1)[:, 0, :]))
    return largest, smaller


def rounding_lines(gammas: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix A of the least squares fits in `rounding_noise`.

    The fit of V(gamma_i) = W + B gamma_i² + C gamma_i³ + gamma_i r_i, with the least sum of r_i², is linear in V. The
    first row of A V is W. The second row is W of a fit with a further term D gamma_i⁴. The other rows are r_i of the
    first fit.

    Args:
        gammas: Positions, (g,).

    Returns:
        A, (2 + g, g); NaN if there are not more points than unknowns in the first fit.
    """
    count = len(gammas)
    if count <= len(_POWERS):
        return np.full((2 + count, count), np.nan)
    few, more = (np.stack([gammas**power for power in powers], axis=1) for powers in (_POWERS, _MORE_POWERS))
    solution, bent = (np.linalg.pinv(powers / gammas[:, None]) / gammas for powers in (few, more))
    return np.vstack([solution[:1], bent[:1], (np.eye(count) - few @ solution) / gammas[:, None]])


def rounding_noise(
    grad_diff: NDArray[np.float64], gammas: NDArray[np.float64], largest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the 2-norm of the rounding in Delta(gamma) at the gamma of the largest ‖Delta(gamma)‖ / gamma.

    The change of a smooth gradient is proportional to gamma, so that V(gamma) = ‖Delta(gamma)‖² starts with a term in
    gamma². Rounding is equally large at all points, and adds the intercept W to V (the nugget of a variogram; Cressie,
    "Statistics for Spatial Data", 1993, Section 2.3). W is the smaller one of two fits, which allow for less and more
    variation of the curvature. In a short format few weights change, and rounding comes in jumps; V then scatters in
    proportion to the change. With W and r_i of `rounding_lines`, the rounding is

        min(largest, max(W, gamma (mean over i of r_i²)^(1/2))^(1/2)).

    Kinks of the function (ReLU) look like rounding. The upper bound `largest` of the arithmetic tells them apart.

    Args:
        grad_diff: ‖Delta(gamma)‖2 of n steps and m groups at g positions, (n, g, m).
        gammas: Positions, (g,).
        largest: Upper bounds of the rounding by the arithmetic, (n, m).

    Returns:
        Norms of rounding, (n, m); NaN where a point is NaN, and all NaN with fewer than four positions.
    """
    lines = rounding_lines(gammas)
    with np.errstate(invalid="ignore", over="ignore"):
        scale = np.maximum(grad_diff.max(axis=1), np.finfo(np.float64).tiny)
        found = lines @ np.square(grad_diff / scale[:, None])
        gamma = gammas[np.argmax(grad_diff / gammas[:, None], axis=1)]
        scatter = gamma * np.sqrt(np.square(found[:, 2:]).mean(axis=1))
        return np.minimum(scale * np.sqrt(np.maximum(found[:, :2].min(axis=1), scatter)), largest)
