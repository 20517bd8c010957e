"""Norms and inner products of many tensors at once, accumulated in float32 or wider and left on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsmooth.measure.packed import LEAST_MEAN, LOW_PRECISION, ORDERS, ROW, Along, Packed, ends_of, flattened, same
from lsmooth.measure.singular import divisor, singular_values
from lsmooth.precision import accumulation_dtype
from lsmooth.replay.arrivals import taken_whole
from lsmooth.replay.parking import brought, in_pieces
from lsmooth.trace.layout import NormKind

Kind = NormKind

# Elements that are converted or copied at a time. On the CPU they are few enough for a core's cache in float64, and on
# a GPU enough to keep it busy. For small models they are a share of the whole, which takes little memory, but no fewer
# than are worth a call.
_CPU_PIECE = 1 << 17
_CPU_LEAST_PIECE = 1 << 12
_CPU_SHARE = 1 / 128
# What is packed passes from one of two memories to the other: the larger they are, the fewer calls, up to the cache.
_PACKED_MOST = 1 << 18
_PACKED_SHARE = 1 / 32
_GPU_PIECE = 1 << 22
_GPU_LEAST_PIECE = 1 << 18
_GPU_SHARE = 1 / 24
_MATRIX_KINDS = ("nuclear", "spectral")


def piece_size(device: torch.device) -> int:
    """Return the number of elements to take at a time so that temporary results stay small."""
    return _CPU_PIECE if device.type == "cpu" else _GPU_PIECE


def memory_to_pack(sizes: Sequence[int], device: torch.device) -> Packed | None:
    """Return memory to pack tensors of these numbers of elements in; None where nothing is packed, on a GPU."""
    if device.type != "cpu":
        return None
    if taken_whole(4 * sum(sizes), device):
        return Packed(sum(-(-size // ROW) * ROW for size in sizes))
    return Packed(min(_PACKED_MOST, max(_CPU_LEAST_PIECE, int(_PACKED_SHARE * sum(sizes)))))


_T = TypeVar("_T")


class _Given(NamedTuple):
    """The tensors a, b and c that `TensorNorms` is given at one position."""

    position: int
    tensor: Tensor
    other: Tensor | None
    along: Along | None

    def takes_memory(self, dtype: torch.dtype) -> bool:
        """Say whether a temporary tensor is needed: a difference, a step, or a scaled copy in `_entry_norms`."""
        return self.other is not None or isinstance(self.along, tuple) or self.tensor.dtype == dtype


class TensorNorms:
    """Norms ‖a_i - b_i‖ of n tensors that arrive one after another, in any order; a missing b_i counts as 0.

    It also takes ⟨a_i - b_i, c_i⟩ of tensors that come with c_i, or with x_i and y_i for c_i = y_i - x_i.

    Differences are formed in float32 or wider, so that bfloat16 tensors do not lose the digits that they share. On the
    CPU, sums are taken in float32, 128 numbers at a time, where they stay in its range: norms are then right to 1e-6,
    and commonly to 1e-7. All other sums of norms are taken in float64. So gradients of 1e-30 do not underflow, nor do
    float64 ones of 1e-200. Products are formed in float32, or in float64 for float64 tensors. The error of an inner
    product is about 1e-7 Σ_j |(a_ij - b_ij) c_ij| in float32. Products out of float32's range are formed in float64 on
    the CPU, and on a GPU if that is asked for. Nothing waits for the device, except for the singular values of
    "nuclear" and "spectral", which CUDA's solvers check on the host.

    The nuclear and the spectral norm are those of the matrix `tensor.flatten(1)`. A tensor of fewer than two dimensions
    is a matrix of one column, both of whose norms are its 2-norm.

    Args:
        sizes: Number of elements of each of the n tensors.
        device: Device on which results are wanted.
        kinds: The kinds of norms; "own" is each tensor's kind in `own`.
        own: One kind for each of the n tensors.
        packed: Memory to pack in, which may be shared by objects that add one after another; by default, its own.

    Attributes:
        dtype: Dtype of the results.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        device: torch.device,
        kinds: Sequence[Kind] = ("l2",),
        own: Sequence[Kind] = (),
        packed: Packed | None = None,
    ) -> None:
        self._device = device
        self.dtype = accumulation_dtype(device)
        self._kinds, self._own = tuple(kinds), own or ["l2"] * len(sizes)
        # By position, since only some matrices may need singular values.
        asked = [{*kinds, kind} if "own" in kinds else {*kinds} for kind in self._own]
        self._matrix_kinds = [[kind for kind in _MATRIX_KINDS if kind in some] for some in asked]
        # Vectors need their 2-norm where matrices need singular values.
        every = {*kinds, *(kind for some in asked for kind in some)}
        matrices = not every.isdisjoint(_MATRIX_KINDS)
        self._entry_kinds = [kind for kind in ORDERS if kind in every or (kind == "l2" and matrices)]
        self._zero = torch.zeros((), dtype=self.dtype, device=device)
        # On the CPU, a temporary difference that stays in cache costs less than one written over the tensor in memory.
        self._overwrites = device.type != "cpu"
        total = sum(sizes)
        whole = taken_whole(4 * total, device)
        share, least = (_CPU_SHARE, _CPU_LEAST_PIECE) if device.type == "cpu" else (_GPU_SHARE, _GPU_LEAST_PIECE)
        self._piece = min(piece_size(device), max(least, int(share * total)))
        # All tensors of a small model are taken together.
        self._together = total if whole else self._piece
        self._packed = memory_to_pack(sizes, device) if packed is None else packed
        self._count = len(sizes)
        self._zeros = torch.zeros(self._count, dtype=self.dtype, device=device)
        # By position, what has arrived: norms by kind, and the parts of the product, see `products_of`.
        self._found: list[dict[str, Tensor] | None] = []
        # The same of tensors that were packed, (n,); those have no numbers in `_found`.
        self._numbers: dict[str, NDArray[np.float64]] = {}
        self.clear()

    def sums(self) -> dict[Kind, list[bool]]:
        """Say by kind which tensors have a norm that is a sum over entries: those of a tensor's parts add up."""
        own = [kind == "l1" for kind in self._own]
        return {kind: own if kind == "own" else [kind == "l1"] * self._count for kind in self._kinds}

    def missing(self) -> list[int]:
        """Return the positions of tensors that have not arrived yet."""
        return [position for position, found in enumerate(self._found) if found is None]

    def clear(self) -> None:
        """Forget what has arrived."""
        self._found = [None] * self._count
        self._numbers = {}

    @torch.no_grad()
    def add(
        self,
        positions: Sequence[int],
        tensors: Sequence[Tensor],
        minus: Sequence[Tensor | None],
        along: Sequence[Along | None] | None = None,
        *,
        consumed: bool = False,
        any_range: bool = False,
    ) -> None:
        """Add the tensors at some positions, minus their counterparts; temporary memory is one or two pieces.

        Args:
            positions: Positions of the tensors among the n.
            tensors: a_i.
            minus: b_i, which may be parked on the host; None for 0.
            along: c_i, or x_i and y_i, which may be parked, for their difference; None for no product.
            consumed: Whether the a_i may be overwritten, which saves memory and kernels on a GPU.
            any_range: Whether products may leave float32's range, which takes a few more kernels on a GPU.
        """
        if consumed and self._overwrites:
            minus = _subtract_in_place(tensors, minus)
        givens = list(map(_Given, positions, tensors, minus, along or [None] * len(positions)))
        small: list[_Given] = []
        for given in givens if self._packed is None else self._left_by(self._packed, givens):
            size = given.tensor.numel()
            if not size:
                self._found[given.position] = {}
            elif size > max(self._piece, self._together) and given.takes_memory(self.dtype):
                self._note(given, self._in_pieces(given))
            else:
                small.append(given)
        for device in dict.fromkeys(given.tensor.device for given in small):
            here = [given for given in small if given.tensor.device == device]
            sizes = [given.tensor.numel() * given.takes_memory(self.dtype) for given in here]
            for group in _grouped(here, sizes, self._together):
                self._add_group(group, consumed, any_range)

    def result(self) -> dict[Kind, Tensor]:
        """Return the n norms by kind, float64 (n,), 0 where nothing has arrived; then forget them."""
        parts = self.parts()
        return {kind: parts[kind] for kind in self._kinds}

    def result_and_products(self) -> tuple[dict[Kind, Tensor], Tensor]:
        """Return the result of `result`, and the n products, float64 (n,), 0 where there is none; then forget them."""
        parts = self.parts()
        return {kind: parts[kind] for kind in self._kinds}, products_of(parts)

    def parts(self) -> dict[str, Tensor]:
        """Return the n norms by kind, and parts of the n products for `products_of`; then forget them.

        So a caller can form the products of many results in one operation.
        """
        names = (*self._kinds, "product", "excess")
        numbers = self._numbers
        if numbers and "own" in names:
            own = [numbers[kind][i] if kind in numbers else 0.0 for i, kind in enumerate(self._own)]
            numbers = numbers | {"own": np.array(own)}
        parts = {name: torch.from_numpy(values) for name, values in numbers.items() if name in names}
        present = {name for found in self._found if found for name in found}
        if asked := [name for name in names if name in present or (name == "own" and present)]:
            entries = [
                found.get(own if name == "own" else name, self._zero) if found else self._zero
                for name in asked
                for found, own in zip(self._found, self._own, strict=True)
            ]
            stacked = torch.stack(entries).split(self._count)
            parts |= {n: parts[n] + more if n in parts else more for n, more in zip(asked, stacked, strict=True)}
        self.clear()
        return dict.fromkeys((*self._kinds, "product"), self._zeros) | parts

    def _left_by(self, packed: Packed, givens: Sequence[_Given]) -> list[_Given]:
        """Take in what can be packed; return what is left."""
        taken = [given for given in givens if packed.takes(given.tensor)]
        left = [given for given in givens if not packed.takes(given.tensor)]
        if taken:
            numbers, within = packed.norms_and_products([given[1:] for given in taken], self._entry_kinds)
            for name, values in numbers.items():
                into = self._numbers.setdefault(name, np.zeros(self._count))
                into[[given.position for given in taken]] = np.where(within, values, 0.0)
            for place, given in enumerate(taken):
                if not within[place] and (numbers[self._entry_kinds[0]][place] or not same(given.tensor, given.other)):
                    left.append(given)
                else:
                    self._found[given.position] = {}
                    if self._matrix_kinds[given.position]:
                        norm = self._brought(torch.from_numpy(self._numbers["l2"])[given.position])
                        self._found[given.position] = self._of_matrix(given, norm)
        return left

    def _note(self, given: _Given, found: dict[str, Tensor]) -> None:
        """Store what was found of a tensor, and add the norms of singular values."""
        found = {name: self._brought(value) for name, value in found.items()}
        if self._matrix_kinds[given.position]:
            found |= self._of_matrix(given, found["l2"])
        self._found[given.position] = found

    def _add_group(self, group: Sequence[_Given], consumed: bool, any_range: bool) -> None:
        """Add tensors of one device that together are one piece."""
        device = group[0].tensor.device
        changes = differences(
            [given.tensor for given in group],
            [None if given.other is None else brought(given.other, device) for given in group],
        )
        by_kind = [_entry_norms(changes, kind, self.dtype) for kind in self._entry_kinds]
        for given, norms in zip(group, zip(*by_kind, strict=True), strict=True):
            self._note(given, dict(zip(self._entry_kinds, norms, strict=True)))
        pairs = [(d, given) for d, given in zip(changes, group, strict=True) if given.along is not None]
        if pairs:
            mine = all((consumed and self._overwrites) or given.other is not None for _, given in pairs)
            factors = (
                [d for d, _ in pairs],
                _steps([given.along for _, given in pairs if given.along is not None], device),
            )
            parts = (
                {"product": _sums_on_cpu(*factors, self.dtype)}
                if changes[0].is_cpu and not self._overwrites
                else _sums_in_few_kernels(*factors, self.dtype, mine, any_range)
            )
            for (_, given), *values in zip(pairs, *parts.values(), strict=True):
                found = self._found[given.position]
                assert found is not None
                found.update(zip(parts, map(self._brought, values), strict=True))

    def _in_pieces(self, given: _Given) -> dict[str, Tensor]:
        """Return the norms of a difference by kind, and its product; one piece is held at a time."""
        norms: dict[str, list[Tensor]] = {kind: [] for kind in self._entry_kinds}
        products: list[Tensor] = []
        flat = flattened((given.tensor, given.other, *ends_of(given.along)))
        for start in range(0, given.tensor.numel(), self._piece):
            part = slice(start, start + self._piece)
            a, b, x, y = (None if t is None else brought(t[part], given.tensor.device) for t in flat)
            assert a is not None
            difference = differences([a], [b])[0]
            for kind, parts in norms.items():
                parts += _entry_norms([difference], kind, self.dtype)
            if y is not None:
                wide = difference.to(self.dtype, copy=True)
                # Freed before another piece is made.
                del difference
                products.append(wide.mul_(differences([y], [x])[0]).sum())
        found = {kind: _entry_norms([torch.stack(parts)], kind, self.dtype)[0] for kind, parts in norms.items()}
        return found | ({"product": torch.stack(products).sum()} if products else {})

    def _of_matrix(self, given: _Given, two_norm: Tensor) -> dict[str, Tensor]:
        """Return the norms of singular values by kind."""
        kinds = self._matrix_kinds[given.position]
        if given.tensor.dim() < 2:
            return dict.fromkeys(kinds, two_norm)
        other = None if given.other is None else brought(given.other, given.tensor.device)
        values = singular_values(given.tensor, other, self.dtype, self._piece)
        norms = {kind: values.sum() if kind == "nuclear" else values.max() for kind in kinds}
        return {kind: self._brought(norm) for kind, norm in norms.items()}

    def _brought(self, norm: Tensor) -> Tensor:
        return norm if norm.device == self._device else norm.to(self._device, non_blocking=True)


def products_of(parts: Mapping[str, Tensor]) -> Tensor:
    """Return inner products from the parts that `TensorNorms.parts` returns, in the same shape."""
    return torch.sub(parts["product"], parts["excess"], alpha=2) if "excess" in parts else parts["product"]


def _sums_on_cpu(changes: list[Tensor], alongs: list[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Return the inner products of tensors on the CPU; those out of float32's range are formed in float64."""
    products = torch._foreach_mul(changes, alongs)
    sums = torch.stack([product.sum() for product in products]).to(dtype)
    # Reading numbers on the CPU waits for nothing.
    for place, (total, change) in enumerate(zip(sums.tolist(), changes, strict=True)):
        if not change.numel() * LEAST_MEAN < abs(total) < math.inf:
            sums[place] = change.to(dtype, copy=True).mul_(alongs[place]).sum()
    return sums.unbind()


def _sums_in_few_kernels(
    changes: list[Tensor], alongs: list[Tensor], dtype: torch.dtype, mine: bool, any_range: bool
) -> dict[str, Sequence[Tensor]]:
    """Return the inner products of tensors on a GPU, as "product" minus twice "excess".

    The only sum that torch takes of many tensors in one kernel is the 1-norm: Σ_j p_j is Σ_j |p_j| minus twice the
    1-norm of the negative terms.

    Args:
        changes: Differences to multiply.
        alongs: Factors.
        dtype: Dtype of the sums.
        mine: Whether the differences may be overwritten.
        any_range: Whether products may leave float32's range.
    """
    scale = None
    if any_range:
        scale = divisor(torch.stack(torch._foreach_norm(changes, float("inf"), dtype=dtype)).max())
        changes = list(torch._foreach_div(changes, scale.to(changes[0].dtype)))
    if (mine or any_range) and all(d.dtype == c.dtype for d, c in zip(changes, alongs, strict=True)):
        torch._foreach_mul_(changes, alongs)
        products = changes
    else:
        products = list(torch._foreach_mul(changes, alongs))
    parts = []
    for part in ("product", "excess"):
        if part == "excess":
            torch._foreach_clamp_max_(products, 0)
        sums = torch._foreach_norm(products, 1, dtype=dtype)
        parts.append(sums if scale is None else torch._foreach_mul(sums, scale))
    return {"product": parts[0], "excess": parts[1]}


def tensor_norms(tensors: Sequence[Tensor], minus: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Return ‖a_i - b_i‖2 of n tensors, float64 (n,) on `device`; see `TensorNorms`."""
    norms = TensorNorms([tensor.numel() for tensor in tensors], device)
    for position, (tensor, other) in enumerate(zip(tensors, minus, strict=True)):
        norms.add([position], [tensor], [other])
    return norms.result()["l2"]


def _grouped(items: Sequence[_T], sizes: Sequence[int], limit: int) -> Iterator[Sequence[_T]]:
    """Yield runs of a sequence; the last item of each makes its size exceed the limit."""
    start, held = 0, 0
    for stop, size in enumerate(sizes, 1):
        held += size
        if held > limit or stop == len(items):
            yield items[start:stop]
            start, held = stop, 0


def _entry_norms(tensors: list[Tensor], kind: str, dtype: torch.dtype) -> list[Tensor]:
    """Return one kind of norm of each tensor, with sums in `dtype` and within its range."""
    order = ORDERS[kind]
    if kind == "l2" and any(tensor.dtype == dtype for tensor in tensors):
        # Squares may leave the range of a sum of the same dtype; scaled to at most 1, they do not.
        scales = [divisor(scale) for scale in torch._foreach_norm(tensors, float("inf"), dtype=dtype)]
        scaled = [tensor / scale for tensor, scale in zip(tensors, scales, strict=True)]
        norms = torch._foreach_norm(scaled, 2, dtype=dtype)
        return [norm * scale for norm, scale in zip(norms, scales, strict=True)]
    return list(torch._foreach_norm(tensors, order, dtype=dtype))


def _subtract_in_place(tensors: Sequence[Tensor], minus: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Subtract in place where that loses no precision; return what is left to be subtracted."""
    taken = [
        other is not None and tensor.dtype == other.dtype and tensor.dtype not in LOW_PRECISION
        for tensor, other in zip(tensors, minus, strict=True)
    ]
    pairs = [(a, b) for a, b, taken_here in zip(tensors, minus, taken, strict=True) if taken_here and b is not None]
    for some, others in in_pieces([a for a, _ in pairs], [b for _, b in pairs]):
        torch._foreach_sub_(some, others)
    return [None if taken_here else other for other, taken_here in zip(minus, taken, strict=True)]


def differences(left: Sequence[Tensor], right: Sequence[Tensor | None]) -> list[Tensor]:
    """Return differences in float32 or wider; a tensor with nothing to subtract is returned itself."""
    paired = [(a, b) for a, b in zip(left, right, strict=True) if b is not None]
    if not paired:
        return list(left)
    if any(a.dtype in LOW_PRECISION for a, _ in paired):
        found = [a.float() - b.float() for a, b in paired]
    else:
        found = list(torch._foreach_sub([a for a, _ in paired], [b for _, b in paired]))
    if len(paired) == len(left):
        return found
    remaining = iter(found)
    return [a if b is None else next(remaining) for a, b in zip(left, right, strict=True)]


def _steps(alongs: Sequence[Along], device: torch.device) -> list[Tensor]:
    """Return the factors c on a device in float32 or wider, from c itself or from x and y."""
    given = [tuple(None if end is None else brought(end, device) for end in ends_of(along)) for along in alongs]
    steps = differences([stop for _, stop in given if stop is not None], [start for start, _ in given])
    return [step.float() if step.dtype in LOW_PRECISION else step for step in steps]
