"""Moving blocks over steps: how long they must be, and which steps a resample holds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lsmooth.fit.lines import Floats


def block_lengths(series: Floats) -> NDArray[np.int64]:
    """Return the block length that suits the mean of each series: Politis and White's automatic choice.

        length = (2 G^2 / D)^(1/3) n^(1/3),  G = sum_k w(k/M) |k| R(k),  D = 4/3 (sum_k w(k/M) R(k))^2

    with autocovariances R, the flat-top window w, and M twice the lag after which correlations are insignificant
    (Politis and White, "Automatic block-length selection for the dependent bootstrap", Econometric Reviews 2004, with
    the correction of Patton, Politis and White 2009). Lengths are rounded up, and at most min(3 sqrt(n), n/3).

    Args:
        series: One series a row, (m, n).

    Returns:
        Lengths from 1 on, (m,).
    """
    m, n = series.shape
    quiet = max(5, int(np.ceil(np.sqrt(np.log10(n)))))
    most = int(np.ceil(np.sqrt(n))) + quiet
    lags = min(most, n - 2)
    covariances = autocovariances(series, lags)
    variance = covariances[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.abs(covariances[:, 1:]) / variance[:, None]
    loud = correlations >= 2 * np.sqrt(np.log10(n) / n)
    # The first lag after which `quiet` correlations in a row are insignificant; without one, the last loud lag.
    runs = np.cumsum(np.pad(~loud, ((0, 0), (1, 0))), axis=1)
    calm = runs[:, quiet:] - runs[:, :-quiet] == quiet if lags >= quiet else np.zeros((m, 1), dtype=bool)
    last_loud = np.where(loud.any(axis=1), lags - loud[:, ::-1].argmax(axis=1), 0)
    cut = np.where(calm.any(axis=1), calm.argmax(axis=1), last_loud)
    width = np.minimum(2 * np.maximum(cut, 1), lags)
    lag = np.arange(lags + 1)
    window = np.clip(2 * (1 - lag / width[:, None]), 0, 1)
    spectrum = window * covariances
    at_zero = variance + 2 * spectrum[:, 1:].sum(axis=1)
    bend = 2 * (lag * spectrum).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.cbrt(2 * bend**2 / (4 / 3 * at_zero**2) * n)
    length = np.where(np.isfinite(length), length, 1)
    return np.clip(np.ceil(length), 1, max(1, int(min(3 * np.sqrt(n), n / 3)))).astype(np.int64)


def autocovariances(series: Floats, lags: int) -> Floats:
    """Return the autocovariances of each row at lags 0 to `lags`, divided by n each, (m, lags + 1)."""
    from scipy.fft import irfft, next_fast_len, rfft

    n = series.shape[1]
    centred = series - series.mean(axis=1, keepdims=True)
    size = next_fast_len(n + lags, real=True)
    power = np.abs(rfft(centred, size, axis=1)) ** 2
    return irfft(power, size, axis=1)[:, : lags + 1] / n


def moving_blocks(n: int, length: int, resamples: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the positions that each resample holds: whole blocks of consecutive positions, (resamples, n).

    Blocks start anywhere from 0 to n - length with equal chance (Künsch 1989); the last one is cut.
    """
    blocks = -(-n // length)
    starts = generator.integers(0, n - length + 1, (resamples, blocks))
    positions = starts[:, :, None] + np.arange(length)
    return positions.reshape(resamples, blocks * length)[:, :n]
