"""Norms of tensors that arrive in any order."""

import numpy as np
import pytest
import torch

from lsmooth.norms import _CPU_PIECE, TensorNorms, tensor_norms

SIZES = [3, _CPU_PIECE * 2 + 7, 1, 40, _CPU_PIECE]


def pairs(dtype=torch.float32, scale=1.0):
    torch.manual_seed(0)
    return [((torch.randn(size) * scale).to(dtype), (torch.randn(size) * scale).to(dtype)) for size in SIZES]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_norms_of_differences(dtype, scale):
    if dtype == torch.float16 and scale < 1:
        pytest.skip("1e-30 is 0 in float16")
    given = pairs(dtype, scale)
    got = tensor_norms([a for a, _ in given], [b for _, b in given], torch.device("cpu"))
    expected = [np.linalg.norm(a.double().numpy() - b.double().numpy()) for a, b in given]
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_missing_counterpart_counts_as_zero_and_a_missing_tensor_too():
    given = pairs()
    norms = TensorNorms(SIZES, torch.device("cpu"))
    norms.add([3, 1], [given[3][0], given[1][0]], [None, given[1][1]])
    assert norms.missing() == [0, 2, 4]
    expected = [0, (given[1][0] - given[1][1]).double().norm(), 0, given[3][0].double().norm(), 0]
    np.testing.assert_allclose(norms.result(), expected, rtol=1e-6)
    np.testing.assert_array_equal(norms.result(), np.zeros(5))


@pytest.mark.parametrize("layout", ["transposed", "strided", "channels_last"])
def test_memory_layouts_do_not_matter(layout):
    torch.manual_seed(0)
    a, b = torch.randn(4, 6, 5, 3), torch.randn(4, 6, 5, 3)
    change = {
        "transposed": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
        "strided": lambda t: torch.stack([t, t], -1)[..., 0],
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    }[layout]
    expected = (a - b).double().norm().item()
    for left, right in ((change(a), change(b)), (change(a), b), (a, change(b))):
        got = tensor_norms([left], [right], torch.device("cpu"))
        assert got.item() == pytest.approx(expected, rel=1e-6)
