"""A legend hides nothing."""

import numpy as np
import pytest
from drawing import empty_axes

from lsmooth.figures import style
from lsmooth.figures.legend import place_legend
from lsmooth.figures.scales import log_limits, make_log

CLOUDS = {
    "everywhere": lambda r: (np.exp(r.uniform(0, 5, 900)), np.exp(r.uniform(0, 5, 900))),
    "rising": lambda r: (np.exp(x := r.uniform(0, 5, 300)), np.exp(x + r.normal(size=300))),
    "falling": lambda r: (np.exp(x := r.uniform(0, 5, 300)), np.exp(-x)),
    "one": lambda r: (np.array([3.0]), np.array([2.0])),
}


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.parametrize(
    ("labels", "text"), [(1, "trend: $L_0$ = {}.12, $L_1$ = 3.45"), (4, "flagged ({})"), (8, "step {}000")]
)
def test_a_legend_hides_no_point(name, labels, text):
    x, y = CLOUDS[name](np.random.default_rng(0))
    with style():
        ax = empty_axes()
        ax.plot(x, y, ".")
        for place in range(labels):
            ax.plot([], [], label=text.format(place))
        make_log(ax, "x", log_limits(x))
        make_log(ax, "y", log_limits(y))
        place_legend(ax, [(x, y)])
        ax.set(xlabel="gradient norm", ylabel="smoothness")
        ax.figure.draw_without_rendering()
        box = ax.get_legend().get_window_extent()
    places = ax.transData.transform(np.column_stack([x, y]))
    assert not np.any([box.contains(*place) for place in places])
    assert ax.bbox.padded(2).containsx(box.x0)
    assert all(ax.bbox.contains(*place) for place in places)


def test_nothing_labelled_has_no_legend():
    ax = empty_axes()
    ax.plot([1, 2], [3, 4])
    place_legend(ax)
    assert ax.get_legend() is None
