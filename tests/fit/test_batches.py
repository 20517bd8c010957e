"""Groups without numbers, and points left out, each with its reason."""

import numpy as np
from known_clouds import made_cloud

from lsmooth import fit
from lsmooth.trace.layout import Status


def test_too_few_points_or_one_gradient_norm_give_the_reason_and_no_number():
    cloud = made_cloud(groups=5, n=30)
    cloud.smoothness[9:, 0] = np.nan
    cloud.smoothness[10:, 1] = np.nan
    cloud.grad_norm[:, 2] = 0.7
    cloud.smoothness[:, 3] = np.nan
    frame = fit.estimate(cloud, method="trend").set_index("group")
    assert frame.L0.isna().tolist() == [True, False, True, True, False]
    assert frame.spearman.isna().tolist() == [True, False, True, True, False]
    assert frame.reason.tolist() == [
        "9 usable points, 10 are needed; left out: 21 did not move",
        "left out: 20 did not move",
        "all points lie at one gradient norm",
        "0 usable points, 10 are needed; left out: 30 did not move",
        "",
    ]


def test_flagged_steps_are_left_out_with_the_reason():
    cloud = made_cloud(groups=1, n=30)
    cloud.status[3] = Status.NO_DISPLACEMENT
    cloud.status[[5, 6]] = Status.NON_FINITE
    cloud.smoothness[[3, 5, 6]] = 1e9
    row = fit.estimate(cloud, method="envelope", confidence=None).iloc[0]
    assert (row.points, row.left_out) == (27, 3)
    assert row.reason == "left out: 1 no displacement, 2 non finite"
    assert row.L0 + row.L1 * 30 < 1e3
