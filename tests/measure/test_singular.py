"""Singular values by way of eigenvalues, against LAPACK's."""

import pytest
import torch

from lsmooth.measure.singular import divisor, singular_values

pytestmark = pytest.mark.usefixtures("device")


def test_singular_values_do_not_depend_on_how_many_columns_are_taken_at_a_time():
    torch.manual_seed(0)
    matrix = torch.randn(20, 90, dtype=torch.float64)
    expected = torch.linalg.svdvals(matrix).flip(0)
    for piece in (1, 20 * 13, 10_000):
        torch.testing.assert_close(singular_values(matrix, None, torch.float64, piece), expected, rtol=1e-12, atol=0)


def test_singular_values_of_an_ill_conditioned_matrix_keep_their_stated_accuracy():
    torch.manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(60, 40, dtype=torch.float64))
    values = torch.logspace(-14, 0, 40, dtype=torch.float64)
    got = singular_values(u @ torch.diag(values) @ v.T, None, torch.float64, 1000)
    assert (got - values).abs().max() < 3e-8


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (4, 3, 2, 2), (1, 6), (6, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_of_a_difference_whatever_the_shape_and_dtype(shape, dtype):
    torch.manual_seed(1)
    a, b = (torch.randn(shape).to(dtype) for _ in range(2))
    expected = torch.linalg.svdvals((a.double() - b.double()).flatten(1)).flip(0)
    torch.testing.assert_close(singular_values(a, b, torch.float64, 8), expected, rtol=1e-10, atol=3e-8)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_squares_beyond_the_range_of_float64(scale):
    values = singular_values(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)) * scale, None, torch.float64, 8)
    torch.testing.assert_close(values / scale, torch.tensor([1.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_of_a_matrix_that_is_not_finite_there_are_none(bad):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 2] = bad
    assert singular_values(matrix, None, torch.float64, 8).isnan().all()


def test_a_divisor_can_be_divided_by():
    scales = torch.tensor([0.0, 2.0, float("inf"), float("nan")])
    assert divisor(scales).tolist() == [1.0, 2.0, 1.0, 1.0]
