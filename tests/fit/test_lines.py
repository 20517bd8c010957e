"""What holds of every kind of line."""

import numpy as np
import pytest
from known_clouds import SHAPES, cloud_of, pinball

from lsmooth import fit
from lsmooth.fit.envelopes import envelopes
from lsmooth.fit.quantiles import quantiles
from lsmooth.fit.squares import expectiles, least_squares_lines
from lsmooth.fit.trends import trends

LINES = (fit.trend, fit.quantile, fit.envelope, fit.least_squares, fit.expectile)


@pytest.mark.parametrize("shape", SHAPES)
def test_many_clouds_at_once_are_fitted_as_each_alone(shape):
    clouds = [cloud_of(shape, 40, seed) for seed in range(30)]
    x, y = (np.array(values) for values in zip(*clouds, strict=True))
    for many, one in (
        (trends, fit.trend),
        (least_squares_lines, fit.least_squares),
        (lambda x, y: expectiles(x, y, 0.9), fit.expectile),
        (envelopes, fit.envelope),
        (lambda x, y: quantiles(x, y, 0.9), None),
    ):
        level, slope = many(x, y)
        for row in range(30):
            alone = one(x[row], y[row]) if one else fit.quantile(x[row], y[row], 0.9)
            if one is None:
                # Where several lines are equally good, scaling may decide.
                together = pinball(x[row], y[row], 0.9, (level[row], slope[row]))
                assert together == pytest.approx(pinball(x[row], y[row], 0.9, alone), rel=1e-9, abs=1e-12)
            else:
                np.testing.assert_allclose((level[row], slope[row]), alone, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("power_x", [-140, 0, 140])
@pytest.mark.parametrize("power_y", [-140, 0, 140])
def test_units_do_not_matter(power_x, power_y):
    x, y = cloud_of("both", 50, 0)
    for line in LINES:
        level, slope = line(x, y)
        scaled = line(x * 10.0**power_x, y * 10.0**power_y)
        expected = (level * 10.0**power_y, slope * 10.0 ** (power_y - power_x))
        np.testing.assert_allclose(scaled, expected, rtol=1e-9, atol=0)


def test_known_lines():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    for line in LINES:
        np.testing.assert_allclose(line(x, 1 + 2 * x), (1, 2), rtol=1e-12)
        np.testing.assert_allclose(line(x, 2 * x), (0, 2), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(line(x, np.full(4, 3.0)), (3, 0), rtol=1e-12)
        assert line(x, np.zeros(4)) == (0, 0)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2], [1, 2, 3], "shape"),
        ([[1, 2]], [[1, 2]], "shape"),
        ([1, 2, np.nan], [1, 2, 3], "grad_norm holds"),
        ([1, 2, 3], [1, -2, 3], "smoothness holds"),
        ([1, 2, 3], [1, np.inf, 3], "smoothness holds"),
        ([2, 2, 2], [1, 2, 3], "one gradient norm"),
        ([2], [1], "one gradient norm"),
        ([0, 0], [1, 2], "one gradient norm"),
    ],
)
def test_arrays_that_are_no_cloud_are_refused(x, y, words):
    for line in LINES:
        with pytest.raises(ValueError, match=words):
            line(x, y)
