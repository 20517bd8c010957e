"""Autoregressions, which make correlated noise white: innovations are what a series' past does not predict."""

from __future__ import annotations

import numpy as np

from lsmooth.fit.lines import Floats

# Largest sum of coefficients after the correction of bias; at 1 a series would never forget.
_LARGEST_SUM = 0.97


def most_lags(n: int) -> int:
    """Return the highest order of an autoregression of n steps: n^(1/3), and at most n / 20."""
    return min(round(n ** (1 / 3)), n // 20)


def autoregressions(series: Floats) -> Floats:
    """Return the coefficients of each row's autoregression, (m, p): x_t = sum_k phi_k x_(t-k) + innovation.

    Coefficients are Burg's ("Maximum entropy spectral analysis", 1975), of the order from 0 to `most_lags` with the
    least AIC. Subtracting the mean makes the estimates too small by about (1 + 4 phi) / n (Marriott and Pope, "Bias in
    the estimation of autocorrelations", Biometrika 1954). This bias of the sum of coefficients is added to the first
    one.

    Args:
        series: Numbers in the order of steps, (m, n).
    """
    m, n = series.shape
    forward = backward = series - series.mean(axis=1, keepdims=True)
    error = np.mean(forward**2, axis=1)
    polynomial = np.zeros((m, most_lags(n) + 1))
    polynomial[:, 0] = 1.0
    best, least = np.zeros((m, most_lags(n))), n * np.log(np.maximum(error, 1e-300))
    for lags in range(1, most_lags(n) + 1):
        forward, backward = forward[:, 1:], backward[:, :-1]
        power = np.einsum("ij,ij->i", forward, forward) + np.einsum("ij,ij->i", backward, backward)
        reflection = -2 * np.einsum("ij,ij->i", forward, backward) / np.maximum(power, 1e-300)
        forward, backward = forward + reflection[:, None] * backward, backward + reflection[:, None] * forward
        polynomial[:, : lags + 1] += reflection[:, None] * polynomial[:, lags::-1]
        error = error * (1 - reflection**2)
        criterion = n * np.log(np.maximum(error, 1e-300)) + 2 * lags
        better = criterion < least
        least[better], best[better] = criterion[better], -polynomial[better, 1:]
    total = best.sum(axis=1)
    if best.shape[1]:
        bias = np.clip((1 + 4 * total) / n, 0.0, np.maximum(_LARGEST_SUM - total, 0.0))
        best[:, 0] += np.where(best.any(axis=1), bias, 0.0)
    return best


def innovations(series: Floats, coefficients: Floats) -> Floats:
    """Return the innovations of each row, from the first step with p steps before it, (m, n - p).

    Args:
        series: Numbers in the order of steps, (m, n).
        coefficients: Coefficients of each row's autoregression, (m, p).
    """
    lags, n = coefficients.shape[1], series.shape[1]
    found = series[:, lags:].copy()
    for lag in range(1, lags + 1):
        found -= coefficients[:, lag - 1, None] * series[:, lags - lag : n - lag]
    return found
