"""Standard errors of means over correlated steps."""

import tracemalloc

import numpy as np
import pytest
from known_clouds import correlated_normals

from lsmooth.fit.longrun import covariances


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.7])
def test_errors_are_those_of_an_autoregression(correlation):
    n = 4000
    series = correlated_normals(np.random.default_rng(0), n, 400, correlation).T.reshape(200, 2, n)
    series[:, 1] += series[:, 0]
    found, degrees = covariances(series)
    error = (1 + correlation) / (1 - correlation) / n
    np.testing.assert_allclose(found.mean(axis=0), error * np.array([[1, 1], [1, 2]]), rtol=0.1)
    assert degrees == round(0.4 * n ** (2 / 3))


def test_covariances_are_those_of_the_definition():
    series = np.random.default_rng(0).normal(size=(1, 2, 60)).cumsum(axis=2)
    found, degrees = covariances(series)
    coefficients = np.zeros((2, degrees))
    for row in range(2):
        for j in range(1, degrees + 1):
            for t in range(60):
                coefficients[row, j - 1] += np.sqrt(2 / 60) * series[0, row, t] * np.cos(np.pi * j * (t + 0.5) / 60)
    expected = sum(np.outer(column, column) for column in coefficients.T) / degrees / 60
    np.testing.assert_allclose(found[0], expected)


def test_a_constant_has_no_error():
    assert covariances(np.full((1, 1, 90), 3.0))[0] == pytest.approx(0, abs=1e-25)


def test_a_long_series_takes_little_memory():
    series = np.random.default_rng(0).normal(size=(1, 2, 100_000))
    tracemalloc.start()
    try:
        covariances(series)
        assert tracemalloc.get_traced_memory()[1] < 10 * series.nbytes
    finally:
        tracemalloc.stop()
