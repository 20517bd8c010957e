"""Smoothness over time against 2/lr."""

import numpy as np
import pytest
import torch
from drawing import empty_axes, frame, legend_texts, line

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import stability
from lsmooth.figures.stability_limit import running_median


def test_points_limit_and_share_above():
    points = frame(n=20, lr=np.where(np.arange(20) < 10, 0.5, 0.1))
    ax = stability(points, ax=empty_axes())
    x, y = line(ax, "smoothness")
    np.testing.assert_array_equal(x, points["step"])
    np.testing.assert_array_equal(y, points["smoothness"])
    x, limit = line(ax, "2/lr")
    np.testing.assert_allclose(limit, [4.0] * 10 + [20.0] * 10)
    above = (points["smoothness"] > 2 / points["lr"]).mean()
    assert 0 < above < 1
    assert f"2/lr ({100 * above:.0f} % of points above)" in legend_texts(ax)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("iteration", "local Lipschitz constant", "log")


def test_flagged_points_count_neither_above_nor_in_the_median():
    points = frame(n=60, lr=1.0)
    points.loc[:29, "usable"] = False
    points["smoothness"] = np.where(points["usable"], 1.0, 1000.0)
    ax = stability(points, ax=empty_axes())
    assert "2/lr (0 % of points above)" in legend_texts(ax)
    assert "flagged (30)" in legend_texts(ax)
    assert set(line(ax, "median")[1]) == {1.0}


def test_few_points_have_no_median_and_frozen_steps_no_limit():
    ax = stability(frame(n=8, lr=[0.5] * 4 + [0.0] * 4), ax=empty_axes())
    assert not [text for text in legend_texts(ax) if "median" in text]
    assert np.isnan(line(ax, "2/lr")[1]).sum() == 4


def test_critical_sharpness_is_drawn_where_it_was_measured(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", critical=True) as recorder:
        for _ in range(12):
            optimizer.zero_grad()
            recorder.backward(lambda: model(data).square().mean())
            optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        critical = trace.critical_lr().critical_lr.to_numpy()
        ax = stability(trace, ax=empty_axes())
        assert not [text for text in legend_texts(stability(trace, norm="l2", by="module", ax=empty_axes()))
                    if "critical" in text]  # fmt: skip
    _, y = line(ax, "critical sharpness")
    drawn = np.isfinite(y)
    assert 0 < drawn.sum() < 12
    np.testing.assert_allclose(y[drawn], 2 / critical[drawn])
    assert np.isin(critical[~drawn], [0, np.inf]).all()
    assert f"critical sharpness ({(~drawn).sum()} not shown)" in legend_texts(ax)


@pytest.mark.parametrize("window", [9, 10, 31])
def test_running_median_is_that_of_the_neighbours(window):
    values = np.random.default_rng(0).normal(size=100)
    found = running_median(values, window)
    for place in range(window, 100 - window):
        neighbours = values[place - window // 2 : place - window // 2 + window]
        assert found[place] == np.median(neighbours)


def test_the_largest_rate_of_several_groups_counts(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[2].parameters(), "lr": 0.5}]
    optimizer = torch.optim.SGD(groups)
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            recorder.backward(lambda: model(data).square().mean())
            optimizer.step()
    ax = stability(tmp_path / "run.h5", ax=empty_axes())
    assert set(line(ax, "2/largest lr")[1]) == {4.0}


def test_what_cannot_be_drawn_is_one_sentence():
    with pytest.raises(InvalidArgumentError, match="no learning rates"):
        stability(frame(), ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="none of the 40 points is finite"):
        stability(frame(smoothness=np.nan, lr=1.0), ax=empty_axes())


def test_a_share_is_rounded_to_all_or_none_only_when_it_is():
    points = frame(n=1000, lr=1e-9)
    points.loc[0, "smoothness"] = 1e12
    assert "2/lr (<1 % of points above)" in legend_texts(stability(points, ax=empty_axes()))
    points = frame(n=1000, lr=1e9)
    points.loc[0, "smoothness"] = 1e-12
    assert "2/lr (>99 % of points above)" in legend_texts(stability(points, ax=empty_axes()))
