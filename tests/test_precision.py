"""How precisely devices compute."""

import pytest
import torch

from lsmooth.precision import accumulation_dtype


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float64), ("cuda:1", torch.float64), ("xpu", torch.float64), ("mps", torch.float32)],
)
def test_sums_are_taken_in_the_widest_dtype_that_a_device_has(device, dtype):
    assert accumulation_dtype(torch.device(device)) == dtype
