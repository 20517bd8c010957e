"""Lines through a cloud: they are the fits of its usable points."""

from dataclasses import replace

import numpy as np
import pytest
from drawing import empty_axes, frame, legend_texts

from lsmooth import fit
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import smoothness_scatter
from lsmooth.figures.fitted_lines import FittedLine, make_room, mark_leaving
from lsmooth.figures.marks import draw_points, step_colours
from lsmooth.figures.points import Points
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
    for points in (frame(9), frame(20, grad_norm=1.0)):
        assert not any(len(line.get_xdata()) for line in smoothness_scatter(points, ax=empty_axes()).lines)
    assert len(legend_texts(smoothness_scatter(frame(10), ax=empty_axes()))) == 2
    assert legend_texts(smoothness_scatter(frame(), lines=(), ax=empty_axes())) == []
    with pytest.raises(InvalidArgumentError, match="did you mean trend"):
        smoothness_scatter(frame(), lines=("trnd",), ax=empty_axes())


def test_a_line_stays_in_the_picture_or_says_that_it_leaves():
    ax = smoothness_scatter(frame(), ax=empty_axes())
    (envelope,) = [line for line in ax.lines if str(line.get_label()).startswith("envelope")]
    low, high = ax.get_ylim()
    assert low <= envelope.get_ydata().min() <= envelope.get_ydata().max() <= high
    assert "leaves" not in " ".join(legend_texts(ax))
    # At the largest norm, the line that is drawn is 500 times as high as the cloud.
    grad_norm, all_good = np.geomspace(0.01, 100, 60), np.ones(60, dtype=bool)
    points = Points("", "global", np.arange(60), grad_norm, 1 + np.minimum(grad_norm, 1), all_good, np.ones(60))
    for linear in (False, True):
        ax = empty_axes()
        draw_points(ax, points, step_colours([points]), linear=linear)
        (handle,) = ax.plot([0.01, 100], [1.0, 1000.0])
        line = FittedLine("envelope", handle, 1.0, 10.0)
        before = ax.get_ylim()
        make_room(ax, [line], linear=linear)
        (marked,) = mark_leaving(ax, [line])
        assert marked.leaves
        assert marked.label.endswith("(leaves the picture)")
        assert marked.short[0].startswith("envelope↑")
        assert before[1] < ax.get_ylim()[1] < 1000
        assert not mark_leaving(ax, [replace(line, handle=ax.plot([1, 2], [1, 1.5])[0])])[0].leaves


def test_a_line_that_ended_at_the_edge_would_look_as_if_it_left():
    topped = 0
    for seed in range(20):
        points = frame(15, seed)
        points["smoothness"] *= np.exp(0.8 * np.random.default_rng(100 + seed).normal(size=15))
        for linear in (False, True):
            ax = smoothness_scatter(points, ax=empty_axes(), linear=linear, legend=False)
            drawn = [line for line in ax.lines if len(line.get_xdata())]
            low, high = ax.get_ylim()
            highest = max(line.get_ydata().max() for line in drawn)
            left = (high - highest) / (high - low) if linear else np.log(high / highest) / np.log(high / low)
            leaves = any("leaves" in line.get_label() for line in drawn)
            assert leaves or left > 0.01
            topped += not leaves and highest > points["smoothness"].max()
    assert topped > 10
