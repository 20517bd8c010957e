"""Trends: lines through the middle of a cloud on a logarithmic scale, for many clouds at a time.

Smoothness spreads over decades, with noise in proportion to itself. On a logarithmic scale the noise is even, and a few
large points do not decide where the line runs. Huber's loss is quadratic for small residuals and linear for large ones,
so that a tail of the noise does not move the line either.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lsmooth.fit.lines import Floats, Lines, line_of

# 2 b, the mean of min(z², 1) over normal z; with it, the scale of normal noise is its standard deviation.
MEAN_SQUARE = 0.5160586
# A search ends when a step changes the logarithm of the line, in the root mean square, by at most this share of the
# scale, or only by rounding. Newton's next step would be far shorter.
_SHORTEST_STEP = 1e-6
_ROUNDING = 1e-15
# A search also ends when a step with this damping does not lower the loss.
_MOST_DAMPING = 1e8
_MOST_STEPS = 100
# Numbers held at a time: few enough for the processor's cache, and enough rows to share the cost of each NumPy call.
_CHUNK = 1 << 17


def trend(grad_norm: ArrayLike, smoothness: ArrayLike) -> tuple[float, float]:
    """Return the line through the middle of a cloud, by Huber's regression on the logarithm of smoothness.

        (L0, L1, s) = argmin over L0, L1 >= 0, s > 0 of sum_i s (h(r_i / s) + b),
        r_i = log smoothness_i - log(L0 + L1 grad_norm_i)

    with h(u) = u^2/2 for |u| <= 1 and |u| - 1/2 beyond. b = 0.258 makes s the standard deviation of normal noise
    (Huber, "Robust Statistics", 1981, Section 7.7: regression with the scale as a concomitant). A smoothness of 0 has
    no logarithm, and counts as the smallest positive smoothness of the cloud.

    Args:
        grad_norm: Gradient norms, finite and non-negative, (n,).
        smoothness: Local Lipschitz constants, finite and non-negative, (n,).

    Returns:
        L0 in the unit of smoothness, L1 in that of smoothness over gradient norm.

    Raises:
        InvalidArgumentError: The arrays do not match, hold anything else, or all points lie at one gradient norm.

    Examples:
        >>> [round(constant, 6) for constant in trend([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])]
        [1.0, 2.0]
    """
    return line_of(trends, grad_norm, smoothness)


def logarithms(y: Floats) -> Floats:
    """Return log smoothness of each row; 0 counts as the row's smallest positive value, and a row of zeros as ones."""
    if (y > 0).all():
        return np.log(y)
    least = np.where(y > 0, y, np.inf).min(axis=1)
    least[np.isinf(least)] = 1.0
    return np.log(np.where(y > 0, y, least[:, None]))


def trends(x: Floats, y: Floats) -> Lines:
    """Return `trend` of each row of two matrices (m, n): L0 and L1, each (m,)."""
    lines = np.empty((2, len(x)))
    rows = max(1, _CHUNK // x.shape[1])
    for first in range(0, len(x), rows):
        chosen = slice(first, first + rows)
        lines[:, chosen] = _searched(x[chosen], logarithms(y[chosen]))
    lines[:, ~(y > 0).any(axis=1)] = 0.0
    return lines[0], lines[1]


def middles(y: Floats) -> Floats:
    """Return the level of the flat trend of each row, (m,)."""
    return trends(np.zeros_like(y), y)[0]


def _searched(x: Floats, z: Floats) -> Floats:
    """Return L0 and L1 of rows of x and log y, (2, m), by damped Newton steps within L0, L1 >= 0."""
    n = x.shape[1]
    middle = np.exp(np.median(z, axis=1)) / 2
    with np.errstate(divide="ignore"):
        scale = np.exp(np.log(np.where(x > 0, x, x.max(axis=1, keepdims=True))).mean(axis=1))
    # Rows whose gradient norms are all 0 get a flat line.
    lines = np.stack([middle, np.divide(middle, scale, out=np.zeros_like(middle), where=scale > 0)])
    trial, damping, least = lines.copy(), np.full(len(x), 1e-3), np.full(len(x), np.inf)
    models, expected = np.zeros((8, len(x))), np.zeros(len(x))
    active = np.arange(len(x))
    for _ in range(_MOST_STEPS):
        loss, model = _model(x, z, trial[:, active], models[-1, active])
        gain = least[active] - loss
        better = gain > 0
        kept = active[better]
        least[kept], lines[:, kept], models[:, kept] = loss[better], trial[:, kept], model[:, better]
        damping[active] *= np.where(gain > 0.25 * expected[active], 0.1, 5.0)
        step, expected[active] = _bounded_step(models[:, active], damping[active], lines[:, active])
        trial[:, active] = np.maximum(lines[:, active] + step, 0.0)
        change = np.sqrt((step**2 * models[5:7, active]).max(axis=0) / n)
        enough = np.maximum(_SHORTEST_STEP * np.sqrt(models[-1, active]), _ROUNDING)
        going = (change > enough) & (damping[active] < _MOST_DAMPING)
        if not going.all():
            last = active[change <= enough]
            lines[:, last] = trial[:, last]
            active, x, z = active[going], x[going], z[going]
        if not len(active):
            break
    return lines


def _model(x: Floats, z: Floats, lines: Floats, start: Floats) -> tuple[Floats, Floats]:
    """Return n times the loss of each row's line, and the numbers of its quadratic model nearby, (8, m).

    The scale is eliminated. With J the derivatives of log(L0 + L1 x), the Hessian is sum J J' - (sum r J)(sum r J)' /
    sum r^2 over the points within the scale, plus sum pull J J' over all points if the total is positive definite. The
    numbers are three entries of the Hessian, two of the gradient, two of sum J^2, and the squared scale.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        level = lines[1, :, None] * x
        level += lines[0, :, None]
        residual = np.log(level)
        np.subtract(z, residual, out=residual)
        np.reciprocal(level, out=level)
        variance = scales(residual, start)
        scale = np.sqrt(variance)[:, None]
        pull = np.minimum(residual, scale)
        np.maximum(pull, -scale, out=pull)
        inside = pull == residual
        loss = losses(residual, pull, scale[:, 0])
        near, near_residual = inside * level, inside * residual
        pull *= level
        slope, pull_slope, rise = near * x, pull * x, level * x
        common = 1 / np.maximum(_total(near_residual, residual), 1e-300)
        along, along_slope = _total(near_residual, level), _total(near_residual, rise)
        squares = np.array([_total(near, level), _total(near, rise), _total(slope, rise)])
        bend = np.array([_total(pull, level), _total(pull, rise), _total(pull_slope, rise)])
        hessian = squares - np.array([along**2, along * along_slope, along_slope**2]) * common
        whole = hessian + bend
        sound = (whole[0] > 0.1 * hessian[0]) & (whole[0] * whole[2] - whole[1] ** 2 > 0.1 * _determinant(hessian))
        hessian = np.where(sound, whole, hessian)
    loss[~np.isfinite(loss)] = np.inf
    return loss, np.array([*hessian, pull.sum(axis=1), pull_slope.sum(axis=1), squares[0], squares[2], variance])


def _determinant(hessian: Floats) -> Floats:
    return hessian[0] * hessian[2] - hessian[1] ** 2


def _bounded_step(models: Floats, damping: Floats, lines: Floats) -> tuple[Floats, Floats]:
    """Return the step, (2, m), to the minimum of damped models within L0, L1 >= 0, and the expected gain."""
    first, both, second, *pull, weight, slope_weight, variance = models
    damped_first, damped_second = first + damping * weight, second + damping * slope_weight
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        determinant = damped_first * damped_second - both**2
        level = (damped_second * pull[0] - both * pull[1]) / determinant
        slope = (damped_first * pull[1] - both * pull[0]) / determinant
        alone = ~(determinant > 0)
        level, slope = np.where(alone, pull[0] / damped_first, level), np.where(alone, 0.0, slope)
        no_level, no_slope = lines[0] + level < 0, lines[1] + slope < 0
        slope = np.where(no_level, (pull[1] + both * lines[0]) / damped_second, slope)
        level = np.where(no_slope & ~no_level, (pull[0] + both * lines[1]) / damped_first, level)
        level, slope = np.where(no_level, -lines[0], level), np.where(no_slope & ~no_level, -lines[1], slope)
        step = np.nan_to_num(np.array([level, slope]), nan=0.0, posinf=0.0, neginf=0.0)
        curved = first * step[0] ** 2 + 2 * both * step[0] * step[1] + second * step[1] ** 2
        return step, (step[0] * pull[0] + step[1] * pull[1] - curved / 2) / np.sqrt(variance)


def _total(a: Floats, b: Floats) -> Floats:
    return np.einsum("ij,ij->i", a, b)


def scales(residual: Floats, start: Floats | None = None) -> Floats:
    """Return the best squared scale s² for each row of residuals, (m,), at which the mean of min(r², s²) is 2 b s².

    The left side minus the right is concave in s², so that Newton's steps approach the solution from above. They end
    when the points within the scale no longer change.

    Args:
        residual: Residuals, (m, n).
        start: First guesses, (m,); values that are not positive are ignored.
    """
    squares = residual**2
    n = squares.shape[1]
    mean = squares.mean(axis=1)
    variance = mean if start is None else np.where(start > 0, np.minimum(start, mean / MEAN_SQUARE), mean)
    work, before = np.empty_like(squares), np.full(len(squares), -1)
    for _ in range(_MOST_STEPS):
        inside = squares <= variance[:, None]
        count = np.count_nonzero(inside, axis=1)
        within = np.multiply(squares, inside, out=work).sum(axis=1)
        slope = MEAN_SQUARE * n - (n - count)
        with np.errstate(divide="ignore", invalid="ignore"):
            better = np.where(slope > 0, within / slope, mean / MEAN_SQUARE)
        settled = (count == before) | (np.abs(better - variance) <= 1e-12 * variance)
        variance, before = better, count
        if settled.all():
            break
    return variance


def losses(residual: Floats, pull: Floats, scale: Floats) -> Floats:
    """Return n times the loss that a trend minimises, (m,); `pull` is the residuals cut off at their scale."""
    n = residual.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        huber = (_total(pull, residual) - _total(pull, pull) / 2) / scale
    return np.where(scale > 0, huber + n * MEAN_SQUARE / 2 * scale, np.abs(residual).sum(axis=1))


def log_misfit(x: Floats, y: Floats, level: Floats, slope: Floats) -> Floats:
    """Return the loss that a trend minimises, for each row's line, (m,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = logarithms(y) - np.log(level[:, None] + slope[:, None] * x)
    # A line that is 0 at some point has no finite logarithm there.
    possible = np.isfinite(residual).all(axis=1)
    residual[~possible] = 0.0
    scale = np.sqrt(scales(residual))
    pull = np.clip(residual, -scale[:, None], scale[:, None])
    return np.where(possible, losses(residual, pull, scale) / x.shape[1], np.inf)
