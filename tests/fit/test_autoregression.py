"""Autoregressions: correlated noise made white."""

import numpy as np
import pytest
from known_clouds import correlated_normals

from lsmooth.fit.autoregression import autoregressions, innovations, most_lags


def burg(series, lags):
    """Find coefficients and error of one order, step by step."""
    forward = backward = series - series.mean()
    polynomial, error = np.array([1.0]), np.mean(forward**2)
    for _ in range(lags):
        forward, backward = forward[1:], backward[:-1]
        reflection = -2 * sum(forward * backward) / (sum(forward**2) + sum(backward**2))
        forward, backward = forward + reflection * backward, backward + reflection * forward
        padded = np.append(polynomial, 0.0)
        polynomial = padded + reflection * padded[::-1]
        error *= 1 - reflection**2
    return -polynomial[1:], error


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.7])
def test_coefficients_are_those_of_the_order_with_the_least_aic(correlation):
    series = correlated_normals(np.random.default_rng(0), 120, 6, correlation).T
    for row, found in zip(series, autoregressions(series), strict=True):
        fits = [burg(row, lags) for lags in range(most_lags(120) + 1)]
        order = np.argmin([120 * np.log(error) + 2 * lags for lags, (_, error) in enumerate(fits)])
        expected = np.zeros(most_lags(120))
        expected[:order] = fits[order][0]
        if order:
            expected[0] += min(max((1 + 4 * expected.sum()) / 120, 0), max(0.97 - expected.sum(), 0))
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_sum_of_coefficients_has_little_bias():
    series = correlated_normals(np.random.default_rng(1), 90, 3000, 0.7).T
    assert autoregressions(series).sum(axis=1).mean() == pytest.approx(0.7, abs=0.02)


def test_correlated_noise_is_made_white():
    series = correlated_normals(np.random.default_rng(2), 4000, 5, 0.9).T
    left = innovations(series, autoregressions(series))
    assert left.shape == (5, 4000 - most_lags(4000))
    left /= left.std(axis=1, keepdims=True)
    for lag in range(1, 4):
        assert np.abs(np.mean(left[:, lag:] * left[:, :-lag], axis=1)).max() < 4 / np.sqrt(4000)


def test_short_and_constant_series_are_left_as_they_are():
    assert [most_lags(n) for n in (10, 90, 500)] == [0, 4, 8]
    short = np.random.default_rng(0).normal(size=(3, 12))
    np.testing.assert_array_equal(innovations(short, autoregressions(short)), short)
    assert not autoregressions(np.full((1, 90), 3.0)).any()
