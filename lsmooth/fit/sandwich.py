"""Confidence intervals of trends in closed form."""

from __future__ import annotations

import numpy as np

from lsmooth.fit.lines import Floats, at_one_norm
from lsmooth.fit.longrun import covariances
from lsmooth.fit.trends import MEAN_SQUARE, logarithms, scales


def trend_intervals(x: Floats, y: Floats, lines: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Return the ends of the intervals of L0 and L1 of m trends, (2, m) each: estimate -+ t times standard error.

    The standard error is that of the mean influence of a step on the constants, with correlated steps
    (`lsmooth.fit.longrun`), and t the quantile of Student's distribution. A constant's error grows with the constant.
    So the upper end takes the larger of the errors at the estimate and at that end, where the other constant is moved
    by their covariance. Intervals are cut off at 0.

    Args:
        x: Gradient norms in the order of steps, (m, n).
        y: Smoothness, (m, n).
        lines: L0 and L1 of each row, (2, m).
        confidence: Confidence of the intervals, between 0 and 1.
    """
    from scipy.stats import t

    covariance, degrees = covariances(influences(x, y, lines))
    # By the share beyond it, which float64 tells from 0 where it cannot tell the share below from 1.
    quantile = t.isf((1 - confidence) / 2, degrees)
    errors = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)).T
    low, high = np.maximum(lines - quantile * errors, 0.0), np.empty_like(lines)
    for one, other in ((0, 1), (1, 0)):
        moved = lines.copy()
        moved[one] += quantile * errors[one]
        with np.errstate(divide="ignore", invalid="ignore"):
            follows = np.nan_to_num(covariance[:, 0, 1] / errors[one] * quantile)
        moved[other] = np.maximum(moved[other] + follows, 0.0)
        there, _ = covariances(influences(x, y, moved))
        high[one] = lines[one] + quantile * np.maximum(errors[one], np.sqrt(there[:, one, one]))
    return low, high


def influences(x: Floats, y: Floats, lines: Floats) -> Floats:
    """Return how much each step moves L0 and L1 of its row, times n, (m, 2, n).

    Trends solve  sum pull J = 0  and  sum (min(r^2, s^2) - 2 b s^2) = 0,  with residuals r of the logarithm, J the
    derivatives of log(L0 + L1 x) and pull r, cut off at -+s. A step's influence is minus the inverse of the derivative
    of the mean equations, times the step's own terms (Hampel et al., "Robust Statistics", 1986, Section 4.2).
    """
    m, n = x.shape
    found = np.zeros((m, 2, n))
    known = lines.sum(axis=0) > 0
    x, y, lines = x[known], y[known], lines[:, known]
    with np.errstate(divide="ignore", invalid="ignore"):
        line = lines[0, :, None] + lines[1, :, None] * x
        residual = logarithms(y) - np.log(line)
        variance = scales(residual)
        scale = np.sqrt(variance)[:, None]
        pull = np.clip(residual, -scale, scale)
        slopes = np.stack([1 / line, x / line], axis=1)
        # Scaled, so that the derivatives of both constants are of order one.
        unit = np.sqrt(np.mean(slopes**2, axis=2, keepdims=True))
        slopes /= unit
        if at_one_norm(x).any():
            slopes[at_one_norm(x), 1] = 0.0
        terms = np.concatenate([pull[:, None] * slopes, np.minimum(residual**2 / scale, scale)[:, None]], axis=1)
        terms[:, 2] -= MEAN_SQUARE * scale
        inside = (np.abs(residual) <= scale).astype(np.float64)
        derivative = np.zeros((len(x), 3, 3))
        derivative[:, :2, :2] = -np.einsum("min,mjn->mij", slopes * (inside + pull)[:, None], slopes) / n
        derivative[:, :2, 2] = np.mean(slopes * ((1 - inside) * np.sign(residual))[:, None], axis=2)
        derivative[:, 2, :2] = -2 * np.mean(slopes * (inside * residual)[:, None], axis=2) / scale
        derivative[:, 2, 2] = 2 * np.mean(1 - inside, axis=1) - 2 * MEAN_SQUARE
        # If numbers leave the range of float64, the interval is unknown.
        lost = ~np.isfinite(derivative).all(axis=(1, 2)) | ~np.isfinite(slopes).all(axis=(1, 2))
        derivative[lost], slopes[lost] = 0.0, 0.0
        solution = -np.linalg.pinv(derivative, rcond=1e-10) @ terms
        # A step pulls the line towards itself, which makes its residual too small; this corrects it (HC3).
        own = np.einsum("min,mij,mjn->mn", slopes, np.linalg.pinv(slopes @ slopes.transpose(0, 2, 1)), slopes)
    solution[lost] = np.nan
    found[known] = solution[:, :2] / unit / (1 - own)[:, None]
    return found
