"""Norms and inner products of tensors that are packed, or taken a piece at a time, against float64."""

import pytest
import torch

from lsmooth.measure.norms import TensorNorms, memory_to_pack
from lsmooth.measure.packed import ORDERS, Packed

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(7, 50), (40,), (), (3, 40, 2), (0,), (128,), (300,)]


def made(dtype, seed):
    torch.manual_seed(seed)
    return [torch.randn(shape).to(dtype) for shape in SHAPES]


def taken(piece, shapes=SHAPES):
    """Return what takes norms a piece at a time, of numbers on the CPU in whole rows of 128."""
    norms = TensorNorms([torch.Size(shape).numel() for shape in shapes], torch.get_default_device(), ("l2", "linf"))
    norms._piece = norms._together = piece
    if norms._packed is not None:
        norms._packed = Packed(piece)
    return norms


@pytest.mark.parametrize("piece", [1, 8, 400, 10_000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_against_sums_in_float64(dtype, piece):
    gradients, minus, starts, stops = (made(dtype, seed) for seed in range(4))
    some = [None if i in (1, 5) else other for i, other in enumerate(minus)]
    ends = [None if i == 6 else ends for i, ends in enumerate(zip(starts, stops, strict=True))]
    norms = taken(piece)
    # What has been packed before leaves nothing behind.
    for _ in range(2):
        norms.add(range(3), gradients[:3], some[:3], ends[:3])
        norms.add(range(3, 7), gradients[3:], some[3:], ends[3:])
        found, products = norms.result_and_products()
        for i, (a, b, end) in enumerate(zip(gradients, some, ends, strict=True)):
            change = a.double() if b is None else a.double() - b.double()
            terms = change * (0 if end is None else end[1].double() - end[0].double())
            error = abs(float(products[i]) - float(terms.sum()))
            assert error <= (1e-15 if dtype == torch.float64 else 3e-7) * float(terms.abs().sum()) * 4
            assert float(found["l2"][i]) == pytest.approx(float(change.norm()), rel=1e-6)
            assert float(found["linf"][i]) == pytest.approx(
                float(change.abs().max() if change.numel() else 0), rel=1e-6
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("piece", [7, 10_000])
def test_memory_layouts_do_not_matter(piece, dtype):
    torch.manual_seed(0)
    whole = torch.randn(4, 6, 25, dtype=dtype)
    other = torch.randn(25, 6, 4, dtype=dtype).permute(2, 1, 0)
    start, stop = torch.randn_like(whole), torch.randn_like(whole)
    norms = taken(piece, [whole.shape])
    norms.add([0], [whole], [other], [(start, stop)])
    found, (product,) = norms.result_and_products()
    change = whole.double() - other.double()
    torch.testing.assert_close(product, (change * (stop.double() - start.double())).sum(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["l2"][0], change.norm(), rtol=1e-6, atol=0)


def test_objects_that_share_memory_give_what_each_gives_alone():
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    device = torch.get_default_device()
    given = [made(torch.float32, seed) for seed in range(2)]
    packed = memory_to_pack(sizes, device)
    together = [TensorNorms(sizes, device, kinds, packed=packed) for kinds in (("l2",), ("l1", "linf"))]
    for part in (slice(4), slice(4, None)):
        for norms, tensors in zip(together, given, strict=True):
            norms.add(range(7)[part], tensors[part], [None] * len(tensors[part]), tensors[part])
    for norms, tensors in zip(together, given, strict=True):
        found, products = norms.result_and_products()
        for kind, values in found.items():
            expected = torch.stack(
                [
                    torch.linalg.vector_norm(t.double(), ORDERS[kind])
                    if t.numel()
                    else t.new_zeros((), dtype=torch.float64)
                    for t in tensors
                ]
            )
            torch.testing.assert_close(values, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            products, torch.stack([t.double().square().sum() for t in tensors]), rtol=1e-6, atol=0
        )
