"""Inner products of gradients with a step, against float64."""

import pytest
import torch

from lsmooth.measure.products import products_with_step

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(7, 5), (40,), (), (3, 4, 2), (0,)]


def made(dtype, seed):
    torch.manual_seed(seed)
    return [torch.randn(shape).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("piece", [1, 8, 10_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_against_sums_in_float64(dtype, piece):
    gradients, minus, starts, stops = (made(dtype, seed) for seed in range(4))
    some = [None if i == 1 else other for i, other in enumerate(minus)]
    found = products_with_step(gradients, some, starts, stops, piece)
    for product, a, b, x, y in zip(found, gradients, some, starts, stops, strict=True):
        change = a.double() if b is None else a.double() - b.double()
        terms = change * (y.double() - x.double())
        error = abs(float(product) - float(terms.sum()))
        assert error <= (1e-15 if dtype == torch.float64 else 3e-7) * float(terms.abs().sum()) * 4


def test_memory_layouts_do_not_matter():
    torch.manual_seed(0)
    whole = torch.randn(4, 6, 5, dtype=torch.float64)
    other = torch.randn(5, 6, 4, dtype=torch.float64).permute(2, 1, 0)
    start, stop = torch.randn_like(whole), torch.randn_like(whole)
    (found,) = products_with_step([whole], [other], [start], [stop], 7)
    torch.testing.assert_close(found, ((whole - other) * (stop - start)).sum())
