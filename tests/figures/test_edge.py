"""The edge ratio over iterations: what is drawn, the line at 2, and what its label says."""

import numpy as np
import pandas as pd
import pytest
import torch
from drawing import empty_axes, legend_texts
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import edge_ratio


@pytest.fixture
def trace(tmp_path):
    """A run of gradient descent on a quadratic whose curvature along steps falls from above 2/lr to below it."""
    x = nn.Parameter(torch.tensor([0.001, 1.0], dtype=torch.float64))
    curvatures = torch.tensor([2.5, 0.5], dtype=torch.float64)
    optimizer = torch.optim.SGD([x], lr=1.0)
    model = nn.Module()
    model.x = x
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(20):
            optimizer.zero_grad()
            recorder.backward(lambda: (curvatures * x.square()).sum() / 2)
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        yield trace


def test_points_are_the_traces_edge_ratios_and_the_line_is_at_two(trace):
    ax = edge_ratio(trace, ax=empty_axes())
    drawn = next(line for line in ax.get_lines() if line.get_marker() == "o")
    table = trace.curvature()
    np.testing.assert_array_equal(drawn.get_xdata(), table.step)
    np.testing.assert_array_equal(drawn.get_ydata(), table.edge_ratio)
    line = next(line for line in ax.get_lines() if line.get_label().startswith("edge"))
    np.testing.assert_array_equal(line.get_ydata(), [2, 2])
    share = 100 * (table.edge_ratio > 2).mean()
    assert f"edge ({share:.0f} % of points above)" in legend_texts(ax)
    assert ax.get_ylim()[0] <= 0 < 2 < ax.get_ylim()[1]


def test_a_path_is_read_and_points_are_refused(trace):
    ax = edge_ratio(str(trace.path), ax=empty_axes())
    assert ax.get_xlabel() == "iteration"
    with pytest.raises(InvalidArgumentError, match="drawn from a trace"):
        edge_ratio(pd.DataFrame({"step": [0], "smoothness": [1.0], "grad_norm": [1.0]}), ax=empty_axes())


def test_more_groups_than_colours_are_refused(tmp_path):
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(9)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        recorder.backward(lambda: model(torch.ones(3, 2)).square().mean())
        optimizer.step()
    with pytest.raises(InvalidArgumentError, match="9 groups are more than the 7 colours"):
        edge_ratio(tmp_path / "run.h5", by="module", ax=empty_axes())
    named = legend_texts(edge_ratio(tmp_path / "run.h5", by=r"^([0-2])\.", ax=empty_axes()))
    assert {"0", "1", "2"} <= set(named)


def test_without_the_endpoint_there_is_none(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", endpoint=False) as recorder:
        recorder.backward(lambda: model(torch.ones(3, 2)).square().mean())
        optimizer.step()
    with pytest.raises(InvalidArgumentError, match="record with endpoint=True"):
        edge_ratio(tmp_path / "run.h5", ax=empty_axes())
