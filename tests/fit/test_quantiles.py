"""Quantile lines, against SciPy and brute force."""

import numpy as np
import pytest
from known_clouds import SHAPES, cloud_of, made_cloud, pinball
from scipy.optimize import linprog

from lsmooth import fit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [3, 10, 61, 200])
@pytest.mark.parametrize("q", [0.1, 0.5, 0.95])
def test_quantile_is_that_of_linprog(shape, n, q):
    for seed in range(3):
        x, y = cloud_of(shape, n, seed)
        found = fit.quantile(x, y, q)
        design = np.column_stack([np.ones(n), x])
        expected = linprog(
            np.concatenate([[0, 0], np.full(n, q), np.full(n, 1 - q)]),
            A_eq=np.column_stack([design, np.eye(n), -np.eye(n)]),
            b_eq=y,
            method="highs",
        )
        assert pinball(x, y, q, found) == pytest.approx(expected.fun, rel=1e-9, abs=1e-12)
        assert min(found) >= 0


def test_envelope_and_quantile_are_the_best_of_all_lines_through_two_points():
    x, y = cloud_of("both", 25, 1)
    lines = [(height, 0.0) for height in y] + [(0.0, b / a) for a, b in zip(x, y, strict=True)]
    for i in range(25):
        for j in range(i):
            slope = (y[i] - y[j]) / (x[i] - x[j])
            lines.append((y[i] - slope * x[i], slope))
    lines = [line for line in lines if min(line) >= 0]
    above = [line for line in lines if (y <= line[0] + line[1] * x + 1e-9).all()]
    lowest = min(above, key=lambda line: line[0] + line[1] * x.mean())
    np.testing.assert_allclose(fit.envelope(x, y), lowest, rtol=1e-9)
    best = min(lines, key=lambda line: pinball(x, y, 0.8, line))
    np.testing.assert_allclose(fit.quantile(x, y, 0.8), best, rtol=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_largest_share_is_the_envelope(shape):
    for seed in range(3):
        x, y = cloud_of(shape, 61, seed)
        found = fit.quantile(x, y, 1 - 1e-6)
        assert pinball(x, y, 1 - 1e-6, found) == pytest.approx(pinball(x, y, 1 - 1e-6, fit.envelope(x, y)), rel=1e-6)
        fit.quantile(x, y, 1e-6)


@pytest.mark.parametrize("q", [0, 1, -0.1, 1.5, float("nan"), 1e-300, 1 - 2**-53])
def test_q_must_be_a_share(q):
    with pytest.raises(ValueError, match="q="):
        fit.quantile([1, 2], [1, 2], q)
    with pytest.raises(ValueError, match="q="):
        fit.estimate(made_cloud(), q=q)
