"""Autocovariances of steps, and the block lengths that a bootstrap of correlated steps needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lsmooth.fit.lines import Floats


def block_lengths(series: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the block length for the mean of each series, and n times the variance of that mean.

    The length is Politis and White's automatic choice,

        length = (2 G^2 / D)^(1/3) n^(1/3),  G = sum_k w(k/M) |k| R(k),  D = 4/3 (sum_k w(k/M) R(k))^2

    with autocovariances R, the flat-top window w, and M twice the lag after which correlations are insignificant
    (Politis and White, "Automatic block-length selection for the dependent bootstrap", Econometric Reviews 2004, with
    the correction of Patton, Politis and White 2009). Lengths are rounded up, and at most min(3 sqrt(n), n/3).

    Args:
        series: One series a row, (m, n).

    Returns:
        Lengths, at least 1, (m,), and sum_k w(k/M) R(k), (m,), NaN where it is not positive.
    """
    n = series.shape[1]
    covariances, window = _windowed(series)
    lag = np.arange(covariances.shape[1])
    at_zero = covariances[:, 0] + 2 * (window * covariances)[:, 1:].sum(axis=1)
    bend = 2 * (lag * window * covariances).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.cbrt(2 * bend**2 / (4 / 3 * at_zero**2) * n)
    length = np.where(np.isfinite(length), length, 1)
    longest = max(1, int(min(3 * np.sqrt(n), n / 3)))
    return np.clip(np.ceil(length), 1, longest).astype(np.int64), np.where(at_zero > 0, at_zero, np.nan)


def _windowed(series: Floats) -> tuple[Floats, Floats]:
    """Return the autocovariances of each row and its flat-top window w, both (m, lags + 1)."""
    m, n = series.shape
    quiet = max(5, int(np.ceil(np.sqrt(np.log10(n)))))
    lags = min(int(np.ceil(np.sqrt(n))) + quiet, n - 2)
    covariances = autocovariances(series, lags)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.abs(covariances[:, 1:]) / covariances[:, :1]
    loud = correlations >= 2 * np.sqrt(np.log10(n) / n)
    # The first lag that `quiet` insignificant correlations in a row follow; else the last significant lag.
    runs = np.cumsum(np.pad(~loud, ((0, 0), (1, 0))), axis=1)
    calm = runs[:, quiet:] - runs[:, :-quiet] == quiet if lags >= quiet else np.zeros((m, 1), dtype=bool)
    last_loud = np.where(loud.any(axis=1), lags - loud[:, ::-1].argmax(axis=1), 0)
    cut = np.where(calm.any(axis=1), calm.argmax(axis=1), last_loud)
    width = np.minimum(2 * np.maximum(cut, 1), lags)
    return covariances, np.clip(2 * (1 - np.arange(lags + 1) / width[:, None]), 0, 1)


def autocovariances(series: Floats, lags: int) -> Floats:
    """Return the autocovariances of each row at lags 0 to `lags`, divided by n each, (m, lags + 1)."""
    from scipy.fft import irfft, next_fast_len, rfft

    n = series.shape[1]
    centred = series - series.mean(axis=1, keepdims=True)
    size = next_fast_len(n + lags, real=True)
    power = np.abs(rfft(centred, size, axis=1)) ** 2
    return irfft(power, size, axis=1)[:, : lags + 1] / n
