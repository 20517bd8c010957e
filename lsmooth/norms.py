"""Norms of many tensors at once, accumulated in float64 and left on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements that are taken at a time: on the CPU what stays in cache between the difference and its norm, on a GPU what
# keeps it busy at little memory.
_CPU_PIECE = 1 << 18
_GPU_PIECE = 1 << 22
_LOW_PRECISION = (torch.float16, torch.bfloat16)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the widest real dtype that a device computes in: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


class TensorNorms:
    """‖a_i - b_i‖2 of n tensors that arrive one after another, in any order; b_i may be missing and counts as 0.

    Differences are formed in float32 or wider, squares are summed in float64: gradients of 1e-30 do not underflow,
    and bfloat16 ones do not lose the digits that they share. Nothing waits for the device.

    Args:
        sizes: Number of elements of each of the n tensors.
        device: Where the result is wanted.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self._device = device
        self.dtype = accumulation_dtype(device)
        self._zero = torch.zeros((), dtype=self.dtype, device=device)
        piece = self._piece = _CPU_PIECE if device.type == "cpu" else _GPU_PIECE
        pieces = [max(1, -(-size // piece)) for size in sizes]
        self._owners: Tensor | None = None
        if any(count > 1 for count in pieces):
            self._owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(pieces)).to(device)
        self._pieces = pieces
        self._parts: list[list[Tensor] | None] = []
        self.clear()

    def missing(self) -> list[int]:
        """Return the positions at which nothing has arrived yet."""
        return [position for position, parts in enumerate(self._parts) if parts is None]

    def clear(self) -> None:
        """Forget what has arrived."""
        self._parts = [None] * len(self._pieces)

    def add(self, positions: Sequence[int], tensors: Sequence[Tensor], minus: Sequence[Tensor | None]) -> None:
        """Take in the tensors at some positions, less their counterparts; temporary memory is one difference."""
        left: list[Tensor] = []
        right: list[Tensor | None] = []
        for tensor, other in zip(tensors, minus, strict=True):
            pieces, others = _flat_pair(tensor.detach(), other, self._piece)
            left += pieces
            right += others
        norms = _difference_norms(left, right, self.dtype, self._piece)
        taken = 0
        for position in positions:
            count = self._pieces[position]
            parts = norms[taken : taken + count]
            if tensors[0].device != self._device:
                parts = [part.to(self._device, non_blocking=True) for part in parts]
            self._parts[position] = parts
            taken += count

    def result(self) -> Tensor:
        """Return the n norms, float64 (n,), 0 where nothing has arrived, and start anew."""
        parts: list[Tensor] = []
        for count, arrived in zip(self._pieces, self._parts, strict=True):
            parts += arrived if arrived is not None else [self._zero] * count
        norms = torch.stack(parts)
        self.clear()
        if self._owners is None:
            return norms
        # Pieces of one tensor join through their squares, scaled so that float64 tensors keep their range too.
        squares = torch.zeros(len(self._pieces), dtype=self.dtype, device=self._device)
        return squares.index_add_(0, self._owners, norms.square()).sqrt_()


def tensor_norms(tensors: Sequence[Tensor], minus: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """Return ‖a_i - b_i‖2 of n tensors, float64 (n,) on `device`; see `TensorNorms`."""
    norms = TensorNorms([tensor.numel() for tensor in tensors], device)
    for position, (tensor, other) in enumerate(zip(tensors, minus, strict=True)):
        norms.add([position], [tensor], [other])
    return norms.result()


def _flat_pair(tensor: Tensor, other: Tensor | None, piece: int) -> tuple[list[Tensor], list[Tensor | None]]:
    """Cut a tensor and its counterpart into flat pieces whose elements correspond."""
    if other is not None and tensor.stride() != other.stride():
        tensor, other = tensor.contiguous(), other.contiguous()
    flat = _flat(tensor)
    pieces = list(flat.split(piece)) if flat.numel() > piece else [flat]
    if other is None:
        return pieces, [None] * len(pieces)
    flat_other = _flat(other)
    return pieces, list(flat_other.split(piece)) if flat_other.numel() > piece else [flat_other]


def _flat(tensor: Tensor) -> Tensor:
    # The order of elements does not matter for a norm, so a dense tensor in any memory format is read as it lies.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor.permute(order).reshape(-1)


def _difference_norms(left: list[Tensor], right: list[Tensor | None], dtype: torch.dtype, budget: int) -> list[Tensor]:
    """Return the norms of differences; differences of up to `budget` elements are held at a time."""
    norms: list[Tensor] = []
    start = 0
    while start < len(left):
        stop, held = start, 0
        while stop < len(left) and (stop == start or held + left[stop].numel() <= budget):
            held += left[stop].numel()
            stop += 1
        differences = _differences(left[start:stop], right[start:stop])
        norms += torch._foreach_norm(differences, 2, dtype=dtype)
        start = stop
    return norms


def _differences(left: list[Tensor], right: list[Tensor | None]) -> list[Tensor]:
    paired = [(a, b) for a, b in zip(left, right, strict=True) if b is not None]
    if not paired:
        return left
    if any(tensor.dtype in _LOW_PRECISION for pair in paired for tensor in pair):
        found = [a.float() - b.float() for a, b in paired]
    else:
        found = list(torch._foreach_sub([a for a, _ in paired], [b for _, b in paired]))
    if len(paired) == len(left):
        return found
    remaining = iter(found)
    return [a if b is None else next(remaining) for a, b in zip(left, right, strict=True)]
