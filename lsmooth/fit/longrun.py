"""Covariances of means over correlated steps."""

from __future__ import annotations

import numpy as np
from scipy.fft import dct

from lsmooth.fit.lines import Floats


def covariances(series: Floats) -> tuple[Floats, int]:
    """Return the covariance matrices of the means of k series whose steps are correlated.

    The covariance of sqrt(n) times the means is estimated by the mean product of the series' first B cosine
    coefficients,

        c_j = sqrt(2/n) sum_t series_t cos(pi j (t - 1/2) / n),  j = 1..B,  B = 0.4 n^(2/3),

    and a mean over its standard error follows Student's t with B degrees of freedom (Lazarus, Lewis, Stock and Watson,
    "HAR inference: recommendations for practice", Journal of Business & Economic Statistics 2018).

    Args:
        series: Numbers in the order of steps, (m, k, n).

    Returns:
        Covariances, (m, k, k), and the degrees of freedom B.
    """
    n = series.shape[-1]
    degrees = max(4, round(0.4 * n ** (2 / 3)))
    coefficients = np.sqrt(2 / n) * dct(series, axis=-1)[..., 1 : degrees + 1] / 2
    return coefficients @ coefficients.swapaxes(-1, -2) / (degrees * n), degrees
