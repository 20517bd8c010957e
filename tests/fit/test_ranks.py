"""Rank correlations of many clouds, against SciPy's of one."""

import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr

from lsmooth.fit.ranks import spearman


def test_rank_correlations_are_those_of_scipy():
    generator = np.random.default_rng(0)
    x, y = generator.random((6, 40)), generator.random((6, 40))
    y[1] = x[1] ** 3
    y[2] = np.round(y[2], 1)
    y[3] = 1.0
    found = spearman(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert found == pytest.approx(expected, nan_ok=True)
