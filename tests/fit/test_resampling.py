"""Block lengths and autocovariances, against their formulas."""

import numpy as np
import pytest

from lsmooth.fit.resampling import autocovariances, block_lengths


def test_block_lengths_follow_the_formula_on_an_autoregression():
    # For an autoregression with coefficient a: sum of |k| R(k) over R's sum is 2 a / (1 - a^2).
    generator = np.random.default_rng(0)
    n = 20_000
    for coefficient in (0.0, 0.5, 0.8):
        fresh = generator.normal(size=(40, n))
        series = np.zeros((40, n))
        for step in range(1, n):
            series[:, step] = coefficient * series[:, step - 1] + fresh[:, step]
        lengths, variances = block_lengths(series)
        expected = max(1, (1.5 * (2 * coefficient / (1 - coefficient**2)) ** 2 * n) ** (1 / 3))
        assert np.median(lengths) == pytest.approx(expected, rel=0.2, abs=2.5)
        assert np.median(variances) == pytest.approx(1 / (1 - coefficient) ** 2, rel=0.1)


def test_autocovariances_are_those_of_the_definition():
    series = np.random.default_rng(0).normal(size=(3, 50)).cumsum(axis=1)
    found = autocovariances(series, 10)
    for row in range(3):
        centred = series[row] - series[row].mean()
        expected = [centred[: 50 - lag] @ centred[lag:] / 50 for lag in range(11)]
        np.testing.assert_allclose(found[row], expected, rtol=1e-10, atol=1e-12)
