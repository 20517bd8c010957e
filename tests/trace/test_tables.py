"""A trace as tables of pandas and xarray."""

import numpy as np
import pandas as pd

from lsmooth.trace.reader import Trace


def test_to_xarray_holds_what_the_trace_holds(full_trace):
    trace = Trace(full_trace)
    dataset = trace.to_xarray()
    assert dict(dataset.sizes) == {"step": 64, "gamma": 2, "parameter": 4, "group": 2, "coordinate": 3}
    np.testing.assert_array_equal(dataset["grad_diff"], trace.read("grad_diff"))
    np.testing.assert_array_equal(dataset["coordinate_grad"], trace.read("coordinate/grad"))
    assert dataset["loss"].attrs["units"] == "1"


def test_to_frame_has_a_row_for_each_step(small_trace):
    trace = Trace(small_trace)
    frame = trace.to_frame()
    cloud = trace.cloud()
    assert list(frame.columns) == [
        "step", "time", "loss", "loss_next", "lr", "grad_norm", "step_norm", "noise", "smoothness", "status", "usable",
    ]  # fmt: skip
    np.testing.assert_array_equal(frame["smoothness"], cloud.smoothness[:, 0])
    np.testing.assert_array_equal(frame["grad_norm"], cloud.grad_norm[:, 0])
    np.testing.assert_array_equal(frame["usable"], cloud.usable[:, 0])
    pd.testing.assert_frame_equal(trace.to_frame(slice(7, 9)), frame[7:9].reset_index(drop=True))
