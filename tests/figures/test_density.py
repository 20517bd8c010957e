"""All coordinates at once."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from drawing import empty_axes, frame

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.figures import coordinate_density


def density(seed=0):
    counts = np.random.default_rng(seed).integers(0, 5, size=(7, 9))
    counts[0] = counts[:, -1] = 0
    return SimpleNamespace(grad_edges=np.logspace(-6, 1, 8), smoothness_edges=np.logspace(-3, 6, 10), counts=counts)


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
