"""Estimates of many groups, against each group alone."""

import numpy as np
import pandas as pd
import pytest
from known_clouds import made_cloud
from scipy.stats import spearmanr

import lsmooth
from lsmooth import fit
from lsmooth.fit.methods import METHODS


def test_estimates_are_those_of_each_group_alone():
    cloud = made_cloud(groups=7, n=41)
    # Groups with different numbers of usable points, one with ties.
    cloud.smoothness[:13, 2] = np.nan
    cloud.grad_norm[5, 3] = np.inf
    cloud.grad_norm[:, 4] = np.round(cloud.grad_norm[:, 4], 1)
    frame = fit.estimate(cloud, method=tuple(METHODS), q=0.9, tau=0.8).set_index(["group", "method"])
    for column, group in enumerate(cloud.groups):
        chosen = cloud.usable[:, column]
        x, y = cloud.grad_norm[chosen, column], cloud.smoothness[chosen, column]
        lines = {"trend": fit.trend(x, y), "quantile": fit.quantile(x, y, 0.9), "envelope": fit.envelope(x, y)}
        lines |= {"least-squares": fit.least_squares(x, y), "expectile": fit.expectile(x, y, 0.8)}
        assert set(lines) == set(METHODS)
        for method, (level, slope) in lines.items():
            row = frame.loc[(group, method)]
            assert pytest.approx((level, slope), rel=1e-9, abs=1e-12) == (row.L0, row.L1)
            assert row.coverage == pytest.approx(np.mean(y <= level + slope * x + 1e-9))
            assert row.spearman == pytest.approx(spearmanr(x, y).statistic)
            assert row.points == chosen.sum()
            assert row.left_out == 41 - chosen.sum()
        assert frame.loc[(group, "envelope")].coverage == 1


def test_estimate_of_a_trace(small_trace):
    with lsmooth.Trace(small_trace) as trace:
        for by in ("global", "module", "parameter", "coordinate", r"(encoder|decoder)"):
            frame = lsmooth.estimate(trace, by)
            cloud = trace.cloud(by)
            assert frame.group.drop_duplicates().tolist() == list(cloud.groups)
            assert frame.method.tolist() == ["trend", "envelope"] * len(cloud.groups)
            pd.testing.assert_frame_equal(frame, lsmooth.estimate(cloud))
        layer = lsmooth.estimate(trace, "module", method="envelope")
        whole = lsmooth.estimate(trace, "module", method="envelope", displacement="global")
        assert not np.allclose(layer.L1, whole.L1)


@pytest.mark.parametrize(("arguments", "words"), [({"confidence": 1.0}, "confidence="), ({"seed": -1}, "seed=")])
def test_confidence_and_seed_are_checked(arguments, words):
    with pytest.raises(lsmooth.LsmoothError, match=words):
        fit.estimate(made_cloud(), **arguments)
