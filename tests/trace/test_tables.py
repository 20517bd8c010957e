"""A trace as tables of pandas and xarray."""

import numpy as np
import pandas as pd
import pytest
from rows import header, rows

from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter


@pytest.fixture(params=["closed", "killed"])
def recorded(request, tmp_path):
    made = header(norms=("linf", "spectral"), densities=True)
    writer = TraceWriter(tmp_path / "run.h5", made)
    writer.append(rows(made, 0, 2 * CHUNK_STEPS))
    if request.param == "closed":
        writer.close()
    else:
        writer.abandon()
    return tmp_path / "run.h5"


def test_to_xarray_holds_what_the_trace_holds(recorded):
    trace = Trace(recorded)
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
