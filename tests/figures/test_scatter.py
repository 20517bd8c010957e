"""Figure 1: what is drawn where, and what happens to points that have no place."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawing import empty_axes, frame, legend_texts, line
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from small_trace import write_small_trace

import lsmooth
from lsmooth import fit
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import layer_constants, layer_heatmap, smoothness_panels, smoothness_scatter, stability, style
from lsmooth.figures.points import run_names
from lsmooth.figures.scales import short_number


def drawn(ax):
    """The coloured points: x, y, and the iteration that colours each, in order of iteration."""
    (cloud,) = [artist for artist in ax.collections if isinstance(artist, PathCollection)]
    offsets, colours = np.asarray(cloud.get_offsets()), np.asarray(cloud.get_array())
    order = np.argsort(colours)
    return offsets[order, 0], offsets[order, 1], colours[order]


def test_every_point_stands_where_it_was_measured_in_the_colour_of_its_step():
    points = frame()
    ax = smoothness_scatter(points, ax=empty_axes())
    x, y, step = drawn(ax)
    np.testing.assert_array_equal(x, points["grad_norm"])
    np.testing.assert_array_equal(y, points["smoothness"])
    np.testing.assert_array_equal(step, points["step"])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "gradient norm" in ax.get_xlabel()
    assert ax.get_ylabel() == "local Lipschitz constant"
    bar = ax.figure.axes[1]
    assert bar.get_ylabel() == "iteration"
    assert bar.get_ylim() == (0, 390)


def test_a_real_trace_gives_its_cloud(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        cloud = trace.cloud()
        x, y, step = drawn(smoothness_scatter(trace, ax=empty_axes()))
    good = cloud.usable[:, 0]
    np.testing.assert_array_equal(x, cloud.grad_norm[good, 0])
    np.testing.assert_array_equal(y, cloud.smoothness[good, 0])
    np.testing.assert_array_equal(step, cloud.steps[good])


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
        np.testing.assert_array_equal(y, cloud.smoothness[:, place][cloud.usable[:, place]])
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
    assert legend_texts(ax) == ["flagged (40)"]


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


def test_a_figure_of_its_own_is_in_the_house_style_and_the_settings_stay():
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    ax = smoothness_scatter(frame())
    assert dict(matplotlib.rcParams) == before
    ax.figure.draw_without_rendering()
    assert ax.figure.get_size_inches()[0] == pytest.approx(3.25)
    texts = [ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
    assert {text.get_fontsize() for text in texts} == {8}
    plt.close(ax.figure)


def test_a_style_of_ones_own_goes_on_top(tmp_path):
    file = tmp_path / "big.mplstyle"
    file.write_text("font.size: 11\naxes.labelsize: 12\n")
    with style(file):
        ax = smoothness_scatter(frame(), ax=empty_axes())
    assert ax.xaxis.label.get_fontsize() == 12


def test_several_runs_share_axes_and_one_colour_scale(small_trace):
    figure = Figure((3.25, 2), layout="constrained")
    axes = smoothness_panels([small_trace, frame()], figure=figure)
    assert len(axes) == 2
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert len(figure.axes) == 3
    assert figure.axes[2].get_xlim() == (0, 390)
    assert axes[0].get_title(loc="right").startswith("small\ntrend")
    for ax in axes:
        x, y, _ = drawn(ax)
        assert ax.get_xlim()[0] < x.min()
        assert x.max() < ax.get_xlim()[1]
        assert ax.get_ylim()[0] < y.min()
        assert y.max() < ax.get_ylim()[1]


def test_runs_are_named_by_what_tells_them_apart():
    assert run_names(["out/a.h5", "out/b.h5"]) == ["a", "b"]
    assert run_names(["sgd/run.h5", Path("adam/run.h5"), frame(2)]) == ["sgd/run", "adam/run", "run 3"]
    assert run_names(["a.h5", "a.h5"]) == ["run 1", "run 2"]
    assert run_names([frame(2)]) == ["run 1"]


def test_panels_of_many_groups_are_an_even_choice():
    points = pd.concat([frame(5, seed=k, group=f"layer{k}") for k in range(150)])
    axes = smoothness_panels(points, figure=Figure(layout="constrained"), panels=4)
    assert [ax.get_title(loc="right") for ax in axes] == ["layer0", "layer50", "layer99", "layer149"]


def test_panels_of_several_runs_have_the_same_groups_side_by_side():
    runs = [pd.concat([frame(5, seed=k, group=f"layer{k}") for k in range(8)]) for _ in range(2)]
    axes = smoothness_panels(runs, figure=Figure((6.75, 8), layout="constrained"), panels=7, lines=())
    expected = [f"run {run}: layer{k}" for k in (0, 4, 7) for run in (1, 2)]
    assert [ax.get_title(loc="right") for ax in axes] == expected


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


def test_constants_stand_above_panels():
    figure = Figure((6.5, 4), layout="constrained")
    (ax,) = smoothness_panels(frame(group="a.b"), lines=("envelope",), figure=figure)
    assert ax.get_title(loc="right") == "envelope $L_0$ 2, $L_1$ 3"
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["envelope"]


def test_coordinates_are_drawn_against_the_smaller_of_both_ends(tmp_path):
    with lsmooth.Trace(write_small_trace(tmp_path / "run.h5", steps=12)) as trace:
        group = trace.coordinate_names[0]
        ax = smoothness_scatter(trace, by="coordinate", group=group, ax=empty_axes())
        assert ax.get_xlabel() == r"smaller of both ends' $|\partial_j f|$"
        figure = Figure(layout="constrained")
        smoothness_panels(trace, by="coordinate", panels=2, figure=figure)
        assert figure.get_supxlabel() == ax.get_xlabel()
        assert smoothness_scatter(trace, ax=empty_axes()).get_xlabel().startswith("gradient norm")


def test_another_geometry_is_drawn_and_named(tmp_path):
    path = write_small_trace(tmp_path / "run.h5", steps=12, norms=("linf", "spectral"))
    with lsmooth.Trace(path) as trace:
        seen = set()
        for norm in ("l2", "linf", "spectral"):
            cloud = trace.cloud(norm=norm)
            ax = smoothness_scatter(trace, norm=norm, ax=empty_axes())
            np.testing.assert_array_equal(drawn(ax)[1], cloud.smoothness[:, 0])
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
