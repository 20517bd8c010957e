"""Least squares lines, against SciPy."""

import numpy as np
import pytest
from known_clouds import SHAPES, cloud_of
from scipy.optimize import nnls

from lsmooth import fit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [3, 10, 61, 200])
def test_trend_is_that_of_nnls(shape, n):
    for seed in range(5):
        x, y = cloud_of(shape, n, seed)
        expected, _ = nnls(np.column_stack([np.ones(n), x]), y)
        np.testing.assert_allclose(fit.trend(x, y), expected, rtol=1e-8, atol=1e-10)
