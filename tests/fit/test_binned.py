"""Lines through the bins of a density, against its points."""

import numpy as np
import pytest
from known_clouds import cloud_of, pinball
from scipy.stats import spearmanr

from lsmooth import fit
from lsmooth.fit.binned import bin_points, rank_correlation
from lsmooth.fit.methods import METHODS
from lsmooth.trace.density import GRAD_DECADES, SMOOTHNESS_DECADES, Density, edges


def density_of(x, y):
    counts, _, _ = np.histogram2d(x, y, bins=[edges(GRAD_DECADES), edges(SMOOTHNESS_DECADES)])
    return Density("weight", edges(GRAD_DECADES), edges(SMOOTHNESS_DECADES), counts.astype(np.int64), 1, 0)


@pytest.mark.parametrize("shape", ["both", "flat", "falling", "through origin"])
def test_lines_of_a_density_are_those_of_its_bins_points(shape):
    x, y = cloud_of(shape, 2000, 0)
    density = density_of(1e-3 * x, y)
    middles, heights, counts = bin_points(density)
    points = np.repeat(middles, counts.astype(int)), np.repeat(heights, counts.astype(int))
    for name, line in (("trend", fit.trend), ("least-squares", fit.least_squares), ("expectile", fit.expectile)):
        assert METHODS[name].binned(density, 0.9) == pytest.approx(line(*points), rel=1e-6, abs=1e-9)
    found = METHODS["quantile"].binned(density, 0.9)
    expected = pinball(*points, 0.9, fit.quantile(*points, 0.9))
    assert pinball(*points, 0.9, found) == pytest.approx(expected, rel=1e-7)
    level, slope = METHODS["envelope"].binned(density, 0.9)
    assert (y <= (level + slope * 1e-3 * x) * (1 + 1e-12)).all()
    lower, higher = fit.envelope(1e-3 * x, y), (level, slope)
    assert lower[0] + lower[1] * 1e-3 * x.mean() <= higher[0] + higher[1] * 1e-3 * x.mean()
    assert rank_correlation(density) == pytest.approx(spearmanr(*points).statistic)
