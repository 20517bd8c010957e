"""How precisely devices compute."""

import pytest
import torch

from lsmooth.precision import accumulation_dtype, largest_error


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float64), ("cuda:1", torch.float64), ("xpu", torch.float64), ("mps", torch.float32)],
)
def test_sums_are_taken_in_the_widest_dtype_that_a_device_has(device, dtype):
    assert accumulation_dtype(torch.device(device)) == dtype


def test_the_largest_error_is_that_of_the_shortest_format():
    cpu = torch.device("cpu")
    assert largest_error([torch.float32], cpu) == 2**-19
    assert largest_error([torch.float32, torch.bfloat16], cpu) == 2**-6
    assert largest_error([torch.float64], cpu) == 2**-48
    # What is no floating-point format counts as float32.
    assert largest_error([], cpu) == 2**-19
    assert largest_error([torch.float32, torch.float16], cpu) == 2**-9


@pytest.mark.parametrize(("setting", "bound"), [("highest", 2**-19), ("high", 2**-9), ("medium", 2**-6)])
def test_shorter_products_of_float32_matrices_count(setting, bound):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert largest_error([torch.float32], torch.device("cpu")) == bound
        assert largest_error([torch.float64], torch.device("cpu")) == 2**-48
    finally:
        torch.set_float32_matmul_precision(before)
