"""All coordinates at once."""

import numpy as np
import pandas as pd
import pytest
from drawing import empty_axes, frame, legend_texts
from small_trace import write_small_trace

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.figures import coordinate_density
from lsmooth.figures.scales import percent
from lsmooth.trace.density import Density


def density(seed=0):
    counts = np.random.default_rng(seed).integers(0, 5, size=(7, 9))
    counts[0] = counts[:, -1] = 0
    return Density("weight", np.logspace(-6, 1, 8), np.logspace(-3, 6, 10), counts, steps=10, left_out=0)


def test_counts_stand_in_their_cells():
    given = density()
    ax = coordinate_density(given, ax=empty_axes())
    (mesh,) = ax.collections
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array(), 0), given.counts.T)
    corners = mesh.get_coordinates()
    np.testing.assert_array_equal(corners[0, :, 0], given.grad_edges)
    np.testing.assert_array_equal(corners[:, 0, 1], given.smoothness_edges)
    # Empty margins are left out.
    assert ax.get_xlim() == (given.grad_edges[1], given.grad_edges[-1])
    assert ax.get_ylim() == (given.smoothness_edges[0], given.smoothness_edges[-2])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")


def test_points_of_followed_coordinates_are_all_counted():
    points = pd.concat([frame(group="a"), frame(seed=1, group="b", usable=[False] + [True] * 39)])
    points.iloc[3, points.columns.get_loc("smoothness")] = 0
    (mesh,) = coordinate_density(points, ax=empty_axes()).collections
    assert np.ma.filled(mesh.get_array(), 0).sum() == 78
    assert legend_texts(mesh.axes) == ["not shown: 2 %"]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    return write_small_trace(tmp_path_factory.mktemp("counted") / "run.h5", steps=5, densities=True)


def test_a_trace_gives_one_tensor_or_all_together(counted):
    with lsmooth.Trace(counted) as trace:
        one = coordinate_density(trace, parameter="decoder.weight", ax=empty_axes())
        np.testing.assert_array_equal(
            np.ma.filled(one.collections[0].get_array(), 0), trace.density("decoder.weight").counts.T
        )
        every = coordinate_density(trace, ax=empty_axes())
        expected = sum(trace.density(name).counts for name in trace.parameters)
        np.testing.assert_array_equal(np.ma.filled(every.collections[0].get_array(), 0), expected.T)
        left_out = sum(trace.density(name).left_out for name in trace.parameters)
        share = 100 * left_out / (left_out + expected.sum())
        assert legend_texts(every) == [f"not shown: {percent(share)}"]
        with pytest.raises(InvalidArgumentError, match=r"did you mean decoder\.weight"):
            coordinate_density(trace, parameter="decoder.wieght", ax=empty_axes())
    assert "gamma d" in every.get_xlabel()


def test_what_cannot_be_drawn_is_one_sentence(small_trace):
    with pytest.raises(TraceError, match="recorded without densities"):
        coordinate_density(small_trace, ax=empty_axes())
    empty = density()
    empty.counts[:] = 0
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        coordinate_density(empty, ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        coordinate_density(frame(usable=False), ax=empty_axes())
    with lsmooth.Trace(small_trace) as trace:
        assert coordinate_density(trace.cloud("coordinate"), ax=empty_axes()).collections
