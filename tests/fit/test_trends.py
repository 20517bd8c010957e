"""Trends, against a slow search for the same optimum, and on clouds with known constants."""

import numpy as np
import pytest
from known_clouds import KINDS, SHAPES, cloud_of, trend_quality
from scipy.optimize import minimize
from scipy.stats import norm

from lsmooth import fit
from lsmooth.fit.trends import log_misfit, middles, trends

# E min(z^2, 1) of normal z, by its closed form.
MEAN_SQUARE = 2 * norm.cdf(1) - 1 - 2 * norm.pdf(1) + 2 * norm.sf(1)


def loss(x, y, level, slope, scale):
    """Huber's loss of log residuals with its scale, point by point."""
    smallest = min(value for value in y if value > 0)
    total = 0.0
    for a, b in zip(x, y, strict=True):
        if level + slope * a <= 0:
            return 1e9
        u = abs(np.log(max(b, smallest)) - np.log(level + slope * a)) / scale
        total += scale * ((u**2 / 2 if u <= 1 else u - 0.5) + MEAN_SQUARE / 2)
    return total / len(x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [10, 61])
def test_no_search_finds_a_lower_loss(shape, n):
    for seed in range(2):
        x, y = cloud_of(shape, n, seed)
        level, slope = fit.trend(x, y)
        assert min(level, slope) >= 0
        found = log_misfit(x[None], y[None], np.array([level]), np.array([slope]))[0]
        middle, typical = np.median(y[y > 0]), np.median(x[x > 0])
        for share in (0.0, 0.5, 1.0):
            at = [middle * (1 - share), middle * share / typical, 0.5]
            for _ in range(2):
                search = minimize(
                    lambda at, x=x, y=y: loss(x, y, *at),
                    at,
                    method="Nelder-Mead",
                    bounds=[(0, None), (0, None), (1e-9, None)],
                    options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 800},
                )
                at = search.x
            assert found <= search.fun + 1e-7


def test_the_loss_is_that_of_its_best_scale():
    x, y = cloud_of("both", 61, 0)
    best = min(loss(x, y, 1.2, 1.7, scale) for scale in np.geomspace(0.1, 2, 2000))
    assert log_misfit(x[None], y[None], np.array([1.2]), np.array([1.7]))[0] == pytest.approx(best, rel=1e-5)


def test_a_smoothness_of_zero_counts_as_the_smallest_positive_one():
    x, y = cloud_of("both", 60, 0)
    y[::7] = 0
    replaced = np.where(y > 0, y, y[y > 0].min())
    assert fit.trend(x, y) == fit.trend(x, replaced)
    frame = fit.estimate(one_group(x, y), method="trend").iloc[0]
    assert (frame.points, frame.left_out) == (60, 0)
    assert frame.reason == "9 points have smoothness 0"


def one_group(x, y):
    from dataclasses import replace

    from known_clouds import made_cloud

    return replace(made_cloud(1, len(x)), grad_norm=x[:, None], smoothness=y[:, None])


def test_points_at_gradient_norm_zero_need_a_floor():
    x, _ = cloud_of("both", 60, 0)
    x[0] = 0
    assert fit.trend(x, 2 * x + (x == 0))[0] > 0


def test_the_middle_of_normal_noise_is_its_middle_and_of_skewed_noise_near_its_median():
    uniform = (np.arange(100_000) + 0.5) / 100_000
    assert middles(np.exp(norm.ppf(uniform))[None])[0] == pytest.approx(1, abs=1e-3)
    pareto = (1 - uniform) ** (-1 / 3)
    below = (pareto <= middles(pareto[None])[0]).mean()
    assert 0.5 < below < 0.56


@pytest.mark.parametrize("kind", KINDS["trend"])
@pytest.mark.parametrize("steps", [60, 90, 200])
def test_the_trend_runs_through_the_middle_of_known_clouds(kind, steps):
    (below, _, _), error, squares, held = trend_quality(kind, 100 if steps != 90 else 600, steps)
    assert 0.45 <= below <= 0.58
    if steps == 90:
        assert error <= squares / 2
    if steps >= 200:
        # Of 100 intervals of 85 %, fewer than 75 hold the truth once in 200 times.
        assert min(held) >= 75 / 100


def test_many_rows_are_fitted_in_pieces_as_in_one():
    generator = np.random.default_rng(0)
    x = generator.random((1000, 100))
    y = (0.1 + x) * generator.random((1000, 100))
    level, slope = trends(x, y)
    for row in (0, 327, 999):
        assert (level[row], slope[row]) == pytest.approx(fit.trend(x[row], y[row]), rel=1e-7)
