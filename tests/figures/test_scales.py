"""Ticks of logarithmic axes: few, distinct and inside, whatever the range."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from lsmooth.figures import style
from lsmooth.figures.scales import LogTicks, count, log_limits, make_log, short_number


@pytest.mark.parametrize("low", [3e-30, 7e-9, 0.4, 1.03, 5e7])
@pytest.mark.parametrize("factor", [1.001, 1.05, 1.7, 4.0, 12.0, 300.0, 1e6, 1e50])
@pytest.mark.parametrize("most", [3, 5])
def test_any_range_has_two_to_a_few_ticks(low, factor, most):
    ticks = LogTicks(most).tick_values(low, low * factor)
    assert 2 <= len(ticks) <= most + 2
    assert all(low * (1 - 1e-9) <= tick <= low * factor * (1 + 1e-9) for tick in ticks)
    assert len(set(ticks)) == len(ticks)


@pytest.mark.parametrize(("low", "high"), [(0.2, 30), (1e-7, 1e-3), (1.01, 1.04), (2e5, 9e5), (1e-40, 1e20)])
@pytest.mark.parametrize(("width", "most"), [(3.25, 5), (1.6, 3)])
def test_labels_on_the_axis_do_not_overlap(low, high, width, most):
    with style():
        figure = Figure((width, 1.5), layout="constrained")
        ax = figure.add_subplot()
        make_log(ax, "x", (low, high), most)
        make_log(ax, "y", (low, high), 3)
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    for one, other in itertools.pairwise(boxes):
        assert one.x1 < other.x0
    assert len(boxes) >= 2


@pytest.mark.parametrize(
    ("y_limits", "x_labels"),
    [
        ((3, 700), ["10", "100"]),
        ((300, 5e4), ["$10^{1}$", "$10^{2}$"]),
        ((1e-6, 1e-3), ["$10^{1}$", "$10^{2}$"]),
    ],
)
def test_both_axes_are_written_alike(y_limits, x_labels):
    ax = Figure((3.25, 2.6)).add_subplot()
    make_log(ax, "x", (4, 300))
    make_log(ax, "y", y_limits)
    assert [label.get_text() for label in ax.get_xticklabels()] == x_labels


def test_labels_of_small_panels_stay_narrow():
    ax = Figure((1.6, 1.4)).add_subplot()
    make_log(ax, "x", (1e-7, 1e-3), 3)
    make_log(ax, "y", (4, 300), 3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["10", "100"]


def test_numbers_between_decades_stay_plain_beside_powers():
    ax = Figure((3.25, 2.6)).add_subplot()
    make_log(ax, "x", (0.4, 3))
    make_log(ax, "y", (1e-6, 1e-3))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "1", "2"]
    ax.set_yscale("linear")
    make_log(ax, "x", (4, 300))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "100"]


def test_two_powers_that_stand_close_are_not_both_labelled():
    ticks = LogTicks(3).tick_values(2.3e-32, 1.9e-31)
    assert len(ticks) == 2
    assert np.log10(ticks[1] / ticks[0]) > 0.5 * np.log10(1.9 / 0.23)


def test_limits_hold_every_positive_value():
    low, high = log_limits(np.array([0.5, np.nan, -1, 0]), np.array([20.0, np.inf]))
    assert 0 < low < 0.5
    assert high > 20
    assert log_limits(np.array([3.0])) == (1.5, 6.0)
    assert log_limits(np.array([np.nan])) == (0.1, 10.0)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (950, "950"), (20_000, "20k"), (1_500_000, "1.5M")])
def test_counts_are_short(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "three", "two"),
    [
        (0, "0", "0"),
        (2.484, "2.48", "2.5"),
        (12.84, "12.8", "13"),
        (99.7, "99.7", "100"),
        (999.7, "1000", "1000"),
        (1234.5, "1234", "1234"),
        (0.000248, r"$2.48\!\times\!10^{-4}$", r"$2.5\!\times\!10^{-4}$"),
    ],
)
def test_constants_are_short(value, three, two):
    assert (short_number(value), short_number(value, 2)) == (three, two)
