"""Marks of points: many keep their places and colours."""

import numpy as np
from drawing import empty_axes, frame

from lsmooth.figures import smoothness_scatter


def test_many_points_keep_their_places_and_colours():
    points = frame(50_000)
    ax = smoothness_scatter(points, ax=empty_axes())
    clouds = [line for line in ax.lines if line.get_marker() == "o"]
    x = np.concatenate([line.get_xdata() for line in clouds])
    y = np.concatenate([line.get_ydata() for line in clouds])
    np.testing.assert_array_equal(np.sort(x), np.sort(points["grad_norm"]))
    np.testing.assert_allclose(y, 2 + 3 * x)
    assert all(line.get_rasterized() for line in clouds)
    # Each line holds points of one stretch of the run, in that stretch's colour.
    step_of = dict(zip(points["grad_norm"], points["step"], strict=True))
    colours = {}
    for shade in clouds:
        steps = [step_of[value] for value in shade.get_xdata()]
        assert max(steps) - min(steps) <= 500_000 / 64 + 1
        colours.setdefault(tuple(shade.get_color()), set()).update(np.array([min(steps), max(steps)]) * 64 // 500_000)
    assert len(colours) == 64
    assert all(len(stretch) <= 2 for stretch in colours.values())
