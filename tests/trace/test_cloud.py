"""A cloud's points, as a table and as what enters fits."""

import numpy as np

from lsmooth.trace.cloud import Cloud
from lsmooth.trace.layout import Status


def cloud():
    return Cloud(
        by="module",
        groups=("b", "a"),
        steps=np.array([0, 10, 20]),
        smoothness=np.array([[1.0, np.nan], [2.0, 3.0], [4.0, np.inf]]),
        grad_norm=np.array([[0.1, 0.2], [0.3, 0.4], [np.nan, 0.6]]),
        status=np.array([Status.MEASURED, Status.MEASURED | Status.NON_FINITE, Status.MEASURED]),
        loss=np.array([7.0, 6.0, 5.0]),
        lr=np.array([0.1, 0.1, 0.01]),
    )


def test_points_enter_fits_where_the_step_and_the_point_are_in_order():
    np.testing.assert_array_equal(cloud().measured_well, [True, False, True])
    np.testing.assert_array_equal(cloud().usable, [[True, False], [False, False], [False, False]])


def test_the_table_has_a_row_for_each_step_and_group():
    shown = cloud()
    frame = shown.to_frame()
    assert len(frame) == 6
    for row, (_, found) in enumerate(frame.iterrows()):
        step, group = divmod(row, 2)
        expected = {
            "step": shown.steps[step],
            "group": shown.groups[group],
            "smoothness": shown.smoothness[step, group],
            "grad_norm": shown.grad_norm[step, group],
            "loss": shown.loss[step],
            "lr": shown.lr[step],
            "usable": shown.usable[step, group],
        }
        for name, value in expected.items():
            np.testing.assert_equal(found[name], value, err_msg=name)
    # In the network's order, not the alphabet's.
    assert list(frame["group"].cat.categories) == ["b", "a"]
