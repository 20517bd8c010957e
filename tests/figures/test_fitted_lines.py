"""Lines through a cloud: they are the fits of its usable points."""

import numpy as np
import pytest
from drawing import empty_axes, frame, legend_texts

from lsmooth import fit
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import smoothness_scatter
from lsmooth.figures.scales import short_number


def test_lines_are_the_fits_of_usable_points_and_their_constants_stand_in_the_legend():
    points = frame(60)
    points["smoothness"] *= np.exp(0.3 * np.random.default_rng(1).normal(size=60))
    points.loc[5, ["smoothness", "usable"]] = [1e6, False]
    usable = points[points["usable"]]
    ax = smoothness_scatter(points, ax=empty_axes(), lines=("trend", "quantile", "envelope"))
    for name in ("trend", "quantile", "envelope"):
        level, slope = getattr(fit, name)(usable["grad_norm"], usable["smoothness"])
        (drawn_line,) = [line for line in ax.lines if str(line.get_label()).startswith(name)]
        x, y = drawn_line.get_data()
        np.testing.assert_allclose(y, level + slope * x)
        np.testing.assert_allclose([x.min(), x.max()], [usable["grad_norm"].min(), usable["grad_norm"].max()])
        expected = f"{name}: $L_0$ = {short_number(level)}, $L_1$ = {short_number(slope)}"
        assert expected in legend_texts(ax)
    assert len({str(line._unscaled_dash_pattern) for line in ax.lines if line.get_linestyle() != "None"}) == 3


def test_no_line_is_fitted_to_few_points_or_to_one_gradient_norm():
    assert legend_texts(smoothness_scatter(frame(9), ax=empty_axes())) == []
    assert legend_texts(smoothness_scatter(frame(20, grad_norm=1.0), ax=empty_axes())) == []
    assert len(legend_texts(smoothness_scatter(frame(10), ax=empty_axes()))) == 2
    assert legend_texts(smoothness_scatter(frame(), lines=(), ax=empty_axes())) == []
    with pytest.raises(InvalidArgumentError, match="did you mean trend"):
        smoothness_scatter(frame(), lines=("trnd",), ax=empty_axes())
