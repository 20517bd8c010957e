"""Rank correlation of smoothness and gradient norm, for many clouds at a time."""

from __future__ import annotations

import numpy as np

from lsmooth.fit.lines import Floats


def spearman(x: Floats, y: Floats) -> Floats:
    """Return Spearman's rank correlation of each row of two matrices (m, n), (m,); NaN where a row is constant."""
    from scipy.stats import rankdata

    left, right = (rankdata(values, axis=1) - (x.shape[1] + 1) / 2 for values in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("ij,ij->i", left, right) / np.sqrt(
            np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right)
        )
