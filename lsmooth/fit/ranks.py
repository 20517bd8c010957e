"""Rank correlation of smoothness and gradient norm, for many clouds at a time."""

from __future__ import annotations

import numpy as np

from lsmooth.fit.lines import Floats


def spearman(x: Floats, y: Floats) -> Floats:
    """Return Spearman's rank correlation of each row of two matrices (m, n), (m,): NaN where one is constant."""
    left, right = _ranks(x), _ranks(y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.einsum("ij,ij->i", left, right) / np.sqrt(
            np.einsum("ij,ij->i", left, left) * np.einsum("ij,ij->i", right, right)
        )


def _ranks(values: Floats) -> Floats:
    """Return the ranks of each row less their mean; equal values share theirs."""
    from scipy.stats import rankdata

    n = values.shape[1]
    order = values.argsort(axis=1)
    ranks = np.empty_like(values)
    np.put_along_axis(ranks, order, np.arange(n, dtype=np.float64)[None], axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    # `rankdata` knows ties, and takes several times as long.
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if tied.any():
        ranks[tied] = rankdata(values[tied], axis=1) - 1
    return ranks - (n - 1) / 2
