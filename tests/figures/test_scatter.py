"""Figure 1: what is drawn where, and what happens to points that have no place."""

import numpy as np
import pandas as pd
import pytest
from drawing import drawn, empty_axes, frame, in_order_of_colour, legend_texts, line
from small_trace import write_small_trace

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import layer_constants, layer_heatmap, smoothness_scatter, stability


def test_every_point_stands_where_it_was_measured_in_the_colour_of_its_step():
    points = frame()
    ax = smoothness_scatter(points, ax=empty_axes())
    expected = in_order_of_colour(*(points[name].to_numpy() for name in ("grad_norm", "smoothness", "step")))
    for found, wanted in zip(drawn(ax), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "gradient norm" in ax.get_xlabel()
    assert ax.get_ylabel() == "local Lipschitz constant"
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "iteration"
    assert bar.get_ylim() == (0, 390)


def test_a_real_trace_gives_its_cloud(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        cloud = trace.cloud()
        found = drawn(smoothness_scatter(trace, ax=empty_axes()))
    good = cloud.usable[:, 0]
    expected = in_order_of_colour(cloud.grad_norm[good, 0], cloud.smoothness[good, 0], cloud.steps[good])
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, wanted)


@pytest.mark.parametrize("give", [lambda path: path, str, lambda path: lsmooth.Trace(path).cloud()])
def test_a_path_and_a_cloud_draw_like_their_trace(small_trace, give):
    with lsmooth.Trace(small_trace) as trace:
        expected = drawn(smoothness_scatter(trace, ax=empty_axes()))
    found = drawn(smoothness_scatter(give(small_trace), ax=empty_axes()))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_group_is_drawn_by_its_name(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        cloud = trace.cloud("module")
        place = cloud.groups.index("decoder")
        _, y, _ = drawn(smoothness_scatter(trace, by="module", group="decoder", ax=empty_axes()))
        np.testing.assert_array_equal(np.sort(y), np.sort(cloud.smoothness[:, place][cloud.usable[:, place]]))
        with pytest.raises(InvalidArgumentError, match="did you mean decoder"):
            smoothness_scatter(trace, by="module", group="decodr", ax=empty_axes())
        with pytest.raises(InvalidArgumentError, match="name one with group="):
            smoothness_scatter(trace, by="module", ax=empty_axes())


def test_flagged_points_stand_apart():
    points = frame()
    points.loc[[3, 7], "usable"] = False
    ax = smoothness_scatter(points, ax=empty_axes())
    assert len(drawn(ax)[0]) == 38
    (crosses,) = [line for line in ax.lines if line.get_marker() == "x"]
    np.testing.assert_array_equal(crosses.get_xdata(), points["grad_norm"][[3, 7]])
    assert "flagged (2)" in legend_texts(ax)


def test_points_without_a_place_are_counted():
    points = frame()
    points.loc[0, "smoothness"] = 0
    points.loc[1, "grad_norm"] = 0
    points.loc[2, "smoothness"] = np.nan
    points.loc[3, "smoothness"] = np.inf
    ax = smoothness_scatter(points, ax=empty_axes())
    assert len(drawn(ax)[0]) == 36
    assert "not shown (4)" in legend_texts(ax)
    ax = smoothness_scatter(points, ax=empty_axes(), linear=True)
    assert len(drawn(ax)[0]) == 38
    assert ax.get_xscale() == "linear"
    assert "not shown (2)" in legend_texts(ax)


def test_all_flagged_is_still_a_figure():
    ax = smoothness_scatter(frame(usable=False), ax=empty_axes())
    assert not ax.collections
    assert legend_texts(ax) == ["flagged (40)", "no line: 0 points, 10 needed"]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"smoothness": np.nan}, "none of the 40 points is finite"),
        ({"smoothness": 0.0}, "draw with linear axes"),
        ({"grad_norm": -1.0}, "draw with linear axes"),
    ],
)
def test_nothing_to_draw_is_one_sentence(columns, sentence):
    with pytest.raises(InvalidArgumentError, match=sentence):
        smoothness_scatter(frame(**columns), ax=empty_axes())


def test_an_empty_frame_and_a_frame_of_something_else_are_refused():
    with pytest.raises(InvalidArgumentError, match="no step has been measured yet"):
        smoothness_scatter(frame(0), ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="no column 'smoothness'"):
        smoothness_scatter(pd.DataFrame({"step": [1]}), ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="not from list"):
        smoothness_scatter([1, 2], ax=empty_axes())


def test_a_single_point_has_axes_around_it():
    ax = smoothness_scatter(frame(1), ax=empty_axes())
    (x,), (y,), _ = drawn(ax)
    assert ax.get_xlim()[0] < x < ax.get_xlim()[1]
    assert ax.get_ylim()[0] < y < ax.get_ylim()[1]
    ax.figure.draw_without_rendering()
    assert len([label for label in ax.get_xticklabels() if label.get_text()]) >= 2


def test_another_geometry_is_drawn_and_named(tmp_path):
    path = write_small_trace(tmp_path / "run.h5", steps=12, norms=("linf", "spectral"))
    with lsmooth.Trace(path) as trace:
        seen = set()
        for norm in ("l2", "linf", "spectral"):
            cloud = trace.cloud(norm=norm)
            ax = smoothness_scatter(trace, norm=norm, ax=empty_axes())
            np.testing.assert_array_equal(np.sort(drawn(ax)[1]), np.sort(cloud.smoothness[:, 0]))
            # A cloud knows its own geometry.
            assert smoothness_scatter(cloud, ax=empty_axes()).get_xlabel() == ax.get_xlabel()
            seen.add((ax.get_xlabel(), ax.get_ylabel()))
            for draw in (layer_heatmap, stability, layer_constants):
                draw(trace, norm=norm, ax=empty_axes())
        assert len(seen) == 3
        constants = layer_constants(trace, norm="linf", ax=empty_axes())
        expected = lsmooth.estimate(trace.cloud("module", norm="linf"), method="trend")["L0"]
        x, _ = line(constants, "trend")
        np.testing.assert_allclose(np.sort(x), np.sort(expected[expected > 0]))


def line_of(ax, name):
    (found,) = [line for line in ax.lines if str(line.get_label()).startswith(name)]
    return found


def test_a_line_hides_no_point():
    ax = smoothness_scatter(frame(), ax=empty_axes())
    for name in ("trend", "envelope"):
        drawn_line = line_of(ax, name)
        assert drawn_line.get_path_effects() == []
        assert drawn_line.get_linewidth() < 1


def test_a_scatter_without_a_line_says_why():
    assert legend_texts(smoothness_scatter(frame(9), ax=empty_axes())) == ["no line: 9 points, 10 needed"]
    alike = smoothness_scatter(frame(20, grad_norm=1.0), ax=empty_axes())
    assert legend_texts(alike) == ["no line: all points lie at one gradient norm"]


@pytest.mark.parametrize("linear", [False, True])
def test_marginals_are_distributions_of_the_usable_points(linear):
    points = frame(200)
    points.loc[:9, "usable"] = False
    plain = smoothness_scatter(points, ax=empty_axes(), linear=linear, legend=False)
    ax = smoothness_scatter(points, ax=empty_axes(), linear=linear, marginals=True, legend=False)
    np.testing.assert_allclose([ax.get_xlim(), ax.get_ylim()], [plain.get_xlim(), plain.get_ylim()], rtol=1e-9)
    above, beside = ax.child_axes
    ax.figure.draw_without_rendering()
    assert above.get_xlim() == ax.get_xlim()
    assert beside.get_ylim() == ax.get_ylim()
    assert above.get_window_extent().y0 >= ax.get_window_extent().y1
    assert beside.get_window_extent().x0 >= ax.get_window_extent().x1
    usable = points[points["usable"]]
    for inset, name, axis in ((above, "grad_norm", 0), (beside, "smoothness", 1)):
        (outline,) = inset.collections
        counts = outline.get_paths()[0].vertices[:, 1 - axis]
        values = usable[name] if linear else np.log10(usable[name])
        assert counts.max() == np.histogram(values, bins=30)[0].max()
