"""Norms of many tensors at once, accumulated in float32 or wider and left on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

Kind = Literal["l2", "l1", "linf", "nuclear", "spectral"]

# By geometry: the norm that displacements are measured in, and its dual, in which gradients are.
GEOMETRIES: Mapping[str, tuple[Kind, Kind]] = {
    "l2": ("l2", "l2"),
    "linf": ("linf", "l1"),
    "spectral": ("spectral", "nuclear"),
}

# Elements that are taken at a time: on the CPU what stays in cache between the difference and its norm, on a GPU what
# keeps it busy at little memory.
_CPU_PIECE = 1 << 17
_GPU_PIECE = 1 << 22
# On the CPU, pieces from this size on pay for a call of their own each; smaller ones are taken together up to this.
_CPU_LARGE = 1 << 13
_LOW_PRECISION = (torch.float16, torch.bfloat16)
_MATRIX_KINDS = ("nuclear", "spectral")
_ORDERS: Mapping[str, float] = {"l2": 2, "l1": 1, "linf": float("inf")}


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the widest real dtype that a device computes in: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def piece_size(device: torch.device) -> int:
    """Return how many elements to take at a time where temporary results are to stay small."""
    return _CPU_PIECE if device.type == "cpu" else _GPU_PIECE


_T = TypeVar("_T")
# Position, a, b and c of an entry of `TensorNorms`.
_Given = tuple[int, Tensor, Tensor | None, Tensor | None]


class TensorNorms:
    """Norms ‖a_i - b_i‖ of n tensors that arrive one after another, in any order; b_i may be missing and counts as 0.

    On the way it also sums up ⟨c_i, a_i - b_i⟩ for tensors that come with such a c_i.

    Differences and sums are formed in float32 or wider: gradients of 1e-30 do not underflow (nor do float64 ones of
    1e-200), and bfloat16 ones do not lose the digits that they share. On the CPU, the squares of large tensors are
    summed up pairwise in float32, 2^17 at a time, where they stay in its range: the 2-norm is then right to 1e-6, and
    commonly to 1e-7. All other sums are taken in float64. Nothing waits for the device, but for the singular values of
    "nuclear" and "spectral", which CUDA's solvers check on the host.

    The nuclear and the spectral norm are those of the matrix of `tensor.flatten(1)`; a tensor of fewer than two
    dimensions is a matrix of one column, both of whose norms are its 2-norm.

    Args:
        sizes: Number of elements of each of the n tensors.
        device: Where the result is wanted.
        kinds: Which norms.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device, kinds: Sequence[Kind] = ("l2",)) -> None:
        self._device = device
        self.dtype = accumulation_dtype(device)
        self._kinds = tuple(kinds)
        self._matrix_kinds = [kind for kind in kinds if kind in _MATRIX_KINDS]
        # Vectors need their 2-norm where matrices need singular values.
        self._entry_kinds = [kind for kind in _ORDERS if kind in kinds or (kind == "l2" and self._matrix_kinds)]
        self._zero = torch.zeros((), dtype=self.dtype, device=device)
        piece = self._piece = piece_size(device)
        self._together = _CPU_LARGE if device.type == "cpu" else piece
        counts = [max(1, -(-size // piece)) for size in sizes]
        # Where each tensor's pieces stand among all pieces, in rows that end in references to a zero.
        self._table: Tensor | None = None
        if any(count > 1 for count in counts):
            ends = torch.tensor(counts).cumsum(0)
            places = (ends - torch.tensor(counts))[:, None] + torch.arange(max(counts))
            self._table = torch.where(places < ends[:, None], places, ends[-1]).to(device)
        self._counts = counts
        # The CPU's memory for differences; none where all tensors are too small to pay for calls of their own.
        longest = min(piece, max(sizes, default=0)) if device.type == "cpu" else 0
        self._scratch = _Scratch(longest if longest >= _CPU_LARGE else 0)
        self._parts: list[dict[str, list[Tensor]] | None] = []
        self._of_matrices: dict[str, dict[int, Tensor]] = {}
        self._products: list[Tensor] = []
        self.clear()

    def missing(self) -> list[int]:
        """Return the positions at which nothing has arrived yet."""
        return [position for position, parts in enumerate(self._parts) if parts is None]

    def clear(self) -> None:
        """Forget what has arrived."""
        self._parts = [None] * len(self._counts)
        self._of_matrices = {kind: {} for kind in self._matrix_kinds}
        self._products = []

    @torch.no_grad()
    def add(
        self,
        positions: Sequence[int],
        tensors: Sequence[Tensor],
        minus: Sequence[Tensor | None],
        along: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Take in the tensors at some positions, less their counterparts; temporary memory is one piece.

        Args:
            positions: Which of the n tensors arrive.
            tensors: a_i.
            minus: b_i; None for 0.
            along: c_i, whose inner product with a_i - b_i is summed up; None for none.
        """
        small: list[_Given] = []
        for position, tensor, other, third in zip(
            positions, tensors, minus, along or [None] * len(positions), strict=True
        ):
            size = tensor.numel()
            if self._matrix_kinds and tensor.dim() > 1 and size:
                values = singular_values(tensor, other, self.dtype, self._piece)
                for kind in self._matrix_kinds:
                    norm = values.sum() if kind == "nuclear" else values.max()
                    self._of_matrices[kind][position] = norm.to(self._device, non_blocking=True)
            if not size:
                self._parts[position] = {kind: [self._zero] for kind in self._entry_kinds}
            elif size > self._piece or self._scratch.takes(tensor, size):
                self._parts[position] = self._in_pieces(tensor, other, third, min(size, self._piece))
            else:
                small.append((position, tensor, other, third))
        self._add_small(small)

    def result(self) -> dict[Kind, Tensor]:
        """Return by kind the n norms, float64 (n,), 0 where nothing has arrived, and start anew."""
        return self.result_and_product()[0]

    def result_and_product(self) -> tuple[dict[Kind, Tensor], Tensor]:
        """Return what `result` does, and Σ_i ⟨c_i, a_i - b_i⟩, float64 without dimensions, and start anew.

        On the CPU, products of large tensors are formed and summed up pairwise in float32, 2^17 at a time, where they
        stay in its range: the error is about 1e-7 Σ_ij |c_ij (a_ij - b_ij)|. All others are formed in float64.
        """
        found: dict[str, Tensor] = {kind: self._joined(kind) for kind in self._entry_kinds}
        for kind, of_matrices in self._of_matrices.items():
            found[kind] = torch.stack([of_matrices.get(i, norm) for i, norm in enumerate(found["l2"].unbind())])
        product = torch.stack(self._products).sum() if self._products else self._zero
        self.clear()
        return {kind: found[kind] for kind in self._kinds}, product

    def _joined(self, kind: str) -> Tensor:
        """Return one kind of norm of each tensor from those of its pieces."""
        parts: list[Tensor] = []
        for count, arrived in zip(self._counts, self._parts, strict=True):
            parts += arrived[kind] if arrived is not None else [self._zero] * count
        if self._table is None:
            return torch.stack(parts)
        table = torch.stack([*parts, self._zero])[self._table]
        if kind == "l1":
            return table.sum(dim=1)
        largest = table.amax(dim=1)
        if kind == "linf":
            return largest
        # Pieces of one tensor join through their squares, scaled so that float64 tensors keep their range.
        scale = _divisor(largest)
        return (table / scale[:, None]).square_().sum(dim=1).sqrt_().mul_(scale)

    def _add_small(self, given: list[_Given]) -> None:
        """Take in tensors of one piece each, several at a time."""
        for group in _grouped(given, [tensor.numel() for _, tensor, _, _ in given], self._together):
            differences = _differences([tensor for _, tensor, _, _ in group], [other for _, _, other, _ in group])
            for position, *_ in group:
                self._parts[position] = {}
            for kind in self._entry_kinds:
                norms = _entry_norms(differences, kind, self.dtype)
                for (position, *_), norm in zip(group, norms, strict=True):
                    self._parts[position][kind] = [self._brought(norm)]  # type: ignore[index]
            pairs = [(d, third) for d, (*_, third) in zip(differences, group, strict=True) if third is not None]
            for some in _grouped(pairs, [difference.numel() for difference, _ in pairs], self._piece // 8):
                flat = (torch.cat([self._brought(t.reshape(-1)) for t in ts]) for ts in zip(*some, strict=True))
                self._products.append(self._product(*flat))

    def _in_pieces(
        self, tensor: Tensor, other: Tensor | None, along: Tensor | None, size: int
    ) -> dict[str, list[Tensor]]:
        """Return by kind the norms of a difference's pieces, one of which is held at a time."""
        norms: dict[str, list[Tensor]] = {kind: [] for kind in self._entry_kinds}
        scratch = self._scratch if self._scratch.takes(tensor, size) else None
        for left, right, third in _flat_pieces(tensor, other, along, self._piece):
            found = scratch.norms(left, right, self._entry_kinds) if scratch else None
            product = scratch.product(left, right, third) if scratch and third is not None else None
            if found is None or (product is None and third is not None):
                difference = _differences([left], [right])[0]
                found = {kind: _entry_norms([difference], kind, self.dtype)[0] for kind in self._entry_kinds}
                product = None if third is None else self._product(difference, third)
            for kind, norm in found.items():
                norms[kind].append(self._brought(norm))
            if product is not None:
                self._products.append(self._brought(product))
        return norms

    def _product(self, difference: Tensor, along: Tensor) -> Tensor:
        """Return the inner product of a difference and its counterpart, both flat, in little memory."""
        size = max(1, self._piece // 8)
        parts = zip(difference.split(size), along.split(size), strict=True)
        return torch.stack([torch.dot(left.to(self.dtype), right.to(self.dtype)) for left, right in parts]).sum()

    def _brought(self, norm: Tensor) -> Tensor:
        return norm if norm.device == self._device else norm.to(self._device, non_blocking=True)


class _Scratch:
    """Pieces of differences on the CPU, formed and summed up in float32, in memory that stays in cache.

    Sums are pairwise, and read at once, which waits for nothing there. Where numbers leave float32's range, there is no
    result.

    Args:
        size: The largest number of elements of a piece.
    """

    # Where n products have a sum above n times this in float32, those too small for float32, below 1.2e-38 each, do not
    # change it by more than 1e-8 of itself, whatever the device makes of them.
    _LEAST_MEAN = 1.2e-30
    # What entries are multiplied by before they are squared: where squares leave the range, by another power of two.
    _FACTORS = (1.0, 2.0**60, 2.0**-60)

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size)

    def takes(self, tensor: Tensor, size: int) -> bool:
        """Say whether pieces of this size of a tensor are to be taken here."""
        return _CPU_LARGE <= size <= len(self._memory) and tensor.is_cpu and tensor.dtype != torch.float64

    def norms(self, tensor: Tensor, other: Tensor | None, kinds: Sequence[str]) -> dict[str, Tensor] | None:
        """Return by kind the norms of the difference, float64 without dimensions."""
        found: dict[str, Tensor] = {}
        if "l1" in kinds:
            found["l1"] = torch.linalg.vector_norm(self._difference(tensor, other), 1, dtype=torch.float64)
        if "linf" in kinds:
            least, most = torch.aminmax(self._difference(tensor, other))
            found["linf"] = torch.maximum(-least, most).double()
        if "l2" in kinds:
            norm = self._two_norm(tensor, other)
            if norm is None:
                return None
            found["l2"] = torch.tensor(norm, dtype=torch.float64)
        return found

    def product(self, tensor: Tensor, other: Tensor | None, along: Tensor) -> Tensor | None:
        """Return the inner product of the difference with another piece, float64 without dimensions."""
        product = self._sum_of_products(self._difference(tensor, other), along)
        if product is None and not along.any():
            product = 0.0
        return None if product is None else torch.tensor(product, dtype=torch.float64)

    def _two_norm(self, tensor: Tensor, other: Tensor | None) -> float | None:
        for factor in self._FACTORS:
            difference = self._difference(tensor, other)
            if factor != 1:
                difference = torch.mul(difference, factor, out=self._memory[: len(tensor)])
            square = self._sum_of_products(difference, difference)
            if square is not None:
                return math.sqrt(square) / factor
        return None if self._difference(tensor, other).any() else 0.0

    def _difference(self, tensor: Tensor, other: Tensor | None) -> Tensor:
        """Return the difference, in the memory that all results share; the tensor itself where it is that."""
        into = self._memory[: len(tensor)]
        if tensor.dtype in _LOW_PRECISION:
            into.copy_(tensor)
            return into if other is None else into.sub_(other)
        return tensor if other is None else torch.sub(tensor, other, out=into)

    def _sum_of_products(self, left: Tensor, right: Tensor) -> float | None:
        size = len(left)
        found = torch.mul(left, right, out=self._memory[:size]).sum().item()
        return found if size * self._LEAST_MEAN < abs(found) < math.inf else None


def tensor_norms(tensors: Sequence[Tensor], minus: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Return ‖a_i - b_i‖2 of n tensors, float64 (n,) on `device`; see `TensorNorms`."""
    norms = TensorNorms([tensor.numel() for tensor in tensors], device)
    for position, (tensor, other) in enumerate(zip(tensors, minus, strict=True)):
        norms.add([position], [tensor], [other])
    return norms.result()["l2"]


def singular_values(tensor: Tensor, minus: Tensor | None, dtype: torch.dtype, piece: int) -> Tensor:
    """Return the singular values of the matrix (tensor - minus).flatten(1), ascending, NaN where it is not finite.

    They are the square roots of the eigenvalues of A A^T, summed up in float64 from pieces of the longer side: several
    times faster than a singular value decomposition in float32. A singular value s is off by at most about
    1e-8 max(s) (its square by machine precision times the largest), which leaves the nuclear norm of a matrix with a
    shorter side of m right to m times that.

    Args:
        tensor: At least two dimensions.
        minus: What to subtract; None for nothing.
        dtype: What to compute in.
        piece: How many elements of the difference to hold at a time.
    """
    matrix = tensor.flatten(1)
    other = None if minus is None else minus.flatten(1)
    if matrix.shape[0] > matrix.shape[1]:
        matrix, other = matrix.T, None if other is None else other.T
    short, long = matrix.shape
    width = max(1, piece // max(1, short))
    scale = None
    if tensor.dtype == torch.float64:
        # Only float64's squares leave float64's range.
        whole = matrix if other is None else matrix - other
        scale = _divisor(torch.linalg.vector_norm(whole, float("inf")))
    gram = torch.zeros(short, short, dtype=dtype, device=tensor.device)
    for start in range(0, long, width):
        part = matrix[:, start : start + width].to(dtype, copy=True)
        if other is not None:
            part.sub_(other[:, start : start + width])
        if scale is not None:
            part.div_(scale)
        gram.addmm_(part, part.T)
    finite = torch.isfinite(gram).all()
    squares = torch.linalg.eigvalsh(torch.where(finite, gram, torch.zeros_like(gram)))
    values = squares.clamp_min_(0).sqrt_()
    if scale is not None:
        values = values * scale
    return torch.where(finite, values, torch.full_like(values, float("nan")))


def _grouped(items: Sequence[_T], sizes: Sequence[int], limit: int) -> Iterator[Sequence[_T]]:
    """Cut a sequence into runs, each ended by the item with which its size passes the limit."""
    start, held = 0, 0
    for stop, size in enumerate(sizes, 1):
        held += size
        if held > limit or stop == len(items):
            yield items[start:stop]
            start, held = stop, 0


def _entry_norms(tensors: list[Tensor], kind: str, dtype: torch.dtype) -> list[Tensor]:
    """Return one kind of norm of each tensor, its sums taken in `dtype` and kept within range."""
    order = _ORDERS[kind]
    if kind == "l2" and any(tensor.dtype == dtype for tensor in tensors):
        # Squares of what is as wide as the sum may leave its range: 2-norms of numbers between -1 and 1 do not.
        scales = [_divisor(scale) for scale in torch._foreach_norm(tensors, float("inf"), dtype=dtype)]
        scaled = [tensor / scale for tensor, scale in zip(tensors, scales, strict=True)]
        norms = torch._foreach_norm(scaled, 2, dtype=dtype)
        return [norm * scale for norm, scale in zip(norms, scales, strict=True)]
    return list(torch._foreach_norm(tensors, order, dtype=dtype))


def _divisor(scale: Tensor) -> Tensor:
    """Return `scale` where it can be divided by, 1 elsewhere."""
    return torch.where((scale > 0) & torch.isfinite(scale), scale, torch.ones_like(scale))


def _flat_pieces(
    tensor: Tensor, other: Tensor | None, along: Tensor | None, piece: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Cut a tensor and its counterparts into flat pieces whose elements correspond."""
    given = [t for t in (tensor, other, along) if t is not None]
    if any(t.stride() != tensor.stride() for t in given):
        given = [t.contiguous() for t in given]
    for parts in zip(*(_flat(t).split(piece) for t in given), strict=True):
        remaining = iter(parts)
        yield next(remaining), None if other is None else next(remaining), None if along is None else next(remaining)


def _flat(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor.view(-1)
    # The order of elements does not matter for a norm of entries, so a dense tensor in any memory format is read as it
    # lies.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def _differences(left: list[Tensor], right: list[Tensor | None]) -> list[Tensor]:
    paired = [(a, b) for a, b in zip(left, right, strict=True) if b is not None]
    if not paired:
        return left
    if any(a.dtype in _LOW_PRECISION for a, _ in paired):
        found = [a.float() - b.float() for a, b in paired]
    else:
        found = list(torch._foreach_sub([a for a, _ in paired], [b for _, b in paired]))
    if len(paired) == len(left):
        return found
    remaining = iter(found)
    return [a if b is None else next(remaining) for a, b in zip(left, right, strict=True)]
