"""Norms and inner products of tensors on the CPU, packed end to end into memory that stays in cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsmooth.replay.parking import brought

# What a difference is multiplied by: c itself, or x and y for c = y - x.
Along = Tensor | tuple[Tensor, Tensor]
# a, b and c of ‖a - b‖ and ⟨a - b, c⟩; without b, or without c.
Triple = tuple[Tensor, Tensor | None, Along | None]

ORDERS: Mapping[str, float] = {"l2": 2, "l1": 1, "linf": float("inf")}
LOW_PRECISION = (torch.float16, torch.bfloat16)
# Where n products have a sum above n times this in float32, those too small for float32, below 1.2e-38 each, do not
# change it by more than 1e-8 of itself, whatever the device makes of them.
LEAST_MEAN = 1.2e-30
# So many numbers at a time are summed up in float32: each of a vector unit's 8 lanes takes 16 one after another (of 16
# lanes, 8), and then the lanes are summed up, so that a sum is off by at most 26 roundings of 6e-8, and commonly 1.
ROW = 1 << 7
# Sets of tensors for which it is remembered how to pack them.
_MOST_PLANS = 1 << 8


@dataclass(frozen=True)
class _Load:
    """Tensors that are packed together, or a piece of one.

    Attributes:
        places: Which tensors.
        piece: What part of the flattened tensor, where it is one alone; None for whole tensors.
        slots: Where they go, in the first and in the second memory, in their shapes.
        tails: What their last rows have left over, in both.
        rows: How many rows they take.
    """

    places: tuple[int, ...]
    piece: slice | None
    slots: tuple[list[Tensor], list[Tensor]]
    tails: list[Tensor]
    rows: int


@dataclass(frozen=True)
class _Plan:
    """How tensors of given shapes are packed: in which loads, and at which row of all loads each begins."""

    loads: tuple[_Load, ...]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]


class Packed:
    """Takes norms of differences, and inner products, of tensors that lie on the CPU, none of them float64.

    Differences and products are formed in float32, in two memories that are used again and again. Each tensor takes
    whole rows of 128 numbers, the last of which is filled up with zeros. Rows are summed up in float32, and the rows of
    a tensor in float64.

    Args:
        size: How many numbers each memory holds, in whole rows: larger tensors are taken a piece at a time.
    """

    def __init__(self, size: int) -> None:
        self._memory = torch.zeros(2, -(-size // ROW) * ROW, dtype=torch.float32, device="cpu")
        self._plans: dict[tuple[torch.Size, ...], _Plan] = {}

    @staticmethod
    def takes(tensor: Tensor) -> bool:
        """Say whether a tensor can be taken."""
        return tensor.is_cpu and tensor.dtype != torch.float64 and tensor.numel() > 0

    def norms_and_products(
        self, triples: Sequence[Triple], kinds: Sequence[str]
    ) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
        """Return ‖a_i - b_i‖ by kind, and under "product" ⟨a_i - b_i, c_i⟩, 0 without c_i, all float64 (n,).

        Also returns which tensors stay in float32's range, (n,): the others have to be taken otherwise. Nothing but
        zeros looks like numbers too small.
        """
        plan = self._plan(tuple(tensor.shape for tensor, _, _ in triples))
        with_product = np.array([along is not None for _, _, along in triples])
        rows: dict[str, list[Tensor]] = {name: [] for name in kinds}
        if with_product.any():
            rows["product"] = []
        flat: tuple[Tensor | None, ...] = ()
        for load in plan.loads:
            some = [(a, b, *ends_of(along)) for a, b, along in (triples[place] for place in load.places)]
            if load.piece is not None and load.piece.start == 0:
                flat = flattened(some[0])
            if load.piece is not None:
                some = [tuple(None if t is None else t[load.piece] for t in flat)]  # type: ignore[list-item]
            change = self._difference([a for a, *_ in some], [b for _, b, *_ in some], load, 0)
            for kind in kinds:
                rows[kind].append(torch.linalg.vector_norm(change, ORDERS[kind], dim=1))
            if "product" in rows:
                step = self._difference([y for *_, y in some], [x for *_, x, _ in some], load, 1)
                into = self._memory[0, : load.rows * ROW].view(-1, ROW)
                rows["product"].append(torch.mul(change, step, out=into).sum(1))
        joined = {name: torch.cat(parts).double().numpy() for name, parts in rows.items()}
        found: dict[str, NDArray[np.float64]] = {}
        within = np.ones(len(triples), dtype=bool)
        least = plan.sizes * LEAST_MEAN
        for name, numbers in joined.items():
            if name == "linf":
                found[name] = np.maximum.reduceat(numbers, plan.starts)
                continue
            sums = np.add.reduceat(np.square(numbers) if name == "l2" else numbers, plan.starts)
            if name != "l1":
                inside = (np.abs(sums) > least) & (np.abs(sums) < math.inf)
                within &= inside if name == "l2" else inside | ~with_product
            found[name] = np.sqrt(sums) if name == "l2" else sums
        return found, within

    def _difference(
        self, left: Sequence[Tensor | None], right: Sequence[Tensor | None], load: _Load, which: int
    ) -> Tensor:
        """Return differences in float32 as rows, (rows, 128), 0 for what is not there.

        They are formed in one of the memories, but for a piece that is its own difference.
        """
        rows = self._memory[which, : load.rows * ROW].view(-1, ROW)
        slots = load.slots[which]
        a, b = left[0], right[0]
        if len(slots) == 1 and a is not None and a.dtype == torch.float32:
            if b is None and a.numel() == rows.numel() and a.is_contiguous():
                return a.view(-1, ROW)
            if b is not None and b.dtype == a.dtype:
                torch.sub(a, b, out=slots[0])
                left, right = (), ()
        present = [(slot, a) for slot, a in zip(slots, left, strict=False) if a is not None]
        if len(present) < len(left):
            rows.zero_()
        if present:
            torch._foreach_copy_([slot for slot, _ in present], [a for _, a in present])
        minus = [(slot, b) for slot, b in zip(slots, right, strict=False) if b is not None]
        if minus:
            torch._foreach_sub_([slot for slot, _ in minus], [b for _, b in minus])
        if load.tails:
            torch._foreach_zero_(load.tails)
        return rows

    def _plan(self, shapes: tuple[torch.Size, ...]) -> _Plan:
        """Return how to pack tensors of these shapes."""
        if shapes in self._plans:
            return self._plans[shapes]
        capacity = self._memory.shape[1]
        loads: list[_Load] = []
        waiting: list[int] = []
        lengths = [-(-shape.numel() // ROW) * ROW for shape in shapes]
        held = 0
        for place, length in enumerate(lengths):
            if waiting and held + length > capacity:
                loads.append(self._load(waiting, shapes))
                waiting, held = [], 0
            if length <= capacity:
                waiting.append(place)
                held += length
                continue
            size = shapes[place].numel()
            pieces = [slice(start, min(start + capacity, size)) for start in range(0, size, capacity)]
            loads += [self._load([place], [torch.Size([p.stop - p.start])] * (place + 1), p) for p in pieces]
        if waiting:
            loads.append(self._load(waiting, shapes))
        starts = np.cumsum([0, *lengths[:-1]]) // ROW
        if len(self._plans) == _MOST_PLANS:
            self._plans.clear()
        self._plans[shapes] = _Plan(tuple(loads), starts, np.array([shape.numel() for shape in shapes]))
        return self._plans[shapes]

    def _load(self, places: Sequence[int], shapes: Sequence[torch.Size], piece: slice | None = None) -> _Load:
        slots: tuple[list[Tensor], list[Tensor]] = ([], [])
        tails: list[Tensor] = []
        start = 0
        for place in places:
            size = shapes[place].numel()
            end = -(-(start + size) // ROW) * ROW
            for memory, into in zip(self._memory, slots, strict=True):
                into.append(memory[start : start + size].view(shapes[place]))
                if start + size < end:
                    tails.append(memory[start + size : end])
            start = end
        return _Load(tuple(places), piece, slots, tails, start // ROW)


def same(tensor: Tensor, other: Tensor | None) -> bool:
    """Say whether a tensor on the CPU holds the same finite numbers as another, or nothing but zeros without one."""
    whole = _WHOLE[tensor.element_size()]
    bits = tensor.detach().view(whole).numpy()
    return not bits.any() if other is None else np.array_equal(bits, other.detach().view(whole).numpy())


_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def ends_of(along: Along | None) -> tuple[Tensor | None, Tensor | None]:
    """Return x and y of what a difference is multiplied by, y - x; None for x where it is y itself."""
    return along if isinstance(along, tuple) else (None, along)


def flattened(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return tensors of one shape as flat ones whose elements correspond; None stays None, and parked ones parked.

    What lies differently from the others is first brought to the device of the first.
    """
    given = [t for t in tensors if t is not None]
    same = all(t.stride() == given[0].stride() for t in given)
    device = given[0].device
    return tuple(None if t is None else _flat(t if same else brought(t, device).contiguous()) for t in tensors)


def _flat(tensor: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor.view(-1)
    # The order of elements does not matter for a norm of entries, so a dense tensor in any memory format is read as it
    # lies.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)
