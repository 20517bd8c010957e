"""Estimates from densities, near those from points."""

import pytest
from known_clouds import made_cloud
from scipy.stats import spearmanr

import lsmooth
from lsmooth import fit


def test_estimates_of_densities_near_those_of_the_points(tmp_path):
    from small_trace import write_small_trace

    path = write_small_trace(tmp_path / "run.h5", steps=30, densities=True, coordinates=10_000)
    with lsmooth.Trace(path) as trace:
        frame = fit.estimate(trace, "density")
        assert frame.group.drop_duplicates().tolist() == list(trace.parameters)
        cloud = trace.cloud("coordinate")
        for row in frame.itertuples():
            members = [i for i, name in enumerate(cloud.groups) if name.startswith(f"{row.group}[")]
            x, y = cloud.grad_norm[:, members], cloud.smoothness[:, members]
            # Points that have a bin.
            chosen = cloud.usable[:, members] & (x >= 1e-12) & (y >= 1e-8) & (y < 1e8)
            assert row.points == pytest.approx(chosen.sum(), rel=0.01)
            x, y = x[chosen], y[chosen]
            if row.method == "envelope":
                assert (y <= (row.L0 + row.L1 * x) * (1 + 1e-3)).mean() >= 0.999
                continue
            level, slope = fit.trend(x, y)
            assert row.L0 + row.L1 * x.mean() == pytest.approx(level + slope * x.mean(), rel=0.15)
            assert row.spearman == pytest.approx(spearmanr(x, y).statistic, abs=0.03)
        with pytest.raises(lsmooth.LsmoothError, match="defaults"):
            fit.estimate(trace, "density", condition="power")


def test_densities_must_have_been_recorded(small_trace):
    with lsmooth.Trace(small_trace) as trace, pytest.raises(lsmooth.LsmoothError, match="densities=True"):
        fit.estimate(trace, "density")
    with pytest.raises(lsmooth.LsmoothError, match="needs the trace"):
        fit.estimate(made_cloud(), "density")
