"""Intervals of trends, against textbooks and many trials."""

import numpy as np
import pytest
from known_clouds import correlated_normals
from scipy.stats import norm

from lsmooth import fit
from lsmooth.fit.sandwich import influences, trend_intervals
from lsmooth.fit.trends import trends


def test_an_influence_is_what_a_points_weight_does_to_the_line():
    generator = np.random.default_rng(0)
    x = np.exp(generator.normal(0, 1, 400))
    y = (1 + 2 * x) * np.exp(0.4 * generator.normal(size=400))
    line = np.array(trends(x[None], y[None]))
    moved = influences(x[None], y[None], line)[0]
    for point in (0, 17, 200):
        # Left out, a point takes 1/n of its influence with it; the correction for leverage makes that exact.
        kept = np.delete(np.arange(400), point)
        without = np.array(trends(x[None, kept], y[None, kept]))
        np.testing.assert_allclose((line - without)[:, 0] * 400, moved[:, point], rtol=0.05, atol=0.02)


def test_intervals_of_independent_steps_are_those_of_textbooks():
    # Of normal noise on the log scale, Huber's estimate is 1 / 0.9 as uncertain, in the square, as least squares.
    generator = np.random.default_rng(0)
    n = 1500
    widths = []
    for _ in range(20):
        x = np.exp(generator.uniform(-1, 1, n))
        y = (1 + x) * np.exp(0.3 * generator.normal(size=n))
        low, high = trend_intervals(x[None], y[None], np.array(fit.trend(x, y))[:, None], 0.9)
        design = np.stack([1 / (1 + x), x / (1 + x)])
        error = 0.3 * np.sqrt(np.linalg.inv(design @ design.T)[1, 1] / 0.9)
        widths.append((high - low)[1, 0] / (2 * norm.ppf(0.95) * error))
    assert 0.95 < np.median(widths) < 1.15


def test_the_interval_of_a_flat_trend_knows_of_correlation():
    n, coefficient = 4000, 0.7
    y = np.exp(0.1 * correlated_normals(np.random.default_rng(0), n, 20, coefficient).T)
    lines = np.stack([np.exp(np.log(y).mean(axis=1)), np.zeros(20)])
    low, high = trend_intervals(np.ones_like(y), y, lines, 0.9)
    expected = 2 * norm.ppf(0.95) * 0.1 * np.sqrt((1 + coefficient) / (1 - coefficient) / n / 0.95)
    assert np.median(high[0] - low[0]) == pytest.approx(expected, rel=0.15)
    assert (low[1] == 0).all()
    assert (high[1] == 0).all()


def test_a_constant_at_zero_has_an_interval_with_room():
    # Points may rise more steeply than a line with L0 >= 0 can: which L0 goes with them is said all the same.
    generator = np.random.default_rng(0)
    x = np.exp(generator.uniform(-1, 1, (50, 200)))
    y = x**1.3 * np.exp(0.3 * generator.normal(size=(50, 200)))
    lines = np.array(trends(x, y))
    assert (lines[0] == 0).all()
    low, high = trend_intervals(x, y, lines, 0.9)
    assert (low[0] == 0).all()
    assert (high[0] > 0.01).all()
    assert (high[0] < 0.5).all()
    assert (high[1] > lines[1]).all()
    assert (low[1] < lines[1]).all()


def test_an_interval_has_ends_however_sure_it_is_to_be():
    generator = np.random.default_rng(0)
    x = np.exp(generator.normal(size=(1, 60)))
    y = (1 + 2 * x) * np.exp(0.4 * generator.normal(size=x.shape))
    widths = [trend_intervals(x, y, np.array(trends(x, y)), confidence)[1] for confidence in (0.9, 0.999, 1 - 2**-53)]
    assert np.isfinite(widths).all()
    assert (np.diff(widths, axis=0) > 0).all()
