"""Smoothness of layers over time."""

import numpy as np
import pandas as pd
import pytest
from drawing import empty_axes, frame, texts_overlap

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import layer_heatmap, style
from lsmooth.figures.heatmap import MOST_COLUMNS, smoothness_table
from lsmooth.figures.points import points_of


def test_few_steps_are_shown_one_by_one(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        cloud = trace.cloud("module")
        ax = layer_heatmap(trace, ax=empty_axes())
    (mesh,) = ax.collections
    expected = np.where(cloud.usable & (cloud.smoothness > 0), cloud.smoothness, np.nan).T
    # Before matplotlib 3.8 a mesh keeps its values in one row.
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), np.nan).reshape(expected.shape), expected)
    assert next(text.get_text() for text in ax.get_yticklabels()) == cloud.groups[0]
    # The first layer stands at the top.
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlabel() == "iteration\ne=encoder, s=self_attn"
    assert ax.figure.axes[1].get_ylabel() == "local Lipschitz constant"


def test_many_steps_share_columns_by_their_median():
    points = frame(n=5000)
    points.loc[::7, "usable"] = False
    edges, table = smoothness_table(points_of(points))
    assert table.shape == (1, MOST_COLUMNS)
    for column in range(MOST_COLUMNS):
        inside = (points["step"] >= edges[column]) & (points["step"] < edges[column + 1]) & points["usable"]
        assert table[0, column] == np.median(points["smoothness"][inside])


def test_gaps_stay_empty():
    points = pd.concat([frame(n=6, group="a"), frame(n=6, group="b", usable=[True, False] * 3)])
    (mesh,) = layer_heatmap(points, ax=empty_axes()).collections
    mask = np.ma.getmaskarray(mesh.get_array()).reshape(2, 6)
    np.testing.assert_array_equal(mask, [[False] * 6, [False, True] * 3])


@pytest.mark.parametrize("layers", [1, 2, 30, 150])
def test_any_number_of_layers_with_long_names_is_legible(layers):
    name = "transformer.encoder.layers.{}.self_attention.query_key_value_projection"
    points = pd.concat([frame(n=3, seed=k, group=name.format(k)) for k in range(layers)])
    with style():
        ax = layer_heatmap(points, ax=empty_axes(3.25, 4))
    assert texts_overlap(ax) == []
    assert ax.get_position().width > 0.25
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert len(labels) >= min(layers, 15)
    assert all(str(k * (layers // len(labels))) in label for k, label in enumerate(labels[:2]))


def test_one_value_and_one_step_still_draw():
    ax = layer_heatmap(frame(n=1), ax=empty_axes())
    assert np.ma.count(ax.collections[0].get_array()) == 1
    ax.figure.draw_without_rendering()


def test_nothing_usable_is_one_sentence():
    with pytest.raises(InvalidArgumentError, match="All steps are flagged"):
        layer_heatmap(frame(usable=False), ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="finite"):
        layer_heatmap(frame(smoothness=np.nan), ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="no step has been measured"):
        layer_heatmap(frame(0), ax=empty_axes())
