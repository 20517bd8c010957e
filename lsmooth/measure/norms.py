"""Norms of many tensors at once, accumulated in float32 or wider and left on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lsmooth.measure.singular import divisor, singular_values
from lsmooth.precision import accumulation_dtype
from lsmooth.trace.layout import NormKind

Kind = NormKind

# Elements that are converted or copied at a time: on the CPU few enough to stay in a core's cache in float64, on a GPU
# what keeps it busy at little memory, a share of the whole within bounds.
_CPU_PIECE = 1 << 17
_GPU_PIECE = 1 << 22
_GPU_LEAST_PIECE = 1 << 18
_GPU_SHARE = 1 / 24
# On the CPU, differences in float32 are formed in the same memory again and again, so many elements at a time: few
# enough to stay in the cache that cores share, and enough for a call to cost little beside what it does.
_CPU_SCRATCH = 1 << 19
# So many squares at a time are summed up in float32: each of a vector unit's 8 lanes takes 16 one after another (of 16
# lanes, 8), and then the lanes are summed up, so that the root is off by at most 13 roundings of 6e-8.
_ROW = 1 << 7
# Between two tensors, so many are, one after another: the root is off by at most 9 roundings.
_DISTANCE_ROW = 1 << 4
# Where n products have a sum above n times this in float32, those too small for float32, below 1.2e-38 each, do not
# change it by more than 1e-8 of itself, whatever the device makes of them.
_LEAST_MEAN = 1.2e-30
# On the CPU, pieces from this size on pay for a call of their own each; smaller ones are taken together up to this.
_CPU_LARGE = 1 << 13
_LOW_PRECISION = (torch.float16, torch.bfloat16)
_MATRIX_KINDS = ("nuclear", "spectral")
_ORDERS: Mapping[str, float] = {"l2": 2, "l1": 1, "linf": float("inf")}


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
    summed up in float32, few at a time, where they stay in its range: the 2-norm is then right to 1e-6, and commonly to
    1e-7. All other sums are taken in float64. Nothing waits for the device, but for the singular values of "nuclear"
    and "spectral", which CUDA's solvers check on the host.

    The nuclear and the spectral norm are those of the matrix of `tensor.flatten(1)`; a tensor of fewer than two
    dimensions is a matrix of one column, both of whose norms are its 2-norm.

    Args:
        sizes: Number of elements of each of the n tensors.
        device: Where the result is wanted.
        kinds: Which norms; "own" is each tensor's of `own`.
        own: One kind for each of the n tensors.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        device: torch.device,
        kinds: Sequence[Kind] = ("l2",),
        own: Sequence[Kind] = (),
    ) -> None:
        self._device = device
        self.dtype = accumulation_dtype(device)
        self._kinds, self._own = tuple(kinds), own or ["l2"] * len(sizes)
        # By position: singular values are taken of those matrices alone that need them.
        asked = [{*kinds, kind} if "own" in kinds else {*kinds} for kind in self._own]
        self._matrix_kinds = [[kind for kind in _MATRIX_KINDS if kind in some] for some in asked]
        # Vectors need their 2-norm where matrices need singular values.
        every = {*kinds, *(kind for some in asked for kind in some)}
        matrices = not every.isdisjoint(_MATRIX_KINDS)
        self._entry_kinds = [kind for kind in _ORDERS if kind in every or (kind == "l2" and matrices)]
        self._zero = torch.zeros((), dtype=self.dtype, device=device)
        piece = piece_size(device)
        if device.type != "cpu":
            piece = min(piece, max(_GPU_LEAST_PIECE, int(_GPU_SHARE * sum(sizes))))
        self._piece = piece
        # On the CPU, a difference that is written to memory costs more than one that stays in cache.
        self._overwrites = device.type != "cpu"
        self._together = _CPU_LARGE if device.type == "cpu" else piece
        # The CPU's memory for differences; none where all tensors are too small to pay for calls of their own.
        longest = min(_CPU_SCRATCH, max(sizes, default=0)) if device.type == "cpu" else 0
        self._scratch = _Scratch(longest if longest >= _CPU_LARGE else 0)
        self._count = len(sizes)
        # By position: what has arrived, by kind.
        self._found: list[dict[str, Tensor] | None] = []
        self._products: list[Tensor] = []
        self.clear()

    def missing(self) -> list[int]:
        """Return the positions at which nothing has arrived yet."""
        return [position for position, found in enumerate(self._found) if found is None]

    def clear(self) -> None:
        """Forget what has arrived."""
        self._found = [None] * self._count
        self._products = []

    @torch.no_grad()
    def add(
        self,
        positions: Sequence[int],
        tensors: Sequence[Tensor],
        minus: Sequence[Tensor | None],
        along: Sequence[Tensor | None] | None = None,
        *,
        consumed: bool = False,
    ) -> None:
        """Take in the tensors at some positions, less their counterparts; temporary memory is one piece.

        Args:
            positions: Which of the n tensors arrive.
            tensors: a_i.
            minus: b_i; None for 0.
            along: c_i, whose inner product with a_i - b_i is summed up; None for none.
            consumed: The a_i are needed no more, and may be overwritten: on a GPU that saves memory and kernels.
        """
        if consumed and self._overwrites:
            minus = _subtract_in_place(tensors, minus)
        small: list[_Given] = []
        for position, tensor, other, third in zip(
            positions, tensors, minus, along or [None] * len(positions), strict=True
        ):
            size = tensor.numel()
            if not size:
                self._found[position] = {}
            elif self._scratch.takes(tensor):
                self._found[position] = self._in_scratch(tensor, other, third)
            elif size > self._piece and self._takes_memory(tensor, other):
                self._found[position] = self._in_pieces(tensor, other, third)
            else:
                small.append((position, tensor, other, third))
        self._add_small(small)
        for position, tensor, other in zip(positions, tensors, minus, strict=True):
            if (found := self._found[position]) and (kinds := self._matrix_kinds[position]):
                found |= self._of_matrix(tensor, other, found["l2"], kinds)

    def result(self) -> dict[Kind, Tensor]:
        """Return by kind the n norms, float64 (n,), 0 where nothing has arrived, and start anew."""
        return self.result_and_product()[0]

    def result_and_product(self) -> tuple[dict[Kind, Tensor], Tensor]:
        """Return what `result` does, and Σ_i ⟨c_i, a_i - b_i⟩, float64 without dimensions, and start anew.

        On the CPU, products of large tensors are formed and summed up pairwise in float32, 2^19 at a time, where they
        stay in its range: the error is about 1e-7 Σ_ij |c_ij (a_ij - b_ij)|. All others are formed in float64.
        """
        norms = {
            kind: torch.stack(
                [
                    found.get(own if kind == "own" else kind, self._zero) if found else self._zero
                    for found, own in zip(self._found, self._own, strict=True)
                ]
            )
            for kind in self._kinds
        }
        product = torch.stack(self._products).sum() if self._products else self._zero
        self.clear()
        return norms, product

    def _add_small(self, given: list[_Given]) -> None:
        """Take in tensors of one piece each, several at a time."""
        sizes = [tensor.numel() * self._takes_memory(tensor, other) for _, tensor, other, _ in given]
        for group in _grouped(given, sizes, self._together):
            self._add_group(group)

    def _takes_memory(self, tensor: Tensor, other: Tensor | None) -> bool:
        """Say whether a norm takes a temporary tensor: a difference, or what `_entry_norms` scales."""
        return other is not None or tensor.dtype == self.dtype

    def _add_group(self, group: Sequence[_Given]) -> None:
        differences = _differences([tensor for _, tensor, _, _ in group], [other for _, _, other, _ in group])
        by_kind = [_entry_norms(differences, kind, self.dtype) for kind in self._entry_kinds]
        for (position, *_), norms in zip(group, zip(*by_kind, strict=True), strict=True):
            self._found[position] = dict(zip(self._entry_kinds, map(self._brought, norms), strict=True))
        self._add_products([(d, third) for d, (*_, third) in zip(differences, group, strict=True) if third is not None])

    def _add_products(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take in inner products, of small tensors several at a time, of large ones a piece at a time."""
        small = []
        for pair in pairs:
            if pair[0].numel() <= self._piece // 8:
                small.append(pair)
                continue
            for left, right, _ in _flat_pieces(*pair, None, self._piece):
                assert right is not None
                self._products.append(self._brought(self._product(left, right)))
        for some in _grouped(small, [difference.numel() for difference, _ in small], self._piece // 8):
            flat = (torch.cat([self._brought(t.reshape(-1)) for t in ts]) for ts in zip(*some, strict=True))
            self._products.append(self._product(*flat))

    def _in_scratch(
        self, tensor: Tensor, other: Tensor | None, along: Tensor | None, dtype: torch.dtype = torch.float32
    ) -> dict[str, Tensor]:
        """Return by kind the norms of a difference that lies on the CPU, squares and products summed up in `dtype`."""
        partial: dict[str, list[Tensor]] = {kind: [] for kind in self._entry_kinds}
        products: list[Tensor] = []
        # The 2-norm alone takes no difference that is held somewhere.
        squares_only = self._entry_kinds == ["l2"] and along is None
        if squares_only and other is not None and tensor.dtype == other.dtype == dtype:
            partial["l2"] = _partial_distances(tensor, other)
        else:
            for difference, third in self._scratch.differences(tensor, other, along):
                for kind, parts in partial.items():
                    parts += _partial_norms(difference, kind, dtype)
                if third is not None:
                    products.append(self._scratch.product(difference, third, dtype))
        norms = {
            kind: torch.linalg.vector_norm(
                torch.cat(parts) if len(parts) > 1 else parts[0], _ORDERS[kind], dtype=self.dtype
            )
            for kind, parts in partial.items()
        }
        product = torch.stack(products).sum(dtype=self.dtype) if products else None
        if dtype == torch.float32:
            # Numbers are read at once, which waits for nothing on the CPU.
            sums = [norms["l2"].item() ** 2] if "l2" in norms else []
            sums += [] if product is None else [abs(product.item())]
            least = tensor.numel() * _LEAST_MEAN
            if not all(least < total < math.inf for total in sums):
                return self._in_scratch(tensor, other, along, torch.float64)
        if product is not None:
            self._products.append(self._brought(product))
        return {kind: self._brought(norm) for kind, norm in norms.items()}

    def _in_pieces(self, tensor: Tensor, other: Tensor | None, along: Tensor | None) -> dict[str, Tensor]:
        """Return by kind the norms of a difference, one piece of which is held at a time."""
        norms: dict[str, list[Tensor]] = {kind: [] for kind in self._entry_kinds}
        for left, right, third in _flat_pieces(tensor, other, along, self._piece):
            difference = _differences([left], [right])[0]
            for kind, parts in norms.items():
                parts += _entry_norms([difference], kind, self.dtype)
            if third is not None:
                self._products.append(self._brought(self._product(difference, third)))
        return {
            kind: self._brought(_entry_norms([torch.stack(parts)], kind, self.dtype)[0])
            for kind, parts in norms.items()
        }

    def _of_matrix(
        self, tensor: Tensor, other: Tensor | None, two_norm: Tensor, kinds: Sequence[str]
    ) -> dict[str, Tensor]:
        """Return by kind the norms that go by singular values."""
        if tensor.dim() < 2:
            return dict.fromkeys(kinds, two_norm)
        values = singular_values(tensor, other, self.dtype, self._piece)
        norms = {kind: values.sum() if kind == "nuclear" else values.max() for kind in kinds}
        return {kind: self._brought(norm) for kind, norm in norms.items()}

    def _product(self, difference: Tensor, along: Tensor) -> Tensor:
        """Return the inner product of a difference and its counterpart, both flat."""
        return difference.to(self.dtype, copy=True).mul_(along).sum()

    def _brought(self, norm: Tensor) -> Tensor:
        return norm if norm.device == self._device else norm.to(self._device, non_blocking=True)


class _Scratch:
    """Pieces of differences on the CPU, formed in float32, in memory that stays in cache.

    Args:
        size: The largest number of elements of a piece.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory = torch.empty(size, dtype=torch.float32, device="cpu")

    def takes(self, tensor: Tensor) -> bool:
        """Say whether pieces of a tensor are to be taken here."""
        return self._size > 0 and tensor.numel() >= _CPU_LARGE and tensor.is_cpu and tensor.dtype != torch.float64

    def differences(
        self, tensor: Tensor, other: Tensor | None, along: Tensor | None
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Cut a difference and its counterpart into flat pieces; each is there until the next is taken."""
        low = tensor.dtype in _LOW_PRECISION
        # A tensor that is its own difference needs no memory, and is taken whole.
        size = self._size if low or other is not None or along is not None else tensor.numel()
        for left, right, third in _flat_pieces(tensor, other, along, size):
            into = self._memory[: len(left)]
            if low:
                into.copy_(left)
                yield into if right is None else into.sub_(right), third
            else:
                yield left if right is None else torch.sub(left, right, out=into), third

    def product(self, difference: Tensor, along: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the inner product of a piece of a difference with its counterpart; the piece is then gone."""
        if dtype == torch.float32:
            return torch.mul(difference, along, out=self._memory[: len(along)]).sum()
        pairs = zip(difference.split(_CPU_LARGE), along.split(_CPU_LARGE), strict=True)
        return torch.stack([torch.dot(left.to(dtype), right.to(dtype)) for left, right in pairs]).sum()


def tensor_norms(tensors: Sequence[Tensor], minus: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Return ‖a_i - b_i‖2 of n tensors, float64 (n,) on `device`; see `TensorNorms`."""
    norms = TensorNorms([tensor.numel() for tensor in tensors], device)
    for position, (tensor, other) in enumerate(zip(tensors, minus, strict=True)):
        norms.add([position], [tensor], [other])
    return norms.result()["l2"]


def _partial_norms(flat: Tensor, kind: str, dtype: torch.dtype) -> list[Tensor]:
    """Return norms of parts of a flat float32 tensor on the CPU, squares summed up in `dtype`, all else in float64."""
    if kind == "linf":
        least, most = torch.aminmax(flat)
        return [torch.maximum(-least, most).view(1)]
    if kind == "l2" and dtype == torch.float32:
        rows, rest = flat.split([len(flat) // _ROW * _ROW, len(flat) % _ROW])
        found = [torch.linalg.vector_norm(rows.view(-1, _ROW), dim=1)]
        return [*found, torch.linalg.vector_norm(rest, keepdim=True)] if len(rest) else found
    # Squares rarely come here, where converting them is to take little memory.
    parts = flat.split(_CPU_LARGE if kind == "l2" else _CPU_PIECE)
    return [torch.linalg.vector_norm(part, _ORDERS[kind], keepdim=True, dtype=torch.float64) for part in parts]


def _partial_distances(tensor: Tensor, other: Tensor) -> list[Tensor]:
    """Return 2-norms of parts of the difference of two float32 tensors on the CPU, which is not held anywhere."""
    found: list[Tensor] = []
    for left, right, _ in _flat_pieces(tensor, other, None, _CPU_SCRATCH):
        assert right is not None
        size = len(left) // _DISTANCE_ROW * _DISTANCE_ROW
        rows, others = (flat[:size].view(-1, 1, _DISTANCE_ROW) for flat in (left, right))
        # Without matrix products, which would lose the digits that the two share.
        found.append(torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").view(-1))
        if size < len(left):
            found.append(torch.linalg.vector_norm(left[size:] - right[size:], keepdim=True))
    return found


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
        scales = [divisor(scale) for scale in torch._foreach_norm(tensors, float("inf"), dtype=dtype)]
        scaled = [tensor / scale for tensor, scale in zip(tensors, scales, strict=True)]
        norms = torch._foreach_norm(scaled, 2, dtype=dtype)
        return [norm * scale for norm, scale in zip(norms, scales, strict=True)]
    return list(torch._foreach_norm(tensors, order, dtype=dtype))


def flat_pieces(tensors: Sequence[Tensor | None], piece: int) -> Iterator[tuple[Tensor | None, ...]]:
    """Cut tensors of one shape into flat pieces whose elements correspond; None stays None.

    Args:
        tensors: The first is there.
        piece: The largest number of elements of a piece.
    """
    given = [t for t in tensors if t is not None]
    if any(t.stride() != given[0].stride() for t in given):
        given = [t.contiguous() for t in given]
    for parts in zip(*(_flat(t).split(piece) for t in given), strict=True):
        remaining = iter(parts)
        yield tuple(None if t is None else next(remaining) for t in tensors)


def _flat_pieces(
    tensor: Tensor, other: Tensor | None, along: Tensor | None, piece: int
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Cut a tensor and its counterparts into flat pieces whose elements correspond."""
    for first, second, third in flat_pieces((tensor, other, along), piece):
        assert first is not None
        yield first, second, third


def _flat(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor.view(-1)
    # The order of elements does not matter for a norm of entries, so a dense tensor in any memory format is read as it
    # lies.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def _subtract_in_place(tensors: Sequence[Tensor], minus: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Subtract in place where nothing is lost by it; return what is left to be subtracted."""
    taken = [
        other is not None and tensor.dtype == other.dtype and tensor.dtype not in _LOW_PRECISION
        for tensor, other in zip(tensors, minus, strict=True)
    ]
    pairs = [(a, b) for a, b, taken_here in zip(tensors, minus, taken, strict=True) if taken_here and b is not None]
    if pairs:
        torch._foreach_sub_([a for a, _ in pairs], [b for _, b in pairs])
    return [None if taken_here else other for other, taken_here in zip(minus, taken, strict=True)]


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
