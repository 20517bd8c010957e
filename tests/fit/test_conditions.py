"""Smoothness conditions other than the line."""

import numpy as np
import pytest
from known_clouds import cloud_with, made_cloud
from scipy.optimize import nnls

import lsmooth
from lsmooth import fit
from lsmooth.fit.conditions import best_powers
from lsmooth.fit.methods import METHODS
from lsmooth.fit.squares import least_squares_lines, squares
from lsmooth.trace.layout import Status


@pytest.mark.parametrize("rho", [0.3, 1.0, 1.37, 2.0])
@pytest.mark.parametrize("method", list(METHODS))
def test_the_power_of_exact_points_is_found(rho, method):
    cloud = cloud_with(lambda x, loss: 1.5 + 3 * x**rho, noise=0)
    row = fit.estimate(cloud, condition="power", method=method, confidence=None).iloc[0]
    assert row.rho == pytest.approx(rho, abs=0.01)
    assert (row.L0, row.Lrho) == pytest.approx((1.5, 3), rel=0.05)


def test_the_best_power_is_that_of_a_slow_search():
    generator = np.random.default_rng(0)
    x = generator.random((6, 50))
    y = (0.5 + x ** generator.uniform(0, 2, (6, 1))) * np.exp(0.2 * generator.normal(size=(6, 50)))
    found = best_powers(x, y, least_squares_lines, squares)
    for row in range(6):
        tried = []
        for rho in np.arange(0.001, 2.0005, 0.001):
            line = nnls(np.column_stack([np.ones(50), x[row] ** rho]), y[row])
            tried.append((line[1], rho))
        value = nnls(np.column_stack([np.ones(50), x[row] ** found[row]]), y[row])[1]
        assert value <= min(tried)[0] * (1 + 1e-5)


def test_a_falling_cloud_has_power_zero():
    cloud = cloud_with(lambda x, loss: 1 / (1 + x))
    for method in METHODS:
        row = fit.estimate(cloud, condition="power", method=method, confidence=None).iloc[0]
        assert (row.rho, row.Lrho) == (0, 0)


def test_suboptimality_is_a_line_against_the_loss():
    cloud = cloud_with(lambda x, loss: 2 + 5 * (loss - 1), noise=0.1)
    cloud.status[7] = Status.NON_FINITE
    cloud.loss[7] = np.nan
    good = cloud.usable[:, 0]
    for f_low in (None, 1.0):
        low = cloud.loss[good].min() if f_low is None else f_low
        for method in METHODS:
            row = fit.estimate(cloud, condition="suboptimality", f_low=f_low, method=method).iloc[0]
            expected = getattr(fit, method.replace("-", "_"))(cloud.loss[good] - low, cloud.smoothness[good, 0])
            assert pytest.approx(expected, rel=1e-9) == (row.H0, row.H1)
            assert row.f_low == low
            assert (row.points, row.left_out) == (399, 1)
            assert row.H1_low <= row.H1 <= row.H1_high or np.isnan(row.H1_low)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"condition": "suboptimality", "f_low": 9.0}, "no lower bound"),
        ({"condition": "suboptimality", "f_low": float("-inf")}, "not finite"),
        ({"condition": "suboptimality", "f_low": float("nan")}, "no lower bound"),
        ({"f_low": 0.0}, "belongs to"),
        ({"condition": "cubic"}, "no condition named"),
    ],
)
def test_conditions_and_lower_bounds_are_checked(arguments, words):
    with pytest.raises(lsmooth.LsmoothError, match=words):
        fit.estimate(cloud_with(lambda x, loss: x), **arguments)


def test_a_run_at_one_loss_has_no_suboptimality_constants():
    cloud = made_cloud(groups=1)
    cloud.loss[:] = 1.0
    row = fit.estimate(cloud, condition="suboptimality").iloc[0]
    assert np.isnan(row.H0)
    assert row.reason == "all points lie at one loss"
