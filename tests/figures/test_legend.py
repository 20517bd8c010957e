"""A legend hides nothing, and fits into a figure of the default size."""

import numpy as np
import pandas as pd
import pytest
from drawing import empty_axes, legend_texts
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from lsmooth.figures import smoothness_scatter, style
from lsmooth.figures.legend import place_legend
from lsmooth.figures.rendering import render
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
        ax.set(xlabel="gradient norm", ylabel="smoothness")
        place_legend(ax, [(x, y)])
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


def narrow(steps=60):
    """A cloud a tenth of a decade wide with hardly any noise, so that a line above it leaves the axes."""
    grad_norm = np.linspace(0.8, 1.2, steps)
    smoothness = 1.23e-5 * (1 + 1e-3 * np.sin(np.arange(steps)))
    smoothness[0] *= 1.3
    return pd.DataFrame({"step": np.arange(steps), "grad_norm": grad_norm, "smoothness": smoothness, "usable": True})


@pytest.mark.parametrize(("width", "height"), [(3.25, 2.6), (4, 3)])
def test_constants_in_powers_of_ten_stand_in_a_legend_of_the_default_size(width, height):
    with style():
        ax = smoothness_scatter(narrow(), ax=empty_axes(width, height), lines=("trend", "quantile", "envelope"))
        for line in ax.lines:
            line.set_label(f"{line.get_label()} (leaves the picture)")
        place_legend(ax)
        render(ax.figure, ".png", 100)
    assert [text.split(":")[0] for text in legend_texts(ax)] == ["trend", "quantile", "envelope"]
    assert all(text.endswith("(leaves the picture)") for text in legend_texts(ax))


def three_lines_and_notes(seed, decades, spreads, slope):
    """A cloud whose three lines have constants in powers of ten, with flagged points and one that has no place."""
    generator = np.random.default_rng(seed)
    across = spreads[0] * generator.normal(size=60)
    frame = pd.DataFrame({"step": np.arange(60), "usable": True, "grad_norm": 10.0 ** decades[0] * np.exp(across)})
    frame["smoothness"] = 10.0 ** decades[1] * np.exp(slope * across + spreads[1] * generator.normal(size=60))
    frame.loc[:1, "usable"] = False
    frame.loc[2, "smoothness"] = np.nan
    frame.loc[3, "smoothness"] *= 3
    return frame


@pytest.mark.parametrize("marginals", [False, True])
@pytest.mark.parametrize(
    ("decades", "spreads", "slope", "linear"),
    [((-12, -8), (0.03, 0.03), -1, False), ((-5, -12), (3.0, 3.0), 1, True), ((7, -5), (0.1, 0.5), 1, True)],
)
def test_a_legend_of_three_lines_in_powers_of_ten_hides_no_point_of_a_default_figure(
    decades, spreads, slope, linear, marginals
):
    frame = three_lines_and_notes(0, decades, spreads, slope)
    with style():
        ax = smoothness_scatter(
            frame,
            ax=empty_axes(*((4, 3.2) if marginals else (3.25, 2.6))),
            lines=("trend", "quantile", "envelope"),
            linear=linear,
            marginals=marginals,
        )
        render(ax.figure, ".png", 150)
        ax.figure.draw_without_rendering()
    assert {text.split(":")[0].split(" (")[0] for text in legend_texts(ax)} == {
        "flagged",
        "not shown",
        "trend",
        "quantile",
        "envelope",
    }
    box = ax.get_legend().get_window_extent()
    labels = [ax.xaxis.label.get_window_extent(), *(text.get_window_extent() for text in ax.get_xticklabels())]
    # The larger figure with marginals may have room inside of the Axes.
    assert box.y1 < min(label.y0 for label in labels) or marginals
    assert box.x0 >= 0
    assert box.y0 >= 0
    clouds = [cloud.get_offsets() for cloud in ax.collections]
    clouds += [np.column_stack(line.get_data()) for line in ax.lines if line.get_label().startswith("flagged")]
    places = ax.transData.transform(np.concatenate(clouds))
    assert len(places) == 59
    assert not any(box.contains(*place) for place in places)
    # The label of the y axis is whole beside the lower Axes.
    label = ax.yaxis.label.get_window_extent()
    assert label.height <= ax.bbox.height + 2
    assert ax.figure.bbox.y0 <= label.y0 < label.y1 <= ax.figure.bbox.y1


def test_a_legend_stays_in_the_axes_of_a_figure_that_makes_no_room_below_them():
    with style():
        ax = Figure((3.25, 2.6)).add_subplot()
        smoothness_scatter(
            three_lines_and_notes(0, (-12, -8), (0.03, 0.03), -1), ax=ax, lines=("trend", "quantile", "envelope")
        )
        ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert ax.bbox.y0 <= box.y0 < box.y1 <= ax.bbox.y1


DECADES = st.integers(-30, 30)
SPREADS = st.sampled_from([0.0, 1e-7, 1e-3, 0.03, 0.5, 3.0, 20.0])


@pytest.mark.filterwarnings("error")
@given(
    points=st.sampled_from([1, 2, 9, 10, 60]),
    middle=st.tuples(DECADES, DECADES),
    spread=st.tuples(SPREADS, SPREADS),
    special=st.booleans(),
    far=st.booleans(),
    how=st.sampled_from([{}, {"linear": True}, {"marginals": True}, {"lines": ("trend", "quantile", "envelope")}]),
    seed=st.integers(0, 9),
)
@example(points=60, middle=(-30, 30), spread=(3.0, 3.0), special=True, far=True, how={"marginals": True}, seed=1)
@example(points=60, middle=(-5, 5), spread=(20.0, 0.5), special=True, far=True, how={}, seed=1)
@example(points=2, middle=(-30, 30), spread=(20.0, 0.0), special=False, far=False, how={}, seed=1)
@settings(max_examples=20, deadline=None)
def test_any_cloud_has_a_picture_of_the_default_size_whose_legend_hides_no_point(
    points, middle, spread, special, far, how, seed
):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame({"step": np.arange(points) * (1234567 if far else 1), "usable": True})
    for name, decade, width in zip(("grad_norm", "smoothness"), middle, spread, strict=True):
        frame[name] = 10.0**decade * np.exp(width * generator.normal(size=points))
    if special and points > 2:
        frame.loc[:1, "usable"] = False
        frame.loc[2, "smoothness"] = np.nan
    with style():
        ax = smoothness_scatter(frame, ax=empty_axes(*((4, 3.2) if how.get("marginals") else (3.25, 2.6))), **how)
        render(ax.figure, ".png", 50)
        ax.figure.draw_without_rendering()
        legend = ax.get_legend()
        box = legend.get_window_extent() if legend else None
    for cloud in ax.collections if box else ():
        offsets = np.asarray(cloud.get_offsets())
        assert not any(box.contains(*place) for place in ax.transData.transform(offsets))
