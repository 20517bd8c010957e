"""Norms of tensors that arrive in any order."""

import numpy as np
import pytest
import torch

from lsmooth.measure.norms import _CPU_PIECE, _GPU_PIECE, TensorNorms, tensor_norms

pytestmark = pytest.mark.usefixtures("device")


SIZES = [3, _CPU_PIECE * 8 + 7, 1, 40, _CPU_PIECE]


def pairs(dtype=torch.float32, scale=1.0):
    torch.manual_seed(0)
    sizes = SIZES if torch.get_default_device().type == "cpu" else [*SIZES, _GPU_PIECE + 5]
    return [tuple((torch.randn(2, size, dtype=torch.float64) * scale).to(dtype)) for size in sizes]


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *((dtype, 1.0) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)),
        *((dtype, scale) for dtype in (torch.float32, torch.bfloat16) for scale in (1e-30, 1e30)),
        # Squares of these leave the range of float64 itself.
        *((torch.float64, scale) for scale in (1e-30, 1e-200, 1e-300, 1e200)),
    ],
)
def test_norms_of_differences(dtype, scale):
    given = pairs(dtype, scale)
    got = tensor_norms([a for a, _ in given], [b for _, b in given], torch.get_default_device())
    expected = [scale * np.linalg.norm((a.double().cpu().numpy() - b.double().cpu().numpy()) / scale) for a, b in given]
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.cpu(), expected, rtol=1e-6)


@pytest.mark.parametrize("others", [0.1, 1.1, 1e-3])
@pytest.mark.parametrize("first", [1.0, 1e3, 1e5])
def test_one_large_entry_does_not_swallow_many_small_ones(first, others):
    given = torch.full((_CPU_PIECE + 5,), others)
    given[0] = first
    expected = given.double().norm().item()
    assert tensor_norms([given], [None], torch.get_default_device()).item() == pytest.approx(expected, rel=1e-6)
    assert tensor_norms([2 * given], [given], torch.get_default_device()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scales", [(1e-30, 1.0), (1e-30, 0.0), (1e30, 1e-30), (0.0, 0.0)])
def test_parts_of_a_tensor_may_differ_in_scale(scales, dtype):
    torch.manual_seed(0)
    given = torch.cat([torch.randn(_CPU_PIECE + 5) * scale for scale in scales]).to(dtype)
    expected = given.double().norm().item()
    for left, right in ((given, None), (given, torch.zeros_like(given)), (torch.zeros_like(given), given)):
        assert tensor_norms([left], [right], torch.get_default_device()).item() == pytest.approx(expected, rel=1e-6)
    assert product([given], [given], [None]).item() == pytest.approx(expected**2, rel=1e-6, abs=0)


def product(along, left, right):
    norms = TensorNorms([a.numel() for a in left], torch.get_default_device())
    norms.add(range(len(left)), left, right, along, any_range=True)
    return norms.result_and_products()[1].sum()


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float64, 1.0), (torch.bfloat16, 1.0), *((torch.float32, scale) for scale in (1.0, 1e-30, 1e30))],
)
def test_the_product_with_differences(dtype, scale):
    torch.manual_seed(0)
    shapes = [(size,) for size in SIZES] + [(), (0,), (2, 3, 4, 5), (30, 20), *[(7,)] * 40]
    given = [[(torch.randn(s, dtype=torch.float64) * scale).to(dtype) for s in shapes] for _ in range(3)]
    # Alike in memory without being contiguous, and unlike.
    for column in given:
        column[7] = column[7].to(memory_format=torch.channels_last)
    given[1][8] = given[1][8].T.contiguous().T
    terms = [
        (a.double() / scale * (b.double() / scale - c.double() / scale)).sum().item()
        for a, b, c in zip(*given, strict=True)
    ]
    got = product(*given)
    assert got.dtype == torch.float64
    assert got.dim() == 0
    size = sum(a.double().norm().item() / scale for a in given[0])
    assert abs(got.item() / scale / scale - sum(terms)) < 1e-6 * size
    mixed = [torch.ones(3), torch.full((2,), 2.0, dtype=torch.float64)]
    assert product(mixed, [3 * t for t in mixed], mixed) == 3 * 2 + 2 * 2 * 4


def test_the_product_is_of_those_with_a_counterpart_and_begins_anew():
    norms = TensorNorms([3, 3, 20_000], torch.get_default_device(), ("linf", "spectral"))
    ones, large = torch.ones(3), torch.ones(20_000)
    norms.add([2, 0, 1], [2 * large, 2 * ones, 5 * ones], [large, None, ones], [large, 3 * ones, None])
    found, products = norms.result_and_products()
    assert found["linf"].tolist() == [2, 4, 1]
    assert products.tolist() == [3 * 2 * 3, 0, 20_000]
    assert norms.result_and_products()[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tensors_that_may_be_overwritten_give_the_same_norms_and_products(dtype):
    """Takes the code path of a GPU on the CPU."""
    torch.manual_seed(0)
    shapes = [(3,), (40, 30), (), (0,), (70_000,), (5, 6)]
    left, right, along = ([torch.randn(shape).to(dtype) for shape in shapes] for _ in range(3))
    right[5], along[2] = None, None
    kinds = ("l2", "l1", "spectral")
    found = []
    for consumed in (False, True):
        norms = TensorNorms([t.numel() for t in left], torch.get_default_device(), kinds)
        go_the_way_of_a_gpu(norms)
        given = [t.clone() for t in left]
        norms.add(range(6), given, right, along, consumed=consumed)
        assert torch.equal(given[1], left[1]) != (consumed and dtype != torch.bfloat16)
        of, products = norms.result_and_products()
        found.append(torch.cat([*of.values(), products]))
    difference = [a.double() if b is None else a.double() - b.double() for a, b in zip(left, right, strict=True)]
    terms = [d * (0 if c is None else c.double()) for c, d in zip(along, difference, strict=True)]
    expected = torch.stack([d.norm() for d in difference])
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=0)
    torch.testing.assert_close(found[0][:6], expected, rtol=1e-6, atol=0)
    errors = (found[0][-6:] - torch.stack([t.sum() for t in terms])).abs()
    assert (errors <= 1e-6 * torch.stack([t.abs().sum() for t in terms])).all()


def go_the_way_of_a_gpu(norms):
    norms._packed, norms._piece, norms._together, norms._overwrites = None, 50_000, 50_000, True


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["together", "one by one", "of a GPU"])
def test_products_with_a_step_that_is_given_by_its_ends(way, dtype):
    """Those of neither sign and of both, of tensors that share most digits."""
    torch.manual_seed(0)
    sizes = [3, 900, 0, 20_000, 70_000] + ([] if way == "together" else [400_000])
    given = [[(1 + 0.01 * torch.randn(size)).to(dtype) for size in sizes] for _ in range(4)]
    norms = TensorNorms(sizes, torch.get_default_device())
    if way == "of a GPU":
        go_the_way_of_a_gpu(norms)
    terms = [(a.double() - b.double()) * (y.double() - x.double()) for a, b, x, y in zip(*given, strict=True)]
    absolute = torch.stack([t.abs().sum() for t in terms])
    a, b, x, y = given
    for ends in (
        list(zip(x, y, strict=True)),
        [y.to(d) - x.to(d) for x, y in zip(x, y, strict=True) for d in [wide(dtype)]],
    ):
        norms.add(range(len(sizes)), [t.clone() for t in a], b, ends, consumed=True)
        found, products = norms.result_and_products()
        torch.testing.assert_close(
            found["l2"],
            torch.stack([(s.double() - t.double()).norm() for s, t in zip(a, b, strict=True)]),
            rtol=1e-6,
            atol=0,
        )
        assert ((products - torch.stack([t.sum() for t in terms])).abs() <= 1e-6 * absolute).all()


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_number_that_is_not_finite_shows_in_every_norm_of_its_tensor_and_in_no_other(dtype, value):
    torch.manual_seed(0)
    given = [torch.randn(40, 30, dtype=dtype), torch.randn(400, 400, dtype=dtype), torch.randn(7, 3, dtype=dtype)]
    given[1][317, 211] = value
    norms = TensorNorms(
        [t.numel() for t in given], torch.get_default_device(), ["l2", "l1", "linf", "nuclear", "spectral"]
    )
    norms.add([0, 1, 2], given, [None] * 3)
    for kind, found in norms.result().items():
        assert torch.isfinite(found).tolist() == [True, False, True], kind


SHAPES = [(7, 5), (5, 7), (6,), (), (3, 2, 4, 4), (128, 1100), (1, 9), (0, 4)]


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("minus", [True, False])
def test_every_kind_of_norm_agrees_with_numpy(dtype, scale, minus):
    if dtype == torch.float32 and scale < 1e-40:
        scale = 1e20
    torch.manual_seed(0)
    left, right = ([(torch.randn(s, dtype=torch.float64) * scale).to(dtype) for s in SHAPES] for _ in range(2))
    kinds = ["l1", "nuclear", "l2", "linf", "spectral"]
    norms = TensorNorms([t.numel() for t in left], torch.get_default_device(), kinds)
    # In two parts, the second first.
    for part in (slice(4, None), slice(0, 4)):
        where = list(range(len(SHAPES)))[part]
        norms.add(where, left[part], right[part] if minus else [None] * len(where))
    got = norms.result()
    assert list(got) == kinds
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        change = (a.double() - b.double() if minus else a.double()).cpu().numpy() / scale
        matrix = change.reshape(change.shape[0] if change.ndim > 1 else change.size, -1) if change.size else None
        values = np.zeros(1) if matrix is None else np.linalg.svd(matrix, compute_uv=False)
        expected = {
            "l2": np.linalg.norm(change),
            "l1": np.abs(change).sum(),
            "linf": np.abs(change).max(initial=0),
            "nuclear": values.sum(),
            "spectral": values.max(),
        }
        for kind in kinds:
            np.testing.assert_allclose(got[kind][i].item() / scale, expected[kind], rtol=2e-6, err_msg=f"{kind} {i}")


def test_a_missing_counterpart_counts_as_zero_and_a_missing_tensor_too():
    given = pairs()
    norms = TensorNorms(SIZES, torch.get_default_device())
    norms.add([3, 1], [given[3][0], given[1][0]], [None, given[1][1]])
    assert norms.missing() == [0, 2, 4]
    expected = [0, (given[1][0] - given[1][1]).double().norm().item(), 0, given[3][0].double().norm().item(), 0]
    np.testing.assert_allclose(norms.result()["l2"].tolist(), expected, rtol=1e-6)
    assert norms.result()["l2"].tolist() == [0] * 5


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
        got = tensor_norms([left], [right], torch.get_default_device())
        assert got.item() == pytest.approx(expected, rel=1e-6)
