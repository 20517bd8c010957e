"""Least squares lines, against SciPy."""

import numpy as np
import pytest
from known_clouds import SHAPES, cloud_of, made_cloud
from scipy.optimize import minimize, nnls

from lsmooth import fit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [3, 10, 61, 200])
def test_least_squares_is_that_of_nnls(shape, n):
    for seed in range(5):
        x, y = cloud_of(shape, n, seed)
        expected, _ = nnls(np.column_stack([np.ones(n), x]), y)
        np.testing.assert_allclose(fit.least_squares(x, y), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9, 0.99])
def test_expectile_is_that_of_a_general_solver(shape, tau):
    for n in (10, 61, 200):
        x, y = cloud_of(shape, n, 0)
        found = fit.expectile(x, y, tau)

        def loss(line, x=x, y=y):
            residual = y - line[0] - line[1] * x
            return np.sum(np.where(residual > 0, tau, 1 - tau) * residual**2)

        starts = [found, (y.mean(), 0.0), (0.0, y.sum() / x.sum())]
        best = min(minimize(loss, start, bounds=[(0, None)] * 2, tol=1e-14).fun for start in starts)
        assert min(found) >= 0
        assert loss(found) <= best * (1 + 1e-6) + 1e-12


def test_the_middle_expectile_is_least_squares():
    x, y = cloud_of("both", 61, 0)
    assert fit.expectile(x, y, 0.5) == pytest.approx(fit.least_squares(x, y), rel=1e-9)
    assert fit.expectile(x, y, 0.9)[1] > fit.least_squares(x, y)[1]


@pytest.mark.parametrize("tau", [0, 1, -0.1, 1.5, float("nan"), 1e-300, 1 - 2**-53])
def test_tau_must_be_a_weight(tau):
    with pytest.raises(ValueError, match="tau="):
        fit.expectile([1, 2], [1, 2], tau)
    with pytest.raises(ValueError, match="tau="):
        fit.estimate(made_cloud(), tau=tau)
