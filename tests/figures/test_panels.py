"""Panels: which runs and groups stand side by side, with which axes and titles."""

import pandas as pd
import pytest
from drawing import drawn, empty_axes, frame
from matplotlib.figure import Figure
from small_trace import write_small_trace

import lsmooth
from lsmooth.figures import smoothness_panels, smoothness_scatter, style


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


def test_panels_of_many_groups_are_an_even_choice():
    points = pd.concat([frame(5, seed=k, group=f"layer{k}") for k in range(150)])
    axes = smoothness_panels(points, figure=Figure(layout="constrained"), panels=4)
    titles = [ax.get_title(loc="right").partition("\n") for ax in axes]
    assert [name for name, _, _ in titles] == ["layer0", "layer50", "layer99", "layer149"]
    assert {reason for _, _, reason in titles} == {"no line: 5 points, 10 needed"}


def test_panels_of_several_runs_have_the_same_groups_side_by_side():
    runs = [pd.concat([frame(5, seed=k, group=f"layer{k}") for k in range(8)]) for _ in range(2)]
    axes = smoothness_panels(runs, figure=Figure((6.75, 8), layout="constrained"), panels=7, lines=())
    expected = [f"run {run}: layer{k}" for k in (0, 4, 7) for run in (1, 2)]
    assert [ax.get_title(loc="right") for ax in axes] == expected


def test_constants_stand_above_panels():
    figure = Figure((6.5, 4), layout="constrained")
    (ax,) = smoothness_panels(frame(group="a.b"), lines=("envelope",), figure=figure)
    assert ax.get_title(loc="right") == "envelope $L_0$ 2, $L_1$ 3"
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == ["envelope"]


@pytest.mark.parametrize(("width", "columns"), [(3.25, 2), (6.75, 4)])
def test_the_names_of_lines_stand_clear_of_the_numbers_above_the_bar(width, columns):
    points = pd.concat([frame(30, seed=k, group=f"layer{k}") for k in range(columns)])
    with style():
        figure = Figure((width, 3), layout="constrained")
        smoothness_panels(points, figure=figure, columns=columns)
        figure.draw_without_rendering()
    bar = figure.axes[-1]
    box = bar.get_legend().get_window_extent()
    numbers = [text.get_window_extent() for text in bar.get_xticklabels() if text.get_text()]
    assert max(number.y1 for number in numbers) <= box.y0
    assert box.y1 <= figure.bbox.y1


def test_coordinates_are_drawn_against_the_smaller_of_both_ends(tmp_path):
    with lsmooth.Trace(write_small_trace(tmp_path / "run.h5", steps=12)) as trace:
        group = trace.coordinate_names[0]
        ax = smoothness_scatter(trace, by="coordinate", group=group, ax=empty_axes())
        assert ax.get_xlabel() == r"smaller of both ends' $|\partial_j f|$"
        figure = Figure(layout="constrained")
        smoothness_panels(trace, by="coordinate", panels=2, figure=figure)
        assert figure.get_supxlabel() == ax.get_xlabel()
        assert smoothness_scatter(trace, ax=empty_axes()).get_xlabel().startswith("gradient norm")
