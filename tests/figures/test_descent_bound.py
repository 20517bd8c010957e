"""The lower bound's figure: what is drawn is what the experiment gave."""

import numpy as np
import pandas as pd
import pytest
from drawing import empty_axes, legend_texts, line, texts_overlap

from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import lower_bound


def experiment():
    sizes = np.array([4.0, 16.0, 64.0, 256.0])
    return pd.DataFrame(
        {
            "M_L1": np.repeat(sizes, 2),
            "optimizer": ["gradient descent", "generalized SignSGD"] * 4,
            "iterations": np.stack([30 * sizes, np.full(4, 900.0)], axis=1).ravel(),
            "bound": np.repeat(29 * sizes, 2),
        }
    )


def test_lines_are_the_frames():
    frame = experiment().sample(frac=1, random_state=0)
    ax = lower_bound(frame, ax=empty_axes())
    x, y = line(ax, "gradient descent")
    np.testing.assert_array_equal(x, [4, 16, 64, 256])
    np.testing.assert_array_equal(y, 30 * x)
    np.testing.assert_array_equal(line(ax, "generalized SignSGD")[1], 900)
    x, y = line(ax, "least")
    np.testing.assert_array_equal(y, 29 * x)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert texts_overlap(ax) == []


def test_runs_that_did_not_arrive_are_counted():
    frame = experiment()
    frame.loc[0, "iterations"] = np.inf
    ax = lower_bound(frame, ax=empty_axes())
    assert len(line(ax, "gradient descent")[0]) == 3
    assert "gradient descent (1 did not arrive)" in legend_texts(ax)
    assert lower_bound(frame, ax=empty_axes(), legend=False).get_legend() is None


@pytest.mark.parametrize("change", [lambda f: f.drop(columns="bound"), lambda f: f.assign(iterations=np.inf)])
def test_what_cannot_be_drawn_is_refused(change):
    with pytest.raises(InvalidArgumentError):
        lower_bound(change(experiment()))
