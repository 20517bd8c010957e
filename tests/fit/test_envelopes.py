"""Envelopes, against SciPy."""

import numpy as np
import pytest
from known_clouds import SHAPES, cloud_of
from scipy.optimize import linprog

from lsmooth import fit


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [3, 10, 61, 200])
def test_envelope_is_that_of_linprog(shape, n):
    for seed in range(5):
        x, y = cloud_of(shape, n, seed)
        found = fit.envelope(x, y)
        design = np.column_stack([np.ones(n), x])
        expected = linprog(design.mean(axis=0), A_ub=-design, b_ub=-y, method="highs")
        assert design.mean(axis=0) @ found == pytest.approx(expected.fun, rel=1e-9, abs=1e-12)
        assert (y - design @ found).max() <= 1e-12 * y.max()
        assert min(found) >= 0


def test_envelope_is_the_hull_edge_over_the_mean():
    from scipy.spatial import ConvexHull

    x, y = cloud_of("both", 4000, 0)
    points = np.column_stack([np.append(x, 0), np.append(y, 0)])
    hull = ConvexHull(points)
    for i, j in hull.simplices:
        left, right = sorted([points[i], points[j]], key=lambda point: point[0])
        slope = (right[1] - left[1]) / (right[0] - left[0])
        level = left[1] - slope * left[0]
        if left[0] <= x.mean() < right[0] and level + slope * x.mean() > np.interp(x.mean(), x, y):
            upper = (level, slope) if (points[:, 1] <= level + slope * points[:, 0] + 1e-9).all() else None
            if upper:
                break
    np.testing.assert_allclose(fit.envelope(x, y), upper, rtol=1e-9)
